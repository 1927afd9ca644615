"""The table of samples: which image is whose, from where, and in which split.

Labels, patients and splits live here and never in the feature store, so relabelling,
renaming or moving an image costs nothing.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.sources import Item
from pipeline.text.names import legible

#: Label of an image of a target without labels. It is no class and no metric may meet it:
#: what counts right and wrong refuses it, and stages leave such domains out where they begin.
UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class Skip:
    """An image that is not used, and why; ``key`` in hex where its content was read."""

    domain: str
    path: str
    reason: str
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a study; everything shares the first axis, ``n``.

    Attributes:
        items: Where each image is.
        key: Content key of each image, 32 bytes.
        label: Shape ``(n,)``, int64: index into ``classes``; ``UNLABELLED`` throughout a
            target without labels.
        group: Shape ``(n,)``: patient id; unique within a domain only.
        domain: Shape ``(n,)``: ``source`` or the target's name.
        split: Shape ``(n,)``: ``fit``, ``validation`` or ``target``.
        classes: Class names in label order.
    """

    items: tuple[Item, ...]
    key: tuple[bytes, ...]
    label: NDArray[np.int64]
    group: NDArray[np.str_]
    domain: NDArray[np.str_]
    split: NDArray[np.str_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which samples have a label, shape ``(n,)``."""
        return np.asarray(self.label != UNLABELLED)

    @property
    def unlabelled(self) -> dict[str, int]:
        """Images of each target without labels."""
        return dict(Counter(self.domain[~self.labelled].tolist()))

    def class_of(self, row: int) -> str:
        """Name of the class of a sample, in words if it has none."""
        k = int(self.label[row])
        return "no label" if k == UNLABELLED else self.classes[k]

    def name_of(self, row: int) -> str:
        """Domain and path of a sample, as it is printed and as a study's ``exclude`` lists it."""
        return name_of(str(self.domain[row]), self.items[row].path)

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """The samples where ``mask``, of shape ``(n,)``, is true."""
        rows = np.flatnonzero(mask)
        return type(self)(
            items=tuple(self.items[i] for i in rows),
            key=tuple(self.key[i] for i in rows),
            label=self.label[rows],
            group=self.group[rows],
            domain=self.domain[rows],
            split=self.split[rows],
            classes=self.classes,
        )


def name_of(domain: str, path: str) -> str:
    """An image as it is printed and listed; see :meth:`Samples.name_of`."""
    return legible(f"{domain}/{path}")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How the samples are gathered.

    Attributes:
        rehash: Read every file again instead of believing the index of known files.
        allow_conflicts: Accept that identical images carry different labels.
        allow_leaks: Accept that an image of a target is also in the source.
    """

    rehash: bool = False
    allow_conflicts: bool = False
    allow_leaks: bool = False
