"""Facts of images: right, the same for the same picture, measured once, never trusted damaged."""

import io

import numpy as np
import pytest
from PIL import Image

from cache import disk
from pipeline.data import index as facts_index
from pipeline.data.facts import (
    FACTS,
    appearance,
    columns,
    difference_hash,
    facts_of_array,
    facts_of_file,
    jpeg_quality,
)
from pipeline.data.images import PixelPolicy, decode
from pipeline.data.index import FactsIndex, measure_missing
from pipeline.data.leaks import hamming
from pipeline.data.sources import CHANGED, read_image, scan
from pipeline.errors import ImageError
from pipeline.progress import Progress
from tests.tiny import write_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 60), np.uint8)


def encoded(pixels, kind="PNG", **options):
    """The bytes of a file with these pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def test_the_facts_are_those_of_the_picture():
    """Against numpy, on a picture whose border is known."""
    pixels = GREY.copy()
    pixels[:2], pixels[-2:], pixels[:, :3], pixels[:, -3:] = 7, 7, 7, 7
    data = encoded(pixels)
    facts = facts_of_file(data)
    assert (facts["height"], facts["width"], facts["file_bytes"]) == (40, 60, len(data))
    assert facts["mean"] == pytest.approx(pixels.mean())
    assert facts["std"] == pytest.approx(pixels.std())
    assert facts["border"] == pytest.approx(7)
    assert np.isnan(facts["jpeg_quality"])
    for name, value in appearance(pixels).items():
        assert facts[name] == pytest.approx(value)


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 87, 95, 100])
def test_the_quality_of_a_libjpeg_file_is_read_from_its_tables(quality):
    """Exact, for grey and for colour."""
    assert jpeg_quality(encoded(GREY, "JPEG", quality=quality)) == quality
    assert jpeg_quality(encoded(np.stack([GREY] * 3, 2), "JPEG", quality=quality)) == quality


def test_the_same_pixels_have_one_digest_whatever_the_file():
    """Another compression, three equal channels, a row of a stack; one grey level is another."""
    same = [
        facts_of_file(encoded(GREY, compress_level=1)),
        facts_of_file(encoded(GREY, compress_level=9)),
        facts_of_file(encoded(np.stack([GREY] * 3, 2))),
        facts_of_array(GREY),
    ]
    assert len({bytes(facts["pixels"]) for facts in same}) == 1
    other = GREY.copy()
    other[5, 5] ^= 1
    assert bytes(facts_of_array(other)["pixels"]) != bytes(same[0]["pixels"])
    assert bytes(facts_of_array(GREY.reshape(60, 40))["pixels"]) != bytes(same[0]["pixels"])


def test_the_difference_hash_compares_neighbouring_cells():
    """Against a loop over the 8 x 8 cells of a picture of 9 x 8 flat cells."""
    cells = RNG.integers(0, 256, (8, 9), np.uint8)
    bits = "".join("01"[int(cells[i, j + 1] > cells[i, j])] for i in range(8) for j in range(8))
    picture = Image.fromarray(np.kron(cells, np.ones((4, 5), np.uint8)))
    assert int(difference_hash(picture)) == int(bits, 2)


def test_a_shift_by_one_pixel_hardly_moves_the_hash_and_another_picture_does():
    """At most 4 bits for the copy, far more for a stranger."""
    coarse = RNG.normal(size=(30, 9, 9))
    pictures = [
        Image.fromarray(np.uint8(np.clip(40 * image + 128, 0, 255))).resize((224, 224), 3)
        for image in coarse
    ]
    moved = [picture.transform(picture.size, 0, (1, 0, 1, 0, 1, 0)) for picture in pictures]
    hashes, others = (np.array([difference_hash(p) for p in some]) for some in (pictures, moved))
    assert hamming(hashes, others).max() <= 4
    assert hamming(hashes, np.roll(hashes, 1)).min() > 12


def test_columns_are_finite_and_vary():
    """What every image shares tells nothing and is left out; NaN never reaches a probe."""
    some = [facts_of_file(encoded(GREY)), facts_of_file(encoded(GREY[:30], "JPEG", quality=80))]
    found = columns(np.array(some, FACTS))
    assert "width" not in found
    assert {"height", "aspect", "mean grey", "file size", "is JPEG"} <= found.keys()
    assert all(np.isfinite(values).all() for values in found.values())


def test_a_file_that_cannot_be_decoded_has_no_facts():
    """The reason is the one that the decoder gives."""
    with pytest.raises(ImageError, match="truncated"):
        facts_of_file(encoded(GREY)[:-20])


@pytest.fixture
def images(tmp_path):
    """Keys and items of 24 images."""
    items = scan(write_images(tmp_path / "images", 24)).items
    return [read_image(item).key for item in items], items


def measure(index, images):
    """Measure with no output."""
    with Progress("measuring") as progress:
        return measure_missing(index, *images, progress)


def test_facts_are_measured_once(tmp_path, images, monkeypatch):
    """A new index reads them from its file; no image is opened, no path is in it."""
    index = FactsIndex(tmp_path)
    assert measure(index, images) == {}
    before = index.facts(images[0])
    monkeypatch.setattr(facts_index, "read_image", None)
    again = FactsIndex(tmp_path)
    assert measure(again, images) == {}
    assert again.facts(images[0][::-1]).tobytes() == before[::-1].tobytes()
    (file,) = (tmp_path / "index").iterdir()
    assert b"p000" not in file.read_bytes()
    assert np.load(file).dtype == FACTS


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_facts_count_as_not_there(tmp_path, images, damage):
    """Every byte is checked before any is parsed; what was lost is measured again."""
    index = FactsIndex(tmp_path)
    measure(index, images)
    (file,) = (tmp_path / "index").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"flip": data, "cut": data[:-5], "empty": b"", "other": b"no facts"}[damage])
    damaged = FactsIndex(tmp_path)
    assert images[0][0] not in damaged
    assert measure(damaged, images) == {}
    assert FactsIndex(tmp_path).facts(images[0]).tobytes() == index.facts(images[0]).tobytes()


def test_facts_are_kept_while_the_measuring_goes_on(tmp_path, images, monkeypatch):
    """A run that dies half way loses what came after the last save, and no more."""
    monkeypatch.setattr(facts_index, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(facts_index, "_AT_ONCE", 4)
    calls = []

    def dying(item, key):
        calls.append(item)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return read_image(item, key)

    monkeypatch.setattr(facts_index, "read_image", dying)
    with pytest.raises(KeyboardInterrupt):
        measure(FactsIndex(tmp_path), images)
    assert sum(key in FactsIndex(tmp_path) for key in images[0]) >= 8


def test_an_image_that_changed_is_not_measured(tmp_path, images):
    """Facts belong to a content: another content under the name gives a reason."""
    keys, items = images
    write_images(tmp_path / "images", 24, seed=0, shift=3)
    assert set(measure(FactsIndex(tmp_path), (keys, items)).values()) == {CHANGED}


def test_a_full_disk_costs_the_memory_and_not_the_facts(tmp_path, images, monkeypatch):
    """The facts of this run are there all the same."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "open_new", full)
    index = FactsIndex(tmp_path)
    assert measure(index, images) == {}
    assert len(index.facts(images[0])) == 24


def test_the_centre_mask_leaves_the_border_alone():
    """15 % on each side stay as they are, the rest is black."""
    pixels = np.full((100, 200), 90, np.uint8)
    masked = decode(encoded(pixels), PixelPolicy(size=100, mask="centre"))[..., 0]
    assert (masked[18:82, 18:82] == 0).all()
    assert (masked[:12] == 90).all()
    assert (masked[:, -12:] == 90).all()


def test_the_corner_mask_shows_the_four_corners_and_nothing_else():
    """Each corner, 20 % of each side, in its own quarter of the picture."""
    pixels = np.full((100, 100), 255, np.uint8)
    pixels[:20, :20], pixels[:20, 80:], pixels[80:, :20], pixels[80:, 80:] = 10, 20, 30, 40
    shown = decode(encoded(pixels), PixelPolicy(size=40, mask="corners"))[..., 0]
    assert np.unique(shown).tolist() == [10, 20, 30, 40]
    assert (shown[5, 5], shown[5, 35], shown[35, 5], shown[35, 35]) == (10, 20, 30, 40)
