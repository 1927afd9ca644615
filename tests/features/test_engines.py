"""Engines: padded, in order, loud when something is wrong; views; a network that is kept."""

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from cache import disk
from cache.recipe import relative_l2
from pipeline.data.images import Transform, views_of
from pipeline.errors import EngineError, UnknownNameError
from pipeline.features import backbones, engines
from pipeline.features.engines import ENGINES, EngineChoice, compute_features, start_engine
from pipeline.features.extract import extract
from pipeline.features.frozen import FeatureExtractor, Views
from pipeline.study_file import load_study
from tests.tiny import install_tiny_backbone, write_images

TRANSFORM = Transform(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
OPENVINO = EngineChoice(engine="openvino", device="cpu", batch_size=4)


class Tiny(nn.Module):
    """Three features: the mean of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def images(count: int) -> list[tuple[bytes, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(bytes([i]), rng.integers(0, 256, (8, 8, 3), np.uint8)) for i in range(count)]


def tiny(engine: str, precision: str = "fp32", network: nn.Module | None = None, **choice):
    given = EngineChoice(**{"engine": engine, "device": "cpu", "batch_size": 4, **choice})
    return start_engine(lambda: FeatureExtractor(network or Tiny(), TRANSFORM), given, precision)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 4, 5, 41])
def test_each_image_gets_its_own_row_whatever_the_batch(engine, count, monkeypatch):
    """Batches have one size; padding never leaks into rows, and order is kept."""
    given, started, sizes = images(count), tiny(engine), []
    submit = started.submit
    monkeypatch.setattr(started, "submit", lambda p: sizes.append(len(p)) or submit(p))
    computed = list(compute_features(given, started))
    started.close()
    assert sizes == [4] * -(-count // 4)
    assert [key for key, _ in computed] == [key for key, _ in given]
    for (_, row), (_, pixels) in zip(computed, given, strict=True):
        np.testing.assert_allclose(row, pixels.mean((0, 1)) / 127.5 - 1, atol=1e-5)


def test_several_batches_are_under_way_at_once():
    """The next batch is handed over before the last one is asked for."""

    class Recorder:
        batch_size, depth, log = 2, 3, []

        def submit(self, pixels):
            self.log.append("submit")
            return lambda: self.log.append("wait") or np.zeros((2, 3), np.float32)

    recorder = Recorder()
    list(compute_features(images(12), recorder))
    assert recorder.log[:4] == ["submit"] * 3 + ["wait"]


def test_auto_falls_back_to_torch_and_says_so(monkeypatch, caplog):
    """Without OpenVINO, the default, a user hears what would make it faster."""
    assert tiny("auto").description.startswith("OpenVINO")
    monkeypatch.setattr(engines, "_has_openvino", lambda: False)
    started = tiny("auto")
    assert started.description.startswith("torch on cpu")
    assert 'pip install "headrace[cpu]"' in caplog.text
    started.close()
    with pytest.raises(EngineError, match="OpenVINO is not installed"):
        engines.check_engine(EngineChoice(engine="openvino"))


def test_bf16_runs_in_torch_and_is_really_less_precise():
    """Another precision is another recipe because its features differ."""
    network, rows = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(1)), {}
    for precision in ("fp32", "bf16"):
        started = tiny("auto", precision, network)
        rows[precision] = np.stack([row for _, row in compute_features(images(4), started)])
        started.close()
    distance = np.linalg.norm(rows["fp32"] - rows["bf16"]) / np.linalg.norm(rows["fp32"])
    assert 1e-4 < distance < 5e-2
    with pytest.raises(EngineError, match="use --engine torch"):
        tiny("openvino", "bf16")


def test_unknown_engines_and_absent_devices_are_refused():
    """With the table's names, and before any work."""
    with pytest.raises(UnknownNameError, match="allowed: auto, openvino, torch"):
        engines.check_engine(EngineChoice(engine="onnx"))
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="no CUDA device is here"):
            tiny("auto", device="cuda")


