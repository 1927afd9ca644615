"""The data of the training loop: pixels and stored rows, in memory, a file or on the device.

Each image is held once, by its content key; splits and domains are views. Batches are prepared
while the previous step runs, and augmented on the training device.
"""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cache.store import FeatureStore
from pipeline.data.images import DEGREES, SIDE, Transform, affine_map
from pipeline.data.items import Item
from pipeline.data.samples import Samples
from pipeline.errors import ImageError, NoImagesError
from pipeline.features.decoding import decode_images
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import fill_stores
from pipeline.features.frozen import FeatureExtractor
from pipeline.finetune.distributed import Group
from pipeline.finetune.methods import TrainingSettings
from pipeline.progress import Progress
from pipeline.words import printable

Rows = NDArray[np.intp]
Labels = NDArray[np.int64]
T = TypeVar("T")

#: Pixels up to this size are kept in memory: 28,000 images of 224 x 224. More are put into a
#: file, which the system caches in memory as far as it can.
PIXEL_BYTES = 4 << 30
#: Stored rows up to this size are read into memory: 80,000 images of 512 x 7 x 7.
ROW_BYTES = 8 << 30
#: Share of CUDA's free memory for the data; the rest is for the network.
_DEVICE_SHARE = 0.5
#: Batches prepared ahead of the step.
_AHEAD = 2


class Examples:
    """Examples for a network, with labels: rows of one tensor that all views share.

    Args:
        values: Shape ``(N, ...)``, uint8 pixels or float32 features or activations.
        at: Row of ``values`` that holds each example, shape ``(n,)``.
        label: 0 to K - 1, shape ``(n,)``, int64.
    """

    def __init__(self, values: Tensor, at: Rows, label: Labels) -> None:
        self.values = values
        self._at = at
        self.label = label

    def __len__(self) -> int:
        return len(self._at)

    def batch(self, rows: Rows) -> Tensor:
        """A copy of some examples, shape ``(m, ...)``, on the device of the values."""
        return self.values[_on_device(torch.from_numpy(self._at[rows]), self.values.device)]

    def take(self, rows: Rows) -> "Examples":
        """The examples in these rows, shape ``(m,)``, sharing the same values."""
        return Examples(self.values, self._at[rows], self.label[rows])


def examples_of(values: NDArray[Any], at: Rows, label: Labels, device: str = "cpu") -> Examples:
    """The rows on the device if half of its free memory is enough, else in memory."""
    tensor = torch.from_numpy(values)
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        if values.nbytes <= _DEVICE_SHARE * free:
            tensor = tensor.to(device)
    return Examples(tensor, at, label)


def _number_keys(samples: Samples) -> tuple[dict[bytes, int], Rows]:
    """A number for each content key, and the number of each sample, shape ``(n,)``."""
    number: dict[bytes, int] = {}
    at = [number.setdefault(key, len(number)) for key in samples.key]
    return number, np.array(at, np.intp)


def load_pixels(
    samples: Samples, transform: Transform, *, folder: Path, device: str = "cpu"
) -> Examples:
    """The pixels of all samples, decoded once; above ``PIXEL_BYTES`` in a file in ``folder``.

    Raises:
        ImageError: An image cannot be used any more.
        OSError: There is no space for the file.
    """
    number, at = _number_keys(samples)
    items = dict(zip(samples.key, samples.items, strict=True))
    values = _pixel_array((len(number), transform.size, transform.size, 3), folder)
    unusable: dict[bytes, str] = {}
    with Progress("decoding", len(number)) as progress:
        for key, pixels in decode_images(items, transform, unusable):
            values[number[key]] = pixels
            progress.advance()
    _refuse_unusable(unusable, items)
    return examples_of(values, at, samples.label, device)


def _pixel_array(shape: tuple[int, ...], folder: Path) -> NDArray[np.uint8]:
    """An array in memory, or in a nameless file that vanishes when it is no longer used."""
    size = math.prod(shape)
    if size <= PIXEL_BYTES:
        return np.empty(shape, np.uint8)
    with TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full is an error here, not later
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _refuse_unusable(unusable: Mapping[bytes, str], items: Mapping[bytes, Item]) -> None:
    """Stop if an image has become unusable: no method may silently train on fewer images."""
    for key, reason in unusable.items():
        raise ImageError(
            f"{printable(items[key].path)} cannot be used ({reason}); run headrace features STUDY "
            "again, which lists such images"
        )


def stored_rows(
    store: FeatureStore,
    samples: Samples,
    *,
    build: Callable[[], FeatureExtractor],
    transform: Transform,
    engine: EngineChoice,
    device: str,
) -> Examples:
    """Rows of all samples from a store; a frozen network computes missing rows first.

    Raises:
        NoImagesError: The rows need more memory than ``ROW_BYTES``.
        PipelineError: The network's weights or an image cannot be used.
    """
    pairs = zip(samples.key, samples.items, strict=True)
    if missing := {key: item for key, item in pairs if key not in store}:
        title = f"{store.recipe.backbone} {store.recipe.cut}"
        unusable = fill_stores(
            [store], missing, build=build, transform=transform, engine=engine, title=title
        )
        _refuse_unusable(unusable, missing)
    number, at = _number_keys(samples)
    needed = len(number) * math.prod(store.row_shape() or ()) * 4
    if needed > ROW_BYTES:
        raise NoImagesError(
            f"the activations of {len(number)} images take {needed / 1e9:.0f} GB and at most "
            f"{ROW_BYTES / 1e9:.0f} GB are held in memory: use --limit or a smaller --image-size"
        )
    return examples_of(store.read([*number]), at, samples.label, device)


