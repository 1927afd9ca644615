"""How a frozen network is run: OpenVINO on a CPU, torch on a CPU or CUDA."""

import ctypes
import importlib.util
import platform
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError, UnknownNameError

if TYPE_CHECKING:
    from pipeline.features.converted import Converted, ConvertedNetwork
    from pipeline.features.frozen import Frozen

Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]
Wait = Callable[[], Features]
#: Builds the network; an engine calls it only if it has to, for it imports torch.
Build = Callable[[], "Frozen"]
#: Large enough for full speed, small enough that 2 GB of memory hold all batches under way.
BATCH_SIZE: Mapping[str, int] = MappingProxyType({"cpu": 8, "cuda": 128})


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What the user wants a network to run on.

    Attributes:
        engine: ``auto``, or an entry of ``ENGINES``.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Images per batch; None takes ``BATCH_SIZE`` of the device.
    """

    engine: str = "auto"
    device: str = "auto"
    batch_size: int | None = None


class Engine(Protocol):
    """Runs one frozen network.

    Attributes:
        batch_size: Every batch has exactly this many images; the caller pads.
        depth: Batches that may be under way at once.
        description: For people: engine, device, batch size.
    """

    batch_size: int
    depth: int
    description: str

    def submit(self, pixels: Pixels) -> Wait:
        """Start on uint8 pixels ``(batch_size, size, size, 3)``; do not wait."""

    def provenance(self) -> dict[str, str]:
        """Engine, device, batch size and versions, for the parts and the canaries."""

    def close(self) -> None:
        """Let go of threads and device memory."""


class TorchEngine:
    """torch: channels_last float32 on a CPU, the same code on CUDA.

    Args:
        build: Builds the network, see :class:`pipeline.features.frozen.Frozen`.
        device: ``cpu`` or ``cuda``.
        batch_size: Images per batch.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        converted: Not used: torch runs the network as it is built.
    """

    depth = 2

    def __init__(
        self,
        build: Build,
        *,
        device: str,
        batch_size: int,
        precision: str,
        converted: "ConvertedNetwork | None" = None,  # noqa: ARG002 - all engines start alike
    ) -> None:
        import torch

        self.batch_size = batch_size
        self.description = f"torch on {_device_name(device)}, batch {batch_size}"
        self._precision = precision
        self._device = torch.device(device)
        self._network = build().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # One thread keeps the order; the caller's thread stays free to commit.
        self._thread = ThreadPoolExecutor(1, "forward")
        self._thread.submit(_set_precision, precision).result()

    def submit(self, pixels: Pixels) -> Wait:
        """See :class:`Engine`."""
        future = self._thread.submit(self._enqueue, pixels)

        def wait() -> Features:
            return future.result()()

        return wait

    def _enqueue(self, pixels: Pixels) -> Wait:
        """Queue copy, forward and copy back; on CUDA nothing here waits for the device."""
        import torch

        on_cuda = self._device.type == "cuda"
        host = torch.from_numpy(pixels)
        with (
            torch.inference_mode(),
            torch.autocast(
                self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16"
            ),
        ):
            if not on_cuda:
                features = self._network(host).float().numpy()
                return lambda: features
            batch = host.pin_memory().to(self._device, non_blocking=True)
            out = self._network(batch).float().to("cpu", non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def wait() -> Features:
            done.synchronize()  # for this batch alone; later ones go on meanwhile
            return out.numpy()  # type: ignore[no-any-return]

        return wait

    def provenance(self) -> dict[str, str]:
        """See :class:`Engine`."""
        return _provenance("torch", self._device.type, self.batch_size)

    def close(self) -> None:
        """See :class:`Engine`."""
        self._thread.shutdown()


class OpenVINOEngine:
    """OpenVINO on a CPU, in float32: 1.6 to 5 times torch's rate.

    Args:
        build: Builds the network; called only where no converted form is kept.
        device: ``cpu``.
        batch_size: Images per batch.
        precision: ``fp32``; anything else is torch's.
        converted: Where the converted form is kept; None: nowhere.
    """

    def __init__(
        self,
        build: Build,
        *,
        device: str,
        batch_size: int,
        precision: str,
        converted: "ConvertedNetwork | None" = None,
    ) -> None:
        if device != "cpu" or precision != "fp32":
            raise EngineError(
                f"OpenVINO runs here in fp32 on the CPU, not in {precision} on {device}: "
                "use --engine torch"
            )
        self.batch_size = batch_size
        self.description = f"OpenVINO on {_device_name('cpu')}, batch {batch_size}"
        core = _openvino().Core()
        # A batch has one size, and so has the graph. Torch decides how it is exported.
        key = {"batch": batch_size, "openvino": version("openvino"), "torch": version("torch")}
        network = converted.load(key) if converted else None
        if network is None:
            network = _convert(build(), batch_size)
            if converted:
                converted.save(network, key)
        # Without the precision hint a CPU with bfloat16 units would use them.
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        self._model = core.compile_model(core.read_model(*network), "CPU", settings)
        parallel = int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.depth = parallel + 1
        self._free = [self._model.create_infer_request() for _ in range(self.depth + 1)]

    def submit(self, pixels: Pixels) -> Wait:
        """See :class:`Engine`."""
        request = self._free.pop()
        request.start_async([pixels], share_inputs=False)

        def wait() -> Features:
            request.wait()
            features = np.array(request.get_output_tensor(0).data, np.float32)
            self._free.append(request)
            return features

        return wait

    def provenance(self) -> dict[str, str]:
        """See :class:`Engine`."""
        own = {"openvino": version("openvino")}
        return _provenance("openvino", "cpu", self.batch_size) | own

    def close(self) -> None:
        """See :class:`Engine`."""
        self._free.clear()


#: In the order in which ``auto`` prefers them on a CPU.
ENGINES: Mapping[str, Callable[..., Engine]] = MappingProxyType(
    {"openvino": OpenVINOEngine, "torch": TorchEngine}
)


def check_engine(choice: EngineChoice) -> None:
    """Refuse an engine or device that is not there, before any work.

    Raises:
        UnknownNameError: The engine or the device is in no table.
        EngineError: It is not installed, or the device is not here.
    """
    if choice.engine not in ("auto", *ENGINES):
        raise UnknownNameError("engine", choice.engine, ["auto", *ENGINES])
    if choice.device not in ("auto", *BATCH_SIZE):
        raise UnknownNameError("device", choice.device, ["auto", *BATCH_SIZE])
    if choice.engine == "openvino" and not _has_openvino():
        raise EngineError('OpenVINO is not installed: pip install "headrace[cpu]"')
    if choice.batch_size is not None and choice.batch_size < 1:
        raise EngineError(f"batch size {choice.batch_size}: allowed is 1 or more")
    if choice.device == "cuda" and not _has_cuda():
        raise EngineError("no CUDA device is here: use --device cpu, or leave it at auto")


def start_engine(
    build: Build,
    choice: EngineChoice,
    precision: str,
    *,
    converted: "ConvertedNetwork | None" = None,
) -> Engine:
    """The engine that the choice comes to on this machine, ready to run.

    Args:
        build: Builds the network; not called where its converted form is kept.
        choice: See :class:`EngineChoice`.
        precision: Of the recipe.
        converted: Where the converted form is kept; None: nowhere.

    Raises:
        UnknownNameError: See :func:`check_engine`.
        EngineError: See :func:`check_engine`; or the engine cannot do this precision.
    """
    check_engine(choice)
    device = choice.device
    if device == "auto":
        device = "cuda" if choice.engine != "openvino" and _has_cuda() else "cpu"
    if precision == "tf32" and device != "cuda":
        raise EngineError(f"tf32 is a precision of CUDA devices, not of {device}: use fp32")
    name = choice.engine
    if name == "auto":
        fast = device == "cpu" and precision == "fp32" and _has_openvino()
        name = "openvino" if fast else "torch"
    return ENGINES[name](
        build,
        device=device,
        batch_size=choice.batch_size or BATCH_SIZE[device],
        precision=precision,
        converted=converted,
    )


def fallback_note(engine: Engine) -> str | None:
    """What would make the network faster, where ``auto`` had to take torch on a CPU."""
    if not isinstance(engine, TorchEngine) or "cuda" in engine.description or _has_openvino():
        return None
    return (
        "OpenVINO is not installed, so torch runs the network, at a half to a fifth of the "
        'rate. To install it: pip install "headrace[cpu]"'
    )


def _convert(network: "Frozen", batch_size: int) -> "Converted":
    """The network in OpenVINO's form, as files: read back, they always round alike."""
    import torch

    openvino = _openvino()
    example = torch.zeros(batch_size, network.size, network.size, 3, dtype=torch.uint8)
    try:
        # Exported, not traced: a third of the time.
        model = openvino.convert_model(torch.export.export(network, (example,)))
    except RuntimeError as cause:
        # A Ctrl-C inside the converter comes out as its own error.
        if "KeyboardInterrupt" in str(cause):
            raise KeyboardInterrupt from cause
        raise EngineError(
            f"OpenVINO cannot convert this network ({str(cause).splitlines()[0]}): "
            "use --engine torch"
        ) from cause
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "network.xml"
        openvino.save_model(model, graph, compress_to_fp16=False)
        return graph.read_bytes(), graph.with_suffix(".bin").read_bytes()


def _openvino() -> Any:
    """OpenVINO without its telemetry, which would report each conversion by the network.

    A tool for patient images makes no call that its user did not ask for. With its
    telemetry package marked as absent, OpenVINO takes a stub of its own.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _set_precision(precision: str) -> None:
    """Set what torch leaves to defaults: cuDNN would use TF32 by itself."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _has_cuda() -> bool:
    """Whether torch has a CUDA device. Torch is imported only where a driver is here."""
    if "torch" not in sys.modules and "rocm" not in version("torch"):
        try:
            ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError:
            return False
    import torch

    return torch.cuda.is_available()


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({platform.machine()})"


def _provenance(engine: str, device: str, batch_size: int) -> dict[str, str]:
    """Engine and device, and the versions of what has a say in the numbers."""
    import PIL

    return {
        "engine": engine,
        "device": _device_name(device),
        "batch_size": str(batch_size),
        "torch": version("torch"),
        "pillow": PIL.__version__,
    }
