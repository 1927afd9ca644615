"""A target that nobody has labelled: how far it is away, and what the scores foretell of it.

What needs labels is not made up but named: see :data:`NEEDS_LABELS`. The labels of such a
target cannot reach anything here, because there are none in what this is made from.
"""

import time
from dataclasses import dataclass

import numpy as np

from pipeline.data.leaks import Finding
from pipeline.data.samples import UNLABELLED
from pipeline.features.load import FeatureTable
from pipeline.shift.detect import LEVEL, Detection, detect
from pipeline.shift.domains import Cohort, SourceModel, here_of, shared_patients, there_of
from pipeline.shift.label_free import AccuracyEstimate, estimate_accuracy
from pipeline.shift.provenance import (
    Circumstances,
    Provenance,
    caveats,
    inputs_of,
    roles_without_labels,
)
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
        detection: Tests with their controls, and the AUC of a domain classifier.
        estimate: Accuracy and prevalence, without labels.
        source_accuracy: Of the head, out of fold, in [0, 1].
        called: Share of the target's images called each class, in label order.
        level: Of the tests.
        provenance: Roles, seeds, inputs, leaks and caveats.
    """

    backbone: str
    target: str
    images: int
    shared_patients: int
    detection: Detection
    estimate: AccuracyEstimate
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
        draws: Permutations of the tests.
        seed: Of the draws of the estimates.
        leak: Findings of the checks that ran before.
    """

    source: SourceModel
    draws: int
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
    target = source.scored(joined.domain(name).sealed())
    here = here_of(source)
    there = there_of(source, target.embedded(), target.group)
    shared = shared_patients(joined.samples, here, there)
    return UnlabelledReport(
        backbone=joined.backbone,
        target=name,
        images=len(there.groups),
        shared_patients=shared,
        detection=detect(source.data, target, source.predict_proba, draws=basis.draws),
        estimate=estimate_accuracy(source.data, target, np.random.default_rng([basis.seed, 11])),
        source_accuracy=float((~source.data.wrong()).mean()),
        called=tuple(np.bincount(target.predicted(), minlength=source.classes) / len(target)),
        level=LEVEL,
        provenance=_provenance(joined, basis, name, (here, there), shared),
        seconds=round(time.perf_counter() - start, 2),
    )


def said(found: UnlabelledReport) -> str:
    """The forecast in sentences; its warning stands with it, and what speaks against it."""
    known = found.estimate.accuracy.values()
    low, high = min(one.low for one in known), max(one.high for one in known)
    return (
        f"{found.target}: nobody has labelled it, so how often the head is right there cannot be "
        f"measured. Without labels the accuracy is put at {percent(found.estimate.low)} to "
        f"{percent(found.estimate.high)} (range of {len(known)} estimates; their 95 % intervals "
        f"reach from {percent(low)} to {percent(high)}); on the source it is "
        f"{percent(found.source_accuracy)}, out of fold. {found.estimate.assumption}"
        f"{_doubt(found)}"
    )


def _doubt(found: UnlabelledReport) -> str:
    shown = [
        row.test
        for row in found.detection.tests
        if row.p_adjusted is not None and row.p_adjusted <= found.level
    ]
    if not shown:
        return ""
    return (
        f" The hospitals are shown to differ ({', '.join(shown)}), so the assumption is in doubt: "
        "have some images labelled before the number is relied on."
    )


def _provenance(
    joined: FeatureTable, basis: Basis, name: str, sides: tuple[Cohort, Cohort], shared: int
) -> Provenance:
    (here, there), domains = sides, frozenset(joined.samples.domain.tolist())
    return Provenance(
        roles=roles_without_labels(here, there),
        seeds={"estimates": basis.seed, "permutations": 0},
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
                elsewhere=domains - {SOURCE, name},
            ),
            basis.leak,
        ),
        leak=basis.leak,
    )
