"""Probes: what can be told from things that should not tell it.

A label that can be read off the image's size, its border or its corners, or a hospital
that can be read off the features, is a confounder whether or not a head uses it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from pipeline.errors import StudyError
from pipeline.evaluation.auroc import bound_of_one
from pipeline.shift.kernels import place
from pipeline.shift.permute import p_value, shuffled, units_of
from pipeline.shift.ridge_test import auc_columns, cross_validated, folds_of

_DRAWS = 499
_TAIL = 0.025
#: Rows times relabellings that are held at once, 128 MB an array: beyond, draws are fewer, down
#: to the fewest that tell 2.5 %. With those, arrays grow past that from 84,000 rows on.
_CELLS = 1 << 24
_FEWEST_DRAWS = 199
_DRAW_COLUMNS = 128


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well a label can be told, by the area under the ROC curve.

    Two things make the AUC of cross-validated heads vary: who is told, and who taught. A
    bootstrap of the scores has the first alone; its intervals cover one half in about 83 %
    of samples of noise, because heads of overlapping folds err together and no variance
    within one sample shows it (Bengio and Grandvalet 2004). What both come to where there
    is nothing to tell is known exactly: it is the spread under relabelling of the patients.

    So each end of the 95 % interval lies as far from the estimate, in log odds, as the
    larger of two spreads goes:

    - 1.96 standard deviations of a bootstrap of patients with the scores held fixed, over
      auc (1 - auc), the delta method of :func:`pipeline.evaluation.auroc.auroc_interval`. It is
      the spread of a strong signal, which the heads of any sample find alike (LeDell,
      Petersen and van der Laan 2015).
    - From the 97.5 % quantile q of the AUC under relabelling down to one half, as log odds:
      the lower end is logit(auc) - logit(q), the upper one the same with the 2.5 %
      quantile. This inverts the permutation test, so the interval holds one half whenever
      that test does not reject at 5 %, both sides together: in 95 % of samples in which
      labels say nothing, if patients are exchangeable, however few they are and however
      many the features. It makes no claim of its own about a signal.

    In simulations (``tests/test_shift_probes.py``) 93 to 96 % of the intervals of noise hold
    one half, and 91 to 97 % of those of a signal its mean AUC over samples of that size.
    """

    auc: float
    """Out of fold; of more than two classes each against the rest, averaged."""
    low: float
    """Lower end of the 95 % interval, by patient."""
    high: float
    """Upper end."""
    p: float
    """Share of relabellings of the patients that give as large an AUC, the seen one among
    them: one-sided, at least 1 / (draws + 1)."""

    @property
    def text(self) -> str:
        """The AUC with its interval."""
        return f"{self.auc:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class SourcePrediction:
    """How well the domain can be told from the features."""

    overall: Probe
    """Of all images."""
    by_class: tuple[Probe | None, ...]
    """The same inside each class; None where a domain has fewer than two of its patients."""


