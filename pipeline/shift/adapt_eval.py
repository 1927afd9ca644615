"""Compare the fixes on a target whose labels are opened once, after all predictions."""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckFailedError, StudyError
from pipeline.evaluation.bootstrap import bootstrap_interval
from pipeline.evaluation.metrics import weighted_mean
from pipeline.evaluation.paired_tests import holm, sign_flip
from pipeline.heads.logistic import solve_path
from pipeline.shift.adapt import (
    FIXES,
    TOGETHER,
    FixSettings,
    Predictor,
    Rows,
    Source,
    fix_named,
)
from pipeline.shift.domains import split_by_patient
from pipeline.shift.ridge_test import auc_columns

Shares = NDArray[np.float64]
"""Shape (m, K): class probabilities of target rows."""


# What the fixes may do, written down and hashed before any target label is read.


BASELINE = "source_only"
"""The fix that every other is compared with."""


@dataclass(frozen=True, kw_only=True)
class FixPlan:
    """Everything that could be chosen, written down before any target label is read."""

    fixes: tuple[str, ...] = tuple(FIXES)
    """Names of the fixes; the baseline ``source_only`` must be among them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One cut of the target into halves per seed."""
    shots: tuple[int, ...] = (5, 10, 25, 50)
    """Labelled target images per class of the rows that do use labels."""
    draws: int = 2000
    """Bootstrap draws and sign flips per row."""
    confidence: float = 0.95
    """Of the intervals."""
    settings: FixSettings = field(default_factory=FixSettings)
    """Hyper-parameters of the fixes."""

    def digest(self) -> str:
        """Return the SHA-256 of the plan as canonical JSON, 64 hex digits."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


# Halves of a target by patient: what is adapted to, and what is then predicted.


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One half of the target to adapt to, and the other to predict."""

    index: int
    """Position of the seed in the plan."""
    seed: int
    """The seed."""
    adapt: NDArray[np.intp]
    """Rows to adapt to."""
    score: NDArray[np.intp]
    """Rows to predict: of other patients."""


def halves(groups: NDArray[Any], seeds: tuple[int, ...]) -> Iterator[Cut]:
    """Yield both halves of every seed; the cut depends on the seed alone.

    Args:
        groups: Shape (n,), patient ids.
        seeds: One cut for each.

    Raises:
        StudyError: There is one patient only.
    """
    if np.unique(groups).size < 2:
        raise StudyError("a target of one patient cannot be halved by patient")
    for index, seed in enumerate(seeds):
        first = split_by_patient(groups, np.random.default_rng([seed, 4]))
        for half in (first, ~first):
            adapt, rest = np.flatnonzero(half), np.flatnonzero(~half)
            yield Cut(index=index, seed=seed, adapt=adapt, score=rest)


# Target labels under seal: read once, at the end, under the plan they were sealed with.


class SealedLabels:
    """Labels of a target that only a declared plan can open.

    They live in memory only: neither printing nor pickling shows them.

    Args:
        labels: Shape (n,), integers; None if the target has no labels.
        plan_hash: Digest of the plan that was written before any number was seen.
    """

    __slots__ = ("__labels", "__plan_hash", "__reads")

    def __init__(self, labels: NDArray[np.integer] | None, plan_hash: str) -> None:
        self.__labels = None if labels is None else np.array(labels)
        self.__plan_hash = plan_hash
        self.__reads = 0

    @property
    def reads(self) -> int:
        """How often the labels were looked at."""
        return self.__reads

    def unseal(self, plan_hash: str) -> NDArray[np.integer]:
        """Return the labels, shape (n,), and count the reading.

        Args:
            plan_hash: Digest of the plan in hand.

        Raises:
            CheckFailedError: The plan was changed after the labels were sealed.
            StudyError: The target has no labels.
        """
        if plan_hash != self.__plan_hash:
            raise CheckFailedError(
                f"the labels were sealed under plan {self.__plan_hash[:12]}, not "
                f"{plan_hash[:12]}: run the declared plan, or seal anew and say so"
            )
        if self.__labels is None:
            raise StudyError("this target has no labels: its fixes can be run, not scored")
        self.__reads += 1
        return self.__labels.copy()

    def __repr__(self) -> str:
        return f"SealedLabels(reads={self.__reads})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("sealed labels are kept in memory only and cannot be pickled")

    def __getstate__(self) -> Any:
        raise TypeError("sealed labels are kept in memory only and cannot be copied")


