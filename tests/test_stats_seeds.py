"""Seeds as a sample: how often one head wins, and intervals over seeds and patients."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from pipeline.evaluation.bootstrap import bootstrap_interval
from pipeline.evaluation.metrics import weighted_difference, weighted_mean
from pipeline.evaluation.paired_tests import probability_better, two_way_interval


def test_the_share_of_seeds_won_counts_a_tie_half():
    """Three wins, one tie, one loss of five."""
    a = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    b = np.array([0.8, 0.7, 0.6, 0.6, 0.6])
    found = probability_better(a, b)
    assert found.estimate == pytest.approx(0.7)
    assert (found.images, found.patients, found.method) == (5, 5, "Wilson, over seeds")
    there = probability_better(b, a)
    assert there.estimate == pytest.approx(0.3)
    assert (there.low, there.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("seeds", [3, 10])
def test_winning_under_every_seed_is_not_certainty(seeds):
    """As sure as so many hits in a row, the more seeds the surer."""
    a = np.linspace(0.8, 0.9, seeds)
    found = probability_better(a, a - 0.01)
    hits = binomtest(seeds, seeds).proportion_ci(method="wilson")
    assert (found.low, found.estimate, found.high) == pytest.approx((hits.low, 1, 1))


@pytest.mark.parametrize(("better", "tie"), [(0.9, 0.0), (0.5, 0.0), (0.6, 0.3)])
def test_the_interval_covers_the_share_of_all_trainings(better, tie):
    """In 95 % of samples of ten seeds or more, however seldom A loses."""
    rng, true = np.random.default_rng(3), better + tie / 2
    drawn = rng.random((2000, 10))
    a = np.where(drawn < better, 1.0, np.where(drawn < better + tie, 0.0, -1.0))
    bounds = [(f.low, f.high) for f in (probability_better(one, np.zeros(10)) for one in a)]
    low, high = np.transpose(bounds)
    assert np.mean((low <= true) & (true <= high)) > 0.92


def test_unpaired_seeds_are_refused():
    """Ten seeds of one head and nine of the other compare different things."""
    with pytest.raises(ValueError, match=r"same seeds for both; got shapes \(10,\) and \(9,\)"):
        probability_better(np.ones(10), np.ones(9))
    with pytest.raises(ValueError, match="one score of each head"):
        probability_better(np.ones(0), np.ones(0))


def world(rng, seeds: int = 20, patients: int = 50, between: float = 0.5):
    """Score of each seed on each image of patients of two: both have levels of their own."""
    group = np.repeat(np.arange(patients), 2)
    level = rng.normal(size=patients)[group] + rng.normal(size=len(group)) * 0.5
    return level + rng.normal(size=(seeds, 1)) * between, group


def test_one_seed_is_the_patient_bootstrap():
    """Nothing to draw among one."""
    score, group = world(np.random.default_rng(0), seeds=1)
    two = two_way_interval([weighted_mean(score[0])], group, np.random.default_rng(1))
    one = bootstrap_interval(weighted_mean(score[0]), group, np.random.default_rng(1))
    assert (two.estimate, two.low, two.high) == pytest.approx((one.estimate, one.low, one.high))
    assert two.method == "seeds x patients bootstrap"


def test_a_difference_that_all_seeds_share_has_no_width_from_seeds():
    """Seeds move both heads alike: paired by seed, only the patients remain."""
    score, group = world(np.random.default_rng(0), seeds=8, between=3.0)
    gain = np.random.default_rng(1).normal(0.2, 0.1, len(group))
    paired = [weighted_difference(weighted_mean(s + gain), weighted_mean(s)) for s in score]
    found = two_way_interval(paired, group, np.random.default_rng(2))
    alone = bootstrap_interval(weighted_mean(gain), group, np.random.default_rng(2))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


@pytest.mark.parametrize("both", [True, False])
def test_only_seeds_and_patients_together_cover_what_both_move(both):
    """The interval over patients of fixed seeds is too short for "this kind of head"."""
    rng, hits, repeats = np.random.default_rng(5), 0, 120
    for _ in range(repeats):
        score, group = world(rng, between=1.0)
        if both:
            found = two_way_interval([weighted_mean(s) for s in score], group, rng, draws=400)
        else:
            found = bootstrap_interval(weighted_mean(score.mean(axis=0)), group, rng, draws=400)
        hits += found.low <= 0 <= found.high
    if both:
        assert hits / repeats > binom.ppf(0.0005, repeats, 0.93) / repeats
    else:
        assert hits / repeats < 0.85
