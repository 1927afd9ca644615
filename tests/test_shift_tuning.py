"""Tuned without labels: nothing is seen, the oracle never loses, and the plan says it all."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from pipeline.errors import StudyError
from pipeline.shift.adapt import FixSettings, Source
from pipeline.shift.adapt_eval import GRIDS, VALIDATORS, FixPlan, Target, predict_target
from pipeline.shift.adapt_tuning import try_values, tuned_rows
from tests.shifted_worlds import draw

PLAN = FixPlan(seeds=(0, 1), draws=99)


@pytest.fixture(scope="module")
def world():
    """A target that is scaled and moved, four rows a patient."""
    drawn = draw("affine", 0)
    keep = slice(0, 400)
    source = Source(
        features=drawn.source[keep],
        labels=drawn.source_labels[keep],
        groups=np.arange(400) // 4,
        settings=PLAN.settings,
    )
    target = Target(features=drawn.target[:200], groups=np.arange(200) // 4)
    return source, target, drawn.target_labels[:200]


@pytest.fixture(scope="module")
def headline(world):
    """Predictions at the defaults."""
    source, target, _ = world
    return predict_target(source, target, PLAN)


@pytest.fixture(scope="module")
def tried(world, headline):
    """Every value of every grid."""
    source, target, _ = world
    return try_values(source, target, PLAN, headline)


def rows(world, tried, headline, labels):
    return tuned_rows(tried, headline, labels, world[1].groups, PLAN)


def test_the_default_is_in_every_grid_and_its_prediction_is_the_headline_rows(tried, headline):
    """So a tuned row differs from the headline row by the choice and by nothing else."""
    for one in tried:
        at = one.values.index(getattr(FixSettings(), one.setting))
        np.testing.assert_array_equal(one.probabilities[at], headline.probabilities[one.name][0])


def test_what_the_headline_knows_is_what_adapting_anew_finds(world, tried, headline):
    """Predictions and criterion at the defaults, up to the tolerance of the solver."""
    source, target, _ = world
    anew = try_values(source, target, PLAN, replace(headline, own_half={}))
    for one, other in zip(tried, anew, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        np.testing.assert_allclose(one.criterion, other.criterion, atol=1e-6)
        np.testing.assert_array_equal(one.half, other.half)


def test_labels_choose_nothing_but_the_oracle(world, tried, headline):
    """With other labels the same values are chosen."""
    labels = world[2]
    one, two = (rows(world, tried, headline, truth) for truth in (labels, 1 - labels))
    assert [row.chosen for row in one] == [row.chosen for row in two]
    assert [row.name for row in one] == list(GRIDS)


def test_the_choice_is_the_value_with_the_highest_criterion(world, tried, headline):
    """For each half by itself, of what the fix was adapted to."""
    for one, row in zip(tried, rows(world, tried, headline, world[2]), strict=True):
        best = [one.values[int(np.argmax(one.criterion[:, h]))] for h in range(2)]
        assert list(row.chosen) == best


def test_the_oracle_never_loses_to_the_validator(world, tried, headline):
    """Regret is the price of not having labels."""
    for row in rows(world, tried, headline, world[2]):
        assert row.regret >= 0
        assert row.oracle_accuracy == pytest.approx(row.accuracy + row.regret)


def test_both_halves_are_scored_by_models_of_the_other(tried):
    """Each row once."""
    for one in tried:
        assert set(one.half) == {0, 1}
        np.testing.assert_allclose(one.probabilities.sum(axis=2), 1)


def test_grids_and_validator_are_in_the_plans_hash():
    """What may be tuned is said before the labels are read."""
    assert replace(PLAN, validator="certainty").digest() != PLAN.digest()
    assert replace(PLAN, grids=PLAN.grids[:1]).digest() != PLAN.digest()


def test_validators_equal_their_formulas():
    """Against scipy's entropy; the sure and balanced are best."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50)
    certainty = -np.mean([entropy(row) for row in p])
    assert VALIDATORS["certainty"](p) == pytest.approx(certainty)
    found = VALIDATORS["information_maximisation"](p)
    assert found == pytest.approx(entropy(p.mean(axis=0)) + certainty)
    one_class, balanced = np.eye(2)[[0, 0]], np.eye(2)
    assert VALIDATORS["information_maximisation"](balanced) > VALIDATORS[
        "information_maximisation"
    ](one_class)
    assert VALIDATORS["certainty"](balanced) == VALIDATORS["certainty"](one_class)


def test_another_penalty_is_refused(world):
    """The head would be another one."""
    source = world[0]
    with pytest.raises(StudyError, match="another penalty"):
        source.with_settings(replace(source.settings, inverse_penalty=1.0))
