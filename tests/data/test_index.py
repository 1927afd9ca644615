"""Measures of images: right, taken once, each moved by its own cause, never trusted damaged."""

from unittest.mock import Mock

import numpy as np
import pytest
from scipy import ndimage

from cache import disk
from pipeline.data import index as index_module
from pipeline.data.images import Content
from pipeline.data.index import APPEARANCE, MEASURES, MeasureIndex, measures_of
from pipeline.data.sources import CHANGED, read_image
from pipeline.progress import Progress
from tests.image_files import encoded, listed
from tests.tiny import write_images

SIZE = 96
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 60), np.uint8)


@pytest.fixture
def images(tmp_path):
    """Keys and items of 24 images."""
    items = listed(write_images(tmp_path / "images", 24)).items
    return [read_image(item).key for item in items], items


def measure(index, images):
    """Measure with no output."""
    with Progress("measuring") as progress:
        return index.measure(*images, progress)


def test_measures_are_measured_once(tmp_path, images, monkeypatch):
    """A new index reads them from its file; no image is opened, no path is in it."""
    index = MeasureIndex(tmp_path)
    assert measure(index, images) == {}
    before = index.records(images[0])
    monkeypatch.setattr(index_module, "read_image", None)
    again = MeasureIndex(tmp_path)
    assert measure(again, images) == {}
    assert again.records(images[0][::-1]).tobytes() == before[::-1].tobytes()
    (file,) = (tmp_path / "index" / "facts-v3").iterdir()
    assert b"p000" not in file.read_bytes()
    assert np.load(file).dtype == MEASURES


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_measures_count_as_not_there(tmp_path, images, damage):
    """Every byte is checked before any is parsed; what was lost is measured again."""
    index = MeasureIndex(tmp_path)
    measure(index, images)
    (file,) = (tmp_path / "index" / "facts-v3").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"flip": data, "cut": data[:-5], "empty": b"", "other": b"nothing"}[damage])
    damaged = MeasureIndex(tmp_path)
    assert images[0][0] not in damaged
    assert measure(damaged, images) == {}
    assert MeasureIndex(tmp_path).records(images[0]).tobytes() == index.records(images[0]).tobytes()


def test_measures_are_kept_while_the_measuring_goes_on(tmp_path, images, monkeypatch):
    """A run that dies half way loses what came after the last save, and no more."""
    monkeypatch.setattr(index_module, "_SAVE_EVERY_S", 0.0)

    def dying(item, key):
        if item in images[1][12:]:
            raise KeyboardInterrupt
        return read_image(item, key)

    monkeypatch.setattr(index_module, "read_image", dying)
    with pytest.raises(KeyboardInterrupt):
        measure(MeasureIndex(tmp_path), images)
    assert sum(key in MeasureIndex(tmp_path) for key in images[0]) == 12


def test_an_image_that_changed_is_not_measured(tmp_path, images):
    """Measures belong to a content: another content under the name gives a reason."""
    keys, items = images
    write_images(tmp_path / "images", 24, seed=0, shift=3)
    assert set(measure(MeasureIndex(tmp_path), (keys, items)).values()) == {CHANGED}


def test_a_full_disk_costs_the_memory_and_not_the_measures(tmp_path, images, monkeypatch):
    """The measures of this run are there all the same."""
    monkeypatch.setattr(disk, "open_new", Mock(side_effect=OSError(28, "No space left on device")))
    index = MeasureIndex(tmp_path)
    assert measure(index, images) == {}
    assert len(index.records(images[0])) == 24


def test_two_runs_at_once_lose_nothing(tmp_path, images):
    """Each opened its index before the other had saved anything."""
    keys, items = images
    runs = [MeasureIndex(tmp_path) for _ in range(3)]
    for run, part in zip(runs, (slice(8), slice(4, 16), slice(16, 24)), strict=True):
        measure(run, (keys[part], items[part]))
    assert all(key in MeasureIndex(tmp_path) for key in keys)


# --- measures of one image


