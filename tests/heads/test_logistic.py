"""Logistic regression: series of fits end where single fits end."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.heads.logistic import fit_weighted, logistic_path, make_logistic
from tests.heads.made_up_rows import made_up_rows


def exact(X, y, C, weights=None):
    head = LogisticRegression(C=C, tol=1e-9, max_iter=10_000)
    return head.fit(X.astype(np.float64), y, sample_weight=weights)


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def rows(request):
    return made_up_rows(request.param, gap=1.0)


def test_a_path_ends_at_the_solutions_of_single_fits(rows):
    """Whatever the order of the penalties; the classifier is as it was set."""
    penalties = [1.0, 1e-3, 0.1]
    heads = [make_logistic(C) for C in penalties]
    found = logistic_path(heads, rows.features, rows.label, rows.features)
    for head, C, proba in zip(heads, penalties, found, strict=True):
        expected = exact(rows.features, rows.label, C).predict_proba(rows.features)
        np.testing.assert_allclose(proba, expected, atol=2e-3)
        assert (head.C, head.warm_start) == (C, False)


def test_weighted_fits_are_scikit_learns_one_at_a_time(rows):
    """Weights of a bootstrap, rows without weight among them."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=30)
    fits = fit_weighted(rows.features, rows.label, C=0.1, weights=weights)
    found = fits.proba(rows.features)
    assert found.shape == (30, len(rows), rows.label.max() + 1)
    for v in (0, 7, 29):
        expected = exact(rows.features, rows.label, 0.1, weights[v])
        np.testing.assert_allclose(found[v], expected.predict_proba(rows.features), atol=2e-3)
        (alone,) = fits.proba(rows.features, slice(v, v + 1))
        np.testing.assert_allclose(alone, found[v], atol=1e-6)


def test_a_weighting_that_leaves_a_class_without_rows_is_refused(rows):
    """The message says which."""
    weights = np.ones((2, len(rows)))
    weights[1, rows.label == 1] = 0
    with pytest.raises(ValueError, match="weighting 1 leaves a class without rows"):
        fit_weighted(rows.features, rows.label, C=1.0, weights=weights)
