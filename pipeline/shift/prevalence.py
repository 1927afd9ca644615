"""How frequent is each class in the target? Three estimates without its labels.

All assume that the images of a class look the same in both domains (label shift).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.adapt import estimate_prior

Prior = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Probabilities of a labelled source and an unlabelled target, as given and calibrated.

    Calls are those of the probabilities as given: they are what the head does.
    """

    source_given: NDArray[np.floating]
    """Shape (n, K), out of fold."""
    target_given: NDArray[np.floating]
    """Shape (m, K)."""
    source: NDArray[np.float64]
    """Shape (n, K), calibrated."""
    target: NDArray[np.float64]
    """Shape (m, K), calibrated."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1, every class present."""

    @cached_property
    def source_calls(self) -> NDArray[np.intp]:
        """Shape (n,): the class each source image is called."""
        return np.asarray(self.source_given.argmax(axis=1))

    @cached_property
    def target_calls(self) -> NDArray[np.intp]:
        """Shape (m,): the class each target image is called."""
        return np.asarray(self.target_given.argmax(axis=1))

    def prior(self) -> Prior:
        """Share of each class in the source, shape (K,)."""
        counts = np.bincount(self.labels, minlength=self.source.shape[1])
        return np.asarray(counts / len(self.labels), dtype=np.float64)

    def confusion(self) -> NDArray[np.float64]:
        """Share of source images by (called, true) class, shape (K, K), sums to 1."""
        classes = self.source.shape[1]
        cells = self.source_calls * classes + self.labels
        counts = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
        return np.asarray(counts / len(self.labels), dtype=np.float64)

    def called(self) -> Prior:
        """Share of target images called each class, shape (K,)."""
        classes = self.target.shape[1]
        counts = np.bincount(self.target_calls, minlength=classes)
        return np.asarray(counts / len(self.target), dtype=np.float64)


def mlls(evidence: Evidence) -> Prior:
    """Maximum likelihood by EM on calibrated probabilities (Saerens 2002; Alexandari 2020).

    Args:
        evidence: Both domains.
    """
    return estimate_prior(evidence.target, evidence.prior())


#: To add an estimate, write a function above and one line here.
PRIORS: Mapping[str, Callable[[Evidence], Prior]] = MappingProxyType({"mlls_em": mlls})
