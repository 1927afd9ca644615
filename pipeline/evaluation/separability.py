"""How well a ridge classifier predicts a label for new patients: AUC and p-value.

Two questions use it. Can an image's domain be predicted from its features (the domain
classifier AUC)? Can a label be predicted from what should not show it, such as the border
of the image (the shortcut test)? A classifier two-sample test (Lopez-Paz and Oquab 2017)
permutes the labels of whole patients, because images of one patient resemble each other.

Cross-validated predictions of ridge regression are linear in the labels. So one factorisation
per fold serves all classes and all permutations: that of X'X + I without the rows of the fold,
where X is the rows, standardised over all of them and divided by sqrt(d).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from pipeline.data.domain import DomainData, mean_and_scale
from pipeline.data.patients import Fold, draw_patients, patient_folds
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import weighted_auroc
from pipeline.evaluation.paired_tests import disjoint_pairs

_DRAWS = 499
_TAIL = 0.025
#: Rows times permutations in memory at once, 128 MB per array: with more rows there are fewer
#: draws, down to the fewest that can show 2.5 %.
_CELLS = 1 << 24
_FEWEST_DRAWS = 199
#: Most rows times permutations times classes that are ranked, about 15 s of one core: with more
#: rows a sample of patients is used.
_RANKED = 1 << 27
#: Columns that are ranked at once.
_COLUMNS = 128


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well a label can be predicted, by the area under the ROC curve.

    The AUC of cross-validated classifiers varies with the test patients and with the training
    patients. A bootstrap of the scores has only the first, and covers one half in about 83 % of
    samples of noise (Bengio and Grandvalet 2004). Each end of the 95 % interval therefore lies as
    far from the estimate, in log odds, as the larger of two spreads:

    - 1.96 standard deviations of a bootstrap of patients with the scores held fixed, over
      auc (1 - auc), the delta method (LeDell, Petersen and van der Laan 2015).
    - From the 97.5 % quantile q of the AUC under permutation down to one half: the lower end is
      logit(auc) - logit(q), the upper one the same with the 2.5 % quantile. So the interval
      holds one half whenever the permutation test does not reject.

    Attributes:
        auc: Out of fold; with more than two classes, the mean of each against the rest. With
            many classes and very many images it rests on a sample of patients.
        p: One-sided, by permutation of the patients.
    """

    auc: Interval
    p: float


