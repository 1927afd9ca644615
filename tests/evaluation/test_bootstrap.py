"""The patient bootstrap: shared draws, seeds beside patients, and what must not change it."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.evaluation.bootstrap import SET_ALPHA, bbc_cv, bootstrap_interval, confidence_set
from pipeline.evaluation.metrics import METRICS, weighted_auroc, weighted_mean
from tests.made_up import head


def test_an_interval_is_that_of_a_plain_loop_over_resampled_patients():
    """Whole patients by hand, the metric on the rows they bring."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(40), 3)
    y = rng.integers(0, 2, 120)
    p = head(y, 1.0)
    found = bootstrap_interval([METRICS["f1"](y, p)], group, rng, draws=4000)

    def f1(rows):
        called, positive = p[rows, 1] > 0.5, y[rows] == 1
        return 2 * np.sum(called & positive) / (called.sum() + positive.sum())

    values = [
        f1(np.concatenate([np.flatnonzero(group == g) for g in rng.choice(40, 40)]))
        for _ in range(4000)
    ]
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert (found.images, found.patients, found.method) == (120, 40, "patient bootstrap")
    assert found.estimate == pytest.approx(f1(np.arange(120)))


def world(rng, seeds: int):
    """Score of each seed on images of 60 patients of four: patients and seeds have levels."""
    group = np.repeat(np.arange(60), 4)
    level = rng.normal(size=60)[group] + rng.normal(size=len(group))
    return level + (seeds > 1) * rng.normal(size=(seeds, 1)), group


@pytest.mark.parametrize(
    ("seeds", "blind"), [(1, ""), (1, "to patients"), (20, ""), (20, "to seeds")]
)
def test_only_intervals_over_all_that_varies_cover(seeds, blind):
    """Images taken for patients, or seeds for fixed ones: the interval is too short."""
    rng, hits, repeats = np.random.default_rng(5), 0, 150
    for _ in range(repeats):
        score, group = world(rng, seeds)
        units = np.arange(len(group)) if blind == "to patients" else group
        rows = score.mean(axis=0, keepdims=True) if blind == "to seeds" else score
        found = bootstrap_interval([weighted_mean(s) for s in rows], units, rng, draws=400)
        hits += found.low <= 0 <= found.high
    if blind:
        assert hits / repeats < 0.85
    else:
        assert hits / repeats > binom.ppf(0.0005, repeats, 0.93) / repeats


# The best of several heads.


def test_bbc_cv_equals_a_loop():
    """Tsamardinos 2018: choose in bag, score out of bag, average."""
    rng = np.random.default_rng(0)
    score, group = (rng.random((60, 5)) < 0.7) * 1.0, np.repeat(np.arange(20), 3)
    heads = [weighted_mean(column) for column in score.T]
    chosen, apparent, interval = bbc_cv(heads, group, np.random.default_rng(1), draws=200)
    values, again = [], np.random.default_rng(1)
    for counts in again.multinomial(20, np.full(20, 1 / 20), size=200):
        rows = np.repeat(np.arange(60), counts[group])
        best = score[rows].mean(axis=0).argmax()
        values.append(score[counts[group] == 0, best].mean())
    assert interval.estimate == pytest.approx(np.mean(values))
    assert interval.low < interval.estimate < interval.high
    assert apparent == pytest.approx(score.mean(axis=0).max())
    assert chosen == score.mean(axis=0).argmax()
    assert (interval.images, interval.patients) == (60, 20)


def test_the_interval_of_the_best_is_longer_where_the_choice_varies():
    """Heads that are right on different patients: each draw chooses another one."""
    rng, group = np.random.default_rng(7), np.arange(60)
    same = rng.random(60) < 0.8
    alike = bbc_cv([weighted_mean(same)] * 8, group, np.random.default_rng(1))
    others = [weighted_mean(rng.permutation(same)) for _ in range(8)]
    varied = bbc_cv(others, group, np.random.default_rng(1))
    widths = [interval.high - interval.low for *_, interval in (alike, varied)]
    assert widths[1] > 1.02 * widths[0]


