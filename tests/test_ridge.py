"""Ridge: every penalty and every group left out, against plain refits."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from pipeline.heads.ridge import RidgeHead, ridge_path

PENALTIES = np.array([0.3, 5.0, 200.0])


def problem(n, d, classes=3):
    rng = np.random.default_rng(n + d)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, d)) + 2 + 0.7 * np.eye(classes, d)[y], np.eye(classes)[y]


@pytest.fixture(params=[(60, 9), (25, 70)], ids=["tall", "wide"])
def data(request):
    return problem(*request.param)


def test_the_path_is_scikit_learns_ridge_one_penalty_at_a_time(data):
    """Coefficients and intercept to 1e-8, with more rows than columns and with fewer."""
    X, Y = data
    path = ridge_path(X, Y, PENALTIES)
    for p, penalty in enumerate(PENALTIES):
        oracle = Ridge(alpha=penalty).fit(X, Y)
        np.testing.assert_allclose(path.coef[p].T, oracle.coef_, atol=1e-8)
        np.testing.assert_allclose(path.intercept[p], oracle.intercept_, atol=1e-8)


@pytest.mark.parametrize("grouped", [False, True])
def test_held_out_scores_are_those_of_a_refit_without_the_group(data, grouped):
    """Leave one row out, and leave one patient of one to four rows out: exact to 1e-8."""
    X, Y = data
    n = len(X)
    group = np.random.default_rng(0).integers(0, n // 2, n) if grouped else np.arange(n)
    path = ridge_path(X, Y, PENALTIES, group if grouped else None)
    for p, penalty in enumerate(PENALTIES):
        for one in np.unique(group):
            out = group == one
            refit = Ridge(alpha=penalty).fit(X[~out], Y[~out])
            np.testing.assert_allclose(path.held_out[p, out], refit.predict(X[out]), atol=1e-8)


def test_the_penalty_is_chosen_with_patients_held_out():
    """Images of a patient that are nearly the same must not vouch for each other."""
    rng = np.random.default_rng(3)
    X = np.repeat(rng.normal(size=(40, 60)), 4, 0) + 0.05 * rng.normal(size=(160, 60))
    y = np.repeat(np.arange(40) % 2, 4)  # nothing to learn but the patients themselves
    patients = RidgeHead().fit(X, y, np.repeat(np.arange(40), 4))
    images = RidgeHead().fit(X, y)
    assert patients.losses_.min() > 0.6 > images.losses_.min()


def test_a_penalty_that_is_not_positive_is_refused():
    """Without a penalty there is no inverse."""
    with pytest.raises(ValueError, match="allowed are positive numbers"):
        RidgeHead(penalties=(1.0, 0.0)).fit(np.eye(4), [0, 1, 0, 1])
