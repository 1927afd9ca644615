"""Intervals of rates: against closed forms and other code, and by how often they hold."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, norm, t

from pipeline.evaluation.intervals import (
    TOO_FEW,
    clopper_pearson,
    critical_value,
    difference_bounds,
    difference_p,
    rate_interval,
    rate_of,
    wilson,
)
from pipeline.evaluation.metrics import METRICS, weighted_mean
from tests.evaluation import coverage as simulated
from tests.evaluation.coverage import PATIENTS, WORLDS, coverage

SUCCESSES = [(0, 5), (5, 5), (340, 400), (320, 400), (1, 3)]


def right_of(successes, n, size=1):
    """``n`` patients with ``size`` images each, all right or all wrong, and their ids."""
    return np.repeat(np.arange(n) < successes, size), np.repeat(np.arange(n), size)


def rate(successes, n, size=1):
    hit, group = right_of(successes, n, size)
    return rate_of(weighted_mean(hit), group)


@pytest.mark.parametrize(("successes", "n"), SUCCESSES)
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_of_independent_trials_equal_other_code(successes, n, level):
    """Those of scipy; of a trial and a half, what defines them: a score, and tails of a Beta."""
    z = norm.isf((1 - level) / 2)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = binomtest(successes, n).proportion_ci(confidence_level=level, method=method)
        assert ours(successes, n, z=z) == pytest.approx(tuple(expected), abs=1e-12)
    n += 0.5
    for end in wilson(successes, n, z=z):
        if 0 < end < 1:
            assert (successes / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n)
    low, high = clopper_pearson(successes, n, z=z)
    tail = (1 - level) / 2
    assert low == pytest.approx(beta.ppf(tail, successes, n - successes + 1) if successes else 0.0)
    assert high == pytest.approx(beta.isf(tail, successes + 1, n - successes))


@pytest.mark.parametrize(
    ("successes", "n", "size"), [*((*one, 1) for one in SUCCESSES), (30, 40, 5), (40, 40, 5)]
)
def test_the_trials_are_the_patients_where_their_images_agree(successes, n, size):
    """The textbook's interval of one image each; five of a patient, all alike, count once."""
    of_images = rate(successes, n, size)
    found = of_images.interval()
    assert of_images.trials == pytest.approx(n)
    assert (found.low, found.high) == pytest.approx(clopper_pearson(successes, n))
    assert (found.estimate, found.images, found.patients) == (successes / n, n * size, n)
    assert found.method == "Clopper-Pearson" + (size > 1) * " by patient"
    assert rate_interval(*right_of(successes, n, size)) == found


def test_images_that_do_not_resemble_each_other_count_nearly_one_by_one():
    """Errors of images at random: 800 images of 200 patients are worth about 800."""
    rng = np.random.default_rng(0)
    trials = [
        rate_of(weighted_mean(rng.random(800) < 0.8), np.arange(800) // 4).trials for _ in range(50)
    ]
    assert 700 < np.mean(trials) <= 800


@pytest.mark.parametrize(("patients", "doubted"), [(1, True), (25, False)])
def test_a_variance_that_few_patients_carry_is_doubted(patients, doubted):
    """One error looks independent of all others: no sign that errors do not come in fours."""
    hit, group = np.ones(200, bool), np.arange(200) // 4
    hit[: 4 * patients : 4] = False
    rate = rate_of(weighted_mean(hit), group)
    alone = rate.estimate * (1 - rate.estimate) / rate.variance
    assert alone > 150
    assert 50 < rate.trials <= 200
    assert (rate.trials < alone / 2) == doubted


@pytest.mark.parametrize("metric", ["accuracy", "f1", "average_precision", "auroc"])
def test_moves_equal_a_loop_over_patients(metric):
    """The metric less the metric without each patient."""
    rng = np.random.default_rng(1)
    group, label = np.repeat(np.arange(20), 3), rng.integers(0, 2, 60)
    proba = np.c_[1 - (p := rng.random(60)), p]
    build = METRICS[metric]
    rate = rate_of(build(label, proba), group)
    for patient, move in zip(range(20), rate.influence, strict=True):
        rows = group != patient
        left = build(label[rows], proba[rows])(np.ones((1, rows.sum())))[0]
        assert move == pytest.approx(rate.estimate - left, abs=1e-12)


def test_of_many_patients_groups_are_left_out():
    """The delete-a-group jackknife has nearly the same variance."""
    rng = np.random.default_rng(2)
    hit, group = rng.random(6000) < 0.8, np.arange(6000) // 3
    rate = rate_of(weighted_mean(hit), group)
    assert len(rate.influence) == 500
    size, sums = np.bincount(group), np.bincount(group, weights=hit)
    sandwich = ((sums - hit.mean() * size) ** 2).sum() / 6000**2
    assert rate.variance == pytest.approx(sandwich, rel=0.2)


def test_what_is_undefined_without_a_patient_has_no_interval():
    """A class in one patient: an estimate, and nothing to say how sure it is."""
    label = np.array([0, 0, 0, 1, 1])
    group = np.array([0, 1, 2, 3, 3])
    statistic = METRICS["auroc"](label, np.c_[1 - (p := np.linspace(0, 1, 5)), p])
    found = rate_of(statistic, group, group[label == 0], group[label == 1]).interval()
    assert (found.estimate, found.method, np.isnan(found.low)) == (1, "too few patients", True)
    assert rate_interval(np.array([True, False]), np.array([7, 7])).method == TOO_FEW


# --- differences


def test_a_difference_of_independent_rates_is_newcombes():
    """Method 10 of Newcombe 1998: 56/70 against 48/80, his example (a).

    With the quantile of t for the patients of the smaller sample.
    """
    first, second = rate(56, 70), rate(48, 80)
    first = replace(first, influence=np.append(first.influence, np.zeros(80)))
    second = replace(second, influence=np.append(np.zeros(70), second.influence))
    level = 1 - 2 * norm.sf(t.isf(0.025, 69))
    (l1, u1), (l2, u2) = (
        binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
        for successes, n in ((56, 70), (48, 80))
    )
    expected = (0.2 - np.hypot(0.8 - l1, u2 - 0.6), 0.2 + np.hypot(u1 - 0.8, 0.6 - l2))
    assert difference_bounds(first, second) == pytest.approx(expected, abs=1e-3)
    assert expected == pytest.approx((0.0524, 0.3339), abs=3e-3)


def test_a_difference_of_what_moves_together_is_narrow():
    """Two heads that err on nearly the same patients."""
    hit, group = right_of(60, 80)
    other = hit.copy()
    other[:2] = False
    one, two = (rate_of(weighted_mean(h), group) for h in (hit, other))
    low, high = difference_bounds(one, two)
    unrelated = difference_bounds(one, replace(two, influence=np.roll(two.influence, 40)))
    assert low < 2 / 80 < high
    assert high - low < 0.6 * (unrelated[1] - unrelated[0])


@pytest.mark.parametrize(("n", "successes"), [(60, 60), (60, 54), (60, 30), (1000, 500)])
def test_a_head_against_itself_may_yet_differ(n, successes):
    """On none of n patients, so on 3.8 of them for all that is known (Wilson's bound)."""
    one = rate(successes, n)
    low, high = difference_bounds(one, one)
    assert high == -low >= wilson(0, n)[1] - 1e-12


@pytest.mark.parametrize(("first", "second"), [((56, 70), (48, 80)), ((30, 30), (190, 200))])
def test_p_is_the_level_at_which_the_interval_reaches_zero(first, second):
    """Of two samples; thirty without an error are no proof that there is none."""
    pair = rate(*first), rate(*second)
    p = difference_p(*pair)
    low, high = difference_bounds(*pair, norm.isf(p / 2), paired=False)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-5)
    assert (p < 0.05) == (first == (56, 70))
    assert difference_p(*pair[::-1]) == pytest.approx(p, abs=1e-5)
    assert difference_p(pair[0], pair[0]) == 1


