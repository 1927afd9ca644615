"""Probes: what can be told from things that should not tell it.

A label that can be read off the image's size, its border or its corners, or a hospital
that can be read off the features, is a confounder whether or not a head uses it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import StudyError
from pipeline.shift.permute import units_of
from pipeline.shift.products import Place
from pipeline.shift.ridge import auc_columns, cross_validated, folds_of

_FOLDS = 5
_DRAW_COLUMNS = 128


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well a label can be told, by the area under the ROC curve.

    The interval is that of the scores at hand: it leaves out that another sample would
    also fit another head. On noise it covers one half in about 83 % of samples of 160
    patients, so an end near one half proves nothing.
    """

    auc: float
    """Out of fold; of more than two classes each against the rest, averaged."""
    low: float
    """Lower end of the 95 % interval, by patient."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True)
class SourcePrediction:
    """How well the domain can be told from the features."""

    overall: float
    """Out-of-fold AUC of the ridge classifier, all images."""
    by_class: tuple[float | None, ...]
    """The same inside each class; None where a domain has fewer than two of its patients."""


def label_probe(
    facts: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    seed: int = 0,
    draws: int = 1000,
) -> Probe:
    """Try to tell the label from facts that should not know it.

    The facts may be a table of file properties (metadata probe), features of images with
    their centre blacked out (border probe) or of their corners alone (marker probe).

    Args:
        facts: Shape (n, p), finite.
        labels: Shape (n,), 0 to K - 1.
        groups: Shape (n,), patient ids; folds and interval are by patient.
        seed: Seed of folds and bootstrap.
        draws: Bootstrap draws of the interval.

    Returns:
        The AUC of a cross-validated logistic head, with its interval.

    Raises:
        StudyError: A fact is not finite, or a class has fewer than two patients.
    """
    patients = np.unique(groups, return_inverse=True)[1]
    _refuse_untellable(facts, labels, patients)
    one_hot = np.eye(int(labels.max()) + 1, dtype=np.bool_)[labels]
    scores = _out_of_fold(facts, labels, patients, seed)
    rng = np.random.default_rng([seed, 7])
    n = int(patients.max()) + 1
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)[:, patients].T
    # Two classes mirror each other, so the second alone says it all.
    classes = range(1, 2) if one_hot.shape[1] == 2 else range(one_hot.shape[1])  # noqa: PLR2004
    ones = np.ones((len(labels), 1), dtype=np.int64)
    point, resampled = (
        np.mean([weighted_auc(scores[:, k], one_hot[:, k], w) for k in classes], axis=0)
        for w in (ones, counts)
    )
    # A draw without one of the classes has no AUC.
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Probe(auc=float(point[0]), low=float(low), high=float(high))


def source_prediction(
    features: NDArray[np.floating],
    target: NDArray[np.bool_],
    groups: NDArray[Any],
    classes: NDArray[np.integer],
    where: Place,
) -> SourcePrediction:
    """Try to tell the domain from the features, overall and inside each class.

    Overall alone would confuse "another scanner" with "more ill patients".

    Args:
        features: Shape (n, d).
        target: Shape (n,), True for rows of the target.
        groups: Shape (n,), patient ids.
        classes: Shape (n,), 0 to K - 1, labels or predictions.
        where: Where the products run.
    """

    def auc(rows: NDArray[np.bool_]) -> float | None:
        units = units_of(target[rows], groups[rows])
        per_domain = [np.unique(units[target[rows] == side]).size for side in (False, True)]
        if min(per_domain) < 2:  # noqa: PLR2004 - one to learn from, one to tell
            return None
        labels = target[rows][:, None]
        scores = cross_validated(features[rows], labels, folds_of(units, 0), where)
        return float(auc_columns(scores, labels)[0])

    overall = auc(np.ones(len(target), dtype=np.bool_))
    if overall is None:
        raise StudyError("telling the domain apart needs two patients in each")
    return SourcePrediction(
        overall=overall,
        by_class=tuple(auc(classes == k) for k in range(int(classes.max()) + 1)),
    )


def weighted_auc(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], weights: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the area under the ROC curve for many weightings of the rows.

    Args:
        scores: Shape (n,).
        positive: Shape (n,).
        weights: Shape (n, B), how often each row counts, >= 0.

    Returns:
        Shape (B,), NaN where a weighting leaves only one class; ties count one half.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append([True], np.diff(scores[order]) > 0))
    areas = np.full(weights.shape[1], np.nan)
    for start in range(0, weights.shape[1], _DRAW_COLUMNS):
        columns = slice(start, start + _DRAW_COLUMNS)
        ordered = weights[order, columns].astype(np.float64)
        mine = positive[order][:, None]
        positives = np.add.reduceat(ordered * mine, starts, axis=0)
        negatives = np.add.reduceat(ordered * ~mine, starts, axis=0)
        below = np.cumsum(negatives, axis=0) - negatives / 2
        possible = positives.sum(axis=0) * negatives.sum(axis=0)
        np.divide((positives * below).sum(axis=0), possible, out=areas[columns], where=possible > 0)
    return areas


def _out_of_fold(
    facts: NDArray[np.floating],
    labels: NDArray[np.integer],
    patients: NDArray[np.intp],
    seed: int,
) -> NDArray[np.float64]:
    """Probabilities of heads that did not see the row's patient, shape (n, K)."""
    scores = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(_folds_for(labels, patients), shuffle=True, random_state=seed)
    for fit, held in folds.split(facts, labels, patients):
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        head.fit(facts[fit], labels[fit])
        scores[np.ix_(held, head.classes_)] = head.predict_proba(facts[held])
    return scores


def _folds_for(labels: NDArray[np.integer], patients: NDArray[np.intp]) -> int:
    fewest = min(np.unique(patients[labels == k]).size for k in np.unique(labels))
    return min(_FOLDS, fewest)


def _refuse_untellable(
    facts: NDArray[np.floating], labels: NDArray[np.integer], patients: NDArray[np.intp]
) -> None:
    if not np.isfinite(facts).all():
        raise StudyError("the facts of a probe hold NaN or infinity: leave those columns out")
    if np.unique(labels).size < 2 or _folds_for(labels, patients) < 2:  # noqa: PLR2004
        raise StudyError("a probe needs two classes with two patients each, to learn and to tell")
