"""Compare the fixes on a target whose labels are opened once, after all predictions.

Two steps that cannot be exchanged: ``predict_target`` of ``cross_fitting`` has no labels to
look at, and ``score`` opens them under the digest of the plan that made the predictions.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckFailedError
from pipeline.heads.logistic import solve_path
from pipeline.shift.fixes.adaptation import Source
from pipeline.shift.fixes.cross_fitting import Predictions, Target, under
from pipeline.shift.fixes.halves import halves
from pipeline.shift.fixes.paired import PairedDifference, paired_difference
from pipeline.shift.fixes.plan import BASELINE, FixPlan
from pipeline.shift.fixes.sealed import SealedLabels
from pipeline.stats import holm
from pipeline.two_samples.ridge import auc_columns

_TWO = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard."""

    name: str
    """Fix, or ``k_shot(k)``."""
    accuracy: float
    """Mean over seeds, in [0, 1]."""
    accuracy_sd: float
    """Standard deviation over seeds."""
    auroc: float | None
    """Mean over seeds; None unless there are two classes, both present."""
    difference: PairedDifference
    """Accuracy against the baseline, paired, by patient."""
    p_holm: float
    """Sign-flip p-value, Holm-adjusted within its block; 1 for the baseline."""
    uses_target_labels: bool
    """True for k-shot rows, which stand in a block of their own."""
    notes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Numbers of the fix itself."""

    @property
    def negative_transfer(self) -> bool:
        """Whether the whole interval of the difference lies below 0."""
        return self.difference.high < 0


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All rows, and the proof that the labels were read once under the plan."""

    rows: tuple[Row, ...]
    """One per fix, in the plan's order."""
    k_shot: tuple[Row, ...]
    """One per k for which each half holds k labelled images of every class."""
    plan_hash: str
    """Digest of the plan."""
    reads: int
    """How often the target labels were read."""


def score(
    predictions: Predictions, sealed: SealedLabels, source: Source, target: Target, plan: FixPlan
) -> Leaderboard:
    """Open the labels and compare every fix with the baseline.

    Args:
        predictions: From :func:`pipeline.shift.fixes.cross_fitting.predict_target`.
        sealed: Labels of the target, numbered like the source's.
        source: The labelled domain, for the scale of the k-shot rows.
        target: The domain that was predicted.
        plan: The plan of the predictions.

    Returns:
        The leaderboard.

    Raises:
        CheckFailedError: The labels were sealed, or the predictions made, under another plan.
        StudyError: The target has no labels.
    """
    if predictions.plan_hash != plan.digest():
        raise CheckFailedError(
            "these predictions were made under another plan: predict again under this one"
        )
    labels = sealed.unseal(plan.digest())
    shots = _k_shot(under(source, plan), target, labels, plan)
    baseline = predictions.probabilities[BASELINE]
    truth = Truth(labels=labels, groups=target.groups, baseline=baseline)
    rows = _rows(predictions.probabilities, truth, plan, predictions.notes)
    return Leaderboard(
        rows=rows,
        k_shot=_rows(shots, truth, plan, None),
        plan_hash=plan.digest(),
        reads=sealed.reads,
    )


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the predictions of a block are measured against."""

    labels: NDArray[np.integer]
    """Shape (n,)."""
    groups: NDArray[Any]
    """Shape (n,), patient ids."""
    baseline: NDArray[np.float64]
    """Shape (seeds, n, K): the baseline's probabilities."""


def _k_shot(
    source: Source, target: Target, labels: NDArray[np.integer], plan: FixPlan
) -> dict[str, NDArray[np.float64]]:
    """Refit the head to k labelled images per class of one half, predict the other.

    Only the scale of the features comes from the source: what a few labels are worth by
    themselves. A k that some half cannot provide is left out.
    """
    n_classes = source.prior.size
    cuts = list(halves(target.groups, plan.seeds))
    available = min(np.bincount(labels[c.adapt], minlength=n_classes).min() for c in cuts)
    asked = [(k, cut) for k in plan.shots if k <= available for cut in cuts]
    if not asked:
        return {}
    shown = np.zeros((len(asked), len(labels)))
    for row, (k, cut) in zip(shown, asked, strict=True):
        order = np.random.default_rng([cut.seed, 5, k]).permutation(cut.adapt)
        for c in range(n_classes):
            row[order[labels[order] == c][:k]] = 1
    rows = source.standardise(target.features).astype(np.float32)
    # One head for each k and half: they share the rows, and which are shown is a weight.
    penalty = np.full(len(asked), source.settings.inverse_penalty)
    heads = solve_path(rows, labels, C=penalty, weights=shown)
    tables: dict[str, NDArray[np.float64]] = {}
    empty = np.empty((len(plan.seeds), len(labels), n_classes))
    for v, (k, cut) in enumerate(asked):
        table = tables.setdefault(f"k_shot({k})", empty.copy())
        table[cut.index, cut.score] = heads.some(slice(v, v + 1)).proba(rows[cut.score])[0]
    return tables


def _rows(
    tables: Mapping[str, NDArray[np.float64]],
    truth: Truth,
    plan: FixPlan,
    notes: Mapping[str, Mapping[str, float]] | None,
) -> tuple[Row, ...]:
    """Score one block; Holm runs over its rows, the baseline aside."""
    base = (truth.baseline.argmax(axis=2) == truth.labels).mean(axis=0)
    scored = []
    for name, table in tables.items():
        correct = table.argmax(axis=2) == truth.labels
        rng = np.random.default_rng([zlib.crc32(name.encode()), 6])
        change = paired_difference(
            correct.mean(axis=0) - base, truth.groups, rng, plan.draws, plan.confidence
        )
        scored.append((name, correct.mean(axis=1), _auroc(table, truth.labels), change))
    compared = [name for name in tables if name != BASELINE]
    raw = {name: change.p for name, _, _, change in scored}
    adjusted = dict(zip(compared, holm(np.array([raw[n] for n in compared])), strict=True))
    return tuple(
        Row(
            name=name,
            accuracy=float(accuracies.mean()),
            accuracy_sd=float(accuracies.std()),
            auroc=auroc,
            difference=change,
            p_holm=float(adjusted.get(name, 1.0)),
            uses_target_labels=notes is None,
            notes={} if notes is None else notes[name],
        )
        for name, accuracies, auroc, change in scored
    )


def _auroc(table: NDArray[np.float64], labels: NDArray[np.integer]) -> float | None:
    """Mean over seeds of the area under the ROC curve; None where a class is absent.

    Macro one-vs-rest for more than two classes.
    """
    if np.unique(labels).size != table.shape[2]:
        return None
    areas = [
        auc_columns(table[:, :, k].T, np.repeat(labels[:, None] == k, len(table), axis=1)).mean()
        for k in ([1] if table.shape[2] == _TWO else range(table.shape[2]))
    ]
    return float(np.mean(areas))
