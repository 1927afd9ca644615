"""What is done to features before a head sees them."""

import numpy as np
import pytest

from pipeline.errors import UnknownNameError
from pipeline.heads.base import PREPROCESSING, make_preprocessing


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("widths", [(8,), (3, 5)])
def test_rows_stay_apart_and_the_input_as_it_is(name, widths):
    """Row order, float32, finite numbers; a row is transformed alone as in company."""
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    before = X.copy()
    fitted = make_preprocessing(name, widths).fit(X)
    found = fitted.transform(X)
    np.testing.assert_array_equal(X, before)
    assert np.isfinite(found).all()
    assert found.dtype == np.float32
    np.testing.assert_allclose(fitted.transform(X[3:5]), found[3:5], atol=1e-5)


def test_each_does_what_it_says():
    """Unit variance, unit length, uncorrelated; two backbones weigh the same."""
    X = np.random.default_rng(0).normal(size=(200, 8)) @ np.diag([1, 1, 1, 50, 50, 50, 50, 9])
    X = X.astype(np.float32)
    done = {name: make_preprocessing(name, (3, 5)).fit(X).transform(X) for name in PREPROCESSING}
    np.testing.assert_allclose(done["standardise"].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(done["l2"], axis=1), 1, rtol=1e-4)
    white = np.cov(done["pca_whiten"].T)
    np.testing.assert_allclose(white, np.eye(len(white)), atol=1e-3)
    np.testing.assert_array_equal(done["none"], X)
    X[:, 3:] *= 1e4
    for name in ("standardise", "l2"):
        again = make_preprocessing(name, (3, 5)).fit(X).transform(X)
        np.testing.assert_allclose(again, done[name], atol=1e-4)


def test_a_column_that_hardly_varies_decides_nothing():
    """A new image that its filter answers to lies near the others; the rest has unit variance.

    A backbone of small numbers beside one of large numbers is not taken for dead.
    """
    scale = np.array([1, 1, 1, 1, 1e-3, 1e-3, 1e-3, 1e-3])
    dead = np.array([0, 1e-5, 0, 0, 0, 0, 1e-5, 0])
    rows = np.random.default_rng(0).normal(size=(200, 8))
    X = np.asarray(rows * np.where(dead, dead, 1) * scale, np.float32)
    fitted = make_preprocessing("standardise", (4, 4)).fit(X)
    np.testing.assert_allclose(fitted.transform(X).std(0)[dead == 0], 1, rtol=1e-4)
    assert np.abs(fitted.transform((3 * scale)[None].astype(np.float32))).max() < 5


def test_an_unknown_name_lists_the_table():
    """The message is built from PREPROCESSING."""
    with pytest.raises(UnknownNameError, match="unknown preprocessing 'l3'; known: standardise"):
        make_preprocessing("l3", (8,))
