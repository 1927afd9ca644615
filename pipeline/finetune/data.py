"""What the training loop reads: rows of an array in memory, or images decoded as they come.

One source holds each image once, by its content key, and gives views of it for the
splits and domains of a study.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import PixelPolicy, Pixels
from pipeline.data.items import Item
from pipeline.data.samples import Samples
from pipeline.data.sources import read_image
from pipeline.errors import ImageError
from pipeline.features.extract import decode_images
from pipeline.finetune.distributed import Group
from pipeline.finetune.settings import LoopSettings
from pipeline.progress import Progress
from pipeline.words import printable

Rows = NDArray[np.intp]
Labels = NDArray[np.int64]


class Source(Protocol):
    """Gives the images of a study to the loop, in any choice."""

    def take(self, rows: Rows) -> Any:
        """Examples (see ``pipeline.finetune.loop``) of these samples, shape ``(n,)``."""


class Held:
    """Rows of one array, which all views share.

    Args:
        values: Shape ``(N, ...)``, uint8 pixels or float32 activations.
        at: Shape ``(n,)``: in which row of ``values`` each example lies.
        label: Shape ``(n,)``, int64.
    """

    def __init__(self, values: NDArray[Any], at: Rows, label: Labels) -> None:
        self._values = values
        self._at = at
        self.label = label

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, rows: Rows) -> Tensor:
        """A copy of some examples, shape ``(b, ...)``."""
        return torch.from_numpy(self._values[self._at[rows]])

    def take(self, rows: Rows) -> "Held":
        """See :class:`Source`."""
        return Held(self._values, self._at[rows], self.label[rows])


class Decoding:
    """Images that are read and decoded anew for every batch, by threads.

    For sets that memory does not hold; costs about a hundredth of a second an image.

    Args:
        items: ``n`` images.
        label: Shape ``(n,)``, int64.
        policy: From bytes to pixels.
        pool: Threads, shared by all views.
    """

    def __init__(
        self,
        items: Sequence[Item],
        label: Labels,
        policy: PixelPolicy,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self._items = items
        self.label = label
        self._policy = policy
        self._pool = pool or ThreadPoolExecutor(cpu_count(), "decode")

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, rows: Rows) -> Tensor:
        """Uint8 pixels of shape ``(b, size, size, 3)``.

        Raises:
            ImageError: An image cannot be used any more.
        """
        return torch.from_numpy(np.stack(list(self._pool.map(self._pixels, rows.tolist()))))

    def take(self, rows: Rows) -> "Decoding":
        """See :class:`Source`."""
        items = [self._items[i] for i in rows.tolist()]
        return Decoding(items, self.label[rows], self._policy, self._pool)

    def _pixels(self, row: int) -> Pixels:
        return read_image(self._items[row]).pixels(self._policy)


def numbered(samples: Samples) -> tuple[list[bytes], Rows]:
    """Each content key once, and for each sample the number of its key, shape ``(n,)``."""
    number: dict[bytes, int] = {}
    at = [number.setdefault(key, len(number)) for key in samples.key]
    return list(number), np.array(at, np.intp)


# Decoded pixels of a study's images, for the methods that train from them.


#: Pixels up to this size are kept in memory: 28,000 images of 224 x 224. Above it, every
#: epoch decodes them again.
HELD_BYTES = 4 << 30


def pixels_of(samples: Samples, policy: PixelPolicy, held_bytes: int | None = None) -> Source:
    """The pixels of all samples, held in memory where they fit.

    Args:
        samples: Of which each is usable; see :func:`pipeline.features.load.load_features`.
        policy: From bytes to pixels.
        held_bytes: How many bytes may be held; default ``HELD_BYTES``.

    Raises:
        ImageError: An image cannot be used any more.
    """
    keys, at = numbered(samples)
    if len(keys) * 3 * policy.size**2 > (HELD_BYTES if held_bytes is None else held_bytes):
        return Decoding(samples.items, samples.label, policy)
    first = dict(zip(reversed(samples.key), reversed(samples.items), strict=True))
    values = np.empty((len(keys), policy.size, policy.size, 3), np.uint8)
    row_of = {key: row for row, key in enumerate(keys)}
    unusable: dict[bytes, str] = {}
    with Progress("decoding", len(keys)) as progress:
        for key, pixels in decode_images({key: first[key] for key in keys}, policy, unusable):
            values[row_of[key]] = pixels
            progress.advance()
    for key, reason in unusable.items():
        raise ImageError(
            f"{printable(first[key].path)} cannot be used ({reason}); run headrace features STUDY "
            "again, which lists such images"
        )
    return Held(values, at, samples.label)


def limited(samples: Samples, limit: int | None, seed: int) -> Samples:
    """At most ``limit`` images of each split of each domain, by class in their proportion.

    Which they are depends on the seed and on each image's key alone, so a smaller limit
    takes a part of what a larger one takes.

    Args:
        samples: Of a whole study.
        limit: At least one image of each class of a split is kept; None takes all.
        seed: Of the draw.
    """
    if limit is None:
        return samples
    keep = np.zeros(len(samples), bool)
    for domain in dict.fromkeys(samples.domain.tolist()):
        for split in dict.fromkeys(samples.split[samples.domain == domain].tolist()):
            here = (samples.domain == domain) & (samples.split == split)
            keep |= _drawn(samples, np.flatnonzero(here), limit, seed)
    return samples.where(keep)


def _drawn(samples: Samples, rows: NDArray[np.intp], limit: int, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(samples), bool)
    share = min(1.0, limit / len(rows))
    for k in np.unique(samples.label[rows]):
        own = rows[samples.label[rows] == k]
        ranked = sorted(own.tolist(), key=lambda row: _rank(seed, samples.key[row]))
        chosen[ranked[: max(1, round(share * len(own)))]] = True
    return chosen


def _rank(seed: int, key: bytes) -> bytes:
    return hashlib.sha256(b"%d|limit|%s" % (seed, key)).digest()


# Small random changes of training images that leave the label as it is.


#: Largest rotation either way, degrees.
_DEGREES = 10.0
#: Smallest side of the crop, share of the image's.
_SIDE = 0.85

#: Pixels uint8 ``(n, s, s, 3)``, seed, epoch, sample rows ``(n,)`` -> pixels of that kind.
Augmentation = Callable[["Tensor", int, int, "NDArray[np.intp]"], "Tensor"]


def _none(pixels: "Tensor", seed: int, epoch: int, rows: "NDArray[np.intp]") -> "Tensor":  # noqa: ARG001 - the table's signature
    return pixels


def _light(pixels: "Tensor", seed: int, epoch: int, rows: "NDArray[np.intp]") -> "Tensor":
    """Mirror left and right, rotate and crop in one bilinear resampling.

    What a rotation brings in from outside repeats the edge. A mirrored chest has its
    heart on the right: harmless for opacities, wrong for a label that means a side.

    Raises:
        ValueError: Stored activations instead of pixels.
    """
    import numpy as np
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    if pixels.dtype != torch.uint8:
        raise ValueError(
            f"augmentation light works on pixels, uint8 (n, s, s, 3), got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}: stored activations cannot be augmented; use none"
        )
    maps = np.stack([_light_map(seed, epoch, int(row)) for row in rows])
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(torch.from_numpy(maps), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _light_map(seed: int, epoch: int, row: int) -> "NDArray[np.float32]":
    """From places in the result to places in the image, both -1 to 1; shape ``(2, 3)``."""
    import numpy as np

    draw = np.random.default_rng([seed, *b"augmentation", epoch, row])
    mirror = -1.0 if draw.random() < 0.5 else 1.0
    angle = math.radians(draw.uniform(-_DEGREES, _DEGREES))
    side = draw.uniform(_SIDE, 1.0)
    right, down = draw.uniform(side - 1, 1 - side, 2)
    cos, sin = side * math.cos(angle), side * math.sin(angle)
    return np.array([[mirror * cos, -sin, right], [mirror * sin, cos, down]], np.float32)


#: To add an augmentation: a function above and a line here.
AUGMENTATIONS: Mapping[str, Augmentation] = MappingProxyType({"none": _none, "light": _light})


# Which images a step sees, in which order and form, made ready while the last step runs.


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
        factor: Of the mean loss; see :meth:`pipeline.finetune.distributed.Group.share`.
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
        if inputs.dim() == 4 and inputs.is_floating_point():
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
