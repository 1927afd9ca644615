"""Whether a training had come to rest when it ended: a stated rule on the validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Epochs at the end that are looked at, and the fewest that say anything: of three, a line
#: leaves one degree of freedom to tell a slope from scatter.
LAST = 5
#: Share of the mean loss by which an epoch may still lower it.
STILL = 0.01
RULE = (
    f"slope of the validation loss over the last {LAST} epochs (least squares) and its standard "
    f"error: flat when neither is above {STILL:.0%} of the mean loss an epoch; falling or rising "
    "when the slope is above that and twice its error; else noisy. Converged when flat or "
    "rising, not when falling; nothing is said when noisy or of fewer epochs. The learning rate "
    "has gone to 0 by then, so flat does not say that a longer training would gain nothing"
)


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How a training ended.

    Attributes:
        converged: None where that cannot be said: too few epochs, or noisy ones.
        trend: ``falling``, ``flat``, ``rising`` (it fits the training images at the cost
            of others) or ``noisy``; None where there are too few epochs.
        slope: Nats an epoch; None likewise.
        slope_error: Its standard error, of scatter around a straight line; None likewise.
        rule: In words.
    """

    converged: bool | None
    trend: str | None
    slope: float | None
    slope_error: float | None
    rule: str = RULE


def convergence(validation_loss: Sequence[float]) -> Convergence:
    """Judge the validation losses of all epochs, nats, in order.

    Only the last five are looked at.
    """
    last = np.asarray(validation_loss[-LAST:], np.float64)
    if len(last) < LAST:
        return Convergence(converged=None, trend=None, slope=None, slope_error=None)
    slope, error = _line(last)
    trend = _trend(slope, error, STILL * float(last.mean()))
    return Convergence(
        converged=None if trend == "noisy" else trend != "falling",
        trend=trend,
        slope=slope,
        slope_error=error,
    )


def _line(values: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope and its standard error, sqrt(sum of squares / (n - 2) / sum x^2)."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(x @ values / (x @ x))
    left = values - values.mean() - slope * x
    return slope, float(np.sqrt(left @ left / (len(values) - 2) / (x @ x)))


def _trend(slope: float, error: float, allowed: float) -> str:
    if max(abs(slope), error) <= allowed:
        return "flat"
    if abs(slope) > max(allowed, 2 * error):
        return "falling" if slope < 0 else "rising"
    return "noisy"
