"""From the scores of a head to probabilities: ``p = softmax(a s + b)``.

One scale ``a >= 0`` is for all classes and, where asked for, one offset for each: with two
classes this is Platt's sigmoid. It is fitted to scores of rows that were held out. Targets are
smoothed as Platt (1999) does, so that separated classes have a finite answer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted map from scores to probabilities.

    Attributes:
        scale: Not negative: a higher score never means a lower probability.
        offset: Shape ``(K,)``.
        loss: Mean log loss of the rows that it was fitted to, in nats.
    """

    scale: float
    offset: NDArray[np.float64]
    loss: float

    def proba(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities ``(n, K)`` of scores ``(n, K)``."""
        return np.asarray(softmax(self.scale * scores + self.offset, axis=1))


def fit_calibration(
    scores: NDArray[np.floating], y: NDArray[np.integer], *, offsets: bool = True
) -> Calibration:
    """Fit the map by maximum likelihood.

    Args:
        scores: Of rows that the scorer was not fitted to, shape ``(n, K)``; rows that are not
            finite are left out.
        y: Labels 0 to K - 1, shape ``(n,)``.
        offsets: Whether each class has an offset; without them only the scale is fitted.

    Raises:
        ValueError: No row is left, or one class only.
    """
    finite = np.isfinite(scores).all(axis=1)
    scores, y = np.asarray(scores, np.float64)[finite], y[finite]
    counts = np.bincount(y, minlength=scores.shape[1])
    if (counts > 0).sum() < 2:
        raise ValueError("the held-out rows are of one class only: no probability can be fitted")
    # A common unit: the optimiser must not care whether scores are margins or cosines.
    unit = float((scores - scores.mean(axis=1, keepdims=True)).std()) or 1.0
    scores = scores / unit
    targets = np.repeat((1 / (counts + len(counts)))[y][:, None], len(counts), axis=1)
    targets[np.arange(len(y)), y] *= counts[y] + 1

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = log_softmax(x[0] * scores + x[1:], axis=1)
        gradient = (np.exp(log_p) - targets) / len(y)
        slope = np.r_[(gradient * scores).sum(), gradient.sum(axis=0) * offsets]
        return float(-(targets * log_p).sum() / len(y)), slope

    start = np.r_[1.0, np.zeros(len(counts))]
    bounds = [(0, None), *[(None, None)] * len(counts)]
    options = {"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9}
    x = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    log_p = log_softmax(x[0] * scores + x[1:], axis=1)
    loss = -float(log_p[np.arange(len(y)), y].mean())
    return Calibration(scale=float(x[0] / unit), offset=x[1:], loss=loss)
