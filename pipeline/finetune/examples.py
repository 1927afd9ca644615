"""What the training loop reads: rows of an array in memory, or images decoded as they come.

One source holds each image once, by its content key, and gives views of it for the
splits and domains of a study.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images import PixelPolicy, Pixels
from pipeline.samples import Samples
from pipeline.sources import Item, read

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
        return read(self._items[row]).pixels(self._policy)


def numbered(samples: Samples) -> tuple[list[bytes], Rows]:
    """Each content key once, and for each sample the number of its key, shape ``(n,)``."""
    number: dict[bytes, int] = {}
    at = [number.setdefault(key, len(number)) for key in samples.key]
    return list(number), np.array(at, np.intp)
