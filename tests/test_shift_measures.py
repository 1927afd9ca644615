"""Each measure of shift is what its definition says."""

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from pipeline.errors import EngineError
from pipeline.shift.erasure import TwoDomains, alignment, fit_eraser
from pipeline.shift.gaussians import frechet, moments, shrunk_covariance
from pipeline.shift.kernels import (
    BANDWIDTHS,
    aggregate,
    global_scale,
    kernel_draws,
    median_distance,
    neighbour_draws,
    place,
)
from pipeline.shift.marginals import (
    cdf_gaps,
    chi2_of_classes,
    ks_distance,
    ks_of_scores,
    steps_of,
    wasserstein,
    westfall_young,
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
    """B-T4: MMD, KID and energy distance are what their definitions say."""
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
        cubic = discrepancy(lambda x, y: (x @ y / 3 + 1) ** 3, a, b)
        assert draws.kid[column] == pytest.approx(cubic, abs=1e-12)
        distance = -discrepancy_with_itself(a, b)
        assert draws.energy[column] == pytest.approx(distance, abs=1e-12)


def discrepancy_with_itself(a, b):
    """Return E d(X, X') + E d(Y, Y') - 2 E d(X, Y) over all pairs, by double loops."""

    def d(x, y):
        return np.linalg.norm(x - y)

    within = pairwise(d, a, a, skip_same=False) + pairwise(d, b, b, skip_same=False)
    return within - 2 * pairwise(d, a, b, skip_same=False)


def test_frechet_distance_of_gaussians_equals_its_closed_form():
    """B-T5: 50,000 draws come within 2 % of the distance of the populations."""
    rng = np.random.default_rng(2)
    A, B = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    shift = np.array([1.0, 0, -1, 0.5])
    truth = shift @ shift + np.trace(A + B - 2 * sqrtm(A @ B).real)
    a = rng.multivariate_normal(np.zeros(4), A, 50_000)
    b = rng.multivariate_normal(shift, B, 50_000)
    assert frechet(moments(a), moments(b)) == pytest.approx(truth, rel=0.02)


def test_frechet_distance_bears_a_sample_of_two():
    """Two rows have a covariance of rank one, uu': the cross term of two such is |u.v|."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 2, 5))
    u, v = (a[0] - a[1]) / 2, (b[0] - b[1]) / 2
    shift = a.mean(axis=0) - b.mean(axis=0)
    truth = shift @ shift + u @ u + v @ v - 2 * abs(u @ v)
    assert frechet(moments(a), moments(b)) == pytest.approx(truth, rel=1e-6)


def test_frechet_distance_is_that_by_a_cholesky_factor_where_there_is_one():
    """The root of a singular covariance moves no distance of definite ones."""
    rng = np.random.default_rng(8)
    a, b = (moments(rows) for rows in rng.normal(size=(2, 40, 20)) * rng.uniform(0.1, 9, 20))
    factor = np.linalg.cholesky(a.covariance)
    cross = np.sqrt(np.linalg.eigvalsh(factor.T @ b.covariance @ factor)).sum()
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance) - 2 * cross
    assert frechet(a, b) == pytest.approx(expected, rel=1e-12)


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
        for field in ("mmd", "kid", "energy"):
            np.testing.assert_allclose(getattr(other, field), getattr(whole, field), atol=1e-12)
    on_torch = ridge_draws(rows, labels, folds, place("cpu"))
    np.testing.assert_allclose(on_torch.auc, ridge.auc, atol=1e-12)


def test_an_absent_device_is_named():
    """The error says which device was asked for and what is allowed."""
    with pytest.raises(EngineError, match=r"'no-such-device'.*leave the device out"):
        place("no-such-device")


@pytest.mark.parametrize("n", [300, 15], ids=["n>d", "n<d"])
def test_erasing_the_domain_makes_its_means_equal(n):
    """B-T7: after LEACE the domain means coincide to 1e-12, and little else has moved."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(n, 20)), rng.normal(size=(n, 20)) + rng.normal(size=20)
    eraser = fit_eraser(np.vstack([a, b]), a.mean(0), b.mean(0))
    np.testing.assert_allclose(eraser(a).mean(0), eraser(b).mean(0), atol=1e-12)
    assert np.linalg.matrix_rank(eraser(a) - a, tol=1e-9) == 1


def test_alignment_tells_a_domain_along_the_task_from_one_across_it():
    """B12: the cosine is near 1 along the task, near 0 across; only erasing the former hurts."""
    rng = np.random.default_rng(8)
    target = np.arange(1200) >= 800
    classes = rng.integers(0, 2, 1200)
    base = rng.normal(size=(1200, 6))
    base[:, 0] += 2 * classes
    for axis, near, cost in ((0, 1.0, 0.1), (3, 0.0, -0.01)):
        rows = base.copy()
        rows[target, axis] += 1.5
        found = alignment(
            TwoDomains(features=rows, target=target, classes=classes),
            np.arange(800) % 5,
            place(),
            pseudo_labels=False,
        )
        assert found.cosine == pytest.approx(near, abs=0.15)
        assert (found.task_auc - found.task_auc_erased > 0.1) == (cost > 0)


def labellings(rng, n, count):
    """Draw labellings of unequal sizes, as clustered permutations give."""
    return rng.random((n, count)) < 0.4


def test_one_dimensional_distances_equal_scipy_with_ties():
    """KS and Wasserstein distances of tied values are scipy's."""
    rng = np.random.default_rng(9)
    values = np.maximum(rng.normal(size=80).round(1), 0)
    labels = labellings(rng, 80, 5)
    gaps = cdf_gaps(values, steps_of(labels))
    for column, label in enumerate(labels.T):
        a, b = values[label], values[~label]
        assert ks_distance(gaps)[column] == pytest.approx(stats.ks_2samp(a, b).statistic)
        assert wasserstein(gaps)[column] == pytest.approx(stats.wasserstein_distance(a, b))


def test_predicted_classes_are_compared_by_pearsons_chi_squared():
    """BBSD-hard equals scipy's contingency table, a class nobody predicted left out."""
    rng = np.random.default_rng(10)
    probabilities = rng.dirichlet(np.ones(4), 90)
    probabilities[:, 2] = 0
    labels = labellings(rng, 90, 4)
    called = probabilities.argmax(1)
    for column, label in enumerate(labels.T):
        table = [[np.sum(called[side] == k) for k in (0, 1, 3)] for side in (label, ~label)]
        expected = stats.chi2_contingency(table, correction=False).statistic
        assert chi2_of_classes(probabilities, labels)[column] == pytest.approx(expected)


def test_neighbours_equal_a_double_loop():
    """B8 is the share of the five nearest rows that carry the row's own label."""
    rng = np.random.default_rng(12)
    rows, labels = rng.normal(size=(25, 4)), labellings(rng, 25, 3)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :5]
    for column, label in enumerate(labels.T):
        expected = np.mean(label[nearest] == label[:, None])
        assert neighbour_draws(rows, labels)[column] == pytest.approx(expected)


