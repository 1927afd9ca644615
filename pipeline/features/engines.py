"""How a frozen network is run: the choice of an engine, batches through it, and OpenVINO.

Nothing here imports torch unless necessary; torch's engine is in ``frozen``. A network converted
to OpenVINO is kept beside the stores: converting takes 4 to 20 s of CPU time, reading 0.2 s. That
file is disposable: if it is damaged, or of other versions, it is made again.
"""

import ctypes
import hashlib
import importlib.util
import json
import logging
import platform
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.data.images import Pixels, Transform, decode
from pipeline.errors import EngineError, PipelineError, UnknownNameError
from pipeline.features.decoding import Batch
from pipeline.words import first_line

if TYPE_CHECKING:
    from pipeline.features.frozen import FeatureExtractor

_LOG = logging.getLogger(__name__)
Features = NDArray[np.float32]
Wait = Callable[[], Features]
#: Builds the network; an engine calls it only if necessary, because it imports torch.
Build = Callable[[], "FeatureExtractor"]
#: The two files of an OpenVINO network: graph and constants.
_Converted = tuple[bytes, bytes]
_FORMAT = 4
ENGINES = ("openvino", "torch")
#: Large enough for full speed, small enough that 2 GB of memory hold all running batches.
CPU_BATCH = 8
_LARGEST_CUDA_BATCH = 256
#: Share of a GPU's free memory; bytes per pixel, more than DenseNet121 takes in fp32.
_SHARE_OF_MEMORY, _BYTES_PER_PIXEL = 0.5, 640


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The user's choice of what a network runs on.

    Attributes:
        engine: ``auto``, or one of ``ENGINES``.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Images per batch; None: chosen for the device and its memory.
        compile: ``auto``, ``never`` or ``always``: whether torch compiles the network.
        threads: Cores that decoding and OpenVINO use; None: all.
    """

    engine: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    compile: str = "auto"
    threads: int | None = None


class Engine:
    """Runs one frozen network.

    Attributes:
        batch_size: Every batch has exactly this many images; the caller pads.
        depth: Batches that may run at once.
        description: Engine, device and batch size as text.
        device_seconds: How long a GPU was busy so far, by kind of work; empty on a CPU.
    """

    name: str
    depth: int
    description: str

    def __init__(self, device: str, batch_size: int) -> None:
        self.batch_size = batch_size
        self.device_seconds: dict[str, float] = {}
        self._device_name = f"cpu ({platform.machine()})"
        if device == "cuda":
            import torch

            self._device_name = f"cuda ({torch.cuda.get_device_name()})"

    def submit(self, batch: Any) -> Wait:
        """Start on uint8 pixels ``(batch_size, size, size, 3)``, which must not change."""
        raise NotImplementedError

    def provenance(self) -> dict[str, str]:
        """Engine, device, batch size and versions, for the parts and the canaries."""
        packages = ("torch", "pillow", *(["openvino"] if self.name == "openvino" else []))
        return {
            "engine": self.name,
            "device": self._device_name,
            "batch_size": str(self.batch_size),
            **{package: version(package) for package in packages},
        }

    def close(self) -> None:
        """Release threads and device memory."""
        raise NotImplementedError


class _OpenVINOEngine(Engine):
    """OpenVINO on a CPU, in float32: 1.6 to 5 times torch's rate; see :func:`start_engine`."""

    name = "openvino"

    def __init__(
        self, build: Build, batch_size: int, *, converted_file: Path | None, threads: int | None
    ) -> None:
        super().__init__("cpu", batch_size)
        self.description = f"OpenVINO on {self._device_name}, batch {batch_size}"
        core = _openvino().Core()
        network = _converted(build, batch_size, converted_file)
        # Without the precision hint a CPU with bfloat16 units would use them.
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._model = core.compile_model(core.read_model(*network), "CPU", settings)
        self.depth = int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1
        self._free = [self._model.create_infer_request() for _ in range(self.depth + 1)]

    def submit(self, batch: Any) -> Wait:
        request = self._free.pop()
        request.start_async([batch], share_inputs=True)

        def wait() -> Features:
            nonlocal batch
            request.wait()
            batch = None  # until here the network could read it
            features = np.array(request.get_output_tensor(0).data, np.float32)
            self._free.append(request)
            return features

        return wait

    def close(self) -> None:
        self._free.clear()


def check_engine(choice: EngineChoice) -> None:
    """Refuse an engine or device that is not available, before any work.

    Raises:
        UnknownNameError: The engine, the device or the value of ``compile`` is unknown.
        EngineError: The engine is not installed, or this machine lacks the device.
    """
    for kind, name, allowed in (
        ("engine", choice.engine, ("auto", *ENGINES)),
        ("device", choice.device, ("auto", "cpu", "cuda")),
        ("compile", choice.compile, ("auto", "never", "always")),
    ):
        if name not in allowed:
            raise UnknownNameError(kind, name, allowed)
    if choice.engine == "openvino" and not _has_openvino():
        raise EngineError('OpenVINO is not installed: pip install "headrace[cpu]"')
    if choice.batch_size is not None and choice.batch_size < 1:
        raise EngineError(f"batch size {choice.batch_size}: allowed is 1 or more")
    if choice.device == "cuda" and not _has_driver():
        raise _no_cuda()


