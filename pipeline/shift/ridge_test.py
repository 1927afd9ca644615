"""Two-sample test by a ridge classifier, refitted exactly for every relabelling.

Cross-validated predictions of ridge regression are linear in the labels, so one
factorisation serves all permutations. With X the pooled-standardised rows divided
by sqrt(d), H = 11'/n + X (X'X + I)^-1 X' and fold b,

    yhat_b = y_b - (I - H_bb)^-1 (y_b - (H y)_b)

is the prediction for fold b of a ridge with intercept fitted on all other folds (Treder
2018, arXiv 1803.10016). H itself (n x n) is never held: only X (X'X + I)^-1 (X' Y).

The scores are x'w, without the intercept: where a fold holds many positives, the others
hold few, so intercepts would rank the folds against the labels and hold the AUC of noise
below one half. Without any intercept in the fit the error is the other one: rows and
labels centred over all of them hand the held-out sums to the fit, and the AUC of noise
rises above one half (0.535 of 60 rows with 400 features, 0.498 by the scores below).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.shift.kernels import Place

_FOLDS = 5
#: A fold's own block of H is held at once; more folds keep it small for many rows.
_FOLD_ROWS = 4096
_RANK_COLUMNS = 128


@dataclass(frozen=True, kw_only=True)
class RidgeDraws:
    """Both statistics of the domain classifier for every column of labels."""

    auc: NDArray[np.float64]
    """Shape (B,): area under the ROC curve of the out-of-fold predictions, in [0, 1]."""
    a_distance: NDArray[np.float64]
    """Shape (B,): proxy A-distance, in [0, 2]."""


def folds_of(units: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """Deal patients to folds at random, without looking at their domain.

    Stratified folds would depend on the observed labels and break exchangeability
    with the permuted ones.

    Args:
        units: Shape (n,), patient number of each row, 0 to G - 1.
        seed: Seed of the deal.

    Returns:
        Shape (n,), the fold of each row.
    """
    n_units = int(units.max()) + 1
    n_folds = min(n_units, max(_FOLDS, -(-units.size // _FOLD_ROWS)))
    deal = np.random.default_rng([seed, 1]).permutation(n_units) % n_folds
    return np.asarray(deal[units], dtype=np.intp)


def standardised(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale each feature to mean 0 and variance 1 over all rows, then divide by sqrt(d).

    Dividing by sqrt(d) makes a penalty of 1 mean the same for every d. Features that
    do not vary become 0.

    Args:
        features: Shape (n, d).

    Returns:
        Shape (n, d).
    """
    centred = features - features.mean(axis=0, dtype=np.float64)
    scale = centred.std(axis=0)
    scale[scale == 0] = np.inf
    return np.asarray(centred / (scale * np.sqrt(features.shape[1])), dtype=np.float64)


def cross_validated(
    features: NDArray[np.floating],
    targets: NDArray[np.bool_] | NDArray[np.floating],
    folds: NDArray[np.intp],
    where: Place,
) -> NDArray[np.float64]:
    """Return out-of-fold ridge scores for many label columns at once.

    Args:
        features: Shape (n, d), raw; standardised here over all rows, without labels.
        targets: Shape (n, B), one labelling per column.
        folds: Shape (n,), the fold of each row; at least two.
        where: Where the products run.

    Returns:
        Shape (n, B). Row i of column b is x_i'w of a ridge (penalty 1, free intercept)
        fitted to column b without the fold of row i; 0 is the score of the mean row.
    """
    X_rows = standardised(features)
    if X_rows.shape[0] < X_rows.shape[1]:
        # Same inner products in n instead of d columns, hence the same ridge.
        X_rows = np.asarray(np.linalg.qr(X_rows.T, mode="r")).T
    X, Y = where.put(X_rows), where.put(targets)
    n, total = len(X), Y.sum(0)
    penalised = X.T @ X + where.put(np.eye(X.shape[1]))
    # One factorisation for the labels and for H's blocks.
    solved = where.solve_positive(penalised, where.xp.concatenate([X.T @ Y, X.T], 1))
    fitted = X @ solved[:, : Y.shape[1]] + total / n
    inverse_X = solved[:, Y.shape[1] :]
    scores = np.empty(targets.shape)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        X_fold, Y_fold, others = X[rows], Y[rows], n - rows.size
        inner = where.put(np.eye(rows.size)) - X_fold @ inverse_X[:, rows] - 1 / n
        predicted = Y_fold - where.solve_positive(inner, Y_fold - fitted[rows])
        # All rows of X sum to 0, so the means of the fold and of the others tell x'w.
        mean, mean_others = predicted.mean(0), (total - Y_fold.sum(0)) / others
        scores[rows] = where.get(predicted - mean + (mean - mean_others) * (others / n))
    return scores


def auc_columns(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of every column (ties count one half).

    Args:
        scores: Shape (n, B).
        labels: Shape (n, B), each column with both values.

    Returns:
        Shape (B,), in [0, 1].
    """
    rank_sums = np.empty(labels.shape[1])
    for start in range(0, labels.shape[1], _RANK_COLUMNS):
        columns = slice(start, start + _RANK_COLUMNS)
        ranks = rankdata(scores[:, columns], axis=0)
        rank_sums[columns] = np.einsum("ib,ib->b", ranks, labels[:, columns])
    positives = labels.sum(axis=0)
    negatives = labels.shape[0] - positives
    return np.asarray((rank_sums - positives * (positives + 1) / 2) / (positives * negatives))


def ridge_draws(
    features: NDArray[np.floating],
    labels: NDArray[np.bool_],
    folds: NDArray[np.intp],
    where: Place,
) -> RidgeDraws:
    """Return how well a ridge classifier tells the domains apart, for every labelling.

    The area under the ROC curve is the statistic of a classifier two-sample test
    (Lopez-Paz and Oquab 2017). The proxy A-distance 2 (1 - 2 err), clipped at 0
    (Ben-David et al. 2007), takes the *balanced* error: with 1600 against 400 rows
    a classifier that knows nothing errs on 20 % of the rows, and would look distant.

    Args:
        features: Shape (n, d), raw.
        labels: Shape (n, B), True for the target.
        folds: Shape (n,), the fold of each row.
        where: Where the products run.

    Returns:
        Both statistics of each column.
    """
    scores = cross_validated(features, labels, folds, where)
    called = scores > 0  # what the mean row scores
    true_share = (called & labels).sum(axis=0) / labels.sum(axis=0)
    false_share = (called & ~labels).sum(axis=0) / (~labels).sum(axis=0)
    balanced_error = (1 - true_share + false_share) / 2
    return RidgeDraws(
        auc=auc_columns(scores, labels),
        a_distance=np.maximum(0.0, 2 * (1 - 2 * balanced_error)),
    )