def test_auc_columns_equal_scikit_learn_with_ties():
    """Each column's area under the curve is scikit-learn's."""
    rng = np.random.default_rng(13)
    scores, labels = rng.normal(size=(60, 300)).round(1), labellings(rng, 60, 300)
    expected = [roc_auc_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    np.testing.assert_allclose(auc_columns(scores, labels), expected)


@pytest.mark.parametrize("shape", [(200, 5), (20, 60)])
def test_shrunk_covariance_equals_scikit_learn(shape):
    """The cheaper sum gives Ledoit and Wolf's estimate."""
    rows = np.random.default_rng(14).normal(size=shape) @ np.diag(np.linspace(1, 4, shape[1])) + 7
    np.testing.assert_allclose(shrunk_covariance(rows), ledoit_wolf(rows)[0], atol=1e-10)


def test_constant_features_stay_out_of_the_classifier():
    """A feature that never varies becomes 0, not a division by 0."""
    features = np.full((1000, 2), 0.1)
    features[:, 1] = np.arange(1000)
    assert (standardised(features)[:, 0] == 0).all()
    assert np.isfinite(standardised(features)).all()


def test_westfall_young_counts_ties_as_large():
    """An observed distance that a relabelling's largest equals is counted against it."""
    draws = np.array([[0.5, 0.5, 0.1, 0.2], [0.3, 0.1, 0.4, 0.1]])
    np.testing.assert_allclose(westfall_young(draws), [2 / 4, 3 / 4])


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
