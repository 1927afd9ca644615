"""Calibration is what the formulas say; thresholds do what their rule says, in both domains."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from pipeline.evaluation.intervals import clopper_pearson
from pipeline.shift.calibrate import (
    RULES,
    SENSITIVITY,
    SPECIFICITY,
    calibration,
    choose_threshold,
    measure_threshold,
    transferred_thresholds,
)
from tests.made_up import calibrated, outcomes, scored


def test_calibration_is_that_of_scikit_learn():
    """Brier scores of an isotonic fit, and an unpenalised logistic refit of the truth."""
    z = 2 * np.random.default_rng(6).normal(size=4000)
    event = np.random.default_rng(7).random(4000) < expit(0.5 + 0.6 * z)
    p = expit(z).round(3).clip(0.001, 0.999)
    data = scored(p, event)
    row = calibration(data)
    better = IsotonicRegression(out_of_bounds="clip").fit(p, event).predict(p)
    refit = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], event)
    assert row["domain"] == "source"
    assert row["brier"] == pytest.approx(brier_score_loss(event, p))
    assert row["miscalibration"] == pytest.approx(row["brier"] - brier_score_loss(event, better))
    assert row["slope"] == pytest.approx(refit.coef_[0, 0], abs=1e-3)
    assert row["intercept"] == pytest.approx(refit.intercept_[0], abs=1e-3)
    assert (row["slope"], row["intercept"]) == pytest.approx((0.6, 0.5), abs=0.1)
    three = outcomes(event)  # whether the predicted class is right, of which it is sure
    assert calibration(three)["brier"] == pytest.approx(event.mean())


@pytest.mark.parametrize("decimals", [9, 1])
def test_calibration_error_is_of_fifteen_bins_whatever_the_order(decimals):
    """Equal confidences that an edge cuts are as the mean over all their orders."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.56, 1, 150).round(decimals)
    right = rng.random(150) < confidence
    sorts = [np.lexsort((rng.random(150), confidence)) for _ in range(4000)]
    gap = np.mean([(right - confidence)[s] for s in sorts], axis=0)
    loop = sum(abs(part.sum()) for part in np.array_split(gap, 15)) / 150
    error = calibration(scored(confidence, right))["ece"]
    assert error == pytest.approx(loop, abs=5e-3 if decimals == 1 else 1e-12)
    order = rng.permutation(150)
    again = calibration(scored(confidence[order], right[order]))["ece"]
    assert again == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("p", [[0.0, 0.2, 0.8, 1.0], [1.0, 0.8, 0.2, 0.0]])
def test_separable_rows_have_a_steep_line_and_equal_events_none(p):
    """Rows that a threshold parts without error: not an overflow."""
    row = calibration(scored(p, [0, 0, 1, 1]))
    assert np.isfinite([row["slope"], row["intercept"]]).all()
    assert np.sign(row["slope"]) == np.sign(p[-1] - p[0])
    assert calibration(scored(p, np.ones(4)))["slope"] is None


def domain(rng, n, *, role="source", prevalence=0.5, decimals=12):
    """Scores are exact posteriors at prevalence 0.5; the classes overlap."""
    data = calibrated(rng, n, role=role, prevalence=prevalence, reach=1.2)
    return scored(np.round(data.proba[:, 1], decimals), data.label, role=role)


def plain_choice(rule, data):
    """Try every threshold between neighbouring scores with plain counts."""
    p, ill = data.proba[:, 1], data.label == 1
    values = np.unique(p)
    best, chosen = -np.inf, None
    for threshold in [0.0, *((values[1:] + values[:-1]) / 2), 1.1]:
        sensitivity, specificity = np.mean(p[ill] >= threshold), np.mean(p[~ill] < threshold)
        wanted = {
            "youden": sensitivity + specificity,
            "specificity": sensitivity if specificity >= SPECIFICITY else -1,
            "sensitivity": specificity if sensitivity >= SENSITIVITY else -1,
        }[rule]
        if wanted > best + 1e-12:
            best, chosen = wanted, threshold
    return chosen


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("rule", RULES)
def test_rules_choose_what_a_plain_search_chooses(rule, decimals):
    """Each rule reaches the best value of its aim, with and without ties."""
    for seed in range(5):
        data = domain(np.random.default_rng([10, seed]), 150, decimals=decimals)
        chosen, p = choose_threshold(rule, data), data.proba[:, 1]
        assert np.array_equal(p >= chosen, p >= plain_choice(rule, data))


def test_a_threshold_is_measured_by_counts():
    """Rates with their bounds; predictive values at the own prevalence are the shares."""
    data = domain(np.random.default_rng(13), 300, prevalence=0.3)
    called, ill = data.proba[:, 1] >= 0.6, data.label == 1
    row = measure_threshold(data, 0.6, float(ill.mean()))
    bounds = clopper_pearson(int(called[ill].sum()), int(ill.sum()))
    assert (row["sensitivity"]["low"], row["sensitivity"]["high"]) == pytest.approx(bounds)
    assert row["specificity"]["estimate"] == pytest.approx(np.mean(~called[~ill]))
    assert row["ppv"] == pytest.approx(ill[called].mean())
    assert row["npv"] == pytest.approx(np.mean(~ill[~called]))
    assert np.isnan(measure_threshold(data, 1.1, 0.5)["ppv"])


def test_a_threshold_keeps_its_rates_under_another_class_mix():
    """Within their intervals, and unchanged: both domains are measured at what the source chose."""
    pair = (
        domain(np.random.default_rng(7), 2000),
        domain(np.random.default_rng(8), 4000, role="target", prevalence=0.1),
    )
    rows = transferred_thresholds(*pair)
    assert [(row["rule"], row["domain"]) for row in rows] == [
        (rule, role) for rule in RULES for role in ("source", "target")
    ]
    for at_source, at_target in zip(rows[::2], rows[1::2], strict=True):
        assert at_source["threshold"] == at_target["threshold"]
        for rate in ("sensitivity", "specificity"):
            assert at_target[rate]["estimate"] == pytest.approx(
                at_source[rate]["estimate"], abs=0.05
            )


def test_one_class_and_three_have_no_threshold():
    """There is no second class to call, or more than one."""
    rng = np.random.default_rng(21)
    three = outcomes(rng.random(50) < 0.2)
    for pair in ((domain(rng, 50), scored(np.ones(5) / 2, np.ones(5))), (three, three)):
        assert not transferred_thresholds(*pair)
