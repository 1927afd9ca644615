"""Domain adaptation: methods that need no labels of a target, and what each of them gains.

From a model of the source and unlabelled target rows, a method makes a predictor. It adapts to one
half of the target's patients and predicts the other half, both ways, for several splits; one
call handles all halves, so that common parts are computed once. The plan is hashed before any
label is read. The labels are opened once, under that plan, after all predictions; then every
method is compared with the unadapted head, paired by patient.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, Fold, PatientDraws, draw_patients, patient_folds
from pipeline.errors import CheckFailedError, StudyError
from pipeline.evaluation.bootstrap import mean_bounds
from pipeline.evaluation.metrics import score as metric
from pipeline.evaluation.paired_tests import ALPHA, holm, sign_flip, verdict
from pipeline.heads.logistic import fit_weighted, softmax_or_sigmoid
from pipeline.parallel import run_parallel
from pipeline.shift.head import INVERSE_PENALTY, SourceModel
from pipeline.shift.label_free import (
    TemperatureScaling,
    estimate_prior,
    fit_temperature_scaling,
    reweighted,
)

_BASELINE = "source_only"
_Record = dict[str, Any]
_Predicted = Mapping[str, NDArray[np.float64]]
"""By method, shape (seeds, n, K): cross-fitted probabilities of a target."""
_Rows = NDArray[np.floating]
"""Shape (n, d): rows of features."""
_Parts = Sequence[NDArray[np.intp]]
"""Sets of rows of a target; each is adapted to by itself."""
_Predictor = Callable[[_Rows], NDArray[np.float64]]
"""An adapted model: raw features (n, d) in, class probabilities (n, K) out."""
_Adapter = Callable[[SourceModel, _Rows, _Parts], list[_Predictor]]
"""Model, raw target features (m, d), parts of them -> one predictor for each part."""

#: For standardisation: number of source rows that are mixed with the target's.
_PSEUDO_COUNT = 16.0
#: For the maps between covariances: number of principal components of the source.
_COMPONENTS = 128
#: For importance weighting: exponent of the density ratio (0 is no weighting, 1 the full ratio),
#: and the quantile at which weights are clipped.
_RATIO_EXPONENT, _RATIO_CLIP = 0.5, 0.95
#: All these settings, for the plan that is hashed before a label is read.
SETTINGS: Mapping[str, float] = MappingProxyType(
    {
        "pseudo_count": _PSEUDO_COUNT,
        "components": _COMPONENTS,
        "ratio_exponent": _RATIO_EXPONENT,
        "ratio_clip": _RATIO_CLIP,
        "inverse_penalty": INVERSE_PENALTY,
    }
)
#: Turns of statistics and class mix, at most, and the change of the mix that ends them.
_BALANCE_ROUNDS = 50
_BALANCED = 1e-8
_TINY = 1e-12


def _source_only(model: SourceModel, _target: _Rows, parts: _Parts) -> list[_Predictor]:
    """The unadapted source head, with which every other method is compared."""
    return [model.predict_proba] * len(parts)


def _standardisation(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Standardise the target by its own statistics, mixed with the source's.

    mu = (N mu_S + m mu_T) / (N + m), the variance alike (Schneider et al. 2020).
    """

    def predictor_of(rows: NDArray[np.float64]) -> _Predictor:
        share = len(rows) / (len(rows) + _PSEUDO_COUNT)
        mean = share * rows.mean(axis=0) + (1 - share) * model.mean
        scale = np.sqrt(share * rows.var(axis=0) + (1 - share) * model.scale**2)
        return lambda features: model.head.predict_proba((features - mean) / scale)

    return [predictor_of(np.asarray(target[part], dtype=np.float64)) for part in parts]


