"""The loss at the target's own best threshold is found without flattering it."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.auroc import bound_of_one
from pipeline.shift.threshold import Scored, _Half, threshold_split


def scored(rng, n, *, move=0.0, first=0, draws=100, decimals=8):
    """Draw scores of two classes; ``move`` shifts all of them."""
    groups = np.arange(n) + first
    positive = rng.random(n) < 0.5
    score = np.round(rng.normal(size=n) + 2 * positive - 1 + move, decimals)
    return Scored(
        score=score, positive=positive, groups=groups, draws=draw_patients(groups, rng, draws=draws)
    )


@pytest.mark.parametrize("decimals", [8, 0])
def test_threshold_split_is_that_of_a_plain_search(decimals):
    """Cross-fitted errors equal those of trying every threshold on the other half, ties too."""
    rng = np.random.default_rng(12)
    source = scored(rng, 200, decimals=decimals)
    target = scored(rng, 101, move=1.0, first=500, decimals=decimals)
    split = threshold_split(source, target, np.random.default_rng(1), 0.0)
    half = np.zeros(101, dtype=bool)
    half[np.random.default_rng(1).permutation(101)[:50]] = True

    def errors(rows, threshold):
        return np.sum((target.score[rows] >= threshold) != target.positive[rows])

    def fewest(rows):
        values = np.unique(target.score[rows])
        tried = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
        return tried[int(np.argmin([errors(rows, one) for one in tried]))]

    tuned = (errors(~half, fewest(half)) + errors(half, fewest(~half))) / 101
    e_s = np.mean((source.score >= 0) != source.positive)
    e_t = errors(np.ones(101, dtype=bool), 0.0) / 101
    assert split.terms["transfer"].estimate == pytest.approx(e_t - tuned)
    assert split.terms["discrimination"].estimate == pytest.approx(tuned - e_s)
    areas = [roc_auc_score(side.positive, side.score) for side in (source, target)]
    assert split.auroc_loss.estimate == pytest.approx(areas[0] - areas[1])


def test_a_score_at_the_threshold_is_called_positive():
    """A threshold found on one half may be a score of the other: it calls that image."""
    groups = np.arange(4)
    side = Scored(
        score=np.array([0.0, 1.0, 1.0, 2.0]),
        positive=np.array([False, True, False, True]),
        groups=groups,
        draws=draw_patients(groups, np.random.default_rng(0), draws=1),
    )
    found = _Half(side).errors_at(np.array([1.0, 1.5]), np.array([[1, 1, 0, 1], [1, 1, 0, 1]]))
    assert found.tolist() == [0, 1]


def test_threshold_draws_choose_anew():
    """A draw's terms are those of a data set in which each image is there as often as drawn."""
    rng = np.random.default_rng(13)
    source, target = scored(rng, 80, draws=1), scored(rng, 60, move=1.0, first=500, draws=1)

    def repeated(side):
        times = side.draws.counts[0].astype(int)
        rows = np.repeat(np.arange(len(times)), times)
        return side.take(rows)

    drawn = threshold_split(source, target, np.random.default_rng(2), 0.0).terms
    halved = np.zeros(60, dtype=bool)
    halved[np.random.default_rng(2).permutation(60)[:30]] = True
    copy = repeated(target)
    first = np.isin(copy.groups, target.groups[halved])

    def errors(rows, threshold):
        return np.sum((copy.score[rows] >= threshold) != copy.positive[rows])

    def fewest(rows, mine):
        values = np.unique(target.score[mine])
        tried = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
        return tried[int(np.argmin([errors(rows, one) for one in tried]))]

    tuned = errors(~first, fewest(first, halved)) + errors(first, fewest(~first, ~halved))
    e_t = np.mean((copy.score >= 0) != copy.positive)
    assert drawn["transfer"].low == pytest.approx(e_t - tuned / len(copy.score))


@pytest.mark.parametrize("patients", [4, 200])
def test_a_perfect_target_is_as_sure_as_it_is_large(patients):
    """All draws of it agree on an AUROC of 1; four patients do not show that it rises."""
    rng = np.random.default_rng(15)
    source, target = scored(rng, 200), scored(rng, patients, first=1000)
    target = replace(
        target, positive=np.arange(patients) % 2 > 0, score=np.arange(patients) % 2 + 0.0
    )
    loss = threshold_split(source, target, rng).auroc_loss
    area = roc_auc_score(source.positive, source.score)
    assert loss.estimate == pytest.approx(area - 1)
    room = 1 - bound_of_one(target.positive.astype(int), np.arange(patients))
    assert loss.high > loss.estimate + room
    assert (loss.high < 0) == (patients == 200)


def test_threshold_split_refuses_one_class():
    """A domain of one class has no threshold, and the message says which domain."""
    rng = np.random.default_rng(14)
    source, target = scored(rng, 50), scored(rng, 50, first=100)
    with pytest.raises(StudyError, match="the target shows one class only"):
        threshold_split(source, target.take(target.positive), rng)
