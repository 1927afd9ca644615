"""Linear discriminant from blocks of rows: scikit-learn's answer."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from pipeline.heads import preprocessing as blocks
from pipeline.heads.discriminant import DiscriminantHead, _Class


def problem(n, d, classes, seed=0):
    """Correlated features far from zero, and one that never varies."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = (rng.normal(size=(n, d)) + 0.5 * np.eye(classes, d)[y]) @ rng.normal(size=(d, d))
    X = (X + 9 * rng.normal(size=d)).astype(np.float32)
    X[:, -1] = 2.5
    return X, y


@pytest.mark.parametrize("shrinkage", ["auto", 0.5, 1.0])
@pytest.mark.parametrize(("n", "d", "classes"), [(200, 12, 2), (60, 90, 2), (150, 20, 4)])
def test_it_equals_scikit_learns(n, d, classes, shrinkage, monkeypatch):
    """Coefficients and probabilities, with more features than rows too, block by block."""
    monkeypatch.setattr(blocks, "_BLOCK", 7 * d)
    X, y = problem(n, d, classes)
    ours = DiscriminantHead(shrinkage=shrinkage).fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    theirs.fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-6, atol=1e-7)
    expected = theirs.predict_proba(X.astype(np.float64))
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-7)
    np.testing.assert_array_equal(ours.predict(X), expected.argmax(axis=1))


def test_the_share_is_that_of_ledoit_and_wolf():
    """Of the columns of a class at the same scale."""
    X, _ = problem(80, 30, 2)
    rows = _Class(X, np.arange(80))
    scaled = StandardScaler().fit_transform(X.astype(np.float64))
    scale = np.where(np.arange(30) == 29, 1, X.astype(np.float64).std(axis=0))
    correlation = rows.empirical / np.outer(scale, scale)
    share = rows._ledoit_wolf(correlation, scale)
    assert share == pytest.approx(ledoit_wolf_shrinkage(scaled), rel=1e-9)
    assert 0 < share < 1


@pytest.mark.parametrize("shrinkage", ["none", 0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(shrinkage):
    """With what is allowed."""
    with pytest.raises(ValueError, match="above 0 to 1, or 'auto'"):
        DiscriminantHead(shrinkage=shrinkage).fit(*problem(20, 3, 2))


def test_rows_without_spread_are_an_error_and_no_answer():
    """A covariance of zeros cannot be solved."""
    y = np.arange(10) % 2
    with pytest.raises(np.linalg.LinAlgError):
        DiscriminantHead().fit(np.repeat(y[:, None], 3, axis=1), y)
