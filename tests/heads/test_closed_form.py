"""Heads with a closed form, against refits and scikit-learn."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from pipeline.heads import base
from pipeline.heads.closed_form import (
    DiscriminantHead,
    PrototypeHead,
    RidgeHead,
    _held_out_cosines,
    _ridge,
    _ridge_path,
    discriminant_path,
)
from tests.made_up import made_up_rows

PENALTIES = np.array([0.3, 5.0, 200.0])


@pytest.fixture(params=[(60, 9), (25, 70)], ids=["tall", "wide"])
def targets(request):
    """Features and one-hot labels of three classes."""
    n, d = request.param
    rng = np.random.default_rng(n + d)
    y = rng.integers(0, 3, n)
    return rng.normal(size=(n, d)) + 2 + 0.7 * np.eye(3, d)[y], np.eye(3)[y]


def test_the_path_is_scikit_learns_ridge_one_penalty_at_a_time(targets):
    """To 1e-8, with more rows than columns and with fewer; so is one penalty by itself."""
    X, Y = targets
    coefs, intercepts, _ = _ridge_path(X, Y, PENALTIES, np.arange(len(X)))
    for penalty, *path in zip(PENALTIES, coefs, intercepts, strict=True):
        oracle = Ridge(alpha=penalty).fit(X, Y)
        for coef, intercept in (path, _ridge(X, Y, penalty)):
            np.testing.assert_allclose(coef.T, oracle.coef_, atol=1e-8)
            np.testing.assert_allclose(intercept, oracle.intercept_, atol=1e-8)


@pytest.mark.parametrize("grouped", [False, True])
def test_held_out_scores_are_those_of_a_refit_without_the_group(targets, grouped):
    """Leave one row out, and leave one patient of one to four rows out: exact to 1e-8."""
    X, Y = targets
    n = len(X)
    group = np.random.default_rng(0).integers(0, n // 2, n) if grouped else np.arange(n)
    *_, held_out = _ridge_path(X, Y, PENALTIES, group)
    for p, penalty in enumerate(PENALTIES):
        for one in np.unique(group):
            out = group == one
            refit = Ridge(alpha=penalty).fit(X[~out], Y[~out])
            np.testing.assert_allclose(held_out[p, out], refit.predict(X[out]), atol=1e-8)


def test_the_penalty_is_chosen_with_patients_held_out():
    """Images of a patient that are nearly the same must not vouch for each other."""
    rng = np.random.default_rng(3)
    X = np.repeat(rng.normal(size=(40, 60)), 4, 0) + 0.05 * rng.normal(size=(160, 60))
    y = np.repeat(np.arange(40) % 2, 4)  # nothing to learn but the patients themselves
    heads = RidgeHead().fit(X, y, np.repeat(np.arange(40), 4)), RidgeHead().fit(X, y)
    patients, images = (head.calibration_.loss for head in heads)
    assert patients > 0.6 > images


@pytest.mark.parametrize(("n", "d", "classes"), [(200, 12, 2), (60, 90, 2), (150, 20, 4)])
def test_the_discriminant_equals_scikit_learns(n, d, classes, monkeypatch):
    """Probabilities, with more features than rows too, block by block, several at once.

    The features are correlated and far from zero, and one never varies.
    """
    monkeypatch.setattr(base, "_BLOCK", 7 * d)
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    X = (rng.normal(size=(n, d)) + 0.5 * np.eye(classes, d)[y]) @ rng.normal(size=(d, d))
    X = (X + 9 * rng.normal(size=d)).astype(np.float32)
    X[:, -1] = 2.5
    heads = [DiscriminantHead(shrinkage=shrinkage) for shrinkage in (0.5, 1.0, "auto")]
    found = discriminant_path(heads, X, y, X)
    for ours, shrinkage in zip(found, (0.5, 1.0), strict=False):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        expected = theirs.fit(X.astype(np.float64), y).predict_proba(X.astype(np.float64))
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    means = np.stack([X[y == k].mean(axis=0, dtype=np.float64) for k in range(classes)])
    scale = (X - means[y]).std(axis=0)
    scale[-1] = 1
    correlation, _ = ledoit_wolf((X - means[y]) / scale, assume_centered=True)
    coef = np.linalg.solve(correlation * np.outer(scale, scale), means.T)
    scores = X @ coef + np.log(np.bincount(y) / n) - (means.T * coef).sum(axis=0) / 2
    np.testing.assert_allclose(found[2], softmax(scores, axis=1), atol=1e-6)


def test_rows_without_spread_are_an_error_and_no_answer():
    """A covariance of zeros cannot be solved."""
    y = np.arange(10) % 2
    with pytest.raises(np.linalg.LinAlgError):
        DiscriminantHead().fit(np.repeat(y[:, None], 3, axis=1), y)


def test_prototypes_are_scikit_learns_nearest_centroids_of_unit_rows():
    """And the class is the one whose mean has the highest cosine."""
    rows = made_up_rows(3, n=90, d=7, gap=1.0)
    ours = PrototypeHead().fit(rows.features, rows.label)
    theirs = NearestCentroid().fit(normalize(rows.features.astype(np.float64)), rows.label)
    np.testing.assert_allclose(ours.means_, theirs.centroids_, atol=1e-9)
    cosines = cosine_similarity(rows.features.astype(np.float64), theirs.centroids_)
    np.testing.assert_array_equal(ours.predict(rows.features), cosines.argmax(1))


def test_held_out_cosines_are_those_of_a_refit_without_the_patient():
    """Own rows move no mean that they are compared with; a class of one patient has none."""
    rows = made_up_rows(3, n=90, d=7, gap=1.0)
    X, y = rows.features.astype(np.float64), rows.label
    group = np.where(y == 0, 99, np.random.default_rng(1).integers(0, 40, len(X)))
    unit = normalize(X)
    share = np.eye(3)[y] / np.linalg.norm(X, axis=1)[:, None]
    found = _held_out_cosines(rows.features, share, (X.T @ share).T, group)
    for one in np.unique(group):
        out = group == one
        for k in range(3):
            left = unit[~out & (y == k)]
            expected = cosine_similarity(unit[out], [left.mean(0)])[:, 0] if len(left) else np.nan
            np.testing.assert_allclose(found[out, k], expected, atol=1e-9)
