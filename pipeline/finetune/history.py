"""What a training did, epoch by epoch, and how its validation loss ended."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

#: Epochs at the end that :func:`trend` uses, and the fewest that say anything: of three, a
#: line leaves one degree of freedom to tell a slope from scatter.
_LAST = 5
#: Share of the mean loss by which an epoch may still change it.
_STILL = 0.01


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: From 0.
        fit_loss: Mean loss of the epoch's images as they were trained on: weights still
            moving, with dropout and augmentation; nats.
        fit_accuracy: Likewise, 0 to 1.
        validation_loss: Mean cross-entropy after the epoch, nothing dropped; None without
            validation examples.
        validation_accuracy: Likewise, 0 to 1.
        seconds: Wall time of the training steps.
        images_per_second: Images trained on a second of ``seconds``.
        learning_rate: At the last step.
    """

    epoch: int
    fit_loss: float
    fit_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    images_per_second: float
    learning_rate: float

    def line(self, epochs: int) -> str:
        """For people, of so many epochs: ``epoch 3/10: loss 0.213, accuracy 0.931, ...``."""
        validation = (
            ""
            if self.validation_loss is None
            else f", validation {self.validation_loss:.3f} / {self.validation_accuracy:.3f}"
        )
        return (
            f"epoch {self.epoch + 1}/{epochs}: loss {self.fit_loss:.3f}, accuracy "
            f"{self.fit_accuracy:.3f}{validation}, {self.images_per_second:.1f} images/s"
        )


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands; all of it is in every checkpoint.

    Attributes:
        epoch: Under way, from 0.
        step: The next one within the epoch.
        totals: Loss, right answers and images so far in the epoch.
        seconds: Trained so far in the epoch.
        rate: Learning rate of the last step.
        rows: The epochs that are over.
        finished: Whether all of the training is over.
    """

    epoch: int = 0
    step: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    rate: float = 0.0
    rows: list[EpochRow] = field(default_factory=list)
    finished: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` gave."""
        return cls(**{**values, "rows": [EpochRow(**row) for row in values["rows"]]})

    def to_json(self) -> dict[str, Any]:
        """JSON types; floats keep every bit."""
        return asdict(self)

    def begin_epoch(self) -> None:
        """Turn to the next epoch."""
        self.epoch, self.step, self.totals, self.seconds = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0


def best_epoch(rows: Sequence[EpochRow]) -> int:
    """The first epoch with the lowest validation loss; the last without validation examples."""
    losses = [row.validation_loss for row in rows if row.validation_loss is not None]
    return losses.index(min(losses)) if losses else len(rows) - 1


def trend(validation_loss: Sequence[float]) -> str | None:
    """How the validation loss ended: a line through its last five epochs (least squares).

    A falling loss has not converged. The learning rate has gone to 0 by the end, so flat does
    not say that a longer training would gain nothing.

    Args:
        validation_loss: Of all epochs, nats, in order.

    Returns:
        ``flat`` where neither the slope nor its standard error is above 1 % of the mean loss;
        ``falling`` or ``rising`` (it fits the training images at the cost of others) where the
        slope is above that and twice its error; else ``noisy``. None of fewer epochs.
    """
    from scipy.stats import linregress  # half a second, which no process that only trains needs

    last = validation_loss[-_LAST:]
    if len(last) < _LAST:
        return None
    line = linregress(range(_LAST), last)
    still = _STILL * float(np.mean(last))
    if max(abs(line.slope), line.stderr) <= still:
        return "flat"
    if abs(line.slope) > max(still, 2 * line.stderr):
        return "falling" if line.slope < 0 else "rising"
    return "noisy"
