"""Compare the adaptation methods on a target whose labels are opened once, after all predictions.

The plan is hashed before any label is read. Each method adapts to one half of the target's
patients and predicts the other half, for several divisions. Then the labels are opened under
that plan, and every method is compared with the head that was not adapted, paired by patient.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, Fold, PatientDraws, draw_patients, patient_folds
from pipeline.errors import CheckFailedError, StudyError
from pipeline.evaluation.bootstrap import mean_bounds
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.paired_tests import ALPHA, holm, sign_flip, verdict
from pipeline.heads.logistic import fit_weighted
from pipeline.parallel import run_parallel
from pipeline.shift.adapt import ADAPTERS, SETTINGS
from pipeline.shift.head import INVERSE_PENALTY, SourceModel

_BASELINE = "source_only"
_Record = dict[str, Any]
_Predicted = Mapping[str, NDArray[np.float64]]
"""By method, shape (seeds, n, K): cross-fitted probabilities of a target."""


@dataclass(frozen=True, kw_only=True)
class AdaptationPlan:
    """Everything that could be chosen, written down before any target label is read.

    Attributes:
        methods: Entries of ``ADAPTERS``, with ``source_only``, to which all are compared.
        seeds: One division of the target into halves for each.
        shots: Labelled target images of each class, for the rows that do use labels.
        draws: Bootstrap draws and sign flips.
    """

    methods: tuple[str, ...] = tuple(ADAPTERS)
    seeds: tuple[int, ...] = tuple(range(5))
    shots: tuple[int, ...] = (5, 10, 25, 50)
    draws: int = DRAWS

    def digest(self) -> str:
        """SHA-256 of the plan, with the settings of the methods, as canonical JSON."""
        whole = {**asdict(self), "settings": dict(SETTINGS)}
        canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class SealedLabels:
    """Labels of a target that only a declared plan opens; neither printing nor pickling does.

    Args:
        label: Shape (n,), integers; None if the target has no labels.
        plan_hash: Digest of the plan.
    """

    __slots__ = ("__label", "__plan_hash", "reads")

    def __init__(self, label: NDArray[np.integer] | None, plan_hash: str) -> None:
        self.__label = None if label is None else np.array(label)
        self.__plan_hash = plan_hash
        self.reads = 0

    def unseal(self, plan_hash: str) -> NDArray[np.int64]:
        """The labels, shape (n,); the reading is counted.

        Raises:
            CheckFailedError: The plan in hand is not the one that they were sealed under.
            StudyError: The target has no labels.
        """
        if plan_hash != self.__plan_hash:
            raise CheckFailedError(
                f"the labels were sealed under plan {self.__plan_hash[:12]}, not "
                f"{plan_hash[:12]}: run the declared plan, or seal anew and say so"
            )
        if self.__label is None:
            raise StudyError(
                "this target has no labels: methods can adapt to it, but not be scored"
            )
        self.reads += 1
        return self.__label.astype(np.int64)

    def __repr__(self) -> str:
        return f"SealedLabels(reads={self.reads})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("sealed labels are kept in memory only and cannot be pickled")


def predict_target(model: SourceModel, target: DomainData, plan: AdaptationPlan) -> _Predicted:
    """Adapt every method to one half of the target and predict the other, for each seed.

    Args:
        model: Head of the source.
        target: Features of two patients or more; labels are not looked at.
        plan: Methods and seeds.
    """
    features, folds = target.embedded(), _halves(target, plan)

    def predicted(name: str) -> NDArray[np.float64]:
        table = np.empty((len(plan.seeds), len(target), model.classes))
        predictors = ADAPTERS[name](model, features, [fit for fit, _ in folds])
        for number, (predictor, (_, held)) in enumerate(zip(predictors, folds, strict=True)):
            table[number // 2, held] = predictor(features[held])
        return table

    tables = run_parallel([partial(predicted, name) for name in plan.methods])
    return dict(zip(plan.methods, tables, strict=True))


def _halves(target: DomainData, plan: AdaptationPlan) -> list[Fold]:
    """Both halves of each seed, one after the other: rows to adapt to, rows to predict."""
    halves = (patient_folds(None, target.group, folds=2, seed=seed) for seed in plan.seeds)
    return [fold for folds in halves for fold in folds]


@dataclass(frozen=True, kw_only=True)
class BestMethod:
    """The method that gains most accuracy, with its gain corrected for that choice.

    It is ``shown`` to help where the 95 % interval lies above 0 and the adjusted p-value is at
    most 0.05.
    """

    method: str
    estimate: float
    low: float
    high: float
    shown: bool


def score(
    predicted: _Predicted,
    sealed: SealedLabels,
    model: SourceModel,
    target: DomainData,
    plan: AdaptationPlan,
) -> tuple[list[_Record], BestMethod | None]:
    """Open the labels and compare every method with the baseline.

    Args:
        predicted: From :func:`predict_target`, of the same model, target and plan.
        sealed: Labels of the target, numbered like the source's.
        model: Head of the source.
        target: Features.
        plan: Under which the labels were sealed.

    Returns:
        A row for each method, see :func:`_rows`; last the fewest labels of the target that are
        shown to help, else the most that were tried, if a half has any. And the best method.

    Raises:
        CheckFailedError: The labels were sealed under another plan.
        StudyError: The target has no labels.
    """
    target = target.with_(label=sealed.unseal(plan.digest()))
    draws = draw_patients(target.group, np.random.default_rng(6), draws=plan.draws)
    base = _right(predicted[_BASELINE], target)
    rows = _rows(predicted, base, target, draws)
    curve = _rows(_k_shot(model, target, plan), base, target, draws, target_labels=True)
    helpful = [row for row in curve if _is_better(**row["difference"])]
    gains = {name: _right(t, target) - base for name, t in predicted.items() if name != _BASELINE}
    return [*rows, *(helpful[:1] or curve[-1:])], _best(rows, gains, draws) if gains else None


def _is_better(low: float, high: float, p_adjusted: float, **_: float) -> bool:
    return verdict(low, high, p_adjusted) == "better"


def _k_shot(model: SourceModel, target: DomainData, plan: AdaptationPlan) -> _Predicted:
    """Fit heads to k labelled images per class of one half, in the source's scale; test the other.

    A k that some half cannot provide is left out.
    """
    label, folds = target.labelled(), _halves(target, plan)
    available = min(np.bincount(label[fit], minlength=model.classes).min() for fit, _ in folds)
    shots = [k for k in plan.shots if k <= available]
    if not shots:
        return {}
    shown = np.zeros((len(shots), len(folds), len(label)))
    for row, k in zip(shown, shots, strict=True):
        for number, (fit, _) in enumerate(folds):
            order = np.random.default_rng([number, 5, k]).permutation(fit)
            for c in range(model.classes):
                row[number, order[label[order] == c][:k]] = 1
    rows = model.standardise(target.embedded()).astype(np.float32)
    # One head for each k and half: they share the rows, and which are shown is a weight.
    weights = shown.reshape(-1, len(label))
    heads = fit_weighted(rows, label, C=INVERSE_PENALTY, weights=weights)
    tables = np.empty((len(shots), len(plan.seeds), len(label), model.classes))
    for v in range(len(weights)):  # one by one: all at once take much memory
        which, number = divmod(v, len(folds))
        held = folds[number][1]
        tables[which, number // 2, held] = heads.proba(rows[held], slice(v, v + 1))[0]
    return {f"{k} labels per class": table for k, table in zip(shots, tables, strict=True)}


def _rows(
    tables: _Predicted,
    base: NDArray[np.float64],
    target: DomainData,
    draws: PatientDraws,
    *,
    target_labels: bool = False,
) -> list[_Record]:
    """Score one family of methods; Holm's correction runs over it, the baseline aside.

    Returns:
        ``method``; ``accuracy`` and ``auroc``, means over the divisions (None where a class is
        absent); ``difference`` of the accuracy to the baseline's, whose hits are ``base``, None
        for the baseline itself; ``target_labels``: whether labels of the target were used.
    """
    rows: list[_Record] = []
    for name, table in tables.items():
        hit = _right(table, target)
        aurocs = [metric("auroc", target.labelled(), proba) for proba in table]
        difference = None
        if name != _BASELINE:
            gain, rng = hit - base, np.random.default_rng([zlib.crc32(name.encode()), 6])
            low, high = mean_bounds(gain, draws)
            p = float(sign_flip(gain, target.group, rng, draws=len(draws)))
            difference = {"estimate": float(gain.mean()), "low": low, "high": high, "p": p}
        rows.append(
            {
                "method": name,
                "accuracy": float(hit.mean()),
                "auroc": None if None in aurocs else float(np.mean(aurocs)),  # type: ignore[arg-type]
                "difference": difference,
                "target_labels": target_labels,
            }
        )
    compared = [row["difference"] for row in rows if row["difference"]]
    adjusted = holm([difference["p"] for difference in compared]).tolist()
    for difference, p in zip(compared, adjusted, strict=True):
        difference["p_adjusted"] = p
    return rows


def _best(
    rows: list[_Record], gains: Mapping[str, NDArray[np.float64]], draws: PatientDraws
) -> BestMethod:
    """The best method at the mean gain out of bag of whatever is best in bag.

    That is bootstrap bias correction (Tsamardinos et al. 2018). The lower end of the method's
    interval moves with the gain. The upper one stays: where one method is truly the best, the
    corrected gain is too low.
    """
    unseen = replace(draws, counts=(draws.counts == 0).astype(np.uint8))
    inside, outside = (np.stack([d.mean(g) for g in gains.values()]) for d in (draws, unseen))
    # Where no patient is left out of a draw, it says nothing.
    corrected = float(np.nanmean(outside[inside.argmax(axis=0), np.arange(len(draws))]))
    best = max(gains, key=lambda name: gains[name].mean())
    (apparent,) = (row["difference"] for row in rows if row["method"] == best)
    low = apparent["low"] + corrected - apparent["estimate"]
    high = max(apparent["high"], apparent["high"] + corrected - apparent["estimate"])
    shown = low > 0 and apparent["p_adjusted"] <= ALPHA
    return BestMethod(method=best, estimate=corrected, low=low, high=high, shown=shown)


def _right(table: NDArray[np.float64], target: DomainData) -> NDArray[np.float64]:
    """Share of the divisions in which each image is right, shape (n,)."""
    return np.asarray((table.argmax(axis=2) == target.labelled()).mean(axis=0))