def test_the_best_of_fifty_equal_heads_is_not_better():
    """The largest of many equal accuracies is too good; the corrected value is not."""
    rng, truth, apparent, corrected = np.random.default_rng(6), 0.8, [], []
    for _ in range(30):
        score = (rng.random((200, 50)) < truth).astype(float)
        heads = [weighted_mean(s) for s in score.T]
        _, seen, interval = bbc_cv(heads, np.arange(200), rng, draws=100)
        apparent.append(seen)
        corrected.append(interval.estimate)
    assert np.mean(apparent) > truth + 0.03
    error = np.std(corrected) / np.sqrt(30)
    assert np.mean(corrected) == pytest.approx(truth, abs=3 * error + 0.005)


def test_a_value_that_no_draw_defines_is_refused():
    """Both positives in one patient: never a positive in bag and out of bag."""
    y, group = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4, 4])
    with pytest.raises(ValueError, match="none of 50 draws has a value both in and out of bag"):
        bbc_cv([weighted_auroc(y == 1, np.arange(6.0))], group, np.random.default_rng(0), draws=50)


def heads(rng, gain, n: int = 150):
    """Heads that share the difficulty of the images and differ by `gain`."""
    hard = rng.normal(size=n)
    return [weighted_mean(hard + rng.normal(size=n) * 0.5 + g) for g in gain]


def plain_confidence_set(score, often):
    """Hansen's elimination by T_max, head by head and draw by draw."""
    heads = list(range(score.shape[1]))
    while len(heads) > 1:
        lag = {h: np.mean(score[:, heads]) - np.mean(score[:, h]) for h in heads}
        drawn = {h: [np.average(score[:, heads].mean(axis=1) - score[:, h], weights=w)
                     for w in often] for h in heads}  # fmt: skip
        sd = {h: np.sqrt(np.mean((np.array(drawn[h]) - lag[h]) ** 2)) for h in heads}
        top = max(lag[h] / sd[h] for h in heads)
        null = [max((drawn[h][b] - lag[h]) / sd[h] for h in heads) for b in range(len(often))]
        if np.mean(np.array(null) >= top) > SET_ALPHA:
            break
        heads.remove(max(heads, key=lambda h: lag[h] / sd[h]))
    return heads


@pytest.mark.parametrize("seed", range(4))
def test_the_confidence_set_equals_a_plain_elimination(seed):
    """Those that stay."""
    rng, draws = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    score = rng.normal(size=(40, 1)) + rng.normal(size=(40, 5)) + [0, 0.3, 0.35, 0.4, 0.4]
    group, again = np.arange(40) // 2, np.random.default_rng([seed, 1])
    found = confidence_set([weighted_mean(s) for s in score.T], group, draws, draws=60)
    often = again.multinomial(20, np.full(20, 1 / 20), size=60)[:, group]
    assert found == plain_confidence_set(score, often)


def test_the_confidence_set_keeps_equal_heads_as_often_as_it_says():
    """All of four equally good heads in at least 90 % of samples, less binomial noise."""
    rng, kept, repeats = np.random.default_rng(4), 0, 100
    for _ in range(repeats):
        found = confidence_set(heads(rng, [0.0] * 4, 80), np.arange(80), rng, draws=300)
        kept += len(found) == 4
    assert 0.8 <= kept / repeats < 1


def test_the_same_head_twice_stays_or_goes_twice():
    """Equal predictions have no spread between them, which must not divide by zero."""
    rng = np.random.default_rng(5)
    one, two = heads(rng, [0.0, -2.0])
    group = np.arange(150)
    assert confidence_set([one, one], group, rng) == [0, 1]
    assert confidence_set([one, one, two, two], group, rng) == [0, 1]
    assert confidence_set([one], group, rng) == [0]
