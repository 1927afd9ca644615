"""Whether a training had come to rest when it ended: a stated rule on the validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Epochs at the end that are looked at, and the fewest that say anything.
LAST, FEWEST = 5, 3
#: Share of the mean loss by which an epoch may still lower it.
STILL = 0.01
RULE = (
    f"slope of the validation loss over the last {LAST} epochs (least squares; at least {FEWEST}): "
    f"falling when an epoch lowers it by more than {STILL:.0%} of its mean, rising when an epoch "
    "raises it by more than that; converged unless falling"
)


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How a training ended.

    Attributes:
        converged: None where there are too few epochs to say.
        trend: ``falling``, ``flat`` or ``rising`` (it fits the training images at the
            cost of others); None likewise.
        slope: Nats an epoch; None likewise.
        rule: In words.
    """

    converged: bool | None
    trend: str | None
    slope: float | None
    rule: str = RULE


def convergence(validation_loss: Sequence[float]) -> Convergence:
    """Judge the validation losses of all epochs, nats, in order.

    Only the last five are looked at.
    """
    last = np.asarray(validation_loss[-LAST:], np.float64)
    if len(last) < FEWEST:
        return Convergence(converged=None, trend=None, slope=None)
    slope = float(np.polyfit(np.arange(len(last)), last, 1)[0])
    allowed = STILL * float(last.mean())
    trend = "flat" if abs(slope) <= allowed else ("rising" if slope > 0 else "falling")
    return Convergence(converged=trend != "falling", trend=trend, slope=slope)
