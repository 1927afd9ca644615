"""Calibrate class probabilities by bias-corrected temperature scaling (BCTS)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Bias-corrected temperature scaling: softmax(slope * log p + bias)."""

    slope: float
    """1 / temperature."""
    bias: NDArray[np.float64]
    """Shape (K,)."""

    def __call__(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return calibrated probabilities, shape (n, K)."""
        logits = self.slope * np.log(np.clip(probabilities, _TINY, None)) + self.bias
        return np.asarray(softmax(logits, axis=1))


def fit_calibration(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> Calibration:
    """Fit slope and per-class bias by maximum likelihood (BCTS, Alexandari et al. 2020).

    Args:
        probabilities: Shape (n, K), out of fold.
        labels: Shape (n,).
    """
    logs = np.log(np.clip(probabilities, _TINY, None))
    truth = np.eye(logs.shape[1])[labels]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = theta[0] * logs + theta[1:]
        wrong = softmax(logits, axis=1) - truth
        gradient = np.append(np.mean(np.sum(wrong * logs, axis=1)), wrong.mean(axis=0))
        return -float(np.mean(log_softmax(logits, axis=1)[truth == 1])), gradient

    start = np.append(1.0, np.zeros(logs.shape[1]))
    theta = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Calibration(slope=float(theta[0]), bias=np.asarray(theta[1:], dtype=np.float64))
