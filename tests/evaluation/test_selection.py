"""The best of many: its selection-corrected value, and which heads may be the best."""

import numpy as np
import pytest

from pipeline.evaluation.intervals import clopper_pearson
from pipeline.evaluation.metrics import weighted_auroc, weighted_mean
from pipeline.evaluation.selection import ALPHA, bbc_cv, confidence_set


def test_bbc_cv_equals_a_loop():
    """Tsamardinos 2018: choose in bag, score out of bag, average."""
    rng = np.random.default_rng(0)
    score, group = (rng.random((60, 5)) < 0.7) * 1.0, np.repeat(np.arange(20), 3)
    heads = [weighted_mean(column) for column in score.T]
    found = bbc_cv(heads, group, np.random.default_rng(1), draws=200)
    values, again = [], np.random.default_rng(1)
    for counts in again.multinomial(20, np.full(20, 1 / 20), size=200):
        rows = np.repeat(np.arange(60), counts[group])
        best = score[rows].mean(axis=0).argmax()
        values.append(score[counts[group] == 0, best].mean())
    interval = found.interval
    assert interval.estimate == pytest.approx(np.mean(values))
    assert interval.low < interval.estimate < interval.high
    assert found.apparent == pytest.approx(score.mean(axis=0).max())
    assert found.chosen == score.mean(axis=0).argmax()
    assert (interval.images, interval.patients) == (60, 20)


def test_the_best_of_heads_without_an_error_is_not_certain():
    """Forty patients, five heads, all right: a width of zero would say that nobody ever errs."""
    heads = [weighted_mean(np.ones(40))] * 5
    found = bbc_cv(heads, np.arange(40), np.random.default_rng(0)).interval
    assert (found.estimate, found.high) == (1, 1)
    assert (found.low, found.high) == pytest.approx(clopper_pearson(40, 40))


def test_the_interval_of_the_best_is_longer_where_the_choice_varies():
    """Heads that are right on different patients: each draw chooses another one."""
    rng, group = np.random.default_rng(7), np.arange(60)
    same = rng.random(60) < 0.8
    alike = bbc_cv([weighted_mean(same)] * 8, group, np.random.default_rng(1))
    others = [weighted_mean(rng.permutation(same)) for _ in range(8)]
    varied = bbc_cv(others, group, np.random.default_rng(1))
    widths = [one.interval.high - one.interval.low for one in (alike, varied)]
    assert widths[1] > 1.02 * widths[0]


def test_the_best_of_fifty_equal_heads_is_not_better():
    """The largest of many equal accuracies is too good; the corrected value is not."""
    rng, truth, apparent, corrected = np.random.default_rng(6), 0.8, [], []
    for _ in range(30):
        score = (rng.random((200, 50)) < truth).astype(float)
        best = bbc_cv([weighted_mean(s) for s in score.T], np.arange(200), rng, draws=100)
        apparent.append(best.apparent)
        corrected.append(best.interval.estimate)
    assert np.mean(apparent) > truth + 0.03
    error = np.std(corrected) / np.sqrt(30)
    assert np.mean(corrected) == pytest.approx(truth, abs=3 * error + 0.005)


def test_a_value_that_no_draw_defines_is_refused():
    """Both positives in one patient: never a positive in bag and out of bag."""
    y, group = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 4, 4])
    with pytest.raises(ValueError, match="none of 50 draws defines the value in and out of bag"):
        bbc_cv([weighted_auroc(y == 1, np.arange(6.0))], group, np.random.default_rng(0), draws=50)


def heads(rng, gain, n: int = 150):
    """Heads that share the difficulty of the images and differ by `gain`."""
    hard = rng.normal(size=n)
    return [weighted_mean(hard + rng.normal(size=n) * 0.5 + g) for g in gain]


def plain_confidence_set(score, often):
    """Hansen's elimination by T_max, head by head and draw by draw."""
    heads, p = list(range(score.shape[1])), {}
    while len(heads) > 1:
        lag = {h: np.mean(score[:, heads]) - np.mean(score[:, h]) for h in heads}
        drawn = {h: [np.average(score[:, heads].mean(axis=1) - score[:, h], weights=w)
                     for w in often] for h in heads}  # fmt: skip
        sd = {h: np.sqrt(np.mean((np.array(drawn[h]) - lag[h]) ** 2)) for h in heads}
        top = max(lag[h] / sd[h] for h in heads)
        null = [max((drawn[h][b] - lag[h]) / sd[h] for h in heads) for b in range(len(often))]
        worst = max(heads, key=lambda h: lag[h] / sd[h])
        p[worst] = max([*p.values(), np.mean(np.array(null) >= top)])
        heads.remove(worst)
    return [p.get(h, 1.0) for h in range(score.shape[1])]


@pytest.mark.parametrize("seed", range(6))
def test_the_confidence_set_equals_a_plain_elimination(seed):
    """Those that stay, at the p of the last one dropped."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(40, 1)) + rng.normal(size=(40, 5)) + [0, 0.3, 0.35, 0.4, 0.4]
    group = np.arange(40) // 2
    found = confidence_set([weighted_mean(s) for s in score.T], group, rng, draws=60)
    again = np.random.default_rng(seed)
    again.normal(size=(40, 1))
    again.normal(size=(40, 5))
    often = again.multinomial(20, np.full(20, 1 / 20), size=60)[:, group]
    p = np.array(plain_confidence_set(score, often))
    assert found == np.flatnonzero(p > ALPHA).tolist()


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
