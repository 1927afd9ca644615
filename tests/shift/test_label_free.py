"""Accuracy without labels: right where the assumption holds, and known to fail where not."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.data.patients import draw_patients
from pipeline.errors import StudyError
from pipeline.shift.label_free import (
    FORMULAS,
    estimate_accuracy,
    estimate_prior,
    fit_calibration,
    reweighted,
)
from tests.score_worlds import draw_scores


def scores(proba, label=None, group=None, name="source"):
    """Rows of one domain."""
    return DomainData(
        name=name,
        role=name,
        group=np.arange(len(proba)) if group is None else group,
        label=None if label is None else np.asarray(label, np.int64),
        proba=proba,
    )


def estimated(source, label, target, draws=2, seed=0):
    """Estimates of one world."""
    rng = np.random.default_rng(seed)
    return estimate_accuracy(scores(source, label), scores(target, name="target"), rng, draws=draws)


def accuracy(proba, label):
    """Share of right predictions."""
    return float(np.mean(proba.argmax(axis=1) == label))


@pytest.mark.parametrize("repeats", [40, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("prevalence", "names"), [(0.5, list(FORMULAS)), (0.8, ["label_shift"])])
def test_estimates_are_right_where_their_assumption_holds(repeats, prevalence, names):
    """Two samples of one population, overconfident: all; another class mix: label_shift."""
    off = []
    for repeat in range(repeats):
        rng = np.random.default_rng([1, repeat])
        source, label = draw_scores(rng, 1600, slope=1.5)
        target, truth = draw_scores(rng, 400, prevalence, slope=1.5)
        found = estimated(source, label, target)
        off.append([found.accuracy[name].estimate - accuracy(target, truth) for name in names])
    off = np.array(off)
    sd = np.sqrt(0.923 * 0.077 / 400)
    # Both the source's 1600 and the target's 400 labels are drawn: 1.1 to 1.5 of that sd.
    assert np.all(np.mean(np.abs(off) < 2 * sd, axis=0) > 0.75)
    assert np.all(np.abs(off.mean(axis=0)) < 0.004 + 4 * off.std(axis=0) / np.sqrt(repeats))


def test_every_estimate_is_too_high_when_a_shortcut_reverses():
    """What the assumption warns of, for each estimate and seed, by ten points and more."""

    def marked(rng, n, agreement):
        label = rng.integers(0, 2, n)
        mark = np.where(rng.random(n) < agreement, label, 1 - label)
        shown = np.column_stack([0.75 * (2 * label - 1), 2.0 * mark - 1])
        return shown + rng.normal(size=(n, 2)), label

    for seed in range(10):
        rng = np.random.default_rng([99, seed])
        head = LogisticRegression().fit(*marked(rng, 1600, 0.95))
        (held, label), (rows, truth) = marked(rng, 1600, 0.95), marked(rng, 400, 0.05)
        target = head.predict_proba(rows)
        found = estimated(head.predict_proba(held), label, target)
        assert min(one.estimate for one in found.accuracy.values()) > accuracy(target, truth) + 0.1


def test_formulas_are_their_definitions():
    """DoC: the drop of confidence; label shift: the source's recall at the target's mix."""
    rng = np.random.default_rng(3)
    source, label = draw_scores(rng, 400)
    target, _ = draw_scores(rng, 300, 0.7)
    calibrate = fit_calibration(source, label)
    (sure_s, sure_t) = (calibrate(proba) for proba in (source, target))
    right = source.argmax(axis=1) == label
    found = estimated(source, label, target).accuracy
    called = [p[np.arange(len(p)), q.argmax(1)] for p, q in ((sure_s, source), (sure_t, target))]
    drop = called[0].mean() - called[1].mean()
    assert found["doc"].estimate == pytest.approx(right.mean() - drop)
    mix = estimate_prior(sure_t, np.bincount(label) / len(label))
    recall = [right[label == k].mean() for k in (0, 1)]
    assert found["label_shift"].estimate == pytest.approx(mix @ recall)


def test_the_bootstrap_repeats_everything_on_drawn_patients():
    """One draw of the batch is what repeating the drawn rows gives, calibration included."""
    rng = np.random.default_rng(4)
    source, label = draw_scores(rng, 200, slope=1.5)
    target, _ = draw_scores(rng, 90, 0.7, slope=1.5)
    groups = np.arange(200) // 2, np.arange(90) // 3
    found = estimate_accuracy(
        scores(source, label, groups[0]),
        scores(target, group=groups[1], name="target"),
        np.random.default_rng(7),
        draws=1,
    )
    again = np.random.default_rng(7)
    s = draw_patients(groups[0], again, draws=1, label=label).rows(0)
    t = draw_patients(groups[1], again, draws=1).rows(0)
    alone = estimated(source[s], label[s], target[t])
    for one, other in zip(found.prevalence, alone.prevalence, strict=True):
        assert one.low == pytest.approx(other.estimate, abs=1e-7)


def test_the_range_spans_the_intervals_of_all_formulas():
    """Every number lies in its interval, and every interval in the range."""
    rng = np.random.default_rng(15)
    source, label = draw_scores(rng, 500)
    target, _ = draw_scores(rng, 200, 0.8)
    found = estimated(source, label, target, draws=40)
    assert list(found.accuracy) == list(FORMULAS)
    intervals = found.accuracy.values()
    assert all(one.low < one.estimate < one.high for one in intervals)
    assert found.low == min(one.low for one in intervals)
    assert found.high == max(one.high for one in intervals)
    assert sum(one.estimate for one in found.prevalence) == pytest.approx(1)


def test_a_class_that_is_never_predicted_has_estimates_too():
    """Three classes, one of them never called on the source."""
    rng = np.random.default_rng(13)
    source = rng.dirichlet([4, 4, 1], 300)
    source[:, 2] = np.minimum(source[:, 2], source[:, :2].max(axis=1) / 2)
    source /= source.sum(axis=1, keepdims=True)
    label = np.array([rng.choice(3, p=row) for row in source])
    found = estimated(source, label, rng.dirichlet([1, 1, 3], 100), draws=20)
    assert all(
        0 <= one.low <= one.high <= 1 for one in (*found.accuracy.values(), *found.prevalence)
    )


def test_a_head_without_an_error_on_the_source_is_estimated():
    """Where scores separate the classes the calibration stays finite."""
    rng = np.random.default_rng(14)
    label = np.arange(60) % 2
    sure = np.clip(0.5 + (label - 0.5) * rng.uniform(0.5, 1, 60), 0, 1)
    proba = np.column_stack([1 - sure, sure])
    assert np.isfinite(fit_calibration(proba, label).slope)
    assert estimated(proba, label, proba, draws=20).high == pytest.approx(1, abs=1e-3)


def test_what_does_not_fit_is_refused():
    """Other classes on the target, or a class without a source image, are named."""
    source, label = draw_scores(np.random.default_rng(17), 50)
    with pytest.raises(StudyError, match="2 and 3 classes"):
        estimated(source, label, np.full((4, 3), 1 / 3))
    with pytest.raises(StudyError, match="every class in the source"):
        estimated(source, np.zeros(50, int), source)


@pytest.mark.parametrize("repeats", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_the_interval_of_the_prevalence_covers(repeats):
    """The bootstrap interval holds the population's prevalence."""
    hits = 0
    for seed in range(repeats):
        rng = np.random.default_rng([16, seed])
        source, label = draw_scores(rng, 400)
        target, _ = draw_scores(rng, 150, 0.8)
        ill = estimated(source, label, target, draws=60, seed=seed).prevalence[1]
        hits += ill.low <= 0.8 <= ill.high
    assert hits / repeats >= 0.8


