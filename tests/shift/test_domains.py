"""The head of the source is scikit-learn's, and the map shows both domains."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.data.patients import patient_folds
from pipeline.shift.domains import feature_maps, fit_source
from tests.shift.worlds import embedded


def rows(n, *, role="source", seed=0, shift=0.0):
    """Two classes apart in the first of 6 features; a feature that never varies."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // 2 % 2
    features = rng.normal(size=(n, 6)) + 1.5 * label[:, None] * (np.arange(6) == 0) + shift
    features[:, 5] = 3.0
    return embedded(features, role=role, images=2)


def test_the_head_is_that_of_scikit_learn_on_standardised_rows():
    """For all rows, and out of fold by patient; a target is scored without its labels."""
    data = rows(120)
    model = fit_source(data)
    spread = np.where(data.features.std(0) > 0, data.features.std(0), 1)
    scaled = (data.features - data.features.mean(0)) / spread
    alone = LogisticRegression(C=0.01, tol=1e-9).fit(scaled, data.label)
    target = model.scored(data.sealed())
    assert target.label is None
    np.testing.assert_allclose(target.proba, alone.predict_proba(scaled), atol=1e-4)
    for fit, held in patient_folds(data.label, data.group, seed=0):
        assert not set(data.group[fit]) & set(data.group[held])
        fold = LogisticRegression(C=0.01, tol=1e-9).fit(scaled[fit], data.label[fit])
        expected = fold.predict_proba(scaled[held])
        np.testing.assert_allclose(model.data.proba[held], expected, atol=1e-4)
    assert model.prior == pytest.approx([0.5, 0.5])


def test_the_map_shows_a_sample_of_both_domains():
    """At most 500 of each; a shift is its first component."""
    arrays = feature_maps(fit_source(rows(1200)), [rows(80, role="target", seed=1, shift=4.0)])
    target, embedding = arrays["target/embedding_target"], arrays["target/embedding"]
    assert ((~target).sum(), target.sum(), embedding.shape) == (500, 80, (580, 2))
    assert abs(embedding[target, 0].mean() - embedding[~target, 0].mean()) > 2
    assert set(arrays["target/embedding_label"]) == {0, 1}
