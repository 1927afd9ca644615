"""Domain adaptation methods: a model of the source and unlabelled target rows give a predictor.

A method adapts to several parts of a target in one call (both halves of several divisions),
because what the parts share is then computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from pipeline.heads.logistic import fit_weighted, softmax_or_sigmoid
from pipeline.shift.head import INVERSE_PENALTY, SourceModel
from pipeline.shift.label_free import Calibration, estimate_prior, fit_calibration, reweighted

_Rows = NDArray[np.floating]
"""Shape (n, d): rows of features."""
_Parts = Sequence[NDArray[np.intp]]
"""Sets of rows of a target; each is adapted to by itself."""
_Predictor = Callable[[_Rows], NDArray[np.float64]]
"""An adapted model: raw features (n, d) in, class probabilities (n, K) out."""
_Adapter = Callable[[SourceModel, _Rows, _Parts], list[_Predictor]]
"""Model, raw target features (m, d), parts of them -> one predictor for each part."""

#: Of standardisation: how many source rows are mixed with the target's.
_PSEUDO_COUNT = 16.0
#: Of the maps between covariances: principal components of the source.
_COMPONENTS = 128
#: Of importance weighting: power of the density ratio (0 is no weighting, 1 the full ratio),
#: and the quantile at which the weights are clipped.
_RATIO_EXPONENT, _RATIO_CLIP = 0.5, 0.95
#: All of these, for the plan that is hashed before a label is read.
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
    """The head as it left the source: what every other method is compared with."""
    return [model.predict_proba] * len(parts)


def _standardisation(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Standardise the target by its own statistics, mixed with the source's.

    mu = (N mu_S + m mu_T) / (N + m), the variance alike (Schneider et al. 2020).
    """

    def adapted(rows: NDArray[np.float64]) -> _Predictor:
        share = len(rows) / (len(rows) + _PSEUDO_COUNT)
        mean = share * rows.mean(axis=0) + (1 - share) * model.mean
        scale = np.sqrt(share * rows.var(axis=0) + (1 - share) * model.scale**2)
        return lambda features: model.head.predict_proba((features - mean) / scale)

    return [adapted(np.asarray(target[part], dtype=np.float64)) for part in parts]


def _balanced_standardisation(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Standardise the target at the source's class mix, then correct for its own mix."""
    calibration = _calibration(model)

    def adapted(rows: _Rows) -> _Predictor:
        mean, scale, prior = _balanced_statistics(model, rows, calibration)
        return lambda features: reweighted(
            calibration(model.head.predict_proba((features - mean) / scale)), prior / model.prior
        )

    return [adapted(target[part]) for part in parts]


def _balanced_statistics(
    model: SourceModel, target: _Rows, calibration: Calibration
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,), scale (d,) of the target at the source's class mix, and its own class mix (K,).

    Plain target statistics confuse "more ill patients" with "brighter images". Here each
    class has its own mean and variance, weighted by the head's responsibilities, and the
    classes are put together at the source's shares. Responsibilities and statistics are
    improved in turns, starting from the plain statistics. The head is calibrated first:
    with an unsure one the turns stop short of the target's class mix.
    """
    rows = np.asarray(target, dtype=np.float64)
    squares, weights = rows**2, model.head.coef_.T
    mean, scale, prior = rows.mean(axis=0), _positive(rows.std(axis=0)), model.prior
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
        scale = _positive(np.sqrt(model.prior @ (variances + (means - mean) ** 2)))
        before, prior = prior, responsible.mean(axis=0)
        if np.abs(prior - before).max() < _BALANCED:
            break
    return mean, scale, prior


def coral_map(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """CORAL's map Cs^-1/2 Ct^1/2 (Sun et al. 2016) of two covariances (d, d), from the right."""
    return _power(source, -0.5) @ _power(target, 0.5)


def transport_map(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The optimal linear map Cs^-1/2 (Cs^1/2 Ct Cs^1/2)^1/2 Cs^-1/2, symmetric.

    Of all linear maps that carry one Gaussian to the other it moves rows least (Flamary et
    al. 2020). POT has it too, a compiled package of 33 MB that the tests compare with.
    """
    root, inverse = _power(source, 0.5), _power(source, -0.5)
    return inverse @ _power(root @ target @ root, 0.5) @ inverse


def _moved(
    model: SourceModel,
    target: _Rows,
    parts: _Parts,
    map_between: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> list[_Predictor]:
    """Carry the source's rows over by a map made from the two shrunk covariances; fit them there.

    Both are taken in the source's principal components: there a covariance of a few hundred
    rows can be estimated.
    """
    label = model.data.labelled()
    count = min(_COMPONENTS, *model.standard.shape)
    pca = PCA(count, svd_solver="randomized", random_state=0).fit(model.standard)
    axes = np.asarray(pca.components_.T, dtype=np.float64)
    rows_s, rows_t = model.standard @ axes, model.standardise(target) @ axes
    covariance, centred = _covariance(rows_s), rows_s - rows_s.mean(axis=0)

    def adapted(rows: NDArray[np.float64]) -> _Predictor:
        moved = centred @ map_between(covariance, _covariance(rows)) + rows.mean(axis=0)
        head = model.fit(moved, label)
        return lambda features: np.asarray(head.predict_proba(model.standardise(features) @ axes))

    return [adapted(rows_t[part]) for part in parts]


def _covariance(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shrunk covariance (Ledoit and Wolf 2004), shape (d, d); 0 of a single row."""
    if len(rows) == 1:
        return np.zeros((rows.shape[1], rows.shape[1]))
    return np.asarray(ledoit_wolf(rows)[0])


def _power(covariance: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """A power of a symmetric positive definite matrix, shape (d, d)."""
    values, vectors = np.linalg.eigh(covariance)
    floor = values.max() * np.finfo(np.float64).eps
    return np.asarray((vectors * np.maximum(values, floor) ** exponent) @ vectors.T)


def _importance_weighting(model: SourceModel, target: _Rows, parts: _Parts) -> list[_Predictor]:
    """Weight source rows by how much they look like the target (Shimodaira 2000).

    The density ratio is a logistic domain classifier's odds, flattened by an exponent and
    clipped. It acts through the penalised head only: an unregularised one would ignore
    the weights (Byrd and Lipton 2019). The parts differ in the weights of rows alone, so
    their domain classifiers are one batch and their heads another.
    """
    label = model.data.labelled()
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
        "coral": partial(_moved, map_between=coral_map),
        "linear_transport": partial(_moved, map_between=transport_map),
        "importance_weighting": _importance_weighting,
        "prior_shift": _prior_shift,
    }
)


def _calibration(model: SourceModel) -> Calibration:
    return fit_calibration(model.data.scored(), model.data.labelled())


def _positive(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scale > 0, scale, 1.0)
