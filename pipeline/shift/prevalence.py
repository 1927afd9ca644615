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


def bbse(evidence: Evidence) -> Prior:
    """Solve confusion @ w = called for the class weights w = q / p (Lipton 2018).

    Args:
        evidence: Both domains.

    Returns:
        q, shape (K,): negative shares are set to 0, then all are scaled to sum to 1.
    """
    # Least squares: a class that is never called leaves the matrix singular.
    weights = np.linalg.lstsq(evidence.confusion(), evidence.called())[0]
    return _proper(weights * evidence.prior())


def rlls(evidence: Evidence) -> Prior:
    """BBSE with the change of the weights held small (Azizzadenesheli 2019).

    w = 1 + theta with theta of least |confusion @ theta - (called - confusion @ 1)|^2 +
    ridge |theta|^2. The ridge is 1/n + 1/m, the order of the squared sampling error of
    both sides: a change that could be noise is not believed.

    Args:
        evidence: Both domains.
    """
    confusion = evidence.confusion()
    surplus = evidence.called() - confusion.sum(axis=1)
    ridge = 1 / len(evidence.source) + 1 / len(evidence.target)
    normal = confusion.T @ confusion + ridge * np.eye(len(confusion))
    theta = np.linalg.solve(normal, confusion.T @ surplus)
    return _proper((1 + theta) * evidence.prior())


def mlls(evidence: Evidence) -> Prior:
    """Maximum likelihood by EM on calibrated probabilities (Saerens 2002; Alexandari 2020).

    Args:
        evidence: Both domains.
    """
    return estimate_prior(evidence.target, evidence.prior())


#: To add an estimate, write a function above and one line here.
PRIORS: Mapping[str, Callable[[Evidence], Prior]] = MappingProxyType(
    {"bbse": bbse, "rlls": rlls, "mlls_em": mlls}
)


def _proper(shares: NDArray[np.floating]) -> Prior:
    kept = np.clip(shares, 0, None)
    return np.asarray(kept / kept.sum(), dtype=np.float64)