# Predict a target with every fix; there are no labels to look at.


@dataclass(frozen=True, kw_only=True)
class Target:
    """The domain to be predicted, without its labels."""

    features: Rows
    """Shape (n, d), raw."""
    groups: NDArray[Any]
    """Shape (n,), patient ids; at least two patients."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Cross-fitted probabilities of every fix, made without target labels."""

    probabilities: Mapping[str, NDArray[np.float64]]
    """By fix, shape (seeds, n, K)."""
    notes: Mapping[str, Mapping[str, float]]
    """By fix, its numbers averaged over seeds and halves."""
    plan_hash: str
    """Digest of the plan."""


def predict_target(source: Source, target: Target, plan: FixPlan) -> Predictions:
    """Adapt every fix to one half of the target and predict the other, for each seed.

    Args:
        source: The labelled domain; its settings are replaced by the plan's.
        target: The other one.
        plan: Fixes and seeds.

    Returns:
        Probabilities of every fix for every row.

    Raises:
        UnknownNameError: The plan names a fix that is not there.
        StudyError: The plan lacks the baseline, or the target has one patient.
    """
    if BASELINE not in plan.fixes:
        raise StudyError(f"the plan's fixes lack the baseline {BASELINE!r}: add it")
    source = under(source, plan)
    made = {name: _fix(name, source, target, plan) for name in plan.fixes}
    return Predictions(
        probabilities={name: one.table for name, one in made.items()},
        notes={name: one.notes for name, one in made.items()},
        plan_hash=plan.digest(),
    )


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """By one fix: see :class:`Predictions`."""

    table: NDArray[np.float64]
    notes: Mapping[str, float]


def _fix(name: str, source: Source, target: Target, plan: FixPlan) -> _Predicted:
    table = np.empty((len(plan.seeds), len(target.groups), source.prior.size))
    collected: list[Mapping[str, float]] = []
    for cut, predictor in adapted(name, source, target, plan):
        table[cut.index, cut.score] = predictor(target.features[cut.score])
        collected.append(predictor.notes)
    notes = {key: float(np.mean([n[key] for n in collected])) for key in collected[0]}
    return _Predicted(table=table, notes=notes)


def adapted(
    name: str, source: Source, target: Target, plan: FixPlan
) -> Iterator[tuple[Cut, Predictor]]:
    """Adapt a fix to each half of each seed: at once where it can, else one by one.

    Args:
        name: Of the fix.
        source: The labelled domain, under the settings that are wanted.
        target: The other one.
        plan: Its seeds.
    """
    cuts = list(halves(target.groups, plan.seeds))
    rngs = [np.random.default_rng([cut.seed, zlib.crc32(name.encode())]) for cut in cuts]
    if name in TOGETHER:
        made = TOGETHER[name](source, target.features, [cut.adapt for cut in cuts], rngs)
        yield from zip(cuts, made, strict=True)
        return
    fix = fix_named(name)
    for cut, rng in zip(cuts, rngs, strict=True):
        yield cut, fix(source, target.features[cut.adapt], rng)


def under(source: Source, plan: FixPlan) -> Source:
    """The source with the plan's settings; the same one, and what it has fitted, where it can."""
    return source if source.settings == plan.settings else replace(source, settings=plan.settings)


# Compare two predictors on the same images, patient by patient.


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A mean difference with its interval and p-value."""

    estimate: float
    """Mean over rows."""
    low: float
    """Lower end of the percentile interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided sign-flip p-value."""


def paired_difference(
    differences: NDArray[np.floating],
    groups: NDArray[Any],
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> PairedDifference:
    """Return the mean of paired differences; patients are the units of both answers.

    The interval resamples whole patients. The p-value flips the sign of whole patients,
    p = (1 + #{|T_b| >= |T_0|}) / (draws + 1).

    Args:
        differences: Shape (n,), one predictor's score minus the other's, per image.
        groups: Shape (n,), patient ids.
        rng: Source of the draws.
        draws: Bootstrap draws, and as many sign flips.
        confidence: Of the interval, in (0, 1).
    """
    interval = bootstrap_interval(
        weighted_mean(differences), groups, rng, draws=draws, level=confidence
    )
    return PairedDifference(
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        p=sign_flip(differences, groups, rng, draws=draws),
    )


# Compare the fixes on a target whose labels are opened once, after all predictions.


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
        predictions: From :func:`pipeline.shift.adapt_eval.predict_target`.
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
