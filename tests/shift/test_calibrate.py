"""Calibration is what the formulas say; thresholds do what their rule says, in both domains."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from pipeline.errors import StudyError, UnknownNameError
from pipeline.evaluation.intervals import agresti_coull
from pipeline.evaluation.metrics import score
from pipeline.shift.calibrate import (
    RULES,
    SENSITIVITY,
    SPECIFICITY,
    brier_parts,
    calibration,
    calibration_line,
    choose_threshold,
    corrected_threshold,
    measure_threshold,
    moved_thresholds,
    quantile_threshold,
    transferred_thresholds,
)
from pipeline.shift.label_free import reweighted
from tests.shift.worlds import domain as world
from tests.shift.worlds import outcomes, scored

# --- calibration


def predicted(rng, n, *, slope=1.0, intercept=0.0):
    """Events and probabilities with a known calibration line."""
    z = 2 * rng.normal(size=n)
    return rng.random(n) < expit(intercept + slope * z), expit(z)


def test_miscalibration_is_what_an_isotonic_recalibration_wins():
    """Scikit-learn's scores of the probabilities and of the recalibrated ones."""
    event, p = predicted(np.random.default_rng(1), 500, slope=0.5)
    p = np.round(p, 2).clip(0.01, 0.99)
    better = IsotonicRegression(out_of_bounds="clip").fit(p, event).predict(p)
    brier, miscalibration = brier_parts(event, p)
    assert brier == pytest.approx(brier_score_loss(event, p))
    assert miscalibration == pytest.approx(brier - brier_score_loss(event, better))
    assert brier_parts(event, better)[1] == pytest.approx(0, abs=1e-12)


def test_the_calibration_line_is_a_logistic_refit():
    """Slope and intercept equal an unpenalised logistic regression, and the truth."""
    event, p = predicted(np.random.default_rng(6), 4000, slope=0.6, intercept=0.5)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], event)
    slope, intercept = calibration_line(event, p)
    assert slope == pytest.approx(oracle.coef_[0, 0], abs=1e-3)
    assert intercept == pytest.approx(oracle.intercept_[0], abs=1e-3)
    assert (slope, intercept) == pytest.approx((0.6, 0.5), abs=0.1)


@pytest.mark.parametrize("p", [np.array([0.0, 0.2, 0.8, 1.0]), np.array([1.0, 0.8, 0.2, 0.0])])
def test_separable_rows_have_a_steep_line(p):
    """Rows that a threshold parts without error: not an overflow; events alike: no line."""
    line = calibration_line(np.array([False, False, True, True]), p)
    assert np.isfinite(line).all()
    assert np.sign(line[0]) == np.sign(p[-1] - p[0])
    assert calibration_line(np.ones(4, bool), p) is None


def test_a_domain_has_every_number():
    """Of two classes the event is the second; of more, that the predicted class is right."""
    rng = np.random.default_rng(9)
    data = world(rng, 300)
    found = calibration(data)
    assert (found.domain, found.event) == ("source", "positive")
    assert found.brier == pytest.approx(brier_score_loss(data.label, data.proba[:, 1]))
    assert (found.slope, found.intercept) == calibration_line(data.label == 1, data.proba[:, 1])
    assert found.ece == score("ece", data.label, data.proba)
    three = calibration(outcomes(rng.random(50) < 0.2, role="target"))
    assert (three.domain, three.event) == ("target", "right")


# --- thresholds


def domain(rng, n, *, role="source", prevalence=0.5, decimals=12):
    """Scores are exact posteriors at prevalence 0.5; the classes overlap."""
    data = world(rng, n, role=role, prevalence=prevalence, reach=1.2)
    return scored(np.round(data.proba[:, 1], decimals), data.label, role=role)


def plain_choice(rule, data):
    """Try every threshold between neighbouring scores with plain counts."""
    p, ill = data.proba[:, 1], data.label == 1
    values = np.unique(p)
    best, chosen = -np.inf, None
    for one in [0.0, *((values[1:] + values[:-1]) / 2), 1.1]:
        sensitivity, specificity = np.mean(p[ill] >= one), np.mean(p[~ill] < one)
        wanted = {
            "youden": sensitivity + specificity,
            "specificity": sensitivity if specificity >= SPECIFICITY else -1,
            "sensitivity": specificity if sensitivity >= SENSITIVITY else -1,
        }[rule]
        if wanted > best + 1e-12:
            best, chosen = wanted, one
    return chosen


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("rule", RULES)
def test_rules_choose_what_a_plain_search_chooses(rule, decimals):
    """Each rule reaches the best value of its aim, with and without ties."""
    data = domain(np.random.default_rng(10), 150, decimals=decimals)
    p = data.proba[:, 1]
    assert np.array_equal(p >= choose_threshold(rule, data), p >= plain_choice(rule, data))


