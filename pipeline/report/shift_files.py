"""All that stage 4 found of a study, as its files and its text take it."""

from dataclasses import dataclass

from pipeline.shift.domains import NotCompared
from pipeline.shift.fine_tuned import TrainedLoss
from pipeline.shift.target import TargetReport
from pipeline.shift.unlabelled import UnlabelledReport


@dataclass(frozen=True, kw_only=True)
class ShiftReport:
    """All targets of a study, those without labels apart, and the networks trained on images.

    Attributes:
        not_compared: Targets that could not be, by backbone; no other entry has them.
    """

    study: str
    classes: tuple[str, ...]
    targets: tuple[TargetReport, ...]
    trained: tuple[TrainedLoss, ...] = ()
    unlabelled: tuple[UnlabelledReport, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()
