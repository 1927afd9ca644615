"""A frozen network in torch, on a CPU or CUDA. Imports torch.

On CUDA the copy of one batch, the network on the one before and the copy back of the one
before that overlap: they are queued on two streams, and nothing waits but for its result.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import EngineError
from pipeline.features.engines import (
    Build,
    EngineChoice,
    Features,
    Wait,
    describe_device,
    provenance_of,
)
from pipeline.words import first_line

_LOG = logging.getLogger(__name__)
#: What compiling costs, and the share of the network's time that it saves: DenseNet121 on an
#: H100 took 45 s, and ran at twice the rate.
_COMPILE_SECONDS, _COMPILE_SAVES = 60.0, 0.4


class TorchEngine:
    """torch, with images in memory as the device is fastest; see :func:`engines.start_engine`."""

    def __init__(self, build: Build, choice: EngineChoice, precision: str, *, images: int) -> None:
        self.batch_size = choice.batch_size or 1
        self.depth = 2 if choice.device == "cpu" else 4
        self.device_seconds = {"copy": 0.0, "forward": 0.0}
        self._device = torch.device(choice.device)
        self._on_cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream() if self._on_cuda else None  # type: ignore[no-untyped-call]
        # One thread keeps the order; the caller's thread stays free to commit.
        self._thread = ThreadPoolExecutor(1, "forward")
        how = self._thread.submit(self._start, build, choice.compile, precision, images).result()
        device = describe_device(choice.device)
        self.description = f"torch on {device}, {precision}, batch {self.batch_size}{how}"

    def _start(self, build: Build, compiling: str, precision: str, images: int) -> str:
        """Bring the network to the device, in the form that is fastest for so many images."""
        _set_precision(precision)
        network = build()
        if precision == "bf16":
            network.cast(torch.bfloat16)
        # On an H200 fp32 is 13 % faster so; bf16 and CPUs want the opposite.
        plain = self._on_cuda and precision == "fp32"
        network.place(self._device, torch.contiguous_format if plain else torch.channels_last)
        self._network: Callable[[Tensor], Tensor] = network
        example = torch.zeros(
            (self.batch_size, network.size, network.size, 3), dtype=torch.uint8, device=self._device
        )
        with torch.inference_mode():
            if not self._on_cuda:
                return self._compiled(example, compiling) if compiling == "always" else ""
            to_come = self._seconds_per_batch(example) * images / self.batch_size
            pays = compiling == "auto" and to_come * _COMPILE_SAVES > _COMPILE_SECONDS
            compiled = self._compiled(example, compiling) if pays or compiling == "always" else ""
            try:
                self._network = _CudaGraph(self._network, example)
            except RuntimeError as cause:  # a network that waits for the device in its midst
                _LOG.info("no CUDA graph of this network: %s", first_line(cause))
                return compiled
            return f"{compiled}, CUDA graph"

    def _compiled(self, example: Tensor, compiling: str) -> str:
        try:
            compiled = torch.compile(self._network)
            compiled(example)
        except Exception as cause:
            text = first_line(cause)
            if compiling == "always":
                raise EngineError(f"torch cannot compile this network here: {text}") from cause
            _LOG.warning("the network runs as it is, since torch cannot compile it: %s", text)
            return ""
        self._network = compiled
        return ", compiled"

    def _seconds_per_batch(self, example: Tensor) -> float:
        self._network(example)  # loads its kernels
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._network(example)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def submit(self, batch: Any) -> Wait:
        """See :class:`pipeline.features.engines.Engine`; also takes a tensor on the device."""
        run = self._queue if self._on_cuda else self._run
        future: Future[Wait] = self._thread.submit(run, batch)

        def wait() -> Features:
            return future.result()()

        return wait

    def _run(self, batch: Any) -> Wait:
        """On a CPU."""
        pixels = torch.from_numpy(batch) if not isinstance(batch, Tensor) else batch
        with torch.inference_mode():
            features = self._network(pixels).float().numpy()
        return lambda: features

    def _queue(self, batch: Any) -> Wait:
        """Queue copy, network and copy back; nothing here waits for the device."""
        event = partial(torch.cuda.Event, enable_timing=True)
        begun, copied, started, done = event(), event(), event(), event()
        network = torch.cuda.current_stream()
        with torch.inference_mode():
            with torch.cuda.stream(self._copies):
                begun.record()
                pixels = _on_device(batch, self._device)
                copied.record()
            network.wait_event(copied)
            pixels.record_stream(network)
            started.record()
            out = self._network(pixels).float().to("cpu", non_blocking=True)
            done.record()

        def wait() -> Features:
            done.synchronize()  # for this batch alone; later ones go on meanwhile
            nonlocal batch
            batch = None  # until here the copy could be under way
            self.device_seconds["copy"] += begun.elapsed_time(copied) / 1000
            self.device_seconds["forward"] += started.elapsed_time(done) / 1000
            return out.numpy()

        return wait

    def provenance(self) -> dict[str, str]:
        """See :class:`pipeline.features.engines.Engine`."""
        return provenance_of("torch", self._device.type, self.batch_size)

    def close(self) -> None:
        """See :class:`pipeline.features.engines.Engine`."""
        self._thread.shutdown()


class _CudaGraph:
    """A network on batches of one shape, recorded once: one launch a batch, and no Python.

    Raises:
        RuntimeError: The network does something that cannot be recorded.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self._pixels = example
        self._network = network  # the record reads its weights, and does not hold them
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            network(example)  # memory is found
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Threads that decode may allocate pinned memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._features = network(example)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features; the next call overwrites them."""
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._features


def load_cuda() -> None:
    """Load what every network needs on a GPU: its context, and cuDNN by one convolution."""
    if torch.cuda.is_available():
        image = torch.zeros((1, 3, 16, 16), device="cuda")
        torch.nn.functional.conv2d(image, image[:, :, :3, :3])


def pinned_empty(shape: tuple[int, ...], dtype: Any = None) -> Any:  # noqa: ARG001 - as numpy's
    """An uint8 array in memory from which CUDA copies without help of the CPU."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _on_device(batch: Any, device: torch.device) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    host = torch.from_numpy(batch)
    return (host if host.is_pinned() else host.pin_memory()).to(device, non_blocking=True)


def _set_precision(precision: str) -> None:
    """Set what torch leaves to defaults: cuDNN would use TF32 by itself."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