def test_running_out_of_memory_names_the_option():
    """The engine's own words, then what to try."""

    class Full:
        batch_size, depth = 2, 1

        def submit(self, pixels):
            def wait():
                raise RuntimeError("CUDA out of memory. Tried to allocate")

            return wait

    with pytest.raises(EngineError, match="out of memory.*--batch-size with a smaller number"):
        list(compute_features(images(2), Full()))


def test_openvino_reports_nothing_to_anybody():
    """Converting a network makes no call that the user did not ask for."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from pipeline.features.engines import _openvino\n"
        "_openvino()\n"
        "from openvino.tools import ovc\n"
        "assert sys.modules.get('openvino_telemetry') is None\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    ("free", "images", "size", "batch"),
    [
        (80 << 30, 10_000, 224, 256),  # as large as pays
        (80 << 30, 30, 224, 32),  # not far above the images
        (8 << 30, 10_000, 518, 16),  # what half of the memory takes
        (1 << 20, 10_000, 224, 1),
    ],
)
def test_a_cuda_batch_fits_the_memory_and_the_images(monkeypatch, free, images, size, batch):
    """A power of two, since cuDNN's algorithms like those."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    assert engines._cuda_batch(images, size) == batch


def test_compiling_is_asked_for_and_said(monkeypatch):
    """Where torch cannot, `always` is an error in a line."""
    monkeypatch.setattr(torch, "compile", lambda network: network)
    assert "compiled" not in tiny("torch").description
    assert tiny("torch", compile="always").description.endswith(", compiled")
    no_compiler = Mock(side_effect=RuntimeError("no C++ compiler\nmore lines"))
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(EngineError, match="cannot compile this network here: no C.. compiler$"):
        tiny("torch", compile="always")


# Views: the same numbers for all pictures, moved as they say.


def test_more_views_have_those_of_fewer_among_them():
    """So does the recipe, which holds the numbers; of one view it is as it always was."""
    assert views_of(8)[:3] == views_of(3)
    assert Transform(views=3).to_json()["views"] == views_of(3)
    assert "views" not in Transform().to_json()
    assert len({str(view) for view in views_of(32)}) == 32


def test_each_view_is_moved_and_lit_as_its_numbers_say():
    """Of a plane every resampling is exact, so each place in the middle is known by a formula."""
    size, at = 64, np.arange(64)
    plane = np.repeat((80 + at[:, None] * 0.5 + at * 1.0)[..., None], 3, axis=2)
    views = Views(Transform(size=size, views=8))(torch.tensor(plane)[None]).numpy()[..., 0]
    middle = np.arange(24, 40)
    x, y = np.meshgrid((2 * middle + 1) / size - 1, (2 * middle + 1) / size - 1)
    for view, numbers in zip(views, views_of(8), strict=True):
        angle = math.radians(numbers["degrees"])
        mirrored = x * (-1 if numbers["mirror"] else 1)
        right = numbers["side"] * (mirrored * math.cos(angle) - y * math.sin(angle))
        down = numbers["side"] * (mirrored * math.sin(angle) + y * math.cos(angle))
        column, row = (
            ((place + numbers[name] + 1) * size - 1) / 2
            for place, name in ((right, "right"), (down, "down"))
        )
        expected = numbers["brightness"] * (80 + 0.5 * row + column)
        np.testing.assert_allclose(view[np.ix_(middle, middle)], expected, atol=1e-3)


def test_views_are_the_same_on_every_engine(tmp_path, monkeypatch):
    """Rows of shape (k, d); the first view is the picture as it is."""
    file = install_tiny_backbone(monkeypatch, tmp_path)
    spec = backbones.spec_of("tiny")
    rng = np.random.default_rng(0)
    images = [(bytes([i]), rng.integers(0, 256, (32, 32, 3), np.uint8)) for i in range(3)]
    found = []
    for engine, views in (("torch", 1), ("torch", 4), ("openvino", 4)):
        transform = replace(spec.transform, size=32, views=views)
        network = FeatureExtractor(spec.network(torch.load(file)), transform)
        choice = EngineChoice(engine=engine, device="cpu", batch_size=2)
        started = start_engine(lambda network=network: network, choice, "fp32")
        found.append(np.stack([row for _, row in compute_features(images, started)]))
        started.close()
    plain, on_torch, on_openvino = found
    assert on_torch.shape == (3, 4, 8)
    assert relative_l2(on_torch[:, 0], plain).max() <= 1e-5
    assert relative_l2(on_openvino, on_torch).max() <= 1e-5
    assert relative_l2(on_torch[:, 1], plain).max() > 1e-2


