"""A target that nobody has labelled: how far it is away, and what the scores foretell of it.

What needs labels is not made up but named: see :data:`NEEDS_LABELS`. The labels of such a
target cannot reach anything here, because there are none in what this is made from.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import Finding
from pipeline.data.samples import UNLABELLED
from pipeline.features.load import FeatureTable
from pipeline.shift.adapt import Source
from pipeline.shift.detect import ControlledDetection, DetectionSettings, detect_with_controls
from pipeline.shift.domains import Cohort, ask, here_of, shared_patients, there_of, told_apart
from pipeline.shift.label_free import RANGED, Forecast
from pipeline.shift.probes import SourcePrediction
from pipeline.shift.provenance import (
    Circumstances,
    Provenance,
    caveats,
    inputs_of,
    roles_without_labels,
)
from pipeline.shift.story import foretell
from pipeline.study import SOURCE
from pipeline.words import percent

#: What is left out, each for this one reason.
NEEDS_LABELS = (
    "errors by role (Ng's table)",
    "scores of subgroups",
    "the parts of the loss and the verdict",
    "calibration and operating points on the target",
    "scores of the fixes",
    "differences of the pictures within classes",
)


@dataclass(frozen=True, kw_only=True)
class UnlabelledReport:
    """What can be said of one target without labels, on one backbone.

    Attributes:
        images: Of the target.
        shared_patients: Ids that both domains have; numbering may simply restart.
        source_prediction: How well the hospital can be told from the features; by class
            it is by the class that the head calls.
        detection: Tests with their null and positive controls.
        forecast: Accuracy and prevalence as the scores foretell them.
        source_accuracy: Of the head, out of fold, in [0, 1].
        called: Share of the target's images called each class, in label order.
        level: Of the tests.
        provenance: Roles, seeds, inputs, leaks and caveats.
    """

    backbone: str
    target: str
    images: int
    shared_patients: int
    source_prediction: SourcePrediction
    detection: ControlledDetection
    forecast: Forecast
    source_accuracy: float
    called: tuple[float, ...]
    level: float
    provenance: Provenance
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What is known before a target without labels is looked at.

    Attributes:
        source: The labelled domain.
        settings: Of the tests.
        seed: Of the draws of the forecast.
        leak: Findings of the checks that ran before.
    """

    source: Source
    settings: DetectionSettings
    seed: int
    leak: tuple[Finding, ...]


def look(joined: FeatureTable, basis: Basis, name: str) -> UnlabelledReport:
    """Say of a target without labels what can be said.

    Args:
        joined: Samples with features.
        basis: What is known.
        name: Of the target.

    Raises:
        StudyError: Too few patients.
    """
    start, source = time.perf_counter(), basis.source
    rows = joined.samples.domain == name
    here = here_of(source)
    there = there_of(source, joined.X[rows], joined.samples.group[rows])
    shared = shared_patients(joined.samples, here, there)
    return UnlabelledReport(
        backbone=joined.backbone,
        target=name,
        images=len(there.groups),
        shared_patients=shared,
        source_prediction=told_apart(here, there),
        detection=detect_with_controls(here, there, partial(ask, source), basis.settings),
        forecast=foretell(here, there, basis.seed),
        source_accuracy=float((here.probabilities.argmax(axis=1) == source.labels).mean()),
        called=tuple(np.bincount(_calls(there), minlength=source.prior.size) / len(there.groups)),
        level=basis.settings.plan.alpha,
        provenance=_provenance(joined, basis, name, (here, there), shared),
        seconds=round(time.perf_counter() - start, 2),
    )


def said(found: UnlabelledReport) -> str:
    """The forecast in sentences; its warning stands with it, and what speaks against it."""
    known = [found.forecast.accuracy[name] for name in RANGED]
    low, high = min(one.low for one in known), max(one.high for one in known)
    return (
        f"{found.target}: nobody has labelled it, so how often the head is right there cannot be "
        f"measured. Without labels the accuracy is put at {percent(found.forecast.low)} to "
        f"{percent(found.forecast.high)} (range of {len(RANGED)} estimates; their 95 % intervals "
        f"reach from {percent(low)} to {percent(high)}); on the source it is "
        f"{percent(found.source_accuracy)}, out of fold. {found.forecast.warning}"
        f"{_doubt(found)}"
    )


def _doubt(found: UnlabelledReport) -> str:
    shown = [
        name
        for name, one in found.detection.observed.findings.items()
        if one.p_holm is not None and one.p_holm <= found.level
    ]
    if not shown:
        return ""
    return (
        f" The hospitals are shown to differ ({', '.join(shown)}), so the assumption is in doubt: "
        "have some images labelled before the number is relied on."
    )


def _calls(cohort: Cohort) -> NDArray[np.intp]:
    return np.asarray(cohort.probabilities.argmax(axis=1))


def _provenance(
    joined: FeatureTable, basis: Basis, name: str, sides: tuple[Cohort, Cohort], shared: int
) -> Provenance:
    (here, there), domains = sides, frozenset(joined.samples.domain.tolist())
    return Provenance(
        roles=roles_without_labels(here, there),
        seeds={"forecast": basis.seed, "relabellings": basis.settings.plan.seed},
        # There is no plan: nothing is chosen that labels could judge.
        inputs=inputs_of(joined, name, np.full(len(there.groups), UNLABELLED), None),
        caveats=caveats(
            Circumstances(
                shared_patients=shared,
                patients={
                    "source": np.unique(here.groups).size,
                    "target": np.unique(there.groups).size,
                },
                score_changed=False,
                harmful=(),
                elsewhere=domains - {SOURCE, name},
            ),
            basis.leak,
        ),
        leak=basis.leak,
    )