def label_probe(
    facts: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    seed: int = 0,
    draws: int = _DRAWS,
) -> Probe:
    """Try to tell the label from facts that should not know it.

    The facts may be a table of file properties (metadata probe), features of images with
    their centre blacked out (border probe) or of their corners alone (marker probe). The
    head is the ridge of :mod:`pipeline.shift.ridge_test`, for it can be fitted anew to every
    relabelling.

    Args:
        facts: Shape (n, p), finite.
        labels: Shape (n,), 0 to K - 1.
        groups: Shape (n,), patient ids; folds, bootstrap and relabelling are by patient. A
            patient under several labels is relabelled as several, but told as one; where
            most are, the interval is too wide rather than too short.
        seed: Seed of folds, bootstrap and relabellings.
        draws: Draws of the bootstrap, and relabellings.

    Returns:
        The AUC of cross-validated heads, with its interval and p-value.

    Raises:
        StudyError: A fact is not finite, or a class has fewer than two patients.
    """
    patients = np.unique(groups, return_inverse=True)[1]
    _refuse_untellable(facts, labels, patients)
    draws = min(draws, max(_FEWEST_DRAWS, _CELLS // len(labels)))
    relabelled = shuffled(labels, units_of(labels, patients), draws, seed)
    folds, weights = folds_of(patients, seed), _bootstrapped(patients, draws, seed)
    present = np.unique(labels)
    # Two classes mirror each other, so the second alone says it all.
    asked = present[1:] if present.size == 2 else present
    null, resampled = (np.zeros(size) for size in (draws + 1, draws))
    for k in asked:
        is_k = relabelled == k
        scores = cross_validated(facts, is_k, folds, place())
        null += auc_columns(scores, is_k)
        resampled += weighted_auc(scores[:, 0], is_k[:, 0], weights)
    # Divided once: six times a sixth is not 1, and a perfect probe would not be seen as one.
    null, resampled = null / asked.size, resampled / asked.size
    low, high = _interval(null, resampled)
    if null[0] in {0.0, 1.0}:  # no draw of scores without an error has one
        sure = min(bound_of_one((labels == k).astype(np.int64), patients) for k in present)
        low, high = (min(low, sure), high) if null[0] == 1 else (low, max(high, 1 - sure))
    return Probe(auc=float(null[0]), low=low, high=high, p=p_value(null))


def _bootstrapped(patients: NDArray[np.intp], draws: int, seed: int) -> NDArray[np.int64]:
    """How often each row counts in each draw of patients, shape (n, draws)."""
    n = int(patients.max()) + 1
    rng = np.random.default_rng([seed, 7])
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=draws)[:, patients].T)


def _interval(null: NDArray[np.float64], resampled: NDArray[np.float64]) -> tuple[float, float]:
    """See :class:`Probe`; ``null`` starts with the AUC that was seen."""
    auc = null[0]
    chance_low, chance_high = np.quantile(null, [_TAIL, 1 - _TAIL])
    low, high = _shifted(auc, chance_high), _shifted(auc, chance_low)
    if 0 < auc < 1:
        # A draw without one of the classes has no AUC.
        half = norm.isf(_TAIL) * np.nanstd(resampled) / (auc * (1 - auc))
        low, high = min(low, expit(logit(auc) - half)), max(high, expit(logit(auc) + half))
    return float(low), float(high)


def _shifted(auc: float, chance: float) -> float:
    """An AUC less what chance adds, in log odds; where chance reaches 0 or 1, no bound."""
    return float(expit(logit(auc) - logit(chance))) if 0 < chance < 1 else 1 - chance


def source_prediction(
    features: NDArray[np.floating],
    target: NDArray[np.bool_],
    groups: NDArray[Any],
    classes: NDArray[np.integer],
    draws: int = _DRAWS,
) -> SourcePrediction:
    """Try to tell the domain from the features, overall and inside each class.

    Overall alone would confuse "another scanner" with "more ill patients".

    Args:
        features: Shape (n, d).
        target: Shape (n,), True for rows of the target.
        groups: Shape (n,), patient ids; the same id in both domains is two patients.
        classes: Shape (n,), 0 to K - 1, labels or predictions.
        draws: See :func:`label_probe`.

    Raises:
        StudyError: See :func:`label_probe`; a domain has fewer than two patients.
    """
    domain, patients = target.astype(np.int64), units_of(target, groups)

    def inside(rows: NDArray[np.bool_]) -> Probe | None:
        if _fewest_patients(domain[rows], patients[rows]) < 2:
            return None
        return label_probe(features[rows], domain[rows], patients[rows], draws=draws)

    return SourcePrediction(
        overall=label_probe(features, domain, patients, draws=draws),
        by_class=tuple(inside(classes == k) for k in range(int(classes.max()) + 1)),
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


def _fewest_patients(labels: NDArray[np.integer], patients: NDArray[np.intp]) -> int:
    """Patients of the rarest class; 0 where there is one class only."""
    counts = [np.unique(patients[labels == k]).size for k in np.unique(labels)]
    return min(counts) if len(counts) > 1 else 0


def _refuse_untellable(
    facts: NDArray[np.floating], labels: NDArray[np.integer], patients: NDArray[np.intp]
) -> None:
    if not np.isfinite(facts).all():
        raise StudyError("the facts of a probe hold NaN or infinity: leave those columns out")
    if _fewest_patients(labels, patients) < 2:
        raise StudyError("a probe needs two classes with two patients each, to learn and to tell")
