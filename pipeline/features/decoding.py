"""Decode images ahead of the engine, directly into its batches: in threads, or in processes.

Threads share one Python lock, which limits them to about a thousand small images per second. So
for a fast device, processes decode into memory that they share with this process.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.arrays import is_archive
from pipeline.data.images import Pixels, Transform
from pipeline.data.items import Item
from pipeline.data.sources import read_image
from pipeline.errors import ImageError
from pipeline.parallel import Processes, can_share_memory, shared_memory

#: The pixels of a batch, and the key of each row; None for a row without an image.
Batch = tuple[list[bytes | None], Any]
#: Decoded images that may wait: 40 MB at 224 x 224; with large batches at least a few.
_WINDOW, _BATCHES = 256, 3
#: Rows that a process decodes for one request.
_ROWS_PER_REQUEST = 16
#: Below this, starting processes takes longer than they save.
_IMAGES_FOR_PROCESSES = 1000
_LARGE_FILE = 1 << 28
CONSTANT = "all pixels have one colour"
Request = Sequence[tuple[bytes, Item]]
#: The reason why each image cannot be used, or None; and the pixels of the batch.
Decoded = tuple[list[str | None], Any]


def decode_batches(
    items: Mapping[bytes, Item],
    transform: Transform,
    unusable: dict[bytes, str],
    *,
    size: int,
    device: str = "cpu",
    processes: int | None = None,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Decode ahead, in order; the row of an image that cannot be used is black.

    Args:
        items: Images by content key; the content must still have that key.
        transform: From bytes to pixels.
        unusable: Gets the reason of each image that is left out, by key.
        size: Images in a batch; the last batch is filled up with black rows.
        device: Device of the engine: for a GPU, batches lie in memory that it can copy from.
        processes: Number of processes that decode; 0: threads; None: whichever is faster for
            the device and the images.
        threads: Number of threads; None: one for each core.

    Yields:
        Batches of uint8 pixels, shape ``(size, transform.size, transform.size, 3)``.
    """
    if processes is None:
        processes = _processes_for(device, items.values())

    def decode(rows: Pixels, request: Request) -> list[str | None]:
        if not processes:
            return _decode_rows(rows, request, transform)
        with running.idle() as process:
            reasons: list[str | None] = process.call(_decode_shared, request, transform)
            rows[...] = process.shared[: rows.size].reshape(rows.shape)
            return reasons

    def start(chunk: Request) -> Callable[[], Decoded]:
        pixels = empty_batch((size, transform.size, transform.size, 3), device)
        rows, pixels[len(chunk) :] = pixels[: len(chunk)], 0
        futures = [
            pool.submit(decode, rows[at : at + step], chunk[at : at + step])
            for at in range(0, len(chunk), step)
        ]
        return lambda: ([reason for future in futures for reason in future.result()], pixels)

    # Small batches image by image, since those differ in size; of large ones several together.
    step = _ROWS_PER_REQUEST if processes else max(1, size // 32)
    pool = ThreadPoolExecutor(processes or threads or os.cpu_count(), "decode")
    try:
        with Processes(processes, memory=_ROWS_PER_REQUEST * transform.size**2 * 3) as running:
            yield from prefetched(items, size, start, unusable)
    finally:
        pool.shutdown(wait=bool(processes), cancel_futures=True)


def empty_batch(shape: tuple[int, ...], device: str) -> Pixels:
    """The uint8 array of a batch; a GPU can copy it without help of the CPU."""
    if device == "cpu":
        return np.empty(shape, np.uint8)
    import torch

    pinned: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return pinned


def _processes_for(device: str, items: Collection[Item]) -> int:
    """How many processes should decode these images; 0 means threads."""
    cores = os.cpu_count() or 1
    many = device == "cuda" and len(items) >= _IMAGES_FOR_PROCESSES and cores > 2
    if not many or not can_share_memory():
        return 0
    # Each process would unpack the whole of a .npz file.
    large = {item.file for item in items if item.row is not None and item.stat.size > _LARGE_FILE}
    return 0 if any(is_archive(Path(file)) for file in large) else cores


def prefetched(
    items: Mapping[bytes, Item],
    size: int,
    start: Callable[[Request], Callable[[], Decoded]],
    unusable: dict[bytes, str],
) -> Iterator[Batch]:
    """Batches in order; some are started before the first is requested.

    Args:
        items: Images by content key.
        size: Images in a batch.
        start: Starts one batch; returns what waits for it.
        unusable: See :func:`decode_batches`.
    """
    waiting: deque[tuple[list[bytes], Callable[[], Decoded]]] = deque()
    todo = iter(items.items())
    while True:
        while len(waiting) < max(_BATCHES, _WINDOW // size) and (chunk := list(islice(todo, size))):
            waiting.append(([key for key, _ in chunk], start(chunk)))
        if not waiting:
            return
        keys, wait = waiting.popleft()
        reasons, pixels = wait()
        unusable |= {key: why for key, why in zip(keys, reasons, strict=True) if why}
        yield [None if why else key for key, why in zip(keys, reasons, strict=True)], pixels


def decode_images(
    items: Mapping[bytes, Item], transform: Transform, unusable: dict[bytes, str]
) -> Iterator[tuple[bytes, Pixels]]:
    """As :func:`decode_batches`, image by image: key, and pixels ``(size, size, 3)``."""
    for keys, pixels in decode_batches(items, transform, unusable, size=1):
        if keys[0] is not None:
            yield keys[0], pixels[0]


def _decode_shared(request: Request, transform: Transform) -> list[str | None]:
    """Decode images into the memory that this process shares with its parent."""
    rows = shared_memory()[: len(request) * transform.size**2 * 3]
    return _decode_rows(rows.reshape(-1, transform.size, transform.size, 3), request, transform)


def _decode_rows(rows: Pixels, request: Request, transform: Transform) -> list[str | None]:
    """Decode images into rows; returns the reason why each cannot be used, or None."""
    return [_decode_row(row, *image, transform) for row, image in zip(rows, request, strict=True)]


def _decode_row(row: Pixels, key: bytes, item: Item, transform: Transform) -> str | None:
    # The bytes that are hashed are the bytes that are decoded: no wrong row is possible.
    try:
        row[...] = read_image(item, key).pixels(transform)
    except ImageError as reason:
        row[...] = 0
        return str(reason)
    if transform.mask != "none":
        return None
    # A few pixels are enough for nearly every image.
    constant = (row[::16, ::16] == row[0, 0]).all() and (row == row[0, 0]).all()
    return CONSTANT if constant else None
