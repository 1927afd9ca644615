"""Accuracy without labels: right where the assumption holds, and known to fail where not."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipeline.errors import StudyError
from pipeline.shift.decompose import score_identity
from pipeline.shift.domains import Cohort
from pipeline.shift.effects import labelled
from pipeline.shift.label_free import (
    CONFUSIONS,
    ESTIMATES,
    RANGED,
    WARNING,
    SourceScores,
    TargetScores,
    _case,
    expected_auroc,
    forecast,
    importance_mapping,
    thresholded_confidence,
    thresholded_entropy,
    transport,
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


def test_confidence_and_entropy_thresholds_agree_for_two_classes():
    """C-T2: both order the images alike, so the two ATC are one number."""
    rng = np.random.default_rng(2)
    source, labels = draw_scores(rng, 500)
    case = case_of(source, labels, draw_scores(rng, 300, 0.7)[0])
    assert thresholded_confidence(case) == thresholded_entropy(case)


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


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_transport_is_the_cheapest_assignment(classes):
    """C-T3: the mean cost equals an assignment solver's, and for two classes the sorted sum."""
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(classes), 60)
    prior = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    counts = np.round(prior * 60).astype(int)
    assert counts.sum() == 60
    columns = np.repeat(np.arange(classes), counts)
    rows, picked = linear_sum_assignment(1 - p[:, columns])
    cheapest = (1 - p[rows, columns[picked]]).mean()
    assert transport(p, prior).mean() == pytest.approx(cheapest, abs=1e-9)
    if classes == 2:
        ones = np.sort(columns)
        assert np.mean(np.abs(np.sort(p[:, 1]) - ones)) == pytest.approx(cheapest)


@pytest.mark.parametrize("repeats", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_importance_mapping_is_unbiased_under_covariate_shift(repeats):
    """C-T5: other scores, the same outcome given the score: the mean error is none."""

    def harder(rng):
        z = rng.normal(0, 1.5, 400)
        labels = (rng.random(400) < expit(z)).astype(int)
        positive = expit(1.5 * z)  # as overconfident as the source
        return np.column_stack([1 - positive, positive]), labels

    # A large source: with few images the ends of a pooled curve have a bias of their own.
    off = errors_of_estimates(repeats, 6, harder, n_source=16_000)
    off = off[:, list(ESTIMATES).index("im")]
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(repeats)
    assert off.std() < 0.04


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


def test_expected_auroc_is_that_of_drawn_labels():
    """C-T7: the mean AUROC of labels drawn from p, for a score with ties."""
    rng = np.random.default_rng(7)
    p = rng.beta(1, 1, 200)
    score = np.round(p + 0.3 * rng.normal(size=200), 1)
    drawn = [roc_auc_score(rng.random(200) < p, score) for _ in range(600)]
    assert expected_auroc(p, score) == pytest.approx(
        np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(600) + 5e-4
    )


def test_expected_auroc_is_the_double_loop():
    """The sorted sum equals the sum over all pairs of different images."""
    rng = np.random.default_rng(8)
    p, score = rng.random(40), rng.integers(0, 6, 40).astype(float)
    over = under = 0.0
    for i in range(40):
        for j in range(40):
            if i != j:
                pair = p[i] * (1 - p[j])
                under += pair
                over += pair * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
    assert expected_auroc(p, score) == pytest.approx(over / under)
    assert np.isnan(expected_auroc(np.ones(3), np.ones(3)))


@pytest.mark.parametrize("name", CONFUSIONS)
def test_confusions_are_right_when_nothing_shifted(name):
    """The estimated cells sum to 1, its columns to the calls, and they are near the truth."""
    rng = np.random.default_rng(12)
    source, labels = draw_scores(rng, 3000)
    target, truth = draw_scores(rng, 3000)
    found = CONFUSIONS[name](case_of(source, labels, target))
    called = target.argmax(axis=1)
    true = np.array([[np.mean((truth == i) & (called == j)) for j in (0, 1)] for i in (0, 1)])
    assert found.sum(axis=0) == pytest.approx(true.sum(axis=0))
    assert found == pytest.approx(true, abs=0.015)


def test_confusions_handle_three_classes_and_one_never_called():
    """A class that the source is never called still gets a column, and the cells sum to 1."""
    rng = np.random.default_rng(13)
    source = rng.dirichlet([4, 4, 1], 300)
    source[:, 2] = np.minimum(source[:, 2], source[:, :2].max(axis=1) / 2)
    source /= source.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in source])
    target = rng.dirichlet([1, 1, 3], 100)
    case = case_of(source, labels, target)
    assert not np.any(case.evidence.source_calls == 2)
    for confusion in CONFUSIONS.values():
        found = confusion(case)
        assert found.sum() == pytest.approx(1)
        assert found[:, 2].sum() == pytest.approx(np.mean(target.argmax(axis=1) == 2))
    assert all(0 <= one(case) <= 1 for one in ESTIMATES.values())


def test_importance_mapping_misses_exactly_what_the_score_identity_says():
    """True error minus the IM estimate is the Y|score term, calibration or not."""
    rng = np.random.default_rng(14)
    source, labels = draw_scores(rng, 400, slope=2)
    target, truth = draw_scores(rng, 300, 0.8, slope=2)
    sides = [
        labelled(Cohort(features=p, probabilities=p, groups=np.arange(len(p)), labels=y), rng, 10)
        for p, y in ((source, labels), (target, truth))
    ]
    missed = 1 - accuracy(target, truth) - (1 - importance_mapping(case_of(source, labels, target)))
    term = score_identity(*sides).terms["y_given_score"].estimate
    assert missed == pytest.approx(term, abs=1e-12)


def test_forecast_has_intervals_range_and_warning():
    """Every number has an interval around it; the range spans the estimates that count."""
    rng = np.random.default_rng(15)
    source, labels = draw_scores(rng, 500)
    target, _ = draw_scores(rng, 200, 0.8)
    known = SourceScores(probabilities=source, labels=labels, groups=np.arange(500) // 2)
    found = forecast(known, TargetScores(probabilities=target, groups=np.arange(200)), rng, 40)
    numbers = [*found.accuracy.values(), found.auroc]
    assert all(one.low < one.estimate < one.high for one in numbers)
    ranged = [found.accuracy[name].estimate for name in RANGED]
    assert (found.low, found.high) == (min(ranged), max(ranged))
    assert found.warning == WARNING
    assert "stable Y|score" in WARNING
    assert "cannot be identified" in WARNING
    assert set(found.prevalence) == {"bbse", "rlls", "mlls_em"}
    assert sum(one.estimate for one in found.prevalence["mlls_em"]) == pytest.approx(1)


def test_an_interval_holds_its_estimate_where_classes_are_as_frequent_as_they_can_be():
    """Redrawn classes are less even than these, which transport alone takes for errors."""
    rng = np.random.default_rng(17)

    def even(per_class):
        truth = np.repeat(np.arange(5), per_class)
        scores = rng.normal(size=(len(truth), 5)) + 9 * np.eye(5)[truth]
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True), truth

    (source, labels), (target, _) = even(60), even(40)
    known = SourceScores(probabilities=source, labels=labels, groups=np.arange(300))
    found = forecast(known, TargetScores(probabilities=target, groups=np.arange(200)), rng, 60)
    assert all(one.low <= one.estimate <= one.high for one in found.accuracy.values())
    transported = found.accuracy["cot_source_prior"]
    assert transported.high - transported.low > 0.01


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
