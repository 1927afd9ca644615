"""The patient bootstrap: shared draws, seeds beside patients, and what must not change it."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.data.patients import draw_patients
from pipeline.evaluation.bootstrap import (
    bootstrap_interval,
    bootstrap_values,
    percentile_interval,
)
from pipeline.evaluation.metrics import METRICS, weighted_auroc, weighted_mean


def two_heads(seed: int = 0, patients: int = 40, size: int = 3):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"p{i:02d}" for i in range(patients)], size)
    y = rng.integers(0, 2, len(group))
    heads = [1 / (1 + np.exp(-(rng.normal(size=len(y)) + k * y - k / 2))) for k in (1.0, 2.0)]
    return y, [np.c_[1 - p, p] for p in heads], group


def rng(seed: int = 1):
    return np.random.default_rng(seed)


def difference_of(first, second):
    return lambda weights: first(weights) - second(weights)


def paired(first, second, group, draws: int = 999):
    return bootstrap_interval([difference_of(first, second)], group, rng(), draws=draws)


def test_an_interval_is_that_of_a_plain_loop_over_resampled_patients():
    """Whole patients by hand, the metric on the rows they bring."""
    y, (p, _), group = two_heads()
    found = bootstrap_interval([METRICS["f1"](y, p)], group, rng(), draws=4000)
    patients, values, by_hand = np.unique(group), [], rng(9)
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(group == g) for g in by_hand.choice(patients, 40)])
        tp = np.sum((p[rows, 1] > 0.5) & (y[rows] == 1))
        values.append(2 * tp / (np.sum(p[rows, 1] > 0.5) + np.sum(y[rows] == 1)))
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert (found.images, found.patients, found.method) == (120, 40, "patient bootstrap")
    tp = np.sum((p[:, 1] > 0.5) & (y == 1))
    assert found.estimate == pytest.approx(2 * tp / (np.sum(p[:, 1] > 0.5) + y.sum()))


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "average_precision", "log_loss"])
def test_swapping_the_heads_flips_the_signs(metric):
    """Exactly: the estimate, and each end becomes the other."""
    y, (a, b), group = two_heads()
    one, two = (METRICS[metric](y, p) for p in (a, b))
    first, second = paired(one, two, group), paired(two, one, group)
    assert first.estimate == -second.estimate
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low), abs=1e-15)
    assert first.low < first.estimate < first.high


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "average_precision", "f1", "ece"])
def test_the_order_of_the_images_changes_nothing(metric):
    """Patients are drawn, not places in a list."""
    y, (a, b), group = two_heads()
    order = rng(3).permutation(len(y))
    first = paired(METRICS[metric](y, a), METRICS[metric](y, b), group)
    again = paired(
        METRICS[metric](y[order], a[order]), METRICS[metric](y[order], b[order]), group[order]
    )
    assert (again.low, again.high) == pytest.approx((first.low, first.high), abs=1e-12)
    assert again.estimate == pytest.approx(first.estimate)


def test_another_head_beside_it_changes_no_value():
    """Heads share the draws, and dropping one moves none of the others'."""
    y, (a, b), group = two_heads()
    draws = draw_patients(group, rng(), draws=100)
    one, two = (weighted_auroc(y == 1, p[:, 1]) for p in (a, b))
    both = bootstrap_values([one, two], draws)
    np.testing.assert_array_equal(both[1:], bootstrap_values([two], draws))
    difference = bootstrap_values([difference_of(one, two)], draws)
    np.testing.assert_allclose(difference[0], both[0] - both[1])


def test_the_level_widens_the_interval():
    """99 % holds 95 % holds 50 %."""
    values, group = rng(4).normal(size=60), np.arange(60)
    bounds = [
        bootstrap_interval([weighted_mean(values)], group, rng(), level=level)
        for level in (0.5, 0.95, 0.99)
    ]
    assert bounds[2].low < bounds[1].low < bounds[0].low < values.mean()
    assert values.mean() < bounds[0].high < bounds[1].high < bounds[2].high
    assert [b.level for b in bounds] == [0.5, 0.95, 0.99]


def clustered(rng, patients: int = 60, size: int = 4):
    """Images of patients whose own level moves all their images: ICC one half."""
    group = np.repeat(np.arange(patients), size)
    return rng.normal(size=patients)[group] + rng.normal(size=len(group)), group


@pytest.mark.parametrize("by_patient", [True, False])
def test_only_intervals_by_patient_cover(by_patient):
    """With correlated images the patient bootstrap covers, the naive one does not."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(150):
        value, group = clustered(rng)
        units = group if by_patient else np.arange(len(group))
        low, high = percentile_interval(draw_patients(units, rng, draws=400).mean(value))
        hits += low <= 0 <= high
    if by_patient:
        assert hits / 150 > binom.ppf(0.0005, 150, 0.93) / 150
    else:
        assert hits / 150 < 0.85


def world(rng, seeds: int = 20, patients: int = 50, between: float = 0.5):
    """Score of each seed on each image of patients of two: both have levels of their own."""
    group = np.repeat(np.arange(patients), 2)
    level = rng.normal(size=patients)[group] + rng.normal(size=len(group)) * 0.5
    return level + rng.normal(size=(seeds, 1)) * between, group


def test_a_difference_that_all_seeds_share_has_no_width_from_seeds():
    """Seeds move both heads alike: paired by seed, only the patients remain."""
    score, group = world(np.random.default_rng(0), seeds=8, between=3.0)
    gain = np.random.default_rng(1).normal(0.2, 0.1, len(group))
    paired = [difference_of(weighted_mean(s + gain), weighted_mean(s)) for s in score]
    found = bootstrap_interval(paired, group, np.random.default_rng(2))
    alone = bootstrap_interval([weighted_mean(gain)], group, np.random.default_rng(2))
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


@pytest.mark.parametrize("both", [True, False])
def test_only_seeds_and_patients_together_cover_what_both_move(both):
    """The interval over patients of fixed seeds is too short for "this kind of head"."""
    rng, hits, repeats = np.random.default_rng(5), 0, 120
    for _ in range(repeats):
        score, group = world(rng, between=1.0)
        if both:
            found = bootstrap_interval([weighted_mean(s) for s in score], group, rng, draws=400)
        else:
            found = bootstrap_interval([weighted_mean(score.mean(axis=0))], group, rng, draws=400)
        hits += found.low <= 0 <= found.high
    if both:
        assert hits / repeats > binom.ppf(0.0005, repeats, 0.93) / repeats
    else:
        assert hits / repeats < 0.85