# The converted network that is kept beside the stores.


@pytest.fixture
def conversions(study_file, monkeypatch) -> list[int]:
    """Batch sizes of the networks that are converted once the study's features are stored."""
    extract(load_study(study_file), OPENVINO)
    made, real = [], engines._convert
    monkeypatch.setattr(
        engines, "_convert", lambda network, size: made.append(size) or real(network, size)
    )
    return made


def converted_file() -> Path:
    """The one converted network."""
    (file,) = Path("features/index/networks").iterdir()
    return file


def add_images(study_file: Path, seed: int) -> None:
    """Ten images, and their features."""
    write_images(study_file.parent / "there", 10, seed=seed)
    assert extract(load_study(study_file), OPENVINO)["backbones"][0]["computed"] == 10


@pytest.mark.parametrize("damage", ["none", "flip", "cut", "empty", "head", "versions"])
def test_a_damaged_network_or_one_of_other_versions_is_made_again(study_file, conversions, damage):
    """No byte of it is believed; the file is whole afterwards."""
    whole = converted_file().read_bytes()
    head, _, body = whole[32:].partition(b"\n")
    data, values = bytearray(whole), json.loads(head)
    data[-9] ^= 1
    other = json.dumps(values | {"torch": "another"}).encode() + b"\n" + body
    converted_file().write_bytes(
        {
            "none": whole,
            "flip": data,
            "cut": whole[:-5],
            "empty": b"",
            "head": whole.replace(b'"graph": ', b'"graph": 1', 1),
            "versions": hashlib.sha256(other).digest() + other,
        }[damage]
    )
    for seed in (7, 8):
        add_images(study_file, seed)
        assert conversions == ([] if damage == "none" else [4])
    assert {"format", "network", "openvino", "torch", "batch", "graph"} == set(values)


def test_other_weights_have_a_network_of_their_own(study_file, conversions):
    """The kept network of the old weights is never run for the new ones."""
    state = torch.load("tiny.pth", weights_only=True)
    torch.save(state | {"0.bias": state["0.bias"] + 1}, "tiny.pth")
    assert extract(load_study(study_file), OPENVINO)["backbones"][0]["computed"] == 60
    assert conversions == [4]
    assert len(list(Path("features/index/networks").iterdir())) == 2
    assert len([p for p in Path("features").iterdir() if p.name != "index"]) == 2


def test_a_network_that_cannot_be_kept_costs_only_time(study_file, conversions, monkeypatch):
    """A full disk ends no run for it."""
    converted_file().unlink()
    write_atomic = disk.write_atomic

    def full(path, *given, **named):
        if path.suffix == ".openvino":
            raise OSError(28, "No space left on device")
        return write_atomic(path, *given, **named)

    monkeypatch.setattr(disk, "write_atomic", full)
    add_images(study_file, seed=7)
    add_images(study_file, seed=8)
    assert conversions == [4, 4]


def test_a_second_run_does_not_import_torch(study_file, conversions):
    """Importing it takes longer than ten images."""
    write_images(study_file.parent / "there", 10, seed=7)
    code = (
        "import sys; from pathlib import Path; import pytest;"
        "import pipeline.features.backbones as b; from tests.tiny import table_with_tiny;"
        "b.BACKBONES = table_with_tiny(Path('tiny.pth'));"
        "from pipeline.features.extract import extract;"
        "from pipeline.features.engines import EngineChoice;"
        "from pipeline.study_file import load_study;"
        "options = EngineChoice(device='cpu', batch_size=4);"
        "report = extract(load_study(Path('study.toml')), options);"
        "assert report['backbones'][0]['computed'] == 10, report;"
        "assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
