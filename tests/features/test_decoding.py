"""Images reach their own rows: in threads, in processes, and nearly so where a device decodes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torchvision.io
from PIL import Image

from pipeline.data.images import Transform, decode
from pipeline.data.items import FileStat, Item
from pipeline.data.sources import read_image, scan
from pipeline.errors import EngineError
from pipeline.features import decoding
from pipeline.features.decoding import CONSTANT, decode_batches, decode_images
from pipeline.features.device_decode import device_batches
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.study import Domain
from pipeline.study_file import load_study
from tests.image_files import jpeg, picture, png, turned

pytestmark = pytest.mark.filterwarnings("ignore:.*torchvision 0.29:DeprecationWarning")
SQUARE = Transform(size=32)


@pytest.fixture
def items(tmp_path):
    """23 pictures by key: 20 that differ, a black one, a damaged one, one that changes."""
    (tmp_path / "a").mkdir()
    for i in range(20):
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
    batches = list(decode_batches(items, SQUARE, unusable, size=8, processes=processes))
    assert [pixels.shape for _, pixels in batches] == [(8, 32, 32, 3)] * 3
    keys = [key for keys, _ in batches for key in keys]
    rows = np.concatenate([pixels for _, pixels in batches])
    assert [key for key in keys if key] == [key for key in items if key not in unusable]
    for key, row in zip(keys, rows, strict=False):
        if key:
            expected = decode(Path(items[key].file).read_bytes(), SQUARE)
            np.testing.assert_array_equal(row, expected)
        else:
            assert not row.any()
    assert not rows[23:].any()
    assert sorted(reason[:20] for reason in unusable.values()) == sorted(
        [CONSTANT[:20], "neither JPEG, PNG, T", "changed while the ru"]
    )
    assert list(dict(decode_images(items, SQUARE, {}))) == [key for key in keys if key]


def test_a_batch_is_decoded_into_the_array_of_the_engine(items, monkeypatch):
    """No copy is made on the way to the device."""
    made = []

    def empty(shape, device):
        assert device == "cuda"
        made.append(np.empty(shape, np.uint8))
        return made[-1]

    monkeypatch.setattr(decoding, "empty_batch", empty)
    for number, (_, pixels) in enumerate(decode_batches(items, SQUARE, {}, size=8, device="cuda")):
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


# On a device, which is the CPU here: the same code with torch's CPU decoder in place of nvJPEG.


PLAIN = {
    **{f"turned{n}": turned(n, "JPEG") for n in range(1, 9)},
    "large": jpeg(picture(300, 400)),
    "grey": jpeg(picture(90, 70)[..., 0]),
    "as_is": jpeg(picture(64, 64)),
    "progressive": jpeg(picture(80, 80), progressive=True),
}
ON_CPU = {"cmyk": jpeg(Image.fromarray(picture()).convert("CMYK")), "png": png()}
UNUSABLE = {
    "black": (jpeg(np.zeros((50, 50), np.uint8)), CONSTANT),
    "cut": (jpeg(picture(50, 50))[:-400], "truncated"),
    "text": (b"no image", "neither JPEG, PNG, TIFF, BMP, PGM, PPM nor DICOM (found text)"),
}


@pytest.fixture
def kinds(tmp_path):
    (tmp_path / "a").mkdir()
    bad = {name: data for name, (data, _) in UNUSABLE.items()}
    for name, data in (PLAIN | ON_CPU | bad).items():
        (tmp_path / "a" / f"{name}.jpg").write_bytes(data)
    return {read_image(item).key: item for item in scan(Domain(path=tmp_path)).items}


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_each_picture_is_nearly_that_of_the_cpu(kinds, caplog, resize, interpolation):
    """Upright, in the declared geometry, in its own row; what is left out has its reason."""
    caplog.set_level("INFO")
    transform = Transform(size=64, resize=resize, interpolation=interpolation, decode="gpu")
    unusable, found = {}, {}
    for keys, pixels in device_batches(kinds, transform, unusable, size=5, device="cpu"):
        assert pixels.shape == (5, 64, 64, 3)
        found |= {key: row.numpy() for key, row in zip(keys, pixels, strict=False) if key}
    assert list(found) == [key for key in kinds if key not in unusable]
    for key, row in found.items():
        name = kinds[key].path.removeprefix("a/").removesuffix(".jpg")
        expected = decode((PLAIN | ON_CPU)[name], transform).astype(int)
        difference = np.abs(row - expected)
        assert difference.mean() < 0.5, name
        assert difference.max() <= 2 if name in PLAIN else not difference.any(), name
    reasons = {kinds[key].path[2:-4]: reason for key, reason in unusable.items()}
    assert reasons == {name: reason for name, (_, reason) in UNUSABLE.items()}
    assert "2 images are decoded on the CPU" in caplog.text


def test_a_picture_that_the_device_refuses_costs_no_other(kinds, monkeypatch):
    """The whole batch fails; then one by one."""
    real = torchvision.io.decode_jpeg

    def refuse(data, *given, **named):
        if data.numel() == len(PLAIN["grey"]):
            raise RuntimeError("unsupported")
        return real(data, *given, **named)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuse)
    transform, unusable = Transform(size=64, decode="gpu"), {}
    ((keys, _),) = device_batches(kinds, transform, unusable, size=32, device="cpu")
    assert len(unusable) == len(UNUSABLE)
    assert sum(key is not None for key in keys) == len(PLAIN | ON_CPU)


def test_decoding_on_the_gpu_is_a_recipe_and_needs_one(study_file):
    """Its pixels are others; on a CPU it is refused before any work."""
    assert Transform(decode="gpu").to_json() == Transform().to_json() | {"decode": "gpu"}
    study = load_study(study_file).with_recipe(decode="gpu")
    with pytest.raises(EngineError, match="needs a CUDA device.*use --decode cpu"):
        extract(study, EngineChoice(device="cpu"))
