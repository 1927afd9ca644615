"""Archives of images and labels, as MedMNIST ships them."""

import numpy as np
import pytest

from pipeline.data.images import PixelPolicy, resize_pixels
from pipeline.data.sources import read_image, scan
from pipeline.errors import ImageError, StudyError
from pipeline.study import GIVEN, SourceDomain
from tests.image_files import listed, picture, pictures


def archive(tmp_path, **arrays):
    """A source whose path is an archive of these arrays."""
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    return SourceDomain(path=tmp_path / "x.npz", split=GIVEN)


def test_rows_have_the_label_and_the_split_of_their_arrays(tmp_path):
    """Grey or colour; labels as a column."""
    grey, colour = pictures(3), np.stack([picture(seed=5)])
    source = archive(
        tmp_path,
        train_images=grey,
        train_labels=np.array([[0], [1], [0]], np.uint8),
        val_images=colour,
        val_labels=np.array([[1]]),
        test_images=grey,
        test_labels=np.zeros(3, int),
    )
    found = [(i.path, i.label, i.split) for i in scan(source).items]
    assert found == [
        ("train#0", "0", "fit"),
        ("train#1", "1", "fit"),
        ("train#2", "0", "fit"),
        ("val#0", "1", "validation"),
    ]
    for item, row in zip(scan(source).items, [*grey, *colour], strict=True):
        expected = resize_pixels(row, PixelPolicy())
        assert (read_image(item).pixels(PixelPolicy()) == expected).all()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros(3)}, r"holds no array called NAME_images, such as train_images"),
        ({"train_images": pictures(2)}, r"has no array train_labels"),
        (
            {"train_images": pictures(2), "train_labels": np.zeros((2, 14), int)},
            r"train_labels has shape \(2, 14\), int64; allowed is one whole number an image",
        ),
        (
            {"train_images": pictures(2), "train_labels": np.zeros(3, int)},
            r"2 images but 3 labels of train",
        ),
        (
            {"train_images": np.zeros((2, 8, 8), np.uint8), "train_labels": np.zeros(2, int)},
            r"train_images has shape \(2, 8, 8\): its images are too small",
        ),
        (
            {"train_images": pictures(2), "train_labels": np.array([{}, {}], object)},
            r"train_labels is damaged, or no plain array \(Object arrays cannot be loaded",
        ),
    ],
)
def test_an_archive_of_another_form_is_refused(tmp_path, arrays, sentence):
    """With what it is and what is allowed; nothing is unpickled."""
    with pytest.raises(StudyError, match=sentence):
        scan(archive(tmp_path, **arrays))


def test_a_damaged_archive_is_refused(tmp_path):
    """Whatever is in it."""
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(StudyError, match=r"x\.npz is not a \.npz file, or a damaged one"):
        listed(tmp_path / "x.npz")


def test_a_file_that_changed_is_not_mixed_with_what_it_was(tmp_path):
    """The next run takes it as it is."""
    arrays = {"train_images": pictures(2), "train_labels": np.arange(2)}
    archive(tmp_path, **arrays)
    item = listed(tmp_path / "x.npz").items[0]
    archive(tmp_path, **arrays, val_images=pictures(2), val_labels=np.arange(2))
    with pytest.raises(ImageError, match="changed after it was listed"):
        read_image(item)
