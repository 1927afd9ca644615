"""Accuracy without labels: right where the assumption holds, and known to fail where not."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.errors import StudyError
from pipeline.shift.label_free import (
    ESTIMATES,
    RANGED,
    WARNING,
    SourceScores,
    TargetScores,
    _case,
    forecast,
    thresholded_confidence,
)
from tests.score_worlds import draw_scores


def case_of(source, labels, target):
    """Calibrate and pair two domains."""
    return _case(
        SourceScores(probabilities=source, labels=labels, groups=np.arange(len(source))),
        TargetScores(probabilities=target, groups=np.arange(len(target))),
    )


def accuracy(probabilities, labels):
    """Share of right calls."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def errors_of_estimates(repeats, seed, target_of, n_source=1600):
    """Return estimate - truth, shape (repeats, estimates), for targets made by a function."""
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        source, labels = draw_scores(rng, n_source, slope=1.5)
        target, truth = target_of(rng)
        case = case_of(source, labels, target)
        found.append([one(case) - accuracy(target, truth) for one in ESTIMATES.values()])
    return np.array(found)


@pytest.mark.parametrize("repeats", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_every_estimate_is_right_when_nothing_shifted(repeats):
    """C-T1: two samples of one population, overconfident scores; within 2 binomial sd."""
    off = errors_of_estimates(repeats, 1, lambda rng: draw_scores(rng, 400, slope=1.5))
    sd = np.sqrt(0.923 * 0.077 / 400)
    # Both the source's 1600 and the target's 400 labels are drawn: 1.1 to 1.5 of that sd.
    assert np.all(np.mean(np.abs(off) < 2 * sd, axis=0) > 0.75)
    assert np.all(np.abs(off.mean(axis=0)) < 0.004 + 4 * off.std(axis=0) / np.sqrt(repeats))


def test_threshold_of_confidence_is_the_plain_one():
    """C4: t leaves the source's error below it; the estimate is the share of the target above."""
    rng = np.random.default_rng(3)
    source, labels = draw_scores(rng, 400)
    case = case_of(source, labels, draw_scores(rng, 300, 0.7)[0])
    sure_s, sure_t = case.evidence.source.max(axis=1), case.evidence.target.max(axis=1)
    error = np.mean(source.argmax(axis=1) != labels)
    t = next(one for one in np.sort(sure_s) if np.mean(sure_s < one) >= error)
    assert np.mean(sure_s < t) == pytest.approx(error)
    assert thresholded_confidence(case) == pytest.approx(np.mean(sure_t >= t))


def marked(rng, n, agreement):
    """Draw a weak honest signal beside a strong mark that agrees with the label so often."""
    labels = rng.integers(0, 2, n)
    mark = np.where(rng.random(n) < agreement, labels, 1 - labels)
    shown = np.column_stack([0.75 * (2 * labels - 1), 2.0 * mark - 1])
    return shown + rng.normal(size=(n, 2)), labels


def test_every_estimate_is_too_high_when_a_shortcut_reverses():
    """C-T6: the warning's promise, for each estimate and each seed, by ten points and more."""
    for seed in range(10):
        rng = np.random.default_rng([99, seed])
        head = LogisticRegression().fit(*marked(rng, 1600, 0.95))
        (held, labels), (rows, truth) = marked(rng, 1600, 0.95), marked(rng, 400, 0.05)
        target = head.predict_proba(rows)
        case = case_of(head.predict_proba(held), labels, target)
        reached = accuracy(target, truth)
        assert all(estimate(case) > reached + 0.1 for estimate in ESTIMATES.values())


def test_forecast_has_intervals_range_and_warning():
    """Every number has an interval around it; the range spans the estimates that count."""
    rng = np.random.default_rng(15)
    source, labels = draw_scores(rng, 500)
    target, _ = draw_scores(rng, 200, 0.8)
    known = SourceScores(probabilities=source, labels=labels, groups=np.arange(500) // 2)
    found = forecast(known, TargetScores(probabilities=target, groups=np.arange(200)), rng, 40)
    numbers = [*found.accuracy.values()]
    assert all(one.low < one.estimate < one.high for one in numbers)
    ranged = [found.accuracy[name].estimate for name in RANGED]
    assert (found.low, found.high) == (min(ranged), max(ranged))
    assert found.warning == WARNING
    assert "stable Y|score" in WARNING
    assert "cannot be identified" in WARNING
    assert set(found.prevalence) == {"mlls_em"}
    assert sum(one.estimate for one in found.prevalence["mlls_em"]) == pytest.approx(1)


def test_forecast_refuses_what_does_not_fit():
    """Other classes on the target, or a class without a source image, are named."""
    rng = np.random.default_rng(17)
    source, labels = draw_scores(rng, 50)
    known = SourceScores(probabilities=source, labels=labels, groups=np.arange(50))
    three = TargetScores(probabilities=np.full((4, 3), 1 / 3), groups=np.arange(4))
    with pytest.raises(StudyError, match="2 and 3 classes"):
        forecast(known, three, rng)
    one = SourceScores(probabilities=source, labels=np.zeros(50, int), groups=np.arange(50))
    with pytest.raises(StudyError, match="every class in the source"):
        forecast(one, TargetScores(probabilities=source, groups=np.arange(50)), rng)
