"""Stacks and archives: rows as images, keys of rows, and what a file cannot do to us."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from pipeline.data.images import Transform, decode
from pipeline.data.sources import read_image, scan
from pipeline.errors import ImageError, StudyError
from pipeline.study import GIVEN, ImageTable, SourceDomain
from tests.image_files import listed, picture, pictures, png, with_stack


@pytest.mark.parametrize("one_channel", [False, True])
def test_each_row_of_a_stack_is_an_image(tmp_path, one_channel):
    """Grey or colour, with the class in the file's name and the row in the path."""
    grey, colour = pictures(3), np.stack([picture(seed=5), picture(seed=6)])
    with_stack(tmp_path, "test_normal.npy", grey[..., None] if one_channel else grey)
    with_stack(tmp_path, "Pneumonia.npy", colour)
    listing = listed(tmp_path)
    assert [(i.path, i.label, i.row) for i in listing.items] == [
        *((f"Pneumonia.npy#{row}", "Pneumonia", row) for row in range(2)),
        *((f"test_normal.npy#{row}", "normal", row) for row in range(3)),
    ]
    for item, row in zip(listing.items, [*colour, *grey], strict=True):
        expected = decode(png(row), Transform())
        assert (read_image(item).pixels(Transform()) == expected).all()
        assert item.stat.size == Path(item.file).stat().st_size


def test_the_key_of_a_row_is_its_own(tmp_path):
    """SHA-256 over dtype, shape and bytes: the file and the position do not matter."""
    rows = pictures(3)
    first = listed(with_stack(tmp_path / "one", "a.npy", rows)).items
    second = listed(with_stack(tmp_path / "two", "b.npy", rows[::-1])).items
    keys = [read_image(item).key for item in first]
    assert keys == [read_image(item).key for item in reversed(second)]
    assert len(set(keys)) == 3
    assert keys[0] == hashlib.sha256(b"|u1|(64, 64)|" + rows[0].tobytes()).digest()


BAD_STACKS = {
    "complex": (np.zeros((2, 64, 64), complex), r"shape \(2, 64, 64\), complex128; allowed are"),
    "flat": (np.zeros((64, 64), np.uint8), r"has shape \(64, 64\), uint8; allowed are"),
    "channels first": (np.zeros((2, 3, 64, 64), np.uint8), r"has shape \(2, 3, 64, 64\), uint8"),
    "one image": (np.zeros((64, 64, 3), np.uint8), r"its images are too small \(3 x 64,"),
    "none": (np.zeros((0, 64, 64), np.uint8), r"shape \(0, 64, 64\): it holds no image"),
    "Fortran": (np.asfortranarray(np.zeros((2, 64, 64), np.uint8)), r"np\.ascontiguousarray"),
    "scalar": (np.uint8(3), r"has shape \(\), uint8"),
}


@pytest.mark.parametrize("name", BAD_STACKS)
def test_a_stack_of_another_form_is_refused(tmp_path, name):
    """Shape and dtype are shown, and what is allowed."""
    array, message = BAD_STACKS[name]
    with pytest.raises(StudyError, match=message):
        listed(with_stack(tmp_path, "normal.npy", array))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (os.mkdir, (self.target,))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    """Neither inside an object array nor as the file itself."""
    target = tmp_path / "executed"
    objects = np.empty(2, object)
    objects[:] = Payload(target)
    with_stack(tmp_path / "array", "normal.npy", objects, allow_pickle=True)
    with pytest.raises(StudyError, match="holds Python objects, which are never loaded"):
        listed(tmp_path / "array")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/normal.npy").write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(StudyError, match=r"is not a \.npy file, or a damaged one"):
        listed(tmp_path / "plain")
    assert not target.exists()


@pytest.mark.parametrize("count", [4, 10**6, 10**30])
def test_a_header_that_declares_more_than_the_file_holds_is_refused(tmp_path, count):
    """Before anything is allocated: one row too many, or all the memory of the world."""
    with (tmp_path / "normal.npy").open("wb") as file:
        header = {"shape": (count, 64, 64), "fortran_order": False, "descr": "|u1"}
        npy.write_array_header_1_0(file, header)
        file.write(pictures(3).tobytes())
    with pytest.raises(StudyError, match=rf"is truncated: shape \({count}, 64, 64\) needs"):
        listed(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 127), st.binary(max_size=6), st.integers(0, 9000))