def load_early(choice: EngineChoice) -> bool:
    """Start loading torch and the GPU libraries in a thread, if a GPU will be used.

    Loading takes seconds, in which other processes can read the files. Returns whether it was
    started.
    """
    loads = choice.device != "cpu" and choice.engine != "openvino" and _has_driver()
    if loads:
        Thread(target=load_cuda, name="load").start()
    return loads


def load_cuda() -> None:
    """Load what every network needs on a GPU: the context, and cuDNN through one convolution."""
    import torch

    if torch.cuda.is_available():
        image = torch.zeros((1, 3, 16, 16), device="cuda")
        torch.nn.functional.conv2d(image, image[:, :, :3, :3])


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda``, from ``auto``, ``cpu`` or ``cuda``.

    Raises:
        EngineError: CUDA is requested, and there is no CUDA device.
    """
    if name not in ("auto", "cuda"):
        return name
    if _has_driver():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if name == "cuda":
        raise _no_cuda()
    return "cpu"


def resolve_engine(
    choice: EngineChoice,
    precision: str,
    *,
    images: int = _LARGEST_CUDA_BATCH,
    size: int = 224,
    views: int = 1,
) -> EngineChoice:
    """The choice for this machine, with ``auto`` and the batch size resolved.

    Args:
        choice: The user's choice.
        precision: The recipe's precision.
        images: Number of images; the batch is not much larger.
        size: Side of the network's input, pixels.
        views: Views of each image.

    Raises:
        PipelineError: See :func:`check_engine`; or the engine cannot do this precision.
    """
    check_engine(choice)
    device = choice.device
    device = choose_device("cpu" if choice.engine == "openvino" and device == "auto" else device)
    if precision == "tf32" and device != "cuda":
        raise EngineError(f"tf32 is a precision of CUDA devices, not of {device}: use fp32")
    exact_cpu = device == "cpu" and precision == "fp32"
    name = choice.engine
    if name == "auto":
        name = "openvino" if exact_cpu and _has_openvino() else "torch"
        if exact_cpu and name == "torch":
            _LOG.warning(
                "OpenVINO is not installed, so torch runs the network, at a half to a fifth of the "
                'rate. To install it: pip install "headrace[cpu]"'
            )
    if name == "openvino" and not exact_cpu:
        raise EngineError(
            f"OpenVINO runs here in fp32 on the CPU, not in {precision} on {device}: "
            "use --engine torch"
        )
    fits = CPU_BATCH if device == "cpu" else _cuda_batch(images, size)
    batch = choice.batch_size or max(1, fits // views)
    return replace(choice, engine=name, device=device, batch_size=batch)


def start_engine(
    build: Build,
    choice: EngineChoice,
    precision: str,
    *,
    converted_file: Path | None = None,
    images: int = _LARGEST_CUDA_BATCH,
) -> Engine:
    """Start the chosen engine on this machine.

    Args:
        build: Builds the network; not called if its converted form is stored.
        choice: See :class:`EngineChoice`.
        precision: The recipe's precision.
        converted_file: File for the converted form of this network; None: it is not stored.
        images: Number of images.

    Raises:
        PipelineError: See :func:`resolve_engine`.
    """
    choice = resolve_engine(choice, precision, images=images)
    if choice.engine == "openvino":
        batch_size = choice.batch_size or CPU_BATCH
        return _OpenVINOEngine(
            build, batch_size, converted_file=converted_file, threads=choice.threads
        )
    from pipeline.features.frozen import TorchEngine

    return TorchEngine(build, choice, precision, images=images)


def run_batches(batches: Iterable[Batch], engine: Engine) -> Iterator[tuple[list[bytes], Features]]:
    """Keys and float32 feature rows ``(m, ...)`` of batches, several of them under way at once.

    Raises:
        EngineError: The engine failed, for example for want of memory.
    """
    under_way: deque[tuple[list[bytes | None], Wait]] = deque()
    for keys, pixels in batches:
        under_way.append((keys, engine.submit(pixels)))
        if len(under_way) >= engine.depth:
            yield _finished(*under_way.popleft())
    while under_way:
        yield _finished(*under_way.popleft())


@contextmanager
def engine_errors() -> Iterator[None]:
    """What torch and OpenVINO raise, as an error of ours."""
    try:
        yield
    except PipelineError:
        raise
    except RuntimeError as cause:
        text = first_line(cause)
        hint = "; try --batch-size with a smaller number" if "memory" in text.lower() else ""
        raise EngineError(f"the engine failed: {text}{hint}") from cause


def _finished(keys: list[bytes | None], wait: Wait) -> tuple[list[bytes], Features]:
    with engine_errors():
        features = wait()
    usable = {row: key for row, key in enumerate(keys) if key is not None}
    return list(usable.values()), features[list(usable)]


def compute_features(
    images: Iterable[tuple[bytes, Pixels]], engine: Engine
) -> Iterator[tuple[bytes, Features]]:
    """Key and feature row of images that are in memory; see :func:`run_batches`."""

    def batches() -> Iterator[Batch]:
        iterator = iter(images)
        while chunk := list(islice(iterator, engine.batch_size)):
            batch = np.zeros((engine.batch_size, *chunk[0][1].shape), np.uint8)
            batch[: len(chunk)] = [pixels for _, pixels in chunk]
            yield [key for key, _ in chunk], batch

    for keys, rows in run_batches(batches(), engine):
        yield from zip(keys, rows, strict=True)


def canary_features(engine: Engine, transform: Transform) -> Features:
    """Features of the four images shipped with the package, shape ``(4, ...)``."""
    folder = resources.files("pipeline.features") / "canaries"
    files = sorted((f for f in folder.iterdir() if f.name[0] != "."), key=lambda f: f.name)
    images = [(f.name.encode(), decode(f.read_bytes(), transform)) for f in files]
    return np.stack([row for _, row in compute_features(images, engine)])


def _cuda_batch(images: int, size: int) -> int:
    """A power of two that fits into half of the free memory, not far above the images."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    fits = int(_SHARE_OF_MEMORY * free / (_BYTES_PER_PIXEL * size * size))
    largest = max(1, min(fits, _LARGEST_CUDA_BATCH))
    return min(1 << (largest.bit_length() - 1), 1 << max(3, (images - 1).bit_length()))