def _balanced_standardisation(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Standardise the target at the source's class mix, then correct for its own mix."""
    calibration = _calibration(model)

    def predictor_of(rows: _Rows) -> _Predictor:
        mean, scale, prior = _balanced_statistics(model, rows, calibration)
        return lambda features: reweighted(
            calibration(model.head.predict_proba((features - mean) / scale)), prior / model.prior
        )

    return [predictor_of(target[part]) for part in parts]


def _balanced_statistics(
    model: SourceModel, target: _Rows, calibration: TemperatureScaling
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,), scale (d,) of the target at the source's class mix, and its own class mix (K,).

    Plain target statistics confuse "more ill patients" with "brighter images". Here each class has
    its own mean and variance, weighted by the head's probabilities, and the classes are combined
    with the source's shares. Probabilities and statistics are updated in turns, starting from the
    plain statistics. The head is calibrated first: with low confidence the turns would stop before
    they reach the target's class mix.
    """
    rows = np.asarray(target, dtype=np.float64)
    squares, weights = rows**2, model.head.coef_.T
    mean, scale, prior = rows.mean(axis=0), _nonzero(rows.std(axis=0)), model.prior
    for _ in range(_BALANCE_ROUNDS):
        # The head's scores of (rows - mean) / scale, without making those rows.
        scaled = weights / scale[:, None]
        scores = rows @ scaled - mean @ scaled + model.head.intercept_
        proba = calibration(softmax_or_sigmoid(scores))
        responsible = reweighted(proba, prior / model.prior)
        totals = np.clip(responsible.sum(axis=0), _TINY, None)[:, None]
        means = responsible.T @ rows / totals
        variances = np.clip(responsible.T @ squares / totals - means**2, 0, None)
        mean = model.prior @ means
        scale = _nonzero(np.sqrt(model.prior @ (variances + (means - mean) ** 2)))
        before, prior = prior, responsible.mean(axis=0)
        if np.abs(prior - before).max() < _BALANCED:
            break
    return mean, scale, prior


def coral_map(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """CORAL's map Cs^-1/2 Ct^1/2 (Sun et al. 2016) of two covariances (d, d), from the right."""
    return _matrix_power(source, -0.5) @ _matrix_power(target, 0.5)


def transport_map(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The optimal linear map Cs^-1/2 (Cs^1/2 Ct Cs^1/2)^1/2 Cs^-1/2, symmetric.

    Of all linear maps from one Gaussian to the other it moves rows least (Flamary et al. 2020).
    The tests compare it with POT, a compiled package of 33 MB.
    """
    root, inverse = _matrix_power(source, 0.5), _matrix_power(source, -0.5)
    return inverse @ _matrix_power(root @ target @ root, 0.5) @ inverse


def _covariance_mapping(
    model: SourceModel,
    target: _Rows,
    parts: _Parts,
    map_between: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> list[_Predictor]:
    """Map the source's rows to the target's covariance, and fit a head to them.

    Both shrunk covariances are in the source's principal components, where a few hundred rows are
    enough to estimate them.
    """
    label = model.data.get_label()
    count = min(_COMPONENTS, *model.standard.shape)
    pca = PCA(count, svd_solver="randomized", random_state=0).fit(model.standard)
    axes = np.asarray(pca.components_.T, dtype=np.float64)
    rows_s, rows_t = model.standard @ axes, model.standardise(target) @ axes
    covariance, centred = _covariance(rows_s), rows_s - rows_s.mean(axis=0)

    def predictor_of(rows: NDArray[np.float64]) -> _Predictor:
        moved = centred @ map_between(covariance, _covariance(rows)) + rows.mean(axis=0)
        head = model.fit(moved, label)
        return lambda features: np.asarray(head.predict_proba(model.standardise(features) @ axes))

    return [predictor_of(rows_t[part]) for part in parts]


def _covariance(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrunk covariance (Ledoit and Wolf 2004), shape (d, d); 0 for a single row."""
    if len(rows) == 1:
        return np.zeros((rows.shape[1], rows.shape[1]))
    return np.asarray(ledoit_wolf(rows)[0])


def _matrix_power(covariance: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric positive definite matrix, shape (d, d)."""
    values, vectors = np.linalg.eigh(covariance)
    floor = values.max() * np.finfo(np.float64).eps
    return np.asarray((vectors * np.maximum(values, floor) ** exponent) @ vectors.T)


def _importance_weighting(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Weight source rows by how much they look like the target (Shimodaira 2000).

    The density ratio is the odds of a logistic domain classifier, flattened by an exponent and
    clipped. It needs a penalised head: an unregularised head would ignore the weights (Byrd and
    Lipton 2019). The parts differ only in the weights of rows, so their domain classifiers are
    fitted as one batch, and their heads as another.
    """
    label = model.data.get_label()
    rows = np.vstack([model.standard, model.standardise(target).astype(np.float32)])
    n = len(label)
    balance = np.zeros((len(parts), len(rows)))
    for weights, part in zip(balance, parts, strict=True):
        weights[:n] = (n + len(part)) / (2 * n)
        weights[n + part] = (n + len(part)) / (2 * len(part))
    domain = np.repeat([0, 1], [n, len(rows) - n])
    classifiers = fit_weighted(rows, domain, C=INVERSE_PENALTY, weights=balance)
    log_odds = (rows[:n] @ classifiers.coef[:, 0].T + classifiers.intercept[:, 0]).T
    ratios = np.exp(_RATIO_EXPONENT * log_odds.astype(np.float64))
    ratios = np.minimum(ratios, np.quantile(ratios, _RATIO_CLIP, axis=1, keepdims=True))
    ratios /= ratios.mean(axis=1, keepdims=True)
    heads = fit_weighted(rows[:n], label, C=INVERSE_PENALTY, weights=ratios)

    def predictor(v: int) -> _Predictor:
        return lambda features: heads.proba(model.standardise(features), slice(v, v + 1))[0]

    return [predictor(v) for v in range(len(parts))]


def _prior_shift(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Calibrate the head on the source and correct it for the target's class mix."""
    calibration = _calibration(model)
    proba = calibration(model.predict_proba(target))

    def corrected(part: NDArray[np.intp]) -> _Predictor:
        weights = estimate_prior(proba[part], model.prior) / model.prior
        return lambda features: reweighted(calibration(model.predict_proba(features)), weights)

    return [corrected(part) for part in parts]


#: To add a method, write a function above and one line here.
ADAPTERS: Mapping[str, _Adapter] = MappingProxyType(
    {
        "source_only": _source_only,
        "standardisation": _standardisation,
        "balanced_standardisation": _balanced_standardisation,
        "coral": partial(_covariance_mapping, map_between=coral_map),
        "linear_transport": partial(_covariance_mapping, map_between=transport_map),
        "importance_weighting": _importance_weighting,
        "prior_shift": _prior_shift,
    }
)


def _calibration(model: SourceModel) -> TemperatureScaling:
    return fit_temperature_scaling(model.data.get_proba(), model.data.get_label())


def _nonzero(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scale > 0, scale, 1.0)


# How much each method gains.


@dataclass(frozen=True, kw_only=True)
class AdaptationPlan:
    """All choices of the comparison, fixed before any target label is read.

    Attributes:
        methods: Entries of ``ADAPTERS``, with ``source_only``, with which all are compared.
        seeds: Seeds; each gives one split of the target into halves.
        shots: Numbers of labelled target images per class, for heads that use labels.
        draws: Number of bootstrap draws and of sign flips.
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
    """Labels of a target that only a declared plan can open; printing or pickling cannot.

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
            CheckFailedError: They were sealed under another plan.
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
        target: Features of two or more patients; labels are not used.
        plan: Methods and seeds.
    """
    features, folds = target.get_features(), _halves(target, plan)

    def predicted(name: str) -> NDArray[np.float64]:
        table = np.empty((len(plan.seeds), len(target), model.classes))
        predictors = ADAPTERS[name](model, features, [fit for fit, _ in folds])
        for number, (predictor, (_, held)) in enumerate(zip(predictors, folds, strict=True)):
            table[number // 2, held] = predictor(features[held])
        return table

    tables = run_parallel([partial(predicted, name) for name in plan.methods])
    return dict(zip(plan.methods, tables, strict=True))


def _halves(target: DomainData, plan: AdaptationPlan) -> list[Fold]:
    """For each seed both halves in turn: rows to adapt to, rows to predict."""
    halves = (patient_folds(None, target.group, folds=2, seed=seed) for seed in plan.seeds)
    return [fold for folds in halves for fold in folds]


@dataclass(frozen=True, kw_only=True)
class BestMethod:
    """The method that gains most accuracy, with its gain corrected for that choice.

    ``before`` is the accuracy of the linear head without adaptation; ``p`` is adjusted for the
    number of methods (Holm).
    """

    method: str
    before: float
    estimate: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether it is shown to help: the 95 % interval lies above 0, and p is at most 0.05."""
        return self.low > 0 and self.p <= ALPHA


def score(
    predicted: _Predicted,
    sealed: SealedLabels,
    model: SourceModel,
    target: DomainData,
    plan: AdaptationPlan,
) -> tuple[list[_Record], BestMethod | None]:
    """Open the labels and compare every method with the baseline.

    Args:
        predicted: From :func:`predict_target`, for the same model, target and plan.
        sealed: Labels of the target, numbered like the source's.
        model: Head of the source.
        target: Features.
        plan: The plan under which the labels were sealed.

    Returns:
        A row for each method, see :func:`_compare_methods`. The last row is for the fewest target
        labels that are shown to help, else for the most that were tried, if there are any. Then
        the best method.

    Raises:
        CheckFailedError: The labels were sealed under another plan.
        StudyError: The target has no labels.
    """
    target = target.with_(label=sealed.unseal(plan.digest()))
    draws = draw_patients(target.group, np.random.default_rng(6), draws=plan.draws)
    rates = {name: _accuracy_by_image(table, target) for name, table in predicted.items()}
    baseline = rates.pop(_BASELINE)
    rows = _compare_methods(predicted, baseline, target, draws)
    few_shot = _k_shot(model, target, plan)
    curve = _compare_methods(few_shot, baseline, target, draws, target_labels=True)
    helpful = [row for row in curve if _is_better(**row["difference"])]
    gains = {name: rate - baseline for name, rate in rates.items()}
    best = _best_method(rows, gains, draws) if gains else None
    return [*rows, *(helpful[:1] or curve[-1:])], best


def _is_better(low: float, high: float, p_adjusted: float, **_: float) -> bool:
    return verdict(low, high, p_adjusted) == "better"


def _k_shot(model: SourceModel, target: DomainData, plan: AdaptationPlan) -> _Predicted:
    """Fit heads to k labelled images per class of one half, scaled as the source; test the other.

    A k is left out if some half has fewer images.
    """
    label, folds = target.get_label(), _halves(target, plan)
    available = min(np.bincount(label[fit], minlength=model.classes).min() for fit, _ in folds)
    shots = [k for k in plan.shots if k <= available]
    if not shots:
        return {}
    chosen = np.zeros((len(shots), len(folds), len(label)))
    for row, k in zip(chosen, shots, strict=True):
        for number, (fit, _) in enumerate(folds):
            order = np.random.default_rng([number, 5, k]).permutation(fit)
            for c in range(model.classes):
                row[number, order[label[order] == c][:k]] = 1
    rows = model.standardise(target.get_features()).astype(np.float32)
    # One head for each k and half: they share the rows, and which are chosen is a weight.
    weights = chosen.reshape(-1, len(label))
    heads = fit_weighted(rows, label, C=INVERSE_PENALTY, weights=weights)
    tables = np.empty((len(shots), len(plan.seeds), len(label), model.classes))
    for v in range(len(weights)):  # one by one: all at once take much memory
        shot, number = divmod(v, len(folds))
        held = folds[number][1]
        tables[shot, number // 2, held] = heads.proba(rows[held], slice(v, v + 1))[0]
    return {f"{k} labels per class": table for k, table in zip(shots, tables, strict=True)}


def _compare_methods(
    tables: _Predicted,
    baseline: NDArray[np.float64],
    target: DomainData,
    draws: PatientDraws,
    *,
    target_labels: bool = False,
) -> list[_Record]:
    """Score one family of methods; Holm's correction covers all but the baseline.

    Returns:
        ``method``; ``accuracy`` and ``auroc``, means over the splits (None where a class is
        absent); ``difference`` of the accuracy to the baseline's, which is ``baseline``
        by image, None for the baseline itself; ``target_labels``: whether labels of the target
        were used.
    """
    rows: list[_Record] = []
    for name, table in tables.items():
        rate = _accuracy_by_image(table, target)
        aurocs = [metric("auroc", target.get_label(), proba) for proba in table]
        difference = None
        if name != _BASELINE:
            gain, rng = rate - baseline, np.random.default_rng([zlib.crc32(name.encode()), 6])
            low, high = mean_bounds(gain, draws)
            p = float(sign_flip(gain, target.group, rng, draws=len(draws)))
            difference = {"estimate": float(gain.mean()), "low": low, "high": high, "p": p}
        rows.append(
            {
                "method": name,
                "accuracy": float(rate.mean()),
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


def _best_method(
    rows: list[_Record], gains: Mapping[str, NDArray[np.float64]], draws: PatientDraws
) -> BestMethod:
    """The best method; its gain is the mean out-of-bag gain of the method that is best in bag.

    That is bootstrap bias correction (Tsamardinos et al. 2018). The lower end of the method's
    interval moves with the gain. The upper end does not: if one method is truly the best, the
    corrected gain is too low.
    """
    unseen = replace(draws, counts=(draws.counts == 0).astype(np.uint8))
    in_bag, out_of_bag = (np.stack([d.mean(g) for g in gains.values()]) for d in (draws, unseen))
    # Where no patient is left out of a draw, it says nothing.
    corrected = float(np.nanmean(out_of_bag[in_bag.argmax(axis=0), np.arange(len(draws))]))
    best = max(gains, key=lambda name: gains[name].mean())
    (apparent,) = (row["difference"] for row in rows if row["method"] == best)
    low = apparent["low"] + corrected - apparent["estimate"]
    high = max(apparent["high"], apparent["high"] + corrected - apparent["estimate"])
    p, before = apparent["p_adjusted"], rows[0]["accuracy"]
    return BestMethod(method=best, before=before, estimate=corrected, low=low, high=high, p=p)


def _accuracy_by_image(table: NDArray[np.float64], target: DomainData) -> NDArray[np.float64]:
    """Share of the splits in which each image is right, shape (n,)."""
    return np.asarray((table.argmax(axis=2) == target.get_label()).mean(axis=0))