def limit_images(samples: Samples, limit: int | None, seed: int) -> Samples:
    """At most ``limit`` images of each split of each domain, with the same shares of classes.

    At least one image of each class of a split is kept. The choice depends only on the seed and
    on each image's key, so a smaller limit takes a subset of what a larger one takes.
    """
    if limit is None:
        return samples

    def rank(row: int) -> bytes:
        return hashlib.sha256(b"%d|limit|%s" % (seed, samples.key[row])).digest()

    keep = np.zeros(len(samples), bool)
    for domain, split in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        rows = np.flatnonzero((samples.domain == domain) & (samples.split == split))
        most = min(limit, len(rows))
        for k in np.unique(samples.label[rows]):
            of_class = sorted(rows[samples.label[rows] == k].tolist(), key=rank)
            keep[of_class[: max(1, most * len(of_class) // len(rows))]] = True
    return samples.where(keep)


# The steps of an epoch: which images, in which order, on the device.


def order(seed: int, epoch: int, n: int) -> Rows:
    """Rows 0 to n - 1 in the order of one epoch; batches take ``batch_size`` rows in turn."""
    return np.random.default_rng([seed, *b"order", epoch]).permutation(n)


def dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one process."""
    drawn = np.random.SeedSequence([seed, *b"dropout", epoch, step, rank])
    return int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1))


def fit_batches(
    fit: Examples, settings: TrainingSettings, group: Group, *, epoch: int, first: int
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """This process's share of the steps of an epoch, from step ``first`` on.

    Yields inputs and labels ``(m,)`` on the device (float images as channels_last), and the
    factor of their mean loss, see :meth:`pipeline.finetune.distributed.Group.share`.
    """
    rows, size = order(settings.seed, epoch, len(fit)), settings.batch_size

    def load(start: int) -> tuple[Tensor, Tensor, float]:
        shared, factor = group.share(rows[start : start + size])
        inputs, labels = _examples(fit, shared, settings.device)
        if settings.augmentation == "light":
            inputs = augment_lightly(inputs, settings.seed, epoch, shared)
        return inputs, labels, factor

    return _ahead(load, range(first * size, len(rows), size), settings.device)


def ordered_batches(
    examples: Examples, settings: TrainingSettings, group: Group | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels in order; in a group, each process gets every ``size``-th batch."""
    group, size = group or Group(), settings.batch_size

    def load(start: int) -> tuple[Tensor, Tensor]:
        rows = np.arange(start, min(start + size, len(examples)))
        return _examples(examples, rows, settings.device)

    starts = range(0, len(examples), size)
    return _ahead(load, starts[group.rank :: group.size], settings.device)


def _examples(examples: Examples, rows: Rows, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and labels of some examples, on the device."""
    labels = torch.from_numpy(examples.label[rows])
    return _on_device(examples.batch(rows), device), _on_device(labels, device)


def augment_lightly(pixels: Tensor, seed: int, epoch: int, rows: Rows) -> Tensor:
    """Mirror left and right, rotate and crop in one bilinear resampling, on the pixels' device.

    Pixels from outside the image repeat its edge. Do not use ``light`` for a label that means a
    side: a mirrored chest has its heart on the right.

    Args:
        pixels: Uint8 of shape ``(m, s, s, 3)``.
        seed: The draw depends on the seed, the epoch and the example's row.
        epoch: From 0.
        rows: Numbers of these examples, shape ``(m,)``.
    """
    maps = torch.from_numpy(np.stack([_light_map(seed, epoch, int(row)) for row in rows]))
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(_on_device(maps, pixels.device), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _light_map(seed: int, epoch: int, row: int) -> NDArray[np.float32]:
    """Affine map from the result to the image, both -1 to 1; shape ``(2, 3)``."""
    draw = np.random.default_rng([seed, *b"augmentation", epoch, row])
    mirror, degrees = draw.random() < 0.5, draw.uniform(-DEGREES, DEGREES)
    side = draw.uniform(SIDE, 1.0)
    right, down = draw.uniform(side - 1, 1 - side, 2)
    return affine_map(mirror=mirror, degrees=degrees, side=side, right=right, down=down)


def _on_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Copy to the device without waiting; float images become channels_last."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _ahead(load: Callable[[int], T], starts: Iterable[int], device: str) -> Iterator[T]:
    """Load batches in another thread, a few batches ahead, in order."""
    waiting: deque[Future[T]] = deque()

    def on_this_gpu() -> None:  # a new thread would be on the first one
        if device.startswith("cuda"):
            torch.cuda.set_device(torch.device(device).index or 0)

    pool = ThreadPoolExecutor(1, "batches", on_this_gpu)
    try:
        for start in starts:
            waiting.append(pool.submit(load, start))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
