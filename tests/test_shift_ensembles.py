"""Heads of the source put together: plain means, trained once, with no view of the target."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from pipeline.errors import StudyError, UnknownNameError
from pipeline.heads.logistic import LogisticHead
from pipeline.heads.mlp import MLPHead
from pipeline.heads.prototype import PrototypeHead
from pipeline.heads.ridge import RidgeHead
from pipeline.shift import adapt as adaptation
from pipeline.shift.adapt import (
    UNADAPTED,
    FixSettings,
    Source,
    fix_named,
    head_ensemble,
    seed_ensemble,
)
from pipeline.shift.adapt_eval import FixPlan, Target, fixes_on_source, predict_target
from tests import shifted_worlds as worlds

SETTINGS = FixSettings(ensemble_seeds=3)
PLAN = FixPlan(
    fixes=("source_only", "seed_ensemble", "head_ensemble"), seeds=(0, 1), settings=SETTINGS
)


@pytest.fixture
def source():
    """Three hundred rows of a hospital, two a patient."""
    world = worlds.draw("affine", 4)
    return Source(
        features=world.source[:300].astype(np.float32),
        labels=world.source_labels[:300],
        groups=np.arange(300) // 2,
        settings=SETTINGS,
    )


@pytest.fixture
def target():
    """A hundred rows of another one."""
    features = worlds.draw("affine", 4).target[:100].astype(np.float32)
    return Target(features=features, groups=np.arange(100) // 2)


def mean_of(heads, source, target):
    """Mean probability of heads that are fitted here, one after the other."""
    mean, sd = source.features.mean(axis=0, dtype=float), source.features.std(axis=0, dtype=float)
    here = ((source.features - mean) / sd).astype(np.float32)
    there = ((target.features - mean) / sd).astype(np.float32)
    found = []
    for head in heads:
        grouped = isinstance(head, RidgeHead | PrototypeHead)
        head.fit(here, source.labels, **({"groups": source.groups} if grouped else {}))
        found.append(head.predict_proba(there))
    return np.mean(found, axis=0)


def test_the_ensemble_over_seeds_is_the_mean_of_heads_trained_apart(source, target):
    """For every half and seed of the leaderboard: three perceptrons, seeds 0, 1 and 2."""
    expected = mean_of([MLPHead(random_state=seed) for seed in range(3)], source, target)
    found = predict_target(source, target, PLAN).probabilities["seed_ensemble"]
    assert found.shape == (2, 100, 2)
    for table in found:
        np.testing.assert_allclose(table, expected, atol=1e-5)


def test_the_ensemble_over_kinds_is_the_mean_of_heads_trained_apart(source, target):
    """Five kinds: by likelihood, least squares, means, thresholds and hidden units."""
    boosting = HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=8,
        max_features=0.1,
        max_bins=63,
        early_stopping=False,
        random_state=0,
    )
    heads = [LogisticHead(C=0.01), RidgeHead(), PrototypeHead(), boosting, MLPHead()]
    expected = mean_of(heads, source, target)
    for table in predict_target(source, target, PLAN).probabilities["head_ensemble"]:
        np.testing.assert_allclose(table, expected, atol=1e-5)


def test_heads_are_trained_once_for_all_targets_halves_and_seeds(source, target, monkeypatch):
    """Of the perceptrons the first also stands for its kind; other settings keep them."""
    asked = []
    train = adaptation.train_head

    def counted(name, problem, kinds):
        asked.append((name, len(problem.seeds)))
        return train(name, problem, kinds)

    monkeypatch.setattr(adaptation, "train_head", counted)
    first = predict_target(source, target, PLAN).probabilities
    other = replace(target, features=target.features + 1)
    predict_target(source, other, PLAN)
    kept = source.with_settings(replace(SETTINGS, pseudo_count=4))
    head_ensemble(kept, target.features, np.random.default_rng(0))
    assert asked == [("mlp", 3), ("ridge", 1), ("prototype", 1), ("boosting", 1)]
    again = predict_target(source, target, PLAN).probabilities
    for name, table in first.items():
        np.testing.assert_array_equal(again[name], table)


def test_the_control_trains_on_its_own_half_of_the_source(source, monkeypatch):
    """The half that plays the target is in no head."""
    rows = []
    train = adaptation.train_head

    def counted(name, problem, kinds):
        rows.append(len(problem.X))
        return train(name, problem, kinds)

    monkeypatch.setattr(adaptation, "train_head", counted)
    board = fixes_on_source(source, PLAN, 0)
    assert [row.name for row in board.rows] == list(PLAN.fixes)
    assert set(rows) == {150}


@pytest.mark.parametrize("name", sorted(UNADAPTED))
def test_what_is_not_adapted_is_shown_no_row_of_the_target(source, target, name):
    """Fitted without a single one, it says of all what the leaderboard says."""
    rng = np.random.default_rng(9)
    alone = fix_named(name)(source, target.features[:0], rng)(target.features)
    for table in predict_target(source, target, PLAN).probabilities[name]:
        np.testing.assert_array_equal(table, alone)


def test_seeds_and_kinds_are_in_the_plans_hash():
    """Which heads are averaged is said before the labels are read."""
    others = (FixSettings(ensemble_seeds=4), FixSettings(ensemble_heads=("ridge",)))
    digests = {replace(PLAN, settings=settings).digest() for settings in (SETTINGS, *others)}
    assert len(digests) == 3


def test_other_kinds_can_be_averaged_and_unknown_ones_are_refused(source, target):
    """The message lists the heads."""
    rng = np.random.default_rng(0)
    lda = replace(source, settings=FixSettings(ensemble_heads=("lda",)))
    both = head_ensemble(lda, target.features, rng)(target.features)
    own = [source.head, lda.trained("lda")[0]]
    rows = source.standardise(target.features)
    np.testing.assert_allclose(both, np.mean([head.predict_proba(rows) for head in own], axis=0))
    with pytest.raises(UnknownNameError, match=r"'magic'.*mlp, linear"):
        head_ensemble(
            replace(source, settings=FixSettings(ensemble_heads=("magic",))), target.features, rng
        )


def test_a_kind_that_cannot_be_fitted_says_which_and_why(source):
    """Support vectors need two patients of each class."""
    one = np.flatnonzero(source.labels == 1)[:1]
    rows = np.append(np.flatnonzero(source.labels == 0), one)
    few = replace(source, features=source.features[rows], labels=source.labels[rows], groups=rows)
    with pytest.raises(
        StudyError, match="'svm' cannot be fitted here: a class has images of one patient"
    ):
        few.trained("svm")
    probabilities = seed_ensemble(few, few.features, np.random.default_rng(0))(few.features)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_a_kind_that_cannot_be_fitted_is_left_out_and_counted(source, target, monkeypatch):
    """One head that the source cannot bear costs no other row of the leaderboard."""
    train = adaptation.train_head

    def refuses(name, problem, kinds):
        if name == "ridge":
            raise ValueError("singular")
        return train(name, problem, kinds)

    fresh = replace(source, settings=replace(SETTINGS, ensemble_heads=("ridge", "prototype")))
    monkeypatch.setattr(adaptation, "train_head", refuses)
    predictor = head_ensemble(fresh, target.features, np.random.default_rng(0))
    assert predictor.notes == {"heads": 2}
    rows = fresh.standardise(target.features)
    pair = [fresh.head, fresh.trained("prototype")[0]]
    expected = np.mean([head.predict_proba(rows) for head in pair], axis=0)
    np.testing.assert_allclose(predictor(target.features), expected)
