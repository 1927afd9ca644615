"""Engines and the stream: overlapped, padded, in order, loud when something is wrong."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.images import PixelPolicy
from pipeline.errors import EngineError, UnknownNameError
from pipeline.features import engines
from pipeline.features.engines import ENGINES, EngineChoice, start_engine
from pipeline.features.extract import FeatureGuard, compute_features
from pipeline.features.frozen import Frozen

POLICY = PixelPolicy(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Tiny(nn.Module):
    """Three features: the mean of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def images(count: int) -> list[tuple[bytes, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(bytes([i]), rng.integers(0, 256, (8, 8, 3), np.uint8)) for i in range(count)]


def tiny(engine: str, *, batch_size: int = 4):
    choice = EngineChoice(engine=engine, device="cpu", batch_size=batch_size)
    return start_engine(lambda: Frozen(Tiny(), POLICY), choice, "fp32")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 41])
def test_each_image_gets_its_own_row_whatever_the_batch(engine, count):
    """Padding never leaks into rows, and order is kept over many batches under way."""
    given = images(count)
    started = tiny(engine)
    found = list(compute_features(given, started))
    started.close()
    assert [key for key, _ in found] == [key for key, _ in given]
    for (_, row), (_, pixels) in zip(found, given, strict=True):
        np.testing.assert_allclose(row, pixels.mean((0, 1)) / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_batch_has_one_size(engine, monkeypatch):
    """Ragged batches would round differently and compile twice."""
    started = tiny(engine)
    sizes = []
    submit = started.submit
    monkeypatch.setattr(started, "submit", lambda p: sizes.append(len(p)) or submit(p))
    list(compute_features(images(10), started))
    assert sizes == [4, 4, 4]


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


def test_auto_falls_back_to_torch_and_says_so(monkeypatch):
    """Without OpenVINO, the default, a user hears what would make it faster."""
    assert tiny("auto").description.startswith("OpenVINO")
    monkeypatch.setattr(engines, "_has_openvino", lambda: False)
    started = tiny("auto")
    assert started.description.startswith("torch on cpu")
    assert 'pip install "headrace[cpu]"' in engines.fallback_note(started)
    started.close()
    with pytest.raises(EngineError, match="OpenVINO is not installed"):
        tiny("openvino")


def test_bf16_runs_in_torch_and_is_really_less_precise():
    """Another precision is another recipe because its features differ."""
    network = Frozen(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(1)), POLICY)
    choice = EngineChoice(engine="auto", device="cpu", batch_size=4)
    rows = {}
    for precision in ("fp32", "bf16"):
        started = start_engine(lambda: network, choice, precision)
        rows[precision] = np.stack([row for _, row in compute_features(images(4), started)])
        started.close()
    distance = np.linalg.norm(rows["fp32"] - rows["bf16"]) / np.linalg.norm(rows["fp32"])
    assert 1e-4 < distance < 5e-2
    with pytest.raises(EngineError, match="use --engine torch"):
        start_engine(lambda: network, EngineChoice(engine="openvino", device="cpu"), "bf16")


def test_unknown_engines_and_absent_devices_are_refused():
    """With the table's names, and before any work."""
    with pytest.raises(UnknownNameError, match="known: auto, openvino, torch"):
        tiny("onnx")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="no CUDA device is here"):
            start_engine(lambda: Frozen(Tiny(), POLICY), EngineChoice(device="cuda"), "fp32")


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


def test_a_dead_backbone_stops_the_run():
    """More than one row in a hundred equal to another image's, or none at all."""
    guard = FeatureGuard()
    with pytest.raises(EngineError, match="the backbone looks dead"):
        for _ in range(50):
            guard.objection(np.ones(4, np.float32))
    with pytest.raises(EngineError, match="not finite or all zero"):
        for value in [np.nan, np.inf, 0.0] * 20:
            assert "feature" in guard.objection(np.full(4, value, np.float32))


def test_a_few_copies_in_a_small_set_are_no_dead_backbone():
    """Ten re-saved copies of one picture among thirty are said, not refused."""
    guard = FeatureGuard()
    for i in range(30):
        row = np.full(4, 1.0 if i % 3 == 0 else i + 2.0, np.float32)
        assert guard.objection(row) is None
    assert guard.duplicates == 9


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
        (8 << 30, 10_000, 224, 128),  # what half of the memory takes
        (8 << 30, 10_000, 518, 16),  # of larger pictures fewer
        (1 << 20, 10_000, 224, 1),
    ],
)
def test_a_cuda_batch_fits_the_memory_and_the_images(monkeypatch, free, images, size, batch):
    """A power of two, since cuDNN's algorithms like those."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    assert engines._cuda_batch(images, size) == batch


def test_compiling_is_asked_for_and_said(monkeypatch):
    """Where torch cannot, `always` is an error in a line."""

    def start(**choice):
        given = EngineChoice(engine="torch", device="cpu", batch_size=4, **choice)
        engine = start_engine(lambda: Frozen(Tiny(), POLICY), given, "fp32")
        engine.close()
        return engine.description

    monkeypatch.setattr(torch, "compile", lambda network: network)
    assert "compiled" not in start()
    assert start(compile="always").endswith(", compiled")

    def no_compiler(_):
        raise RuntimeError("no C++ compiler\nmore lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(EngineError, match="cannot compile this network here: no C.. compiler$"):
        start(compile="always")