def measured(image):
    """Of the bytes of a file, or of pixels that were never in one."""
    return measures_of(Content(image))


def test_the_measures_are_those_of_the_picture():
    """Against numpy, on a picture whose border is known."""
    pixels = GREY.copy()
    pixels[:2], pixels[-2:], pixels[:, :3], pixels[:, -3:] = 7, 7, 7, 7
    data = encoded(pixels, "PNG")
    measures = measured(data)
    assert (measures["height"], measures["width"], measures["file_bytes"]) == (40, 60, len(data))
    assert measures["mean"] == pytest.approx(pixels.mean())
    assert measures["std"] == pytest.approx(pixels.std())
    assert measures["border"] == pytest.approx(7)
    assert np.isnan(measures["jpeg_quality"])


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 87, 95, 100])
def test_the_quality_of_a_libjpeg_file_is_read_from_its_tables(quality):
    """Exact, for grey and for colour."""
    for pixels in (GREY, np.stack([GREY] * 3, 2)):
        data = encoded(pixels, "JPEG", quality=quality)
        assert measured(data)["jpeg_quality"] == quality


def test_the_same_pixels_have_one_digest_whatever_the_file():
    """Another compression, three equal channels, a row of a stack; one grey level is another."""
    same = [
        measured(encoded(GREY, "PNG", compress_level=1)),
        measured(encoded(GREY, "PNG", compress_level=9)),
        measured(encoded(np.stack([GREY] * 3, 2), "PNG")),
        measured(GREY),
    ]
    assert len({bytes(measures["pixels"]) for measures in same}) == 1
    other = GREY.copy()
    other[5, 5] ^= 1
    assert bytes(measured(other)["pixels"]) != bytes(same[0]["pixels"])
    assert bytes(measured(GREY.reshape(60, 40))["pixels"]) != bytes(same[0]["pixels"])


# --- appearance


def scene(seed=0, *, grain=0.02, blur=0.0, gain=1.0, mark=False):
    """A smooth picture with one thing changed."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5)
    grey = 0.45 + 0.12 * soft / soft.std()
    grey = ndimage.gaussian_filter(grey, blur) * gain
    grey = grey + grain * rng.standard_normal(grey.shape)
    if mark:
        grey[5:13, 85:87] = 0.97
    return np.clip(255 * grey, 0, 255).astype(np.uint8)


def appearance(pixels):
    """The measures of one picture."""
    measures = measured(pixels)
    return {name: float(measures[name]) for name in APPEARANCE}


def moved(name, **changes):
    """How far a measure goes with a change, in standard deviations between pictures."""
    plain = np.array([appearance(scene(i))[name] for i in range(12)])
    other = np.array([appearance(scene(i, **changes))[name] for i in range(12)])
    return (other.mean() - plain.mean()) / (plain.std() + 1e-6)


@pytest.mark.parametrize(
    ("name", "follows", "ignores"),
    [
        ("exposure", {"gain": 1.25}, [{"grain": 0.04}, {"mark": True}]),
        ("contrast", {"gain": 1.5}, []),
        ("noise", {"grain": 0.04}, [{"mark": True}, {"gain": 1.25}]),
        ("corner_marks", {"mark": True}, [{"grain": 0.04}, {"gain": 1.25}]),
    ],
)
def test_a_measure_follows_its_cause_and_ignores_those_of_others(name, follows, ignores):
    """By far more than pictures differ; within a fifth of how they differ, or nothing at all."""
    assert moved(name, **follows) > 3
    assert all(abs(moved(name, **changes)) < 0.2 for changes in ignores)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_noise_is_the_standard_deviation_of_the_grain(sigma):
    """On a flat mid-grey film, within 5 %."""
    rng = np.random.default_rng(1)
    film = np.rint(255 * (0.5 + sigma * rng.standard_normal((200, 200))))
    noise = appearance(np.clip(film, 0, 255).astype(np.uint8))["noise"]
    assert np.exp(noise) - 1e-3 == pytest.approx(sigma, rel=0.05)
