"""Each measure of shift is what its definition says."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from pipeline.errors import EngineError
from pipeline.shift.kernels import (
    BANDWIDTHS,
    aggregate,
    global_scale,
    kernel_draws,
    median_distance,
    place,
)
from pipeline.shift.marginals import (
    cdf_gaps,
    ks_distance,
    ks_of_scores,
    steps_of,
)
from pipeline.shift.permute import p_value
from pipeline.shift.ridge_test import (
    auc_columns,
    cross_validated,
    folds_of,
    ridge_draws,
    standardised,
)


@pytest.mark.parametrize("width", [7, 120], ids=["n>d", "n<d"])
def test_ridge_scores_equal_refitting_every_fold_of_every_labelling(width):
    """B-T2: the closed form is the ridge fitted anew without the fold, to 1e-10."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, width)) * rng.uniform(0.1, 10, width) + 5
    labels = rng.random((60, 4)) < 0.4
    folds = folds_of(np.arange(60) // 2, seed=3)
    X = (features - features.mean(0)) / features.std(0) / np.sqrt(width)
    refitted = np.empty(labels.shape)
    for fold in range(5):
        out, fit = folds == fold, folds != fold
        refitted[out] = X[out] @ Ridge(alpha=1).fit(X[fit], labels[fit]).coef_.T
    closed = cross_validated(features, labels, folds, place())
    np.testing.assert_allclose(closed, refitted, atol=1e-10)


@pytest.mark.parametrize("width", [8, 300])
def test_the_ridge_tells_noise_from_noise_at_one_half(width):
    """The mean AUC of 500 labellings of 20 samples is 0.5, with few features and with many."""
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(20):
        labels = rng.random((60, 25)) < 0.5
        folds = folds_of(np.arange(60), seed=0)
        scores = cross_validated(rng.normal(size=(60, width)), labels, folds, place())
        areas.append(auc_columns(scores, labels))
    assert abs(np.mean(areas) - 0.5) < 0.015  # an error of 0.11 / sqrt(500) is 0.005


def test_folds_keep_patients_whole_and_ignore_the_domain():
    """No patient is told apart by their own other images, and no label deals the folds."""
    units = np.repeat(np.arange(30), 3)
    folds = folds_of(units, seed=0)
    assert all(np.unique(folds[units == unit]).size == 1 for unit in range(30))
    assert np.bincount(folds).tolist() == [18] * 5


def pairwise(kernel, a, b, *, skip_same):
    """Average a kernel over all pairs by a double loop."""
    values = [
        kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (skip_same and i == j)
    ]
    return np.mean(values)


def test_kernel_statistics_equal_a_double_loop():
    """B-T4: MMD is what its definition says."""
    rng = np.random.default_rng(1)
    rows = global_scale(rng.normal(size=(19, 3)))
    labels = rng.permuted(np.tile(np.arange(19) < 8, (3, 1)), axis=1).T
    draws = kernel_draws(rows, labels, place(), tile=5)
    median = median_distance(rows)

    def gaussian(factor):
        return lambda x, y: np.exp(-((x - y) @ (x - y)) / (2 * (factor * median) ** 2))

    def discrepancy(kernel, a, b):
        within = pairwise(kernel, a, a, skip_same=True) + pairwise(kernel, b, b, skip_same=True)
        return within - 2 * pairwise(kernel, a, b, skip_same=False)

    for column, label in enumerate(labels.T):
        a, b = rows[label], rows[~label]
        for row, factor in enumerate(BANDWIDTHS):
            expected = discrepancy(gaussian(factor), a, b)
            assert draws.mmd[row, column] == pytest.approx(expected, abs=1e-12)


def test_tiles_and_devices_change_nothing():
    """B-T6: one block or many, numpy or torch, the statistics are the same."""
    rng = np.random.default_rng(6)
    rows, labels = global_scale(rng.normal(size=(50, 6))), rng.random((50, 9)) < 0.5
    whole = kernel_draws(rows, labels, place())
    folds = folds_of(np.arange(50), seed=0)
    ridge = ridge_draws(rows, labels, folds, place())
    for other in (
        kernel_draws(rows, labels, place(), tile=7),
        kernel_draws(rows, labels, place("cpu"), tile=16),
    ):
        np.testing.assert_allclose(other.mmd, whole.mmd, atol=1e-12)
    on_torch = ridge_draws(rows, labels, folds, place("cpu"))
    np.testing.assert_allclose(on_torch.auc, ridge.auc, atol=1e-12)


def test_an_absent_device_is_named():
    """The error says which device was asked for and what is allowed."""
    with pytest.raises(EngineError, match=r"'no-such-device'.*leave the device out"):
        place("no-such-device")


def labellings(rng, n, count):
    """Draw labellings of unequal sizes, as clustered permutations give."""
    return rng.random((n, count)) < 0.4


def test_one_dimensional_distances_equal_scipy_with_ties():
    """KS distances of tied values are scipy's."""
    rng = np.random.default_rng(9)
    values = np.maximum(rng.normal(size=80).round(1), 0)
    labels = labellings(rng, 80, 5)
    gaps = cdf_gaps(values, steps_of(labels))
    for column, label in enumerate(labels.T):
        a, b = values[label], values[~label]
        assert ks_distance(gaps)[column] == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_auc_columns_equal_scikit_learn_with_ties():
    """Each column's area under the curve is scikit-learn's."""
    rng = np.random.default_rng(13)
    scores, labels = rng.normal(size=(60, 300)).round(1), labellings(rng, 60, 300)
    expected = [roc_auc_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    np.testing.assert_allclose(auc_columns(scores, labels), expected)


def test_constant_features_stay_out_of_the_classifier():
    """A feature that never varies becomes 0, not a division by 0."""
    features = np.full((1000, 2), 0.1)
    features[:, 1] = np.arange(1000)
    assert (standardised(features)[:, 0] == 0).all()
    assert np.isfinite(standardised(features)).all()


def test_aggregation_is_the_largest_standard_score():
    """A statistic that stands out at one bandwidth stands out in the aggregate."""
    draws = np.vstack([np.r_[5.0, np.zeros(9)], np.arange(10.0)])
    scores = (draws - draws.mean(1, keepdims=True)) / draws.std(1, keepdims=True)
    np.testing.assert_allclose(aggregate(draws), scores.max(0))


def test_score_distance_is_the_largest_over_the_classes():
    """B1 takes the worst class."""
    rng = np.random.default_rng(20)
    probabilities, labels = rng.dirichlet(np.ones(3), 50), labellings(rng, 50, 2)
    for column, label in enumerate(labels.T):
        each = [stats.ks_2samp(c[label], c[~label]).statistic for c in probabilities.T]
        assert ks_of_scores(probabilities, labels)[column] == pytest.approx(max(each))


def test_p_values_count_the_observed_labelling_and_ties():
    """The p-value is (1 + #{T_b >= T_0}) / (B + 1); a tie up to rounding is a tie."""
    assert p_value(np.array([3.0, 1, 2, 2.5])) == 1 / 4
    assert p_value(np.array([3.0, 3 - 1e-12, 4, 2])) == 3 / 4
