"""Decoding on a device: nearly the CPU's pixels in each row, and the CPU where it must be.

The device is the CPU here: the same code with torch's CPU decoder in place of nvJPEG.
"""

import numpy as np
import pytest
import torchvision.io
from PIL import Image

from pipeline.data.images import PixelPolicy, decode
from pipeline.data.sources import read_image, scan
from pipeline.errors import EngineError
from pipeline.features.decoding import CONSTANT
from pipeline.features.device_decode import device_batches
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.study import Domain, load_study
from tests.image_files import jpeg, picture, png, turned
from tests.tiny import install_tiny_backbone, write_tiny_study

pytestmark = pytest.mark.filterwarnings("ignore:.*torchvision 0.29:DeprecationWarning")
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
    "text": (b"no image", "not a JPEG, PNG, TIFF or DICOM file (found text)"),
}


@pytest.fixture
def items(tmp_path):
    (tmp_path / "a").mkdir()
    bad = {name: data for name, (data, _) in UNUSABLE.items()}
    for name, data in (PLAIN | ON_CPU | bad).items():
        (tmp_path / "a" / f"{name}.jpg").write_bytes(data)
    return {read_image(item).key: item for item in scan(Domain(path=tmp_path)).items}


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_each_picture_is_nearly_that_of_the_cpu(items, caplog, resize, interpolation):
    """Upright, in the declared geometry, in its own row; what is left out has its reason."""
    caplog.set_level("INFO")
    policy = PixelPolicy(size=64, resize=resize, interpolation=interpolation, decode="gpu")
    unusable, found = {}, {}
    for keys, pixels in device_batches(items, policy, unusable, size=5, device="cpu"):
        assert pixels.shape == (5, 64, 64, 3)
        found |= {key: row.numpy() for key, row in zip(keys, pixels, strict=False) if key}
    assert list(found) == [key for key in items if key not in unusable]
    for key, row in found.items():
        name = items[key].path.removeprefix("a/").removesuffix(".jpg")
        expected = decode((PLAIN | ON_CPU)[name], policy).astype(int)
        difference = np.abs(row - expected)
        assert difference.mean() < 0.5, name
        assert difference.max() <= 2 if name in PLAIN else not difference.any(), name
    reasons = {items[key].path[2:-4]: reason for key, reason in unusable.items()}
    assert reasons == {name: reason for name, (_, reason) in UNUSABLE.items()}
    assert "2 pictures are decoded on the CPU" in caplog.text


def test_a_picture_that_the_device_refuses_costs_no_other(items, monkeypatch):
    """The whole batch fails; then one by one."""
    real = torchvision.io.decode_jpeg

    def refuse(data, *given, **named):
        if data.numel() == len(PLAIN["grey"]):
            raise RuntimeError("unsupported")
        return real(data, *given, **named)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuse)
    policy, unusable = PixelPolicy(size=64, decode="gpu"), {}
    ((keys, _),) = device_batches(items, policy, unusable, size=32, device="cpu")
    assert len(unusable) == len(UNUSABLE)
    assert sum(key is not None for key in keys) == len(PLAIN | ON_CPU)


def test_decoding_on_the_gpu_is_a_recipe_and_needs_one(tmp_path, monkeypatch):
    """Its pixels are others; on a CPU it is refused before any work."""
    assert PixelPolicy(decode="gpu").to_json() == PixelPolicy().to_json() | {"decode": "gpu"}
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(write_tiny_study(tmp_path, source=8, target=4)).with_recipe(decode="gpu")
    with pytest.raises(EngineError, match="needs a CUDA device.*use --decode cpu"):
        extract(study, EngineChoice(device="cpu"))
