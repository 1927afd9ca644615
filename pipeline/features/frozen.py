"""A frozen network: built from a file of weights, and run by torch on uint8 pixels. Imports torch.

On CUDA three steps overlap: the copy of a batch to the device, the network on the previous batch,
and the copy back of the batch before. They are queued on two streams.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from pipeline.data.images import Transform, affine_map, views_of
from pipeline.errors import EngineError, WeightsError
from pipeline.features.backbones import read_state, spec_of
from pipeline.features.engines import Build, Engine, EngineChoice, Features, Wait
from pipeline.words import first_line

_LOG = logging.getLogger(__name__)
#: Seconds that compiling costs, and the share of the network's time that it saves: for
#: DenseNet121 on an H100 it took 45 s and doubled the rate.
_COMPILE_SECONDS, _COMPILE_SAVES = 60.0, 0.4


def build(name: str, file: Path) -> nn.Module:
    """The frozen network: eval mode, no gradients, classifier cut off.

    Raises:
        WeightsError: The file is not a state dict, or does not fit the network.
    """
    state = read_state(file)
    try:
        network = spec_of(name).network(state)
    except (WeightsError, RuntimeError, KeyError, ValueError) as cause:
        raise WeightsError(f"{file} does not fit {name}: {first_line(cause)}") from cause
    # With numpy: torch would wake all its threads for each of hundreds of small tensors.
    values = {name: t.float().numpy() for name, t in network.state_dict().items()}
    if bad := [name for name, value in values.items() if not np.isfinite(value).all()]:
        raise WeightsError(f"{file}: {bad[0]} is not finite: these weights are broken")
    return network.eval().requires_grad_(requires_grad=False)


def state_digest(network: nn.Module) -> str:
    """Hex SHA-256 over the sorted state dict: name, dtype, shape, bytes of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Normalise(nn.Module):
    """From uint8 pixels ``(n, size, size, 3)`` to normalised images ``(n, 3, size, size)``."""

    mean: Tensor
    std: Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(transform.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(shape), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images, channels last in memory."""
        # The same operations, in the same order, as ToTensor and Normalize.
        images = pixels.permute(0, 3, 1, 2).to(self.mean.dtype).div(255)
        return (images - self.mean) / self.std


class Views(nn.Module):
    """From pixels ``(n, size, size, 3)`` to their views ``(n * k, size, size, 3)``, as floats.

    Pixels from outside the image repeat its edge.
    """

    grids: Tensor
    brightness: Tensor

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        views = views_of(transform.views)
        brightness = torch.tensor([view.pop("brightness") for view in views])
        maps = torch.from_numpy(np.stack([affine_map(**view) for view in views]))
        shape = [len(views), 3, transform.size, transform.size]
        grids = affine_grid(maps, shape, align_corners=False)
        self.register_buffer("grids", grids, persistent=False)
        self.register_buffer("brightness", brightness, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """All views of the first image, then of the second, and so on."""
        images = pixels.permute(0, 3, 1, 2).to(self.brightness.dtype)
        views = [
            factor
            * grid_sample(
                images,
                grid.expand(images.shape[0], -1, -1, -1),
                padding_mode="border",
                align_corners=False,
            )
            for grid, factor in zip(self.grids, self.brightness, strict=True)
        ]
        return torch.stack(views, 1).flatten(0, 1).clamp(0, 255).permute(0, 2, 3, 1)


class FeatureExtractor(nn.Module):
    """A frozen network from uint8 pixels to features.

    Views and normalisation are part of its graph, so that only bytes travel to the device.

    Args:
        network: From float32 images ``(n, 3, size, size)`` to features ``(n, ...)``.
        transform: Gives size, views, mean and standard deviation.
        layers: Names of modules whose outputs ``(n, d, h, w)``, averaged over positions and
            concatenated, are the features; an empty name stands for the network's output.
    """

    size: int

    def __init__(
        self, network: nn.Module, transform: Transform, layers: Sequence[str] = ("",)
    ) -> None:
        super().__init__()
        self.network, self.layers = network, layers
        self._pooled: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for layer in filter(None, layers):
            name = layer if layer in modules else f"features.{layer}"
            modules[name].register_forward_hook(partial(self._pool, layer))
        self.size = transform.size
        self.dtype = torch.float32
        self.layout = torch.channels_last
        self.views = Views(transform) if transform.views > 1 else None
        self.normalise = Normalise(transform)
        self.eval().requires_grad_(requires_grad=False)

    def move_to(
        self, device: torch.device, layout: torch.memory_format, dtype: torch.dtype = torch.float32
    ) -> None:
        """Move the network to a device; set precision and memory layout of the images.

        Batch normalisation stays in float32: its statistics are small differences of large
        numbers, and cost no time.
        """
        for module in self.network.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - no other name
                module._apply(  # type: ignore[no-untyped-call]  # noqa: SLF001 - `to` takes the modules within along
                    lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False
                )
        self.layout, self.dtype = layout, dtype
        self.to(device, memory_format=layout)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of uint8 pixels ``(n, size, size, 3)``; of ``k`` views ``(n, k, ...)``."""
        seen = pixels if self.views is None else self.views(pixels)
        images = self.normalise(seen).to(self.dtype).contiguous(memory_format=self.layout)
        last: Tensor = self.network(images)
        by_layer = [self._pooled[layer] if layer else last for layer in self.layers]
        features = torch.cat(by_layer, 1) if len(by_layer) > 1 else by_layer[0]
        if self.views is None:
            return features
        return features.reshape(-1, len(self.views.grids), *features.shape[1:])

    def _pool(self, layer: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._pooled[layer] = output.mean((2, 3))


class TorchEngine(Engine):
    """torch, with the fastest memory layout of the device; see :func:`engines.start_engine`."""

    name = "torch"

    def __init__(self, build: Build, choice: EngineChoice, precision: str, *, images: int) -> None:
        super().__init__(choice.device, choice.batch_size or 1)
        self.device_seconds = {"copy": 0.0, "forward": 0.0}
        self._device = torch.device(choice.device)
        self._on_cuda = self._device.type == "cuda"
        self.depth = 4 if self._on_cuda else 2
        self._copies = torch.cuda.Stream() if self._on_cuda else None  # type: ignore[no-untyped-call]
        # One thread keeps the order, and the caller's thread is free to commit.
        self._thread = ThreadPoolExecutor(1, "forward")
        how = self._thread.submit(self._start, build, choice.compile, precision, images).result()
        self.description = (
            f"torch on {self._device_name}, {precision}, batch {self.batch_size}{how}"
        )

    def _start(self, build: Build, compiling: str, precision: str, images: int) -> str:
        """Move the network to the device, in the form that is fastest for this many images."""
        _set_precision(precision)
        network = build()
        # On an H200 this makes fp32 13 % faster; bf16 and CPUs need the opposite.
        contiguous = self._on_cuda and precision == "fp32"
        layout = torch.contiguous_format if contiguous else torch.channels_last
        network.move_to(
            self._device, layout, torch.bfloat16 if precision == "bf16" else torch.float32
        )
        self._network: Callable[[Tensor], Tensor] = network
        example = torch.zeros(
            (self.batch_size, network.size, network.size, 3), dtype=torch.uint8, device=self._device
        )
        with torch.inference_mode():
            if not self._on_cuda:
                return self._compiled(example, compiling) if compiling == "always" else ""
            expected_seconds = self._seconds_per_batch(example) * images / self.batch_size
            is_worthwhile = (
                compiling == "auto" and expected_seconds * _COMPILE_SAVES > _COMPILE_SECONDS
            )
            compiled = (
                self._compiled(example, compiling) if is_worthwhile or compiling == "always" else ""
            )
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
            _LOG.warning("torch cannot compile the network, so it runs uncompiled: %s", text)
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
        """See :class:`Engine`; also takes a tensor on the device."""
        run = self._queue if self._on_cuda else self._run
        future: Future[Wait] = self._thread.submit(run, batch)

        def wait() -> Features:
            return future.result()()

        return wait

    def _run(self, batch: Any) -> Wait:
        """Run a batch on a CPU."""
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

    def close(self) -> None:
        """See :class:`Engine`."""
        self._thread.shutdown()


class _CudaGraph:
    """A network on batches of one shape, recorded once: one launch per batch, without Python.

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


def _on_device(batch: Any, device: torch.device) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    host = torch.from_numpy(batch)
    return (host if host.is_pinned() else host.pin_memory()).to(device, non_blocking=True)


def _set_precision(precision: str) -> None:
    """Set the precision of products and convolutions: cuDNN uses TF32 by default."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
