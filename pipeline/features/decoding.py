"""Images decoded ahead of the engine, straight into its batches: in threads, or in processes.

Threads serve a few cores. They share one Python lock, which lets through about a thousand
small pictures a second, so a fast device is fed by processes. Each of those decodes into memory
that it shares with this process; no pixel travels through a pipe.
"""

import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any, cast

import numpy as np

from pipeline.data.images import PixelPolicy, Pixels
from pipeline.data.items import Item
from pipeline.data.sources import read_image
from pipeline.errors import EngineError, ImageError

#: The pixels of a batch, and for each of its rows the key; None where there is no image.
Batch = tuple[list[bytes | None], Any]
#: Decoded images that may wait: 40 MB at 224 x 224; of large batches at least a few.
_WINDOW, _BATCHES = 256, 3
#: Rows that a process decodes for one request.
_ROWS_PER_REQUEST = 16
#: Below this, starting processes takes longer than they save.
_IMAGES_FOR_PROCESSES = 1000
ONE_COLOUR = "all pixels have one colour"
Request = Sequence[tuple[bytes, Item]]
#: Why each image cannot be used, or None; and the pixels of the batch.
Decoded = tuple[list[str | None], Any]


def processes_for(device: str, images: int) -> int:
    """How many processes should decode; 0 where threads do."""
    cores = os.cpu_count() or 1
    many = device == "cuda" and images >= _IMAGES_FOR_PROCESSES and cores > 2
    return cores if many and hasattr(os, "memfd_create") else 0


def decode_batches(
    items: Mapping[bytes, Item],
    policy: PixelPolicy,
    unusable: dict[bytes, str],
    *,
    size: int,
    empty: Callable[[tuple[int, ...]], Pixels] = np.empty,
    processes: int = 0,
    threads: int | None = None,
) -> Iterator[Batch]:
    """Decode ahead, in order; the row of an image that cannot be used is black.

    Args:
        items: By content key; what is read must still have that key.
        policy: From bytes to pixels.
        unusable: Gets the reason of each image that is left out, by key.
        size: Images in a batch; the last one is filled up with black rows.
        empty: Makes the array of a batch.
        processes: Decode in so many processes; 0: in threads.
        threads: How many of those; None: one for each core.

    Yields:
        Batches of uint8 pixels, shape ``(size, policy.size, policy.size, 3)``.
    """
    workers: SimpleQueue[_Process] = SimpleQueue()
    running = [_Process(policy) for _ in range(processes)]
    for worker in running:
        workers.put(worker)

    def decode(rows: Pixels, request: Request) -> list[str | None]:
        if not processes:
            return _decode_rows(rows, request, policy)
        worker = workers.get()
        try:
            return worker.decode(rows, request)
        finally:
            workers.put(worker)

    def start(chunk: Request) -> Callable[[], Decoded]:
        pixels = empty((size, policy.size, policy.size, 3), dtype=np.uint8)  # type: ignore[call-arg]
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
        yield from started_ahead(items, size, start, unusable)
    finally:
        for worker in running:
            worker.kill()
        pool.shutdown(wait=bool(running), cancel_futures=True)
        for worker in running:
            worker.close()


def started_ahead(
    items: Mapping[bytes, Item],
    size: int,
    start: Callable[[Request], Callable[[], Decoded]],
    unusable: dict[bytes, str],
) -> Iterator[Batch]:
    """Batches in order, some of them started before the first is asked for.

    Args:
        items: By content key.
        size: Images in a batch.
        start: Starts one batch; returns what waits for it.
        unusable: Gets the reason of each image that is left out, by key.
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
    items: Mapping[bytes, Item], policy: PixelPolicy, unusable: dict[bytes, str]
) -> Iterator[tuple[bytes, Pixels]]:
    """As :func:`decode_batches`, one by one: key, and pixels of shape ``(size, size, 3)``."""
    for keys, pixels in decode_batches(items, policy, unusable, size=1):
        if keys[0] is not None:
            yield keys[0], pixels[0]


def _decode_rows(rows: Pixels, request: Request, policy: PixelPolicy) -> list[str | None]:
    """Decode images into rows; returns for each why it cannot be used, or None."""
    return [_decode_row(row, *one, policy) for row, one in zip(rows, request, strict=True)]


def _decode_row(row: Pixels, key: bytes, item: Item, policy: PixelPolicy) -> str | None:
    # The bytes that are hashed are the bytes that are decoded: no wrong row is possible.
    try:
        row[...] = read_image(item, key).pixels(policy)
    except ImageError as reason:
        row[...] = 0
        return str(reason)
    if policy.mask == "none" and _has_one_colour(row):
        return ONE_COLOUR
    return None


def _has_one_colour(pixels: Pixels) -> bool:
    """A few pixels tell it of nearly every picture."""
    colour = pixels[0, 0]
    return bool((pixels[::16, ::16] == colour).all() and (pixels == colour).all())


class _Process:
    """A process that decodes requests into memory it shares with this one.

    The memory has no name and the process reads from a pipe, so both are gone when this
    process is, however it ends.

    Args:
        policy: From bytes to pixels.
    """

    def __init__(self, policy: PixelPolicy) -> None:
        self._policy = policy
        memory = os.memfd_create("headrace decode")
        os.ftruncate(memory, _ROWS_PER_REQUEST * policy.size**2 * 3)
        self._rows = _mapped(memory, policy.size)
        code = f"from pipeline.features import decoding; decoding.serve({memory}, {policy.size})"
        self._child = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[memory],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        os.close(memory)  # the mapping holds it
        self._requests = cast("IO[bytes]", self._child.stdin)
        self._answers = cast("IO[bytes]", self._child.stdout)

    def decode(self, rows: Pixels, request: Request) -> list[str | None]:
        """Fill rows; see :func:`_decode_rows`.

        Raises:
            EngineError: The process has ended.
        """
        try:
            pickle.dump((request, self._policy), self._requests)
            self._requests.flush()
            reasons: list[str | None] = pickle.load(self._answers)  # noqa: S301 - our own child
        except (OSError, EOFError) as cause:
            raise EngineError(
                f"a process that decodes images has ended (exit code {self._child.poll()}): is "
                "there enough memory?"
            ) from cause
        rows[...] = self._rows[: len(rows)]
        return reasons

    def kill(self) -> None:
        """End the process; a request under way fails."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        """Close the pipes of a process that was ended."""
        for pipe in (self._requests, self._answers):
            with suppress(OSError):
                pipe.close()


def serve(memory: int, size: int) -> None:
    """What the process does: decode request after request, until its parent is gone.

    Args:
        memory: Descriptor of what it shares with its parent.
        size: Side of the pictures, pixels.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    rows = _mapped(memory, size)
    with suppress(EOFError):
        while True:
            request, policy = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent
            pickle.dump(_decode_rows(rows[: len(request)], request, policy), sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _mapped(memory: int, size: int) -> Pixels:
    return np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(-1, size, size, 3)
