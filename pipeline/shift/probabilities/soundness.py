"""Do probabilities and thresholds of the source still serve on the target?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.shift.cohorts import Cohort
from pipeline.shift.foretell.predict import Forecast
from pipeline.shift.probabilities.calibration import CalibrationReport, calibration_report
from pipeline.shift.probabilities.operating import (
    RULES,
    OperatingPoint,
    OperatingSettings,
    Scores,
    choose_threshold,
    operate,
)
from pipeline.shift.probabilities.rethreshold import LABEL_FREE, rethresholds

_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A threshold at work in one domain.

    Attributes:
        rule: How it was chosen on the source.
        domain: ``source`` or ``target``.
        way: ``chosen`` on the source; on the target ``carried`` as it is, ``prior`` and
            ``quantile``, which are moved without labels.
        point: What it does there.
        reliable: False where it was moved without labels and Y given the score has changed:
            the labels show what it does, but nobody could have known.
    """

    rule: str
    domain: str
    way: str
    point: OperatingPoint
    reliable: bool


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """Calibration in both domains, and operating points.

    Attributes:
        event: What the probabilities are of: ``positive``, or of more than two classes
            ``right``, that the called class is the true one.
        calibration: By domain, ``source`` (out of fold) and ``target``.
        operating: Empty for more than two classes, or a domain with one of them.
    """

    event: str
    calibration: Mapping[str, CalibrationReport]
    operating: tuple[Carried, ...]


def soundness(
    source: Cohort,
    target: Cohort,
    before: Forecast,
    rng: np.random.Generator,
    *,
    score_changed: bool,
) -> Soundness:
    """Judge probabilities and thresholds on a target whose labels are open.

    Args:
        source: Out-of-fold probabilities and labels.
        target: Probabilities of the same head, and labels.
        before: The label-free forecast; its MLLS prevalence moves a threshold.
        rng: Source of the draws.
        score_changed: Whether Y given the score is shown to have changed.
    """
    binary = source.probabilities.shape[1] == _BINARY
    sides = {"source": source, "target": target}
    return Soundness(
        event="positive" if binary else "right",
        calibration={
            name: calibration_report(*_event(cohort, binary=binary), rng)
            for name, cohort in sides.items()
        },
        operating=tuple(
            replace(use, reliable=not (score_changed and use.way in LABEL_FREE))
            for use in (_operating(source, target, before, rng) if binary else ())
        ),
    )


def _event(cohort: Cohort, *, binary: bool) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    p = np.asarray(cohort.probabilities, np.float64)
    if binary:
        return cohort.classes() == 1, np.clip(p[:, 1], 0, 1)
    return p.argmax(axis=1) == cohort.classes(), np.clip(p.max(axis=1), 0, 1)


def _operating(
    source: Cohort, target: Cohort, before: Forecast, rng: np.random.Generator
) -> tuple[Carried, ...]:
    here, there = (_scores(cohort) for cohort in (source, target))
    if any(side.positive.all() or not side.positive.any() for side in (here, there)):
        return ()
    shares = {"source": float(here.positive.mean()), "target": float(there.positive.mean())}
    settings = OperatingSettings(prevalences=shares)
    foretold = before.prevalence["mlls_em"][1].estimate
    found = []
    for rule in RULES:
        chosen = choose_threshold(rule, here, settings)
        moved = rethresholds(chosen, here, there.probability, foretold)
        uses = [("source", "chosen", here, chosen)]
        uses += [("target", way, there, value) for way, value in moved.items()]
        found += [
            Carried(
                rule=rule,
                domain=name,
                way=way,
                point=operate(side, value, rng, settings),
                reliable=True,
            )
            for name, way, side, value in uses
        ]
    return tuple(found)


def _scores(cohort: Cohort) -> Scores:
    return Scores(
        probability=np.clip(cohort.probabilities[:, 1], 0, 1),
        positive=cohort.classes() == 1,
        groups=cohort.groups,
    )
