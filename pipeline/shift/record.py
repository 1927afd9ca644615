"""Rows of ``shift.json``; the README beside this file describes the record key by key."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.data.domain import DomainData
from pipeline.evaluation.intervals import Interval
from pipeline.shift.adapt_eval import AdaptationResult, AdaptationRow
from pipeline.shift.calibrate import TransferredThreshold
from pipeline.shift.decompose import Effect
from pipeline.shift.detect import Detection
from pipeline.shift.error_table import ErrorTable
from pipeline.shift.label_free import ASSUMPTION, OVERLAP, AccuracyEstimate

Record = dict[str, Any]


def effect_row(effect: Effect) -> Record:
    """One effect, or one step of the error table."""
    return {
        "name": effect.name,
        "division": effect.division,
        **_bounds(effect),
        "largest": effect.largest,
    }


def error_table_record(table: ErrorTable) -> Record:
    """Errors, the steps between them, and why a step has no number."""
    return {
        "errors": [
            {"name": name, **_bounds(error), "images": error.images, "patients": error.patients}
            for name, error in table.errors.items()
        ],
        "steps": [effect_row(step) for step in table.steps.values()],
        "not_identifiable": table.not_identifiable,
    }


def detection_rows(detection: Detection) -> list[Record]:
    """The tests, each with its controls."""
    return [
        {
            "name": test.test,
            "statistic": test.statistic,
            "p": test.p,
            "p_adjusted": test.p_adjusted,
            "p_null_control": test.p_control,
            "p_positive_control": test.p_planted,
            "refused": test.refused,
        }
        for test in detection.tests
    ]


def domain_auc_rows(detection: Detection, classes: Sequence[str]) -> list[Record]:
    """The domain classifier on all images, and inside each class that has patients enough."""
    by_class = dict(zip(classes, detection.domain_auc.by_class, strict=False))
    among = {"all images": detection.domain_auc.overall, **by_class}
    return [
        {"among": name, **_bounds(separability.auc), "p": separability.p}
        for name, separability in among.items()
        if separability is not None
    ]


def accuracy_range_record(
    estimate: AccuracyEstimate, target: DomainData, classes: Sequence[str], *, withheld: bool
) -> Record:
    """Estimates without labels, and beside each class's share what the head predicts."""
    predicted = np.bincount(target.predicted(), minlength=len(classes)) / len(target)
    return {
        "low": None if withheld else estimate.low,
        "high": None if withheld else estimate.high,
        "estimates": [
            {"method": method, **_bounds(accuracy)}
            for method, accuracy in estimate.accuracy.items()
            if not withheld
        ],
        "prevalence": [
            {"name": name, "method": "mlls", **_bounds(share), "predicted": called}
            for name, share, called in zip(classes, estimate.prevalence, predicted, strict=True)
        ],
        "warning": OVERLAP if withheld else ASSUMPTION,
    }


def adaptation_rows(result: AdaptationResult) -> list[Record]:
    """The methods, and last how many labels of the target help as much.

    That is the fewest that are shown to help, else the most that were tried.
    """
    curve = result.label_curve
    enough = [row for row in curve if row.labels_per_class == result.enough_labels]
    return method_rows([*result.rows, *(enough or curve[-1:])])


def method_rows(rows: Iterable[AdaptationRow]) -> list[Record]:
    """Methods against the head that was not adapted, which differs from itself by nothing."""
    nothing = {"estimate": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_adjusted": 1.0}
    return [
        {
            "method": row.method,
            "accuracy": row.accuracy,
            "auroc": row.auroc,
            "difference": nothing
            if row.difference is None
            else {
                **_bounds(row.difference.interval),
                "p": row.difference.p,
                "p_adjusted": row.difference.p_adjusted,
            },
            "target_labels": row.labels_per_class > 0,
        }
        for row in rows
    ]


def threshold_rows(thresholds: Iterable[TransferredThreshold]) -> list[Record]:
    """Thresholds at work in both domains."""
    rates = ("sensitivity", "specificity")
    return [
        vars(threshold) | {rate: _bounds(getattr(threshold, rate)) for rate in rates}
        for threshold in thresholds
    ]


def _bounds(interval: Interval) -> Record:
    """An interval without its images, patients, method and level, which the README gives."""
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
