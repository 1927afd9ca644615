"""The patient bootstrap: shared draws, bounded blocks, and what must not change it."""

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import (
    bootstrap_interval,
    bootstrap_values,
    paired_bootstrap,
)
from pipeline.evaluation.metrics import METRICS, weighted_auroc, weighted_difference, weighted_mean
from pipeline.evaluation.paired_tests import verdict


def two_heads(seed: int = 0, patients: int = 40, size: int = 3):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"p{i:02d}" for i in range(patients)], size)
    y = rng.integers(0, 2, len(group))
    heads = [1 / (1 + np.exp(-(rng.normal(size=len(y)) + k * y - k / 2))) for k in (1.0, 2.0)]
    return y, [np.c_[1 - p, p] for p in heads], group


def rng(seed: int = 1):
    return np.random.default_rng(seed)


def test_an_interval_is_that_of_a_plain_loop_over_resampled_patients():
    """Whole patients by hand, the metric on the rows they bring."""
    y, (p, _), group = two_heads()
    found = bootstrap_interval(METRICS["f1"](y, p), group, rng(), draws=4000)
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
    """H-T5, exactly: the estimate, and each end becomes the other."""
    y, (a, b), group = two_heads()
    one, two = (METRICS[metric](y, p) for p in (a, b))
    here = paired_bootstrap(one, two, group, rng(), draws=999)
    there = paired_bootstrap(two, one, group, rng(), draws=999)
    assert here.estimate == -there.estimate
    assert (here.low, here.high) == pytest.approx((-there.high, -there.low), abs=1e-15)
    assert here.low < here.estimate < here.high


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "average_precision", "f1", "ece"])
def test_the_order_of_the_images_changes_nothing(metric):
    """H-T5."""
    y, (a, b), group = two_heads()
    order = rng(3).permutation(len(y))
    here = paired_bootstrap(METRICS[metric](y, a), METRICS[metric](y, b), group, rng())
    there = paired_bootstrap(
        METRICS[metric](y[order], a[order]), METRICS[metric](y[order], b[order]),
        group[order], rng(),
    )  # fmt: skip
    assert (there.low, there.high) == pytest.approx((here.low, here.high), abs=1e-12)
    assert there.estimate == pytest.approx(here.estimate)


def test_another_head_beside_it_changes_no_value():
    """H-T5: heads share the draws, and dropping one moves none of the others'."""
    y, (a, b), group = two_heads()
    one, two = (weighted_auroc(y == 1, p[:, 1]) for p in (a, b))
    both = bootstrap_values([one, two], group, rng(), draws=100)
    np.testing.assert_array_equal(both[1:], bootstrap_values([two], group, rng(), draws=100))
    difference = bootstrap_values([weighted_difference(one, two)], group, rng(), draws=100)
    np.testing.assert_allclose(difference[0], both[0] - both[1])


def test_a_head_against_itself_is_equivalent():
    """No spread, no difference: and the word for it is `equivalent`."""
    y, (a, _), group = two_heads()
    statistic = METRICS["accuracy"](y, a)
    found = paired_bootstrap(statistic, statistic, group, rng(), draws=99)
    assert (found.low, found.estimate, found.high) == (0, 0, 0)
    assert verdict(found.low, found.high) == "equivalent"


def test_the_level_widens_the_interval():
    """99 % holds 95 % holds 50 %."""
    values, group = rng(4).normal(size=60), np.arange(60)
    bounds = [
        bootstrap_interval(weighted_mean(values), group, rng(), level=level)
        for level in (0.5, 0.95, 0.99)
    ]
    assert bounds[2].low < bounds[1].low < bounds[0].low < values.mean()
    assert values.mean() < bounds[0].high < bounds[1].high < bounds[2].high
    assert [b.level for b in bounds] == [0.5, 0.95, 0.99]
