"""Which images a step sees, in which order and form, made ready while the last step runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.finetune.augment import AUGMENTATIONS
from pipeline.finetune.parallel import Group
from pipeline.finetune.settings import LoopSettings

#: Batches made ready ahead of the step.
_AHEAD = 2

_Todo = TypeVar("_Todo")
_Done = TypeVar("_Done")


class Examples(Protocol):
    """Inputs of a network with their labels: pixels, or stored activations.

    Attributes:
        label: 0 to K - 1, shape ``(n,)``.
    """

    label: NDArray[np.int64]

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.intp]) -> Tensor:
        """Inputs of these rows, on the CPU: uint8 ``(m, s, s, 3)`` or floating ``(m, ...)``.

        Called by one thread at a time, which is not the caller of the loop.
        """


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one process computes in one step.

    Attributes:
        inputs: On the CPU, pinned when they go to CUDA.
        labels: Shape ``(m,)``, where the inputs are.
        factor: Of the mean loss; see :meth:`pipeline.finetune.parallel.Group.share`.
        images: Of the batch that count: 0 where one only fills a place.
        images_of_all: Images of this step in all processes.
    """

    inputs: Tensor
    labels: Tensor
    factor: float
    images: int
    images_of_all: int

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and labels on the device, without waiting; images as channels_last."""
        inputs = self.inputs.to(device, non_blocking=True)
        if inputs.dim() == 4 and inputs.is_floating_point():  # noqa: PLR2004 - n, C, H, W
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, self.labels.to(device, non_blocking=True)


def order(seed: int, epoch: int, n: int) -> NDArray[np.intp]:
    """Rows 0 to n - 1 as one epoch sees them; batches are cut from it one after another."""
    return np.random.default_rng([seed, *b"order", epoch]).permutation(n)


def dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one process."""
    drawn = np.random.SeedSequence([seed, *b"dropout", epoch, step, rank])
    return int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1))


def fit_batches(
    fit: Examples, settings: LoopSettings, group: Group, *, epoch: int, first: int
) -> Iterator[Batch]:
    """This process's share of the steps of an epoch, from step ``first`` on."""
    rows, size = order(settings.seed, epoch, len(fit)), settings.batch_size
    augment = AUGMENTATIONS[settings.augmentation]

    def load(start: int) -> Batch:
        of_all = rows[start : start + size]
        own, factor = group.share(of_all)
        return Batch(
            inputs=_pinned(augment(fit.batch(own), settings.seed, epoch, own), settings.device),
            labels=_pinned(torch.from_numpy(fit.label[own]), settings.device),
            factor=factor,
            images=len(own) if factor else 0,
            images_of_all=len(of_all),
        )

    return _ahead(load, range(first * size, len(rows), size))


def plain_batches(
    examples: Examples, batch_size: int, device: str, group: Group | None = None
) -> Iterator[Batch]:
    """All examples in their order; of a group, each process gets every size-th batch."""
    group = group or Group()

    def load(start: int) -> Batch:
        rows = np.arange(start, min(start + batch_size, len(examples)))
        return Batch(
            inputs=_pinned(examples.batch(rows), device),
            labels=_pinned(torch.from_numpy(examples.label[rows]), device),
            factor=1.0,
            images=len(rows),
            images_of_all=len(rows),
        )

    starts = range(0, len(examples), batch_size)
    return _ahead(load, starts[group.rank :: group.size])


def _pinned(tensor: Tensor, device: str) -> Tensor:
    return tensor.pin_memory() if device.startswith("cuda") else tensor


def _ahead(load: Callable[[_Todo], _Done], todo: Iterable[_Todo]) -> Iterator[_Done]:
    """Load in another thread, a few ahead of the one that is used; in order."""
    waiting: deque[Future[_Done]] = deque()
    pool = ThreadPoolExecutor(1, "batches")
    try:
        for item in todo:
            waiting.append(pool.submit(load, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