def measured(data, threshold, prevalence=0.5):
    return measure_threshold(data, threshold, prevalence=prevalence)


def test_a_threshold_is_measured_by_counts():
    """Rates with their bounds; predictive values at the own prevalence are the shares."""
    data = domain(np.random.default_rng(13), 300, prevalence=0.3)
    called, ill = data.proba[:, 1] >= 0.6, data.label == 1
    found = measured(data, 0.6, float(ill.mean()))
    bounds = agresti_coull(int(called[ill].sum()), int(ill.sum()))
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(bounds)
    assert found.specificity.estimate == pytest.approx(np.mean(~called[~ill]))
    assert found.ppv == pytest.approx(ill[called].mean())
    assert found.npv == pytest.approx(np.mean(~ill[~called]))
    assert np.isnan(measured(data, 1.1).ppv)


def test_a_corrected_threshold_makes_the_same_calls():
    """Probabilities corrected for a prevalence, at the moved threshold: not a call differs."""
    data = domain(np.random.default_rng(16), 500)
    corrected = reweighted(data.proba, np.array([0.15 / 0.5, 0.85 / 0.5]))[:, 1]
    moved = corrected_threshold(0.37, 0.5, 0.85)
    assert np.array_equal(corrected >= moved, data.proba[:, 1] >= 0.37)


def test_the_threshold_of_the_prior_wins_accuracy_under_label_shift():
    """It makes fewer errors than the threshold as it was; the quantile's makes more."""
    errors = []
    for seed in range(20):
        rng = np.random.default_rng([18, seed])
        source = domain(rng, 1600)
        target = domain(rng, 400, role="target", prevalence=0.9)
        taus = moved_thresholds(0.5, source, target, 0.9)
        errors.append(
            [
                np.mean((target.proba[:, 1] >= taus[way]) != (target.label == 1))
                for way in ("prior", "none", "quantile")
            ]
        )
    mean = np.mean(errors, axis=0)
    assert mean[0] < mean[1] < mean[2]


def test_the_threshold_of_the_quantile_undoes_a_moved_score():
    """After a monotone change of the scores the same share is called as on the source."""
    rng = np.random.default_rng(19)
    source, target = domain(rng, 1600), domain(rng, 400, role="target")
    moved = expit(logit(target.proba[:, 1].clip(1e-9, 1 - 1e-9)) + 3)
    p = source.proba[:, 1]
    tau = quantile_threshold(0.5, p, moved)
    assert np.mean(moved >= tau) == pytest.approx(np.mean(p >= 0.5), abs=1 / 400)
    right, before = (np.mean((moved >= t) == (target.label == 1)) for t in (tau, 0.5))
    assert right > before + 0.05


@pytest.mark.parametrize("changed", [True, False])
def test_thresholds_moved_without_labels_are_flagged_where_the_score_changed(changed):
    """The flag is on ``prior`` and ``quantile`` alone, and only after such a change."""
    rng = np.random.default_rng(7)
    found = transferred_thresholds(
        domain(rng, 300),
        domain(rng, 300, role="target"),
        prevalence=0.5,
        score_changed=changed,
    )
    flagged = {one.moved_by for one in found if not one.reliable}
    assert flagged == ({"prior", "quantile"} if changed else set())
    assert [(one.domain, one.moved_by) for one in found if one.rule == "youden"] == [
        ("source", "none"), ("target", "none"), ("target", "prior"), ("target", "quantile")
    ]  # fmt: skip


def test_what_has_no_threshold_is_refused_or_left_out():
    """An unknown rule, one class only and an impossible prevalence are named."""
    rng = np.random.default_rng(21)
    data, one_class = domain(rng, 50), scored(np.ones(5) / 2, np.ones(5))
    with pytest.raises(UnknownNameError, match="known: youden, specificity, sensitivity"):
        choose_threshold("best", data)
    for refused in (
        lambda: choose_threshold("youden", one_class),
        lambda: measured(one_class, 1.0),
    ):
        with pytest.raises(StudyError, match="images of both classes; source shows one"):
            refused()
    with pytest.raises(StudyError, match=r"a prevalence of 1\.5 is none"):
        measured(data, 0.5, 1.5)
    three = outcomes(rng.random(50) < 0.2)
    for pair in ((data, one_class), (three, three)):
        assert not transferred_thresholds(*pair, prevalence=0.5, score_changed=False)
