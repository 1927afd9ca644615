"""Refitted heads and the cells of Ng's table, against the single fits they stand for."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import StudyError
from pipeline.shift.adaptation import Source
from pipeline.shift.cohorts import Cohort
from pipeline.shift.errors_by_role import errors_by_role, refit
from pipeline.shift.fixes import fix_named


@pytest.fixture(scope="module")
def source():
    """Two classes apart in 2 of 12 features; patients of two images."""
    rng = np.random.default_rng(5)
    labels = np.arange(240) % 2
    features = rng.normal(size=(240, 12)) + labels[:, None] * (np.arange(12) < 2)
    return Source(features=features, labels=labels, groups=np.arange(240) // 4)


@pytest.fixture(scope="module")
def target(source):
    """The same world with the first feature turned round."""
    rng = np.random.default_rng(6)
    labels = np.arange(160) % 2
    features = rng.normal(size=(160, 12)) + labels[:, None] * (np.arange(12) < 2)
    features[:, 0] *= -1
    proba = source.head.predict_proba(source.standardise(features))
    return Cohort(features=features, probabilities=proba, groups=np.arange(160), labels=labels)


def test_refitted_heads_equal_single_fits(source):
    """A head of the batch is the head fitted alone with the same weights of the rows."""
    refits = refit(source, np.random.default_rng(0), 5)
    wrong = refits.wrong(source.standard, source.labels)
    for weights, errs in zip(refits.weights, wrong, strict=True):
        assert weights.reshape(-1, 4).std(axis=1).max() == 0  # whole patients
        alone = source.fit(source.standard, weights=weights).predict(source.standard)
        np.testing.assert_array_equal(errs, alone != source.labels)


def test_bags_are_fitted_once_for_all_targets(source, target):
    """Bagging looks at no target: for another one the same heads are used again."""
    bag = fix_named("bagging")
    first = bag(source, target.features[:50], np.random.default_rng(3))
    known = len(source._fitted)
    second = bag(source, target.features[50:], np.random.default_rng(3))
    assert len(source._fitted) == known
    np.testing.assert_array_equal(first(target.features), second(target.features))


def test_a_reversed_feature_is_a_gap_of_transfer(source, target):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    found = errors_by_role(
        source, target, refit(source, np.random.default_rng(0), 60), np.random.default_rng(1)
    )
    assert found.table.transfer["transfer_gap"].low > 0
    assert found.table.transfer["target_hardness"].low < 0
    assert found.dominant == "mismatch"
    low, high = found.ci_retrain["mismatch"]
    sampling = found.table.chain["mismatch"]
    assert low < sampling.estimate < high
    assert set(found.ci_retrain) == {"variance", "mismatch"}
    assert 0 <= found.floor.low <= found.floor.high <= 0.5


def test_sealed_labels_fill_no_table(source, target):
    """The message points at what can be said without labels."""
    refits = refit(source, np.random.default_rng(0), 2)
    with pytest.raises(StudyError, match="forecast"):
        errors_by_role(source, replace(target, labels=None), refits, np.random.default_rng(1))