@pytest.mark.parametrize("repeats", [25, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prevalence", [0.5, 0.8])
def test_the_range_holds_what_labels_would_show(repeats, prevalence):
    """In nine of ten samples and more, with another class mix or without."""
    hits = 0
    for seed in range(repeats):
        rng = np.random.default_rng([18, seed])
        source, label = draw_scores(rng, 400)
        target, truth = draw_scores(rng, 60, prevalence)
        found = estimated(source, label, target, draws=60, seed=seed)
        hits += found.low <= accuracy(target, truth) <= found.high
    assert hits / repeats >= 0.9


# The calibration.


def minimised(proba, label):
    """Slope and bias by a general optimiser."""
    logs, truth = np.log(proba), np.eye(proba.shape[1])[label]

    def loss(theta):
        logits = theta[0] * logs + theta[1:]
        wrong = softmax(logits, axis=1) - truth
        gradient = np.append(np.sum(wrong * logs), wrong.sum(axis=0))
        return -np.sum(log_softmax(logits, axis=1)[truth == 1]), gradient

    start = np.append(1.0, np.zeros(proba.shape[1]))
    options = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 1000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return found[0], found[1:] - found[1]


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_is_the_maximum_of_the_likelihood(classes):
    """As a general optimiser finds it."""
    rng = np.random.default_rng(classes)
    honest = rng.dirichlet(np.ones(classes), 1500)
    label = np.array([rng.choice(classes, p=row) for row in honest])
    timid = softmax(np.log(honest) / 3 + rng.normal(size=classes), axis=1)
    found, (slope, bias) = fit_calibration(timid, label), minimised(timid, label)
    assert found.slope == pytest.approx(slope, rel=1e-3)
    np.testing.assert_allclose(found.bias, bias, atol=3e-3)


# The class mix.


@pytest.mark.parametrize("prevalence", [0.75, 0.3, 0.99, 0.02, 0.5])
def test_the_class_mix_is_the_most_likely_one(prevalence):
    """It equals a direct search of the likelihood's maximum, to 1e-6."""
    target, _ = draw_scores(np.random.default_rng([9, int(100 * prevalence)]), 300, prevalence)
    p = np.array([0.45, 0.55])

    def loss(q):
        return -np.log(target @ (np.array([1 - q, q]) / p)).sum()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    assert estimate_prior(target, p)[1] == pytest.approx(best, abs=1e-6)


def test_weighted_class_mixes_of_a_batch_are_those_of_repeated_rows():
    """Of five classes, some of them absent from the target."""
    rng = np.random.default_rng(8)
    proba = rng.dirichlet([0.3, 0.3, 0.3, 0.02, 0.02], 200)
    prior, weights = np.full(5, 0.2), rng.integers(0, 4, (6, 200))
    batch = estimate_prior(proba, np.tile(prior, (6, 1)), weights=weights)
    for found, times in zip(batch, weights, strict=True):
        alone = estimate_prior(np.repeat(proba, times, axis=0), prior)
        np.testing.assert_allclose(found, alone, atol=1e-6)


def test_a_row_that_is_surely_of_a_class_without_weight_keeps_its_probability():
    """0 / 0 is no probability: every row still sums to one."""
    rows = np.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_array_equal(reweighted(rows, np.array([0.0, 2.0])), [[1, 0], [0, 1]])
