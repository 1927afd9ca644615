"""What a training did, epoch by epoch, and where one that is under way stands."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: From 0.
        fit_loss: Mean of the criterion over the epoch's images as they were trained on:
            weights still moving, with dropout, augmentation and label smoothing; nats.
        fit_accuracy: Likewise, 0 to 1.
        validation_loss: Mean cross-entropy after the epoch, nothing dropped or smoothed;
            None without validation examples.
        validation_accuracy: Likewise, 0 to 1.
        seconds: Wall time of the training steps.
        validation_seconds: Wall time of the validation.
        images_per_second: Images trained on a second of ``seconds``.
        learning_rate: At the last step.
    """

    epoch: int
    fit_loss: float
    fit_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    validation_seconds: float
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


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of the model as it is returned: mean cross-entropy in nats, accuracy 0 to 1."""

    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class History:
    """A finished training.

    Attributes:
        rows: One for each epoch.
        best_epoch: With the lowest validation loss, the first such; the last without
            validation examples.
        kept_epoch: Whose weights the model has: the best with ``patience``, else the last.
        stopped_early: Whether ``patience`` ended it.
        peak_memory_bytes: Of the device on CUDA, else of the whole process; None where
            the system does not tell.
        final: By name of the watched examples.
    """

    rows: tuple[EpochRow, ...]
    best_epoch: int
    kept_epoch: int
    stopped_early: bool
    peak_memory_bytes: int | None
    final: Mapping[str, Score]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` made of one."""
        rows = tuple(EpochRow(**row) for row in values["rows"])
        final = {name: Score(**score) for name, score in values["final"].items()}
        return cls(**{**values, "rows": rows, "final": final})


@dataclass(kw_only=True)
class Standing:
    """Where a training stands; all of it is in every checkpoint.

    Attributes:
        epoch: Under way, from 0.
        step: The next one within the epoch.
        totals: Loss, right answers and images so far in the epoch.
        seconds: Trained so far in the epoch.
        rate: Learning rate of the last step.
        rows: The epochs that are over.
        peak: Bytes; see :class:`History`.
        history: Of a training that is over.
    """

    epoch: int = 0
    step: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    rate: float = 0.0
    rows: list[EpochRow] = field(default_factory=list)
    peak: int | None = None
    history: History | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` made of one."""
        history = values["history"] and History.from_json(values["history"])
        rows = [EpochRow(**row) for row in values["rows"]]
        return cls(**{**values, "rows": rows, "history": history})

    def to_json(self) -> dict[str, Any]:
        """JSON types; floats keep every bit."""
        return asdict(self)

    def begin_epoch(self) -> None:
        """Turn to the next epoch."""
        self.epoch, self.step, self.totals, self.seconds = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0


def best_epoch(rows: Sequence[EpochRow]) -> int:
    """See :attr:`History.best_epoch`."""
    losses = [row.validation_loss for row in rows if row.validation_loss is not None]
    return losses.index(min(losses)) if losses else len(rows) - 1


# Whether a training had come to rest when it ended: a stated rule on the validation loss.


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
