"""Accuracy without labels: right where the assumption holds, and the range holds it."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from pipeline.data.patients import draw_patients
from pipeline.evaluation.intervals import clopper_pearson
from pipeline.shift.label_free import (
    FORMULAS,
    estimate_accuracy,
    estimate_prior,
    fit_temperature_scaling,
    without_accuracy,
)
from tests.made_up import calibrated, scored


def draw_scores(rng, n, prevalence=0.5, slope=1.0):
    """Probabilities and labels; the best accuracy is 92.3 %."""
    data = calibrated(rng, n, prevalence=prevalence, reach=1.425, slope=slope)
    return data.proba, data.label


def estimated(source, label, target, *, draws=2, seed=0, groups=(None, None)):
    """Estimates of one world."""
    both = scored(source, label, group=groups[0]), scored(target, None, group=groups[1])
    classes = "abcde"[: np.max(label) + 1]
    return estimate_accuracy(*both, np.random.default_rng(seed), classes=classes, draws=draws)


def by_method(result):
    return {row["method"]: row["estimate"] for row in result["estimates"]}


def accuracy(proba, label):
    """Share of right predictions."""
    return float(np.mean(proba.argmax(axis=1) == label))


@pytest.mark.parametrize("repeats", [25, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("prevalence", "names"), [(0.5, list(FORMULAS)), (0.8, ["label_shift"])])
def test_estimates_are_right_where_their_assumption_holds(repeats, prevalence, names):
    """Two samples of one population, overconfident: all; another class mix: label_shift."""
    off = []
    for repeat in range(repeats):
        rng = np.random.default_rng([1, repeat])
        source, label = draw_scores(rng, 1600, slope=1.5)
        target, truth = draw_scores(rng, 400, prevalence, slope=1.5)
        estimates = by_method(estimated(source, label, target))
        off.append([estimates[name] - accuracy(target, truth) for name in names])
    off = np.array(off)
    sd = np.sqrt(0.923 * 0.077 / 400)
    # Both the source's 1600 and the target's 400 labels are drawn: 1.1 to 1.5 of that sd.
    assert np.all(np.mean(np.abs(off) < 2 * sd, axis=0) > 0.75)
    assert np.all(np.abs(off.mean(axis=0)) < 0.004 + 4 * off.std(axis=0) / np.sqrt(repeats))


def test_formulas_are_their_definitions_and_the_range_spans_their_intervals():
    """ATC: below its threshold lie as many source images as are wrong; DoC: confidence drops.

    Label shift: the source's recall in each class, at the class mix of the target.
    """
    rng = np.random.default_rng(3)
    source, label = draw_scores(rng, 400)
    target, _ = draw_scores(rng, 300, 0.7)
    calibrate = fit_temperature_scaling(source, label)
    right = source.argmax(axis=1) == label
    result = estimated(source, label, target, draws=40)
    sure, sure_t = (calibrate(p)[np.arange(len(p)), p.argmax(axis=1)] for p in (source, target))
    off = [abs(np.mean(sure < threshold) - np.mean(~right)) for threshold in sure]
    above = np.mean(sure_t >= sure[np.argmin(off)])
    assert by_method(result)["atc"] == pytest.approx(above)
    drop = sure.mean() - sure_t.mean()
    assert by_method(result)["doc"] == pytest.approx(right.mean() - drop)
    mix = estimate_prior(calibrate(target), np.bincount(label) / len(label))
    recall = [right[label == k].mean() for k in (0, 1)]
    assert by_method(result)["label_shift"] == pytest.approx(mix @ recall)
    assert sum(share["estimate"] for share in result["prevalence"]) == pytest.approx(1)
    assert result["low"] == min(row["low"] for row in result["estimates"]) < above
    # Even if the expected accuracy were known, that of 300 images would vary.
    for row in result["estimates"]:
        a = row["estimate"]
        low, high = clopper_pearson(a * 300, 300)
        assert row["low"] < low < high < row["high"]
    withheld = without_accuracy(result)
    assert (withheld["low"], withheld["high"], withheld["estimates"]) == (None, None, [])
    assert "not estimated" in withheld["warning"]


def test_the_bootstrap_repeats_everything_on_drawn_patients():
    """One draw of the batch is what repeating the drawn rows gives, calibration included."""
    rng = np.random.default_rng(4)
    source, label = draw_scores(rng, 200, slope=1.5)
    target, _ = draw_scores(rng, 90, 0.7, slope=1.5)
    groups = np.arange(200) // 2, np.arange(90) // 3
    once = estimated(source, label, target, draws=1, seed=7, groups=groups)
    again = np.random.default_rng(7)
    weights = (
        draw_patients(groups[0], again, draws=1, label=label).weights()[0].astype(int),
        draw_patients(groups[1], again, draws=1).weights()[0].astype(int),
    )
    s, t = (np.repeat(np.arange(drawn.size), drawn) for drawn in weights)
    alone = estimated(source[s], label[s], target[t])
    for drawn, repeated in zip(once["prevalence"], alone["prevalence"], strict=True):
        assert drawn["low"] == pytest.approx(repeated["estimate"], abs=1e-7)


def test_odd_heads_have_estimates_too():
    """A class that is never called on the source; a head without an error there."""
    rng = np.random.default_rng(13)
    source = rng.dirichlet([4, 4, 1], 300)
    source[:, 2] = np.minimum(source[:, 2], source[:, :2].max(axis=1) / 2)
    source /= source.sum(axis=1, keepdims=True)
    label = np.array([rng.choice(3, p=row) for row in source])
    result = estimated(source, label, rng.dirichlet([1, 1, 3], 100), draws=20)
    shares = (*result["estimates"], *result["prevalence"])
    assert all(0 <= share["low"] <= share["high"] <= 1 for share in shares)
    label = np.arange(60) % 2
    sure = np.clip(0.5 + (label - 0.5) * rng.uniform(0.5, 1, 60), 0, 1)
    perfect = np.column_stack([1 - sure, sure])
    assert estimated(perfect, label, perfect, draws=20)["high"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("repeats", [15, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("prevalence", [0.5, 0.8])
def test_the_range_holds_what_labels_would_show(repeats, prevalence):
    """In nine of ten samples and more, with another class mix or without; the mix in eight."""
    hits = []
    for seed in range(repeats):
        rng = np.random.default_rng([18, seed])
        source, label = draw_scores(rng, 400)
        target, truth = draw_scores(rng, 60, prevalence)
        result = estimated(source, label, target, draws=60, seed=seed)
        ill = result["prevalence"][1]
        held = result["low"] <= accuracy(target, truth) <= result["high"]
        hits.append([held, ill["low"] <= prevalence <= ill["high"]])
    accuracy_held, mix_held = np.mean(hits, axis=0)
    assert accuracy_held >= 0.9
    assert mix_held >= 0.8


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_is_the_maximum_of_the_likelihood(classes):
    """No step from it makes the labels likelier; the truth is found again."""
    rng = np.random.default_rng(classes)
    honest = rng.dirichlet(np.ones(classes), 1500)
    label = np.array([rng.choice(classes, p=row) for row in honest])
    bias = rng.normal(size=classes)
    timid = softmax(np.log(honest) / 3 + bias, axis=1)
    fit = fit_temperature_scaling(timid, label)

    def likelihood(slope, offset):
        proba = softmax(slope * np.log(timid) + offset, axis=1)
        return np.log(proba[np.arange(1500), label]).sum()

    best = likelihood(fit.slope, fit.bias)
    for slope, step in ((0.02, 0), (-0.02, 0), *((0, s) for s in 0.02 * np.eye(classes)[1:])):
        assert likelihood(fit.slope + slope, fit.bias + step) < best
    assert fit.slope == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(fit.bias, 3 * (bias[0] - bias), atol=0.4)


@pytest.mark.parametrize("prevalence", [0.75, 0.3, 0.99, 0.02, 0.5])
def test_the_class_mix_is_the_most_likely_one(prevalence):
    """It equals a direct search of the likelihood's maximum, to 1e-6."""
    target, _ = draw_scores(np.random.default_rng([9, int(100 * prevalence)]), 300, prevalence)
    p = np.array([0.45, 0.55])

    def loss(q):
        return -np.log(target @ (np.array([1 - q, q]) / p)).sum()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    assert estimate_prior(target, p)[1] == pytest.approx(best, abs=1e-6)


def test_a_weighted_class_mix_is_that_of_repeated_rows():
    """Of five classes, some of them absent from the target."""
    rng = np.random.default_rng(8)
    proba = rng.dirichlet([0.3, 0.3, 0.3, 0.02, 0.02], 200)
    prior, times = np.full(5, 0.2), rng.integers(0, 4, 200)
    alone = estimate_prior(np.repeat(proba, times, axis=0), prior)
    np.testing.assert_allclose(estimate_prior(proba, prior, weights=times), alone, atol=1e-6)