def _converted(build: Build, batch_size: int, converted_file: Path | None) -> _Converted:
    """The network in OpenVINO's form: read from a file, or converted and then stored."""
    if converted_file is None:
        return _convert(build(), batch_size)
    # A batch has one size, and so has the graph. Torch decides how it is exported.
    versions = {"openvino": version("openvino"), "torch": version("torch")}
    key = {"format": _FORMAT, "network": converted_file.stem, "batch": batch_size, **versions}
    network = _load(converted_file, key)
    if network is None:
        network = _convert(build(), batch_size)
        head = json.dumps(key | {"graph": len(network[0])}).encode()
        content = b"\n".join((head, b"".join(network)))
        with suppress(OSError):  # it costs only time at the next run
            disk.write_atomic(converted_file, hashlib.sha256(content).digest() + content)
    return network


def _load(file: Path, key: Mapping[str, Any]) -> _Converted | None:
    """The stored converted network, if the same versions wrote it and no byte has changed."""
    try:
        data = disk.read_all(file)
        head, _, body = data[32:].partition(b"\n")
        values = dict(disk.parse_json(head))
        size = values.pop("graph")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    intact = hashlib.sha256(data[32:]).digest() == data[:32]
    return (body[:size], body[size:]) if intact and values == key else None


def _convert(network: "FeatureExtractor", batch_size: int) -> _Converted:
    """The network in OpenVINO's form, as files: reading them gives the same rounding each time."""
    import torch

    openvino = _openvino()
    shape = [batch_size, network.size, network.size, 3]
    threads = torch.get_num_threads()
    # The network runs once to be traced; for a single image several threads only slow it down.
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch recommends its exporter instead, which takes 4 times as long.
            warnings.simplefilter("ignore")
            example = torch.zeros(1, *shape[1:], dtype=torch.uint8)
            traced = torch.jit.freeze(torch.jit.trace(network, example, check_trace=False))  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, input=[(shape, openvino.Type.u8)])
    except RuntimeError as cause:
        # The converter turns a Ctrl-C into an error of its own.
        if "KeyboardInterrupt" in str(cause):
            raise KeyboardInterrupt from cause
        raise EngineError(
            f"OpenVINO cannot convert this network ({first_line(cause)}): use --engine torch"
        ) from cause
    finally:
        torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "network.xml"
        openvino.save_model(model, graph, compress_to_fp16=False)
        return graph.read_bytes(), graph.with_suffix(".bin").read_bytes()


def _openvino() -> Any:
    """OpenVINO without its telemetry, which would report each conversion over the internet."""
    # If that package is marked as absent, OpenVINO uses its own stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _has_driver() -> bool:
    """Whether there may be a GPU, without importing torch."""
    if "rocm" in version("torch"):
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _no_cuda() -> EngineError:
    return EngineError("no CUDA device is here: use --device cpu, or leave it at auto")
