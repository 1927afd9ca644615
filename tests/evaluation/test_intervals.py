"""Intervals of rates, alone and at once: against closed forms, and by how often they hold."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from statsmodels.stats.proportion import proportion_confint

from pipeline.data.patients import draw_patients
from pipeline.evaluation.intervals import (
    Share,
    critical_value,
    difference_interval,
    rate_interval,
    simultaneous_differences,
    simultaneous_intervals,
    wilson,
)


def share(hits, n, rng, *, draws=2000, size=1):
    """A rate of ``n`` patients with ``size`` images each, all right or all wrong."""
    rate = hits / n
    return Share(
        estimate=rate,
        draws=rng.binomial(n, rate, draws) / n,
        bases=(np.repeat(np.arange(n), size),),
    )


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (340, 400), (320, 400), (1, 3)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_equals_scipy_and_statsmodels(hits, n, level):
    """Also for an effective number of trials, which need not be whole."""
    z = norm.isf((1 - level) / 2)
    expected = binomtest(hits, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(hits, n, z=z) == pytest.approx(tuple(expected), abs=1e-12)
    expected = proportion_confint(hits, n + 0.5, alpha=1 - level, method="wilson")
    assert wilson(hits, n + 0.5, z=z) == pytest.approx(expected, abs=1e-12)


def test_wilson_refuses_what_is_no_rate():
    """Never an interval for nothing."""
    with pytest.raises(ValueError, match="3 hits of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("group", "hit", "method"),
    [
        (np.arange(40), np.arange(40) % 4 > 0, "Wilson"),
        (np.arange(40) // 2, np.arange(40) % 4 > 0, "patient bootstrap"),
        (np.arange(40) // 2, np.ones(40, bool), "Wilson, patients as trials"),
        (np.arange(40) // 2, np.zeros(40, bool), "Wilson, patients as trials"),
    ],
)
def test_a_rate_has_the_interval_that_its_patients_allow(group, hit, method):
    """Images of one patient are no trials of their own, and agreement is no certainty."""
    draws = draw_patients(group, np.random.default_rng(0))
    found = rate_interval(hit, group, lambda: draws)
    assert (found.method, found.images) == (method, 40)
    assert found.estimate == hit.mean()
    assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12
    if method == "patient bootstrap":
        expected = np.quantile(draws.mean(hit), [0.025, 0.975])
    elif method == "Wilson":
        expected = wilson(30, 40)
    else:
        expected = wilson(20 * hit[0], 20)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (7, 31), (400, 400), (383, 400)])
def test_one_group_has_wilsons_interval(hits, n):
    """An image a patient and no other group: nothing is new."""
    one = share(hits, n, np.random.default_rng(1))
    assert one.interval() == pytest.approx(wilson(hits, n))
    assert simultaneous_intervals([one], np.random.default_rng(2))[0] == pytest.approx(
        wilson(hits, n), abs=0.01
    )


@pytest.mark.parametrize("groups", [2, 5, 12])
def test_independent_groups_need_sidaks_width(groups):
    """Where groups share no patient the largest of G normal errors is known exactly."""
    rng = np.random.default_rng(3)
    draws = rng.normal(0.8, np.linspace(0.01, 0.1, groups)[:, None], (groups, 100_000))
    sidak = norm.ppf((1 + 0.95 ** (1 / groups)) / 2)
    assert critical_value(np.full(groups, 0.8), draws, rng) == pytest.approx(sidak, abs=0.02)


def test_groups_that_move_together_cost_nothing():
    """The same errors in each group are one error."""
    rng = np.random.default_rng(4)
    draws = np.tile(rng.normal(0.8, 0.05, 50_000), (6, 1))
    assert critical_value(np.full(6, 0.8), draws, rng) == pytest.approx(1.96, abs=0.02)


def test_a_perfect_group_counts_as_one_more():
    """Draws that are all alike do not hide that the group could be wrong; NaN does no harm."""
    rng = np.random.default_rng(5)
    draws = np.stack([rng.normal(0.8, 0.05, 100_000), np.ones(100_000)])
    draws[0, :10] = np.nan
    sidak = norm.ppf((1 + np.sqrt(0.95)) / 2)
    assert critical_value(np.array([0.8, 1.0]), draws, rng) == pytest.approx(sidak, abs=0.02)


def test_images_that_agree_within_patients_count_once():
    """Five images a patient, all alike, are worth as many as there are patients."""
    rng = np.random.default_rng(6)
    one, many = share(30, 40, rng, draws=100_000), share(30, 40, rng, draws=100_000, size=5)
    assert many.images == 200
    assert many.interval() == pytest.approx(one.interval(), abs=0.005)
    perfect = Share(estimate=1.0, draws=np.ones(9), bases=(np.repeat(np.arange(40), 5),))
    assert perfect.interval() == pytest.approx(wilson(40, 40))


def test_an_area_has_an_interval_on_the_scale_of_its_odds():
    """Symmetric there, inside 0 and 1; of a perfect one, as wide as the rarer class is rare."""
    draws = np.random.default_rng(7).normal(0.97, 0.01, 100_000)
    bases = (np.arange(50), np.arange(50, 400))
    low, high = Share(estimate=0.97, draws=draws, bases=bases).interval()
    odds = np.log([x / (1 - x) for x in (low, 0.97, high)])
    assert np.diff(odds) == pytest.approx(1.96 * 0.01 / (0.97 * 0.03), rel=0.02)
    perfect = Share(estimate=1.0, draws=np.ones(9), bases=bases)
    assert perfect.interval() == pytest.approx(wilson(50, 50))


def test_a_difference_of_independent_rates_is_newcombes():
    """Method 10 of Newcombe 1998 for unpaired rates: 56/70 against 48/80, his example (a)."""
    rng = np.random.default_rng(8)
    pair = share(56, 70, rng, draws=200_000), share(48, 80, rng, draws=200_000)
    assert difference_interval(*pair) == pytest.approx((0.0524, 0.3339), abs=0.002)
    assert simultaneous_differences([pair], rng)[0] == pytest.approx((0.0524, 0.3339), abs=0.004)


def test_a_difference_of_what_moves_together_is_narrow():
    """The same draws on both sides leave what Wilson's two halves differ by, and no more."""
    rng = np.random.default_rng(9)
    one, other = share(60, 80, rng), share(60, 80, rng)
    low, high = one.interval()
    assert max(difference_interval(one, one)) == pytest.approx((0.75 - low) - (high - 0.75))
    assert max(difference_interval(one, other)) == pytest.approx(
        np.hypot(0.75 - low, high - 0.75), rel=0.1
    )
    assert simultaneous_differences([], np.random.default_rng(0)) == []


@pytest.mark.parametrize("repeats", [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_interval_of_a_group_picked_as_the_worst_holds(repeats):
    """With 8 groups alike, Wilson's own at 95 % holds far less often for the lowest of them."""
    truth, n, once, alone = 0.9, 80, 0, 0
    for seed in range(repeats):
        rng = np.random.default_rng([10, seed])
        groups = [share(hits, n, rng, draws=300) for hits in rng.binomial(n, truth, 8)]
        worst = min(range(8), key=lambda k, groups=groups: groups[k].estimate)
        low, high = simultaneous_intervals(groups, rng)[worst]
        once += low <= truth <= high
        low, high = groups[worst].interval()
        alone += low <= truth <= high
    assert once / repeats > 0.95 - 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert alone / repeats < 0.85
