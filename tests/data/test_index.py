"""Facts of contents are measured once, and never trusted when damaged."""

import numpy as np
import pytest

from cache import disk
from pipeline.data import index as index_module
from pipeline.data.facts import FACTS, SMALL
from pipeline.data.index import FactsIndex
from pipeline.data.sources import CHANGED, read_image
from pipeline.progress import Progress
from tests.image_files import listed
from tests.tiny import write_images


@pytest.fixture
def images(tmp_path):
    """Keys and items of 24 images."""
    items = listed(write_images(tmp_path / "images", 24)).items
    return [read_image(item).key for item in items], items


def measure(index, images):
    """Measure with no output."""
    with Progress("measuring") as progress:
        return index.measure(*images, progress)


def test_facts_are_measured_once(tmp_path, images, monkeypatch):
    """A new index reads them from its file; no image is opened, no path is in it."""
    index = FactsIndex(tmp_path)
    assert measure(index, images) == {}
    before = index.facts(images[0])
    monkeypatch.setattr(index_module, "read_image", None)
    again = FactsIndex(tmp_path)
    assert measure(again, images) == {}
    assert again.facts(images[0][::-1]).tobytes() == before[::-1].tobytes()
    (file,) = (tmp_path / "index" / "facts-v3").iterdir()
    assert b"p000" not in file.read_bytes()
    assert np.load(file).dtype == FACTS


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_facts_count_as_not_there(tmp_path, images, damage):
    """Every byte is checked before any is parsed; what was lost is measured again."""
    index = FactsIndex(tmp_path)
    measure(index, images)
    (file,) = (tmp_path / "index" / "facts-v3").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes({"flip": data, "cut": data[:-5], "empty": b"", "other": b"no facts"}[damage])
    damaged = FactsIndex(tmp_path)
    assert images[0][0] not in damaged
    assert measure(damaged, images) == {}
    assert FactsIndex(tmp_path).facts(images[0]).tobytes() == index.facts(images[0]).tobytes()


def test_facts_are_kept_while_the_measuring_goes_on(tmp_path, images, monkeypatch):
    """A run that dies half way loses what came after the last save, and no more."""
    monkeypatch.setattr(index_module, "_SAVE_EVERY_S", 0.0)

    def dying(item, key):
        if item in images[1][12:]:
            raise KeyboardInterrupt
        return read_image(item, key)

    monkeypatch.setattr(index_module, "read_image", dying)
    with pytest.raises(KeyboardInterrupt):
        measure(FactsIndex(tmp_path), images)
    assert sum(key in FactsIndex(tmp_path) for key in images[0]) == 12


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


def test_two_runs_at_once_lose_nothing(tmp_path, images):
    """Each opened its index before the other had saved anything."""
    keys, items = images
    runs = [FactsIndex(tmp_path) for _ in range(3)]
    for run, part in zip(runs, (slice(8), slice(4, 16), slice(16, 24)), strict=True):
        measure(run, (keys[part], items[part]))
    assert all(key in FactsIndex(tmp_path) for key in keys)


def test_near_copies_are_looked_for_once(tmp_path, monkeypatch):
    """Of the same images in the same roles; what is damaged is not believed."""
    small = np.random.default_rng(0).integers(0, 255, (40, SMALL, SMALL), np.uint8)
    small[21] = small[3]
    roles, group = np.repeat(["fit", "far"], 20), np.arange(40).astype(str)
    (pair,) = index_module.near_copies(tmp_path, small, roles, group)
    assert pair.rows == (3, 21)
    (file,) = (tmp_path / "index").glob("near-*/*")
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "find_near_copies", None)
        assert index_module.near_copies(tmp_path, small, roles, group) == (pair,)
        with pytest.raises(TypeError):
            index_module.near_copies(tmp_path, small, roles[::-1], group)
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    assert index_module.near_copies(tmp_path, small, roles, group) == (pair,)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")  # what cannot be kept is only found again
    assert index_module.near_copies(tmp_path, small, roles, group) == (pair,)
