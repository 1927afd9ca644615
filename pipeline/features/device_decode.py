"""JPEG files decoded and resized on a CUDA device, many at once. Imports torch.

nvJPEG's pixels and torch's antialiased resize differ slightly from those of the CPU, so their
features have their own recipe. Images that the device cannot decode, or that are not ordinary
JPEG files, are decoded on the CPU and counted.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.data.images import Content, Pixels, Transform, plain_jpeg
from pipeline.data.items import Item
from pipeline.data.sources import read_image
from pipeline.errors import EngineError, ImageError
from pipeline.features.decoding import CONSTANT, Batch, Decoded, Request, prefetched
from pipeline.words import are, counted

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
#: Pixels that are decoded and resized at once, so that full-size images fit into the memory.
_DECODED_AT_ONCE, _RESIZED_AT_ONCE = 500_000_000, 100_000_000
#: Threads that read and check files; threads that decode. While one of the latter waits for
#: nvJPEG, the other resizes.
_READERS, _DECODERS = 16, 2
#: By EXIF orientation, 1 to 8: quarter turns to the left, and whether to mirror first.
_QUARTERS, _MIRRORED = (0, 0, 2, 2, 1, -1, -1, 1), (2, 4, 5, 7)


class _JpegFile(NamedTuple):
    """A JPEG file for the device; ``content`` can decode it on the CPU instead."""

    content: Content
    jpeg: Tensor
    orientation: int
    size: int


def device_batches(
    items: Mapping[bytes, Item],
    transform: Transform,
    unusable: dict[bytes, str],
    *,
    size: int,
    device: str,
) -> Iterator[Batch]:
    """As :func:`pipeline.features.decoding.decode_batches`; the pixels are on the device.

    Raises:
        EngineError: This torchvision cannot decode JPEG.
    """
    decoder = _DeviceDecoder(transform, size, device)
    with (
        ThreadPoolExecutor(_READERS, "read") as pool,
        # On its own stream; otherwise decoding and the network would wait for each other.
        ThreadPoolExecutor(_DECODERS, "decode", _cuda_stream, (device,)) as decoders,
    ):

        def start(chunk: Request) -> Callable[[], Decoded]:
            read = [pool.submit(_read, key, item, transform) for key, item in chunk]
            return decoders.submit(lambda: decoder([future.result() for future in read])).result

        try:
            yield from prefetched(items, size, start, unusable)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
    if decoder.on_cpu:
        _LOG.info(
            "%s %s decoded on the CPU, since the GPU decodes plain JPEG only",
            *(counted(decoder.on_cpu, "image"), are(decoder.on_cpu)),
        )


def _cuda_stream(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]


def _read(key: bytes, item: Item, transform: Transform) -> _JpegFile | Pixels | str:
    """A JPEG file, or the pixels of another image, or the reason why it cannot be used."""
    try:
        content = read_image(item, key)
        # Rows of stacks are pixels already.
        if isinstance(content.data, bytes) and (plain := plain_jpeg(content.data, item.options)):
            jpeg, *rest = plain
            # numpy copies without Python's lock; with it a large file would block all threads.
            return _JpegFile(content, torch.from_numpy(np.frombuffer(jpeg, np.uint8).copy()), *rest)
        return content.pixels(transform)
    except ImageError as reason:
        return str(reason)


class _DeviceDecoder:
    """Decodes batches on a device.

    Args:
        transform: From bytes to pixels.
        size: Images in a batch.
        device: ``cuda``; with ``cpu`` the same is done by other decoders.
    """

    def __init__(self, transform: Transform, size: int, device: str) -> None:
        try:
            from torchvision.io import ImageReadMode, decode_jpeg
        except ImportError as cause:
            raise EngineError(
                "this torchvision does not decode JPEG any more: use --decode cpu"
            ) from cause
        self._transform, self._size, self._device = transform, size, device
        self._mode, self._decode_jpeg = ImageReadMode.UNCHANGED, decode_jpeg
        #: How many were decoded on the CPU instead.
        self.on_cpu = 0

    def __call__(self, read: Sequence[_JpegFile | Pixels | str]) -> Decoded:
        """The reason why each image cannot be used; uint8 pixels ``(size, side, side, 3)``."""
        side = self._transform.size
        pixels = torch.zeros((self._size, side, side, 3), dtype=torch.uint8, device=self._device)
        reasons: list[str | None] = [p if isinstance(p, str) else None for p in read]
        files = [(row, p) for row, p in enumerate(read) if isinstance(p, _JpegFile)]
        with torch.inference_mode():
            for group in _divided(files, [p.size for _, p in files], _DECODED_AT_ONCE):
                left = self._fill(pixels, group)
                self.on_cpu += len(left)
                for row, file in left:
                    try:
                        pixels[row] = torch.tensor(file.content.pixels(self._transform))
                    except ImageError as refused:
                        reasons[row] = str(refused)
            for row, other in enumerate(read):
                if not isinstance(other, str | _JpegFile):
                    self.on_cpu += 1
                    pixels[row] = torch.from_numpy(other.copy())
            constant = (pixels == pixels[:, :1, :1]).flatten(1).all(1).tolist()
        for row, reason in enumerate(reasons):
            if reason is None and constant[row]:
                reasons[row] = CONSTANT
        return reasons, pixels

    def _fill(
        self, pixels: Tensor, files: list[tuple[int, _JpegFile]]
    ) -> list[tuple[int, _JpegFile]]:
        """Decode images into their rows; returns those that the device could not decode."""
        images = self._decoded([file.jpeg for _, file in files])
        by_shape: defaultdict[tuple[int, ...], list[tuple[int, Tensor]]] = defaultdict(list)
        left = []
        for (row, file), image in zip(files, images, strict=True):
            if image is None:
                left.append((row, file))
            else:
                quarters = _QUARTERS[file.orientation - 1]
                upright = image.flip(2) if file.orientation in _MIRRORED else image
                upright = upright.rot90(quarters, (1, 2)) if quarters else upright
                by_shape[tuple(upright.shape)].append((row, upright))
        for alike in by_shape.values():
            for group in _divided(alike, [image.numel() for _, image in alike], _RESIZED_AT_ONCE):
                square = _fitted(torch.stack([image for _, image in group]), self._transform)
                rows = torch.tensor([row for row, _ in group])
                pixels[rows] = square.permute(0, 2, 3, 1)  # grey fills three channels
        return left

    def _decoded(self, encoded: list[Tensor]) -> list[Tensor | None]:
        """Uint8 images ``(channels, height, width)``; None for those the device cannot decode."""
        try:
            if self._device == "cpu":
                return [self._decode_jpeg(jpeg, self._mode) for jpeg in encoded]
            return list(self._decode_jpeg(encoded, self._mode, device=self._device))
        except RuntimeError:  # which of them it was is not said
            if len(encoded) == 1:
                return [None]
            return [image for jpeg in encoded for image in self._decoded([jpeg])]


def _divided(values: Sequence[_T], sizes: Sequence[int], limit: int) -> Iterator[list[_T]]:
    """Divide values into runs whose sizes add up to a limit; a larger one is a run alone."""
    run: list[_T] = []
    total = 0
    for value, size in zip(values, sizes, strict=True):
        if run and total + size > limit:
            yield run
            run, total = [], 0
        run.append(value)
        total += size
    if run:
        yield run


def _fitted(images: Tensor, transform: Transform) -> Tensor:
    """Images ``(n, c, height, width)`` at the network's size, by the same rules as on the CPU."""
    height, width = images.shape[2:]
    to = (transform.size, transform.size)
    if transform.resize == "crop":
        target, short = round(transform.size / transform.crop_ratio), min(height, width)
        to = (target * height // short, target * width // short)
    if (height, width) != to:
        resized = interpolate(images.float(), to, mode=transform.interpolation, antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    top, left = (round((side - transform.size) / 2) for side in to)
    return images[:, :, top : top + transform.size, left : left + transform.size]