def separability(
    features: NDArray[np.floating],
    label: NDArray[np.integer],
    group: NDArray[Any],
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> Separability:
    """Predict a label from features of other patients, and compare with permuted labels.

    Args:
        features: Shape (n, d), finite.
        label: Shape (n,), 0 to K - 1.
        group: Shape (n,), patient ids; folds, bootstrap and permutations are by patient. A
            patient with several labels is permuted as several, but predicted as one; if most
            are like that, the interval is too wide rather than too short.
        draws: Number of bootstrap draws, and of permutations.
        seed: Seed of folds, bootstrap and permutations.

    Raises:
        StudyError: A feature is not finite, or a class has fewer than two patients.
    """
    patient = np.unique(group, return_inverse=True)[1]
    if not np.isfinite(features).all():
        raise StudyError("the features hold NaN or infinity: leave those columns out")
    if _fewest_patients(label, patient) < 2:
        raise StudyError("two classes with two patients each are needed, to learn and to predict")
    rows = _sampled(label, patient, seed)
    features, label = features[rows], label[rows]
    patient = np.unique(patient[rows], return_inverse=True)[1]
    draws = min(draws, max(_FEWEST_DRAWS, _CELLS // len(label)))
    permuted = permuted_labels(label, patient_units(label, patient), draws=draws, seed=seed)
    # Stratified folds would depend on the observed labels, and those could not be permuted.
    folds = patient_folds(None, patient, seed=seed)
    drawn = draw_patients(patient, np.random.default_rng([seed, 7]), draws=draws)
    present = np.unique(label)
    # Two classes mirror each other, so the second alone is enough.
    positives = present[1:] if present.size == 2 else present
    scores_of = ridge_scorer(features, folds)
    null, resampled = np.zeros(draws + 1), np.zeros(draws)
    for k in positives:
        is_k = permuted == k
        scores = scores_of(is_k)
        null += _auc_columns(scores, is_k)
        resampled += drawn.apply(weighted_auroc(is_k[:, 0], scores[:, 0]))
    # Divided once: six times a sixth is not 1, and a perfect AUC would not be seen as one.
    null, resampled = null / positives.size, resampled / positives.size
    low, high = _interval(null, resampled)
    if null[0] in {0.0, 1.0}:  # no draw of scores without an error has one
        bound = min(_bound_of_perfect(label == k, patient) for k in present)
        low, high = (min(low, bound), high) if null[0] == 1 else (low, max(high, 1 - bound))
    method = "bootstrap and permutation of patients"
    auc = Interval.of(float(null[0]), (low, high), patient, method)
    return Separability(auc=auc, p=permutation_p(null))


def _bound_of_perfect(positive: NDArray[np.bool_], patient: NDArray[np.intp]) -> float:
    """Exact lower bound if every positive scores above every negative.

    Match positive with negative images into k pairs that share no patient. A head with AUC A
    orders all pairs correctly with probability A^k, and all images with at most that. The bound
    is the A at which this probability is 2.5 %.
    """
    pairs = disjoint_pairs(positive, patient)
    return float(_TAIL ** (1 / pairs)) if pairs else 0.0


def domain_auc(
    source: DomainData, target: DomainData, *, draws: int = _DRAWS, class_draws: int = _DRAWS
) -> tuple[Separability, list[Separability | None]]:
    """Predict the domain of an image from its features, overall and inside each class.

    The overall AUC alone would confuse "another scanner" with "more ill patients".

    Args:
        source: Rows with features and labels.
        target: Rows with as many features; the same patient id in both domains is two
            patients.
        draws: Draws for all images, see :func:`separability`.
        class_draws: Draws inside each class.

    Returns:
        The result for all images, and for each class; None if a domain has fewer than two
        patients of the class, or no labels.

    Raises:
        StudyError: See :func:`separability`; a domain has fewer than two patients.
    """
    features = np.concatenate([source.get_features(), target.get_features()])
    domain = np.repeat(np.array([0, 1]), [len(source), len(target)])
    patient = patient_units(domain, np.concatenate([source.group, target.group]))
    unknown = np.full(len(target), -1)
    label = np.r_[source.get_label(), unknown if target.label is None else target.label]

    def inside(rows: NDArray[np.bool_]) -> Separability | None:
        if _fewest_patients(domain[rows], patient[rows]) < 2:
            return None
        return separability(features[rows], domain[rows], patient[rows], draws=class_draws)

    return (
        separability(features, domain, patient, draws=draws),
        [inside(label == k) for k in range(int(label.max()) + 1)],
    )


def patient_units(label: NDArray[Any], group: NDArray[Any]) -> NDArray[np.intp]:
    """Number (n,) of each row's patient, independent of the order of the rows.

    A patient with two labels (in both domains) counts once for each label: the test then still
    runs, and ``pipeline.data.leaks`` reports the overlap of domains.
    """
    codes = np.unique(group, return_inverse=True)[1]
    return np.unique((int(label.max()) + 1) * codes + label, return_inverse=True)[1]


def permuted_labels(
    label: NDArray[Any], unit: NDArray[np.intp], *, draws: int, seed: int
) -> NDArray[Any]:
    """Labels (n, B + 1), permuted B times by patient; column 0 holds the observed labels.

    Args:
        label: Shape (n,), equal within a unit.
        unit: Shape (n,), from :func:`patient_units`.
        draws: Number B of permutations.
        seed: Seed of the permutations.
    """
    of_unit = np.zeros(unit.max() + 1, dtype=label.dtype)
    of_unit[unit] = label
    rng = np.random.default_rng([seed, 0])
    shuffled = rng.permuted(np.tile(of_unit, (draws, 1)), axis=1)
    return np.ascontiguousarray(np.vstack([of_unit, shuffled])[:, unit].T)


def permutation_p(statistics: NDArray[np.float64]) -> float:
    """The permutation p-value (1 + #{T_b >= T_0}) / (B + 1) of Phipson and Smyth 2010.

    Args:
        statistics: Shape (B + 1,), observed value first; a large value means "different".
    """
    observed, null = statistics[0], statistics[1:]
    # A permutation equivalent to the observed one must count as a tie even when its sums
    # were added in another order.
    threshold = observed - 1e-9 * abs(observed)
    return float((1 + np.count_nonzero(null >= threshold)) / statistics.size)


def ridge_scorer(
    features: NDArray[np.floating], folds: Sequence[Fold]
) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """Out-of-fold ridge scores for many columns of labels at once.

    The scores are x'w, without the intercept: if a fold holds many positives, the others hold
    few, so intercepts would rank the folds against the labels and push the AUC of noise below one
    half. Without an intercept in the fit it rises above one half (0.535 for 60 rows with 400
    features; 0.498 by these scores).

    Args:
        features: Raw features, shape (n, d); they are standardised over all rows.
        folds: Folds that were divided without looking at the labels.

    Returns:
        A function of targets, shape (n, B), one labelling per column. It gives scores of
        that shape: row i of column b is x_i'w of a ridge (penalty 1, free intercept) fitted
        to column b without the fold of row i; 0 is the score of the mean row.
    """
    mean, scale = mean_and_scale(features)
    # Divided by sqrt(d), so that a penalty of 1 means the same for every d.
    X = np.ascontiguousarray((features - mean) / (scale * np.sqrt(features.shape[1])))
    if X.shape[0] < X.shape[1]:
        # The same inner products with n instead of d columns, hence the same ridge.
        X = np.ascontiguousarray(np.asarray(np.linalg.qr(X.T, mode="r")).T)
    penalised = X.T @ X + np.eye(X.shape[1])
    # All rows of X sum to 0: the sum of the others is minus that of the fold. What depends on
    # the features alone is done once, for however many classes and labellings.
    sums = [X[rows].sum(0) for _, rows in folds]
    factors = [
        cho_factor(
            penalised - X[rows].T @ X[rows] - np.outer(s, s) / (len(X) - rows.size),
            check_finite=False,
        )
        for (_, rows), s in zip(folds, sums, strict=True)
    ]

    def scores_of(targets: NDArray[Any]) -> NDArray[np.float64]:
        Y = np.ascontiguousarray(targets, dtype=np.float64)
        products, total, scores = X.T @ Y, Y.sum(0), np.empty(Y.shape)
        for (_, rows), s, factor in zip(folds, sums, factors, strict=True):
            mean_others = (total - Y[rows].sum(0)) / (len(X) - rows.size)
            right = products - X[rows].T @ Y[rows] + np.outer(s, mean_others)
            scores[rows] = X[rows] @ cho_solve(factor, right, check_finite=False)
        return scores

    return scores_of


def _auc_columns(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under the ROC curve of every column ``(n, B)``, shape (B,); ties count one half."""
    rank_sums = np.empty(labels.shape[1])
    for start in range(0, labels.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        ranks = rankdata(scores[:, columns], axis=0)
        rank_sums[columns] = np.einsum("ib,ib->b", ranks, labels[:, columns])
    positives = labels.sum(axis=0)
    negatives = labels.shape[0] - positives
    return np.asarray((rank_sums - positives * (positives + 1) / 2) / (positives * negatives))


def _interval(null: NDArray[np.float64], resampled: NDArray[np.float64]) -> tuple[float, float]:
    """See :class:`Separability`; ``null`` starts with the observed AUC."""
    auc = null[0]
    chance_low, chance_high = np.quantile(null, [_TAIL, 1 - _TAIL])
    low, high = _less_chance(auc, chance_high), _less_chance(auc, chance_low)
    if 0 < auc < 1:
        # A draw without one of the classes has no AUC.
        half = norm.isf(_TAIL) * np.nanstd(resampled) / (auc * (1 - auc))
        low, high = min(low, expit(logit(auc) - half)), max(high, expit(logit(auc) + half))
    return float(low), float(high)


def _less_chance(auc: float, chance: float) -> float:
    """An AUC minus what chance adds, in log odds; no bound if chance reaches 0 or 1."""
    return float(expit(logit(auc) - logit(chance))) if 0 < chance < 1 else 1 - chance


def _sampled(label: NDArray[np.integer], patient: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Rows of randomly drawn patients up to a limit; two patients of each class come first."""
    classes = np.unique(label)
    rank = np.random.default_rng([seed, 3]).permutation(patient.max() + 1)
    for k in classes:
        of_class = np.unique(patient[label == k])
        rank[of_class[np.argsort(rank[of_class])[:2]]] = -1
    order = np.argsort(rank, kind="stable")
    images = np.bincount(patient)[order].cumsum()
    most = _RANKED // (_FEWEST_DRAWS * max(1, classes.size - 1))
    return np.flatnonzero(np.isin(patient, order[images <= max(most, images[0])]))


def _fewest_patients(label: NDArray[np.integer], patient: NDArray[np.intp]) -> int:
    """Number of patients of the rarest class; 0 if there is only one class."""
    counts = [np.unique(patient[label == k]).size for k in np.unique(label)]
    return min(counts) if len(counts) > 1 else 0