# --- several at once


def normal(groups, patients, rng):
    return rng.normal(size=(groups, patients)) * np.linspace(0.01, 0.1, groups)[:, None]


@pytest.mark.parametrize(
    ("kind", "independent"), [("alike", 1), ("a perfect one", 2), ("apart", 2), ("apart", 12)]
)
def test_groups_need_the_width_of_the_independent_ones_among_them(kind, independent):
    """Sidak's: that no patient moves a perfect group does not hide that it could be wrong."""
    row, apart = normal(1, 60, np.random.default_rng(5)), np.eye(independent)
    influence = {
        "alike": np.tile(row, (6, 1)),
        "a perfect one": np.r_[row, 0 * row],
        "apart": np.kron(apart, row),
    }[kind]
    sidak = norm.ppf((1 + 0.95 ** (1 / independent)) / 2)
    width = critical_value(influence, np.random.default_rng(6), draws=50_000)
    assert width == pytest.approx(sidak, abs=0.03)


# How often they hold.

#: Of a goal of 95 %; above it an interval may be long where patients are few.
LEAST = 0.93
CELLS = [(name, truth) for name, (_, truths) in WORLDS.items() for truth in truths]


def least(repeats: int) -> float:
    """What all but one in 10,000 samples of that coverage reach."""
    return binom.ppf(1e-4, repeats, LEAST) / repeats


@pytest.mark.parametrize(("name", "truth"), CELLS)
def test_intervals_of_thirty_patients_hold_the_truth(name, truth):
    """A hundred samples of each world: an interval that holds in 75 % would be found out."""
    held, _, width = coverage(WORLDS[name][0], 30, truth, 100)
    assert held >= least(100) > 0.8
    assert width > 0


def test_an_interval_that_takes_images_for_patients_is_found_out():
    """The same test fails where images of a patient count as independent."""

    def blind(rng, patients, truth):
        group = simulated.patients_of(rng, patients)
        right = simulated.right_by_patient(rng, group, truth)
        found = rate_interval(right, np.arange(len(group)))
        return found.low, found.high, truth

    assert coverage(blind, 100, 0.8, 200)[0] < least(200)


@pytest.mark.slow
@pytest.mark.parametrize("patients", PATIENTS)
@pytest.mark.parametrize(("name", "truth"), CELLS)
def test_intervals_hold_the_truth_in_a_thousand_samples(name, truth, patients):
    """From 10 to 400 patients; AUROCs of 10 patients are not compared, and not asked for."""
    if name == "difference in AUROC" and patients == 10:
        pytest.skip("below 10 patients of each class no AUROCs are compared")
    repeats = simulated.samples(1000, patients)
    held, _, width = coverage(WORLDS[name][0], patients, truth, repeats)
    assert held >= least(repeats)
    assert width > 0
