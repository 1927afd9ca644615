"""Images reach their own rows, in threads and in processes, whatever else is in the batch."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.images import PixelPolicy, decode
from pipeline.data.items import FileStat, Item
from pipeline.data.sources import read_image, scan
from pipeline.features import decoding
from pipeline.features.decoding import CONSTANT, decode_batches, decode_images
from pipeline.study import Domain
from tests.image_files import picture, png, with_files

POLICY = PixelPolicy(size=32)


@pytest.fixture
def items(tmp_path):
    """23 pictures by key: 20 that differ, a black one, a damaged one, one that changes."""
    for i in range(20):
        with_files(tmp_path, f"a/{i:02}.png")
        (tmp_path / f"a/{i:02}.png").write_bytes(png(picture(40, 50, seed=i)))
    (tmp_path / "a/07_black.png").write_bytes(png(np.zeros((40, 40), np.uint8)))
    (tmp_path / "a/11_text.png").write_bytes(b"no image")
    (tmp_path / "a/12_new.png").write_bytes(png())
    found = {read_image(item).key: item for item in scan(Domain(path=tmp_path)).items}
    (tmp_path / "a/12_new.png").write_bytes(png(picture(seed=99)))
    return found


@pytest.mark.parametrize("processes", [0, 2])
def test_each_image_is_decoded_into_its_row(items, processes):
    """In order; a bad one leaves a black row without a key, and its reason."""
    unusable = {}
    batches = list(decode_batches(items, POLICY, unusable, size=8, processes=processes))
    assert [pixels.shape for _, pixels in batches] == [(8, 32, 32, 3)] * 3
    keys = [key for keys, _ in batches for key in keys]
    rows = np.concatenate([pixels for _, pixels in batches])
    assert [key for key in keys if key] == [key for key in items if key not in unusable]
    for key, row in zip(keys, rows, strict=False):
        if key:
            expected = decode(Path(items[key].file).read_bytes(), POLICY)
            np.testing.assert_array_equal(row, expected)
        else:
            assert not row.any()
    assert not rows[23:].any()
    assert sorted(reason[:20] for reason in unusable.values()) == sorted(
        [CONSTANT[:20], "not a JPEG, PNG, TIF", "changed while the ru"]
    )
    assert list(dict(decode_images(items, POLICY, {}))) == [key for key in keys if key]


def test_a_batch_is_decoded_into_the_array_of_the_engine(items, monkeypatch):
    """No copy is made on the way to the device."""
    made = []

    def empty(shape, device):
        assert device == "cuda"
        made.append(np.empty(shape, np.uint8))
        return made[-1]

    monkeypatch.setattr(decoding, "empty_batch", empty)
    for number, (_, pixels) in enumerate(decode_batches(items, POLICY, {}, size=8, device="cuda")):
        assert pixels is made[number]


def test_processes_serve_a_gpu_with_many_images(monkeypatch):
    """Elsewhere threads are as fast; of a large .npz file each process would unpack all."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    stat = FileStat(1 << 30, 0, 0, 0)
    image, stack, archive = (
        Item("", "", file, row, stat) for file, row in (("a", None), ("b.npy", 0), ("c.npz", 0))
    )
    chosen = decoding._processes_for
    assert [chosen("cpu", [image] * 2000), chosen("cuda", [image] * 100)] == [0, 0]
    assert [chosen("cuda", [item] * 2000) for item in (image, stack, archive)] == [16, 16, 0]