def test_a_hostile_stack_gives_items_or_a_study_error(tmp_path, at, new, length):
    """Whatever the header says: no other exception, and every row listed can be read."""
    file = tmp_path / "normal.npy"
    np.save(file, pictures(2))
    data = file.read_bytes()
    file.write_bytes((data[:at] + new + data[at + len(new) :])[:length])
    try:
        listing = listed(tmp_path)
    except StudyError:
        return
    assert {len(read_image(item).key) for item in listing.items} == {32}


def test_a_stack_that_changed_after_it_was_listed_is_a_reason(tmp_path):
    """Shorter, replaced or written to: its rows may be elsewhere now."""
    item = listed(with_stack(tmp_path, "normal.npy", pictures(3))).items[2]
    read_image(item)
    os.truncate(item.file, 1000)
    with pytest.raises(ImageError, match="its stack changed after it was listed"):
        read_image(item)
    with_stack(tmp_path, "normal.npy", pictures(3, seed=9))
    with pytest.raises(ImageError, match="its stack changed after it was listed"):
        read_image(item)


# --- archives of several arrays


def npz(tmp_path, **arrays):
    """A source whose path is an archive of these arrays."""
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    return SourceDomain(path=tmp_path / "x.npz", split=GIVEN)


def test_rows_have_the_label_and_the_split_of_their_arrays(tmp_path):
    """Grey or colour; labels as a column."""
    grey, colour = pictures(3), np.stack([picture(seed=5)])
    train = {"train_images": grey, "train_labels": np.array([[0], [1], [0]], np.uint8)}
    val = {"val_images": colour, "val_labels": np.array([[1]])}
    source = npz(tmp_path, **train, **val, test_images=grey, test_labels=np.zeros(3, int))
    found = [(i.path, i.label, i.split) for i in scan(source).items]
    of_train = [(f"train#{row}", label, "fit") for row, label in enumerate("010")]
    assert found == [*of_train, ("val#0", "1", "validation")]
    for item, row in zip(scan(source).items, [*grey, *colour], strict=True):
        expected = decode(png(row), Transform())
        assert (read_image(item).pixels(Transform()) == expected).all()


def test_columns_of_labels_are_findings(tmp_path):
    """By number or by the study's name; 1, 0, and -1 or no number where it is not known."""
    labels = np.array([[1, 0], [0, 1], [-1, np.nan]])
    path = npz(tmp_path, train_images=pictures(3), train_labels=labels).path
    for finding, values, marks in (
        ("0", {}, ["0", "not 0", ""]),
        ("Mass", {"Mass": ("1",)}, ["not Mass", "Mass", ""]),
    ):
        table = ImageTable(file=path, finding=finding, values=values)
        assert [i.label for i in scan(SourceDomain(path=path, table=table)).items] == marks
    for finding, sentence in (
        ("2", r"columns 0 to 1, and none is named '2'\. Write values = \{'2' = \"0\"\}"),
        ("Mass", r"none is named 'Mass'"),
    ):
        with pytest.raises(StudyError, match=sentence):
            scan(SourceDomain(path=path, table=ImageTable(file=path, finding=finding)))
    npz(tmp_path, train_images=pictures(2), train_labels=np.array([[1, 0], [7, 0]]))
    with pytest.raises(StudyError, match=r"labels row 1: 0 is '7'; allowed are 1, 0, and"):
        scan(SourceDomain(path=path, table=ImageTable(file=path, finding="0")))


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_code_of_many_digits_is_a_class_of_its_own(tmp_path, dtype):
    """Codes such as those of SNOMED; neighbours are not merged, and ``values`` finds them."""
    codes = np.array([233604007, 233604008, 0]).astype(dtype)
    path = npz(tmp_path, train_images=pictures(3), train_labels=codes).path
    labels = [item.label for item in scan(SourceDomain(path=path)).items]
    assert labels == ["233604007", "233604008", "0"]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (None, r"x\.npz is not a \.npz file, or a damaged one"),
        ({"x": np.zeros(3)}, r"holds no array called NAME_images, such as train_images"),
        ({"train_images": pictures(2)}, r"has no array train_labels"),
        (
            {"train_images": pictures(2), "train_labels": np.zeros((2, 14), int)},
            r"train_labels has shape \(2, 14\), several findings an image\. Write .* 0 to 13",
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
    source = npz(tmp_path, **(arrays or {}))
    if arrays is None:
        source.path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(StudyError, match=sentence):
        scan(source)
