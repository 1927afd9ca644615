"""Rows that are treated as they are taken, a block at a time."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA

from pipeline.heads import preprocessing as blocks
from pipeline.heads.preprocessing import (
    TREATMENTS,
    TreatedRows,
    Whitener,
    fit_treatment,
    make_treatment,
)

ROWS = np.arange(70, 10, -1)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(3, 2, size=(80, 6)).astype(np.float32)


@pytest.fixture(params=TREATMENTS)
def treatment(request):
    return make_treatment(request.param, (4, 2))


def test_rows_are_what_the_treatment_makes_of_them_all(features, treatment, monkeypatch):
    """Blocks of nine rows give what one fit and one transform of a copy give."""
    monkeypatch.setattr(blocks, "_BLOCK", 54)
    expected = clone(treatment).fit(features[ROWS]).transform(features[ROWS])
    treated = TreatedRows(features, ROWS, fit_treatment(treatment, features, ROWS))
    assert treated.shape == expected.shape
    assert (len(treated), treated.size) == (60, expected.size)
    assert treated[:].dtype == np.float32
    np.testing.assert_allclose(treated[:], expected, rtol=1e-5, atol=1e-5)
    some = np.array([5, 0, 59])
    np.testing.assert_array_equal(treated[some], treated[:][some])
    np.testing.assert_array_equal(treated.take(some, np.float64), treated[some])


def test_other_rows_have_no_say(features, treatment):
    """Not even if they cannot be computed with."""
    features[:10] = features[75:] = np.nan
    assert np.isfinite(
        TreatedRows(features, ROWS, fit_treatment(treatment, features, ROWS))[:]
    ).all()


def test_one_block_is_treated_to_the_same_bits(features, treatment):
    """What fits one block, as most studies do, is treated as scikit-learn alone would."""
    expected = clone(treatment).fit(features[ROWS]).transform(features[ROWS])
    treated = TreatedRows(features, ROWS, fit_treatment(treatment, features, ROWS))
    np.testing.assert_array_equal(treated[:], expected.astype(np.float32))


@pytest.mark.parametrize("n", [60, 8])
def test_whitening_equals_scikit_learns(n, monkeypatch):
    """The same directions, up to their sign, with more and with fewer rows than features."""
    monkeypatch.setattr(blocks, "_BLOCK", 50)
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + 30).astype(np.float32)
    ours = Whitener(0.95).fit(rows)
    theirs = PCA(0.95, whiten=True, svd_solver="full").fit(rows.astype(np.float64))
    assert ours.components_.shape == theirs.components_.shape
    signs = np.sign((ours.components_ * theirs.components_).sum(axis=1))
    expected = theirs.transform(rows.astype(np.float64)) * signs
    np.testing.assert_allclose(ours.transform(rows), expected, atol=2e-4)


def test_equal_rows_cannot_be_whitened():
    """There is no direction; the message says so."""
    with pytest.raises(ValueError, match="5 rows without variance"):
        Whitener().fit(np.ones((5, 3), np.float32))
