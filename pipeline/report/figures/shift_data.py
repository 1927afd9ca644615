"""What stage 4's files say, put together for its figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.report.figures.reports import read_report
from pipeline.report.figures.style import NothingToDrawError
from pipeline.shift.figure_data import HEAD
from pipeline.shift.stage import SHIFT_PROBABILITIES, SHIFT_REPORT
from pipeline.study import SOURCE
from pipeline.words import printable


@dataclass(frozen=True, kw_only=True)
class Side:
    """One domain as the stage's head sees it.

    Attributes:
        label: Shape (n,).
        proba: Shape (n, K); out of fold on the source.
        patient: Shape (n,).
    """

    label: NDArray[np.int64]
    proba: NDArray[np.float64]
    patient: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShiftData:
    """All that stage 4 found on one backbone.

    Attributes:
        targets: Values of ``shift.json``, one for each target.
        predictions: None where the file is not there.
        unlabelled: The same for targets without labels: what needs none.
    """

    backbone: str
    classes: tuple[str, ...]
    targets: tuple[Mapping[str, Any], ...]
    predictions: Predictions | None
    unlabelled: tuple[Mapping[str, Any], ...] = ()

    def having(self, key: str, why: str, *, blind: bool = False) -> list[Mapping[str, Any]]:
        """Targets that have a value under ``key``.

        Args:
            key: In ``shift.json``.
            why: Why nothing is drawn if none has.
            blind: Whether those without labels are meant too.

        Raises:
            NothingToDrawError: None has.
        """
        everyone = [*self.targets, *(self.unlabelled if blind else ())]
        found = [target for target in everyone if target.get(key)]
        if not found:
            raise NothingToDrawError(why)
        return found

    def side(self, domain: str) -> Side:
        """The source or a target.

        Raises:
            NothingToDrawError: Its probabilities were not kept.
        """
        kept = self.predictions
        if kept is None or not (kept.domain == domain).any():
            raise NothingToDrawError(f"{SHIFT_PROBABILITIES} holds no probabilities of {domain}")
        rows = kept.domain == domain
        return Side(
            label=kept.label[rows], proba=kept.proba[HEAD][rows], patient=kept.patient[rows]
        )

    def sides(self) -> list[tuple[str, Side, Side]]:
        """Each labelled target's name, the source, and the target.

        Raises:
            NothingToDrawError: No target has labels, or probabilities were not kept.
        """
        if not self.targets:
            raise NothingToDrawError("no target has labels")
        source = self.side(SOURCE)
        return [(t["target"], source, self.side(t["target"])) for t in self.targets]


def read_shift(results: Path) -> list[ShiftData]:
    """By backbone, in the order of the file.

    Raises:
        MissingPredictionsError: Stage 4 has not been run.
    """
    report = read_report(results / SHIFT_REPORT, "shift")
    kept = read_predictions(results / SHIFT_PROBABILITIES)
    blind = report.get("unlabelled", ())
    names = dict.fromkeys(target["backbone"] for target in [*report["targets"], *blind])
    return [
        ShiftData(
            backbone=name,
            classes=tuple(printable(one) for one in report["classes"]),
            targets=tuple(t for t in report["targets"] if t["backbone"] == name),
            predictions=kept.get(name),
            unlabelled=tuple(t for t in blind if t["backbone"] == name),
        )
        for name in names
    ]
