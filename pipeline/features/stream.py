"""Images to features with everything overlapped: read and decode, forward, hand over.

Threads decode ahead of the engine, within a window, so that memory does not grow
with the number of images. Batches are padded to one size: a ragged last batch would
round differently, and would make an engine compile twice.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import cpu_count

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError, ImageError
from pipeline.features.engines import Engine, Features, Pixels, Wait
from pipeline.images import PixelPolicy
from pipeline.sources import Item, read

#: Decoded images that may wait: a few batches on a GPU, 40 MB at 224 x 224.
WINDOW = 256
#: From this many rows on, this share of them is suspicious.
_FEW, _SHARE_OF_FEW = 20, 0.5
_MANY, _SHARE_OF_MANY = 1000, 0.01

CHANGED = "changed while the run was under way; run again"
#: Reasons that need not hold at the next run.
TRANSIENT = frozenset({CHANGED})

Image = tuple[bytes, Pixels]
OnSkip = Callable[[bytes, str], None]


def decoded(items: dict[bytes, Item], policy: PixelPolicy, on_skip: OnSkip) -> Iterator[Image]:
    """Decode in threads, in order; an unusable image is reported and left out.

    Args:
        items: By content key; what is read must still have that key.
        policy: From bytes to pixels.
        on_skip: Called with key and reason.

    Yields:
        Key, and uint8 pixels of shape ``(size, size, 3)``.
    """
    waiting: deque[tuple[bytes, Future[Pixels]]] = deque()
    todo = iter(items.items())
    pool = ThreadPoolExecutor(cpu_count(), "decode")
    try:
        while True:
            for key, item in islice(todo, WINDOW - len(waiting)):
                waiting.append((key, pool.submit(_decode, key, item, policy)))
            if not waiting:
                return
            key, future = waiting.popleft()
            try:
                pixels = future.result()
            except ImageError as reason:
                on_skip(key, str(reason))
                continue
            yield key, pixels
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(key: bytes, item: Item, policy: PixelPolicy) -> Pixels:
    content = read(item)
    if content.key != key:
        # The bytes that are hashed are the bytes that are decoded: no wrong row is possible.
        raise ImageError(CHANGED)
    return content.pixels(policy)


def features_of(images: Iterable[Image], engine: Engine) -> Iterator[tuple[bytes, Features]]:
    """Run the engine over images, several batches under way at once.

    Args:
        images: As :func:`decoded` yields them.
        engine: Ready to run.

    Yields:
        Key, and one float32 feature row.
    """
    under_way: deque[tuple[list[bytes], Wait]] = deque()
    for keys, pixels in _padded(images, engine.batch_size):
        under_way.append((keys, engine.submit(pixels)))
        if len(under_way) >= engine.depth:
            yield from _landed(*under_way.popleft())
    while under_way:
        yield from _landed(*under_way.popleft())


def _landed(keys: list[bytes], wait: Wait) -> Iterator[tuple[bytes, Features]]:
    try:
        features = wait()
    except RuntimeError as cause:
        text = str(cause).splitlines()[0]
        hint = "; try --batch-size with a smaller number" if "memory" in text.lower() else ""
        raise EngineError(f"the engine failed: {text}{hint}") from cause
    yield from zip(keys, features, strict=False)  # the padding has no key


def _padded(images: Iterable[Image], size: int) -> Iterator[tuple[list[bytes], Pixels]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        batch = np.zeros((size, *chunk[0][1].shape), np.uint8)
        for row, (_, pixels) in enumerate(chunk):
            batch[row] = pixels
        yield [key for key, _ in chunk], batch


class FeatureGuard:
    """Finds features that cannot be right before they reach the store.

    Args:
        copies: Whether many images may have the features of another.
    """

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies
        self._seen: set[bytes] = set()
        self._rows = 0
        self._bad = 0
        #: Rows equal to an earlier image's: the same pixels in other bytes, or a dead network.
        self.same = 0

    def objection(self, row: NDArray[np.float32]) -> str | None:
        """Why a feature row must not be stored; None when it may.

        Raises:
            EngineError: Most rows so far, or more than 1 % of many, are bad or equal to
                that of another image: the network or its weights are broken.
        """
        self._rows += 1
        if not np.isfinite(row).all() or not row.any():
            self._bad += 1
            self._stop_if_many(self._bad, "give features that are not finite or all zero")
            return "non-finite or all-zero feature"
        digest = hashlib.blake2b(row.tobytes(), digest_size=12).digest()
        self.same += digest in self._seen
        self._seen.add(digest)
        if not self._copies:
            self._stop_if_many(self.same, "give the same features as another image")
        return None

    def _stop_if_many(self, count: int, what: str) -> None:
        """A few copies of one picture in a small set are no sign of a dead network."""
        allowed = _SHARE_OF_MANY if self._rows >= _MANY else _SHARE_OF_FEW
        if self._rows >= _FEW and count > allowed * self._rows:
            raise EngineError(
                f"{count} of {self._rows} images {what}: the backbone looks dead. "
                "Are these its weights?"
            )
