"""Calibration is what the formulas say; thresholds do what their rule says, in both domains."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from pipeline.errors import StudyError, UnknownNameError
from pipeline.evaluation.intervals import agresti_coull
from pipeline.shift.calibrate import (
    RULES,
    SENSITIVITY,
    SPECIFICITY,
    brier_parts,
    calibration,
    calibration_error,
    calibration_line,
    choose_threshold,
    corrected_threshold,
    measure_threshold,
    moved_thresholds,
    quantile_threshold,
    transferred_thresholds,
)
from pipeline.shift.label_free import estimate_prior, reweighted
from tests.shift.worlds import domain as world
from tests.shift.worlds import outcomes, scored

# --- calibration


def predicted(rng, n, *, slope=1.0, intercept=0.0):
    """Events and probabilities with a known calibration line."""
    z = 2 * rng.normal(size=n)
    return rng.random(n) < expit(intercept + slope * z), expit(z)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40))
def test_parts_of_the_brier_score_add_up_and_none_is_negative(rows):
    """Score = miscalibration - discrimination + uncertainty, for any events."""
    event, p = map(np.array, zip(*rows, strict=True))
    score, *parts = brier_parts(event, p)
    assert score == pytest.approx(parts[0] - parts[1] + parts[2], abs=1e-9)
    assert min(parts) >= -1e-9


def test_parts_of_the_brier_score_are_those_of_an_isotonic_recalibration():
    """Scikit-learn's scores of the probabilities, the recalibrated ones, and the rate."""
    event, p = predicted(np.random.default_rng(1), 500, slope=0.5)
    p = np.round(p, 2).clip(0.01, 0.99)
    better = IsotonicRegression(out_of_bounds="clip").fit(p, event).predict(p)
    score, miscalibration, _, uncertainty = brier_parts(event, p)
    assert score == pytest.approx(brier_score_loss(event, p))
    assert miscalibration == pytest.approx(score - brier_score_loss(event, better))
    assert uncertainty == pytest.approx(brier_score_loss(event, np.full(500, event.mean())))
    _, nothing, discrimination, _ = brier_parts(event, better)
    assert nothing == pytest.approx(0, abs=1e-12)
    assert discrimination > 0


def test_what_is_no_probability_is_refused():
    """A logit in place of a probability is named."""
    with pytest.raises(StudyError, match="one probability from 0 to 1"):
        brier_parts(np.array([True, False]), np.array([2.0, 0.1]))


def test_plug_in_error_is_the_formula():
    """Bins of equal mass, written out with a plain loop."""
    rng = np.random.default_rng(3)
    event, p = predicted(rng, 307)
    total = 0.0
    for rows in np.array_split(np.argsort(p, kind="stable"), 15):
        total += len(rows) * abs(event[rows].mean() - p[rows].mean())
    found = calibration_error(event, p, rng, draws=10)
    assert found.plug_in == pytest.approx(total / 307)


def test_the_order_of_rows_changes_no_calibration_error():
    """Rows of one probability share their rate, so none of them is the first of a bin."""
    event, p = np.repeat([0, 1], 50), np.full(100, 0.5)
    found = calibration_error(event, p, np.random.default_rng(0), draws=99)
    assert found.plug_in == pytest.approx(0)
    assert found.p == 1
    rng = np.random.default_rng(1)
    event, p = predicted(rng, 300)
    p, order = np.round(p, 1), rng.permutation(300)
    one, other = (
        calibration_error(e, q, rng, 9) for e, q in ((event, p), (event[order], p[order]))
    )
    assert one.plug_in == pytest.approx(other.plug_in)


def test_calibrated_probabilities_show_no_error():
    """Debiasing takes off what the plug-in value shows of perfect probabilities, mostly."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng([4, seed])
        found.append(calibration_error(*predicted(rng, 600), rng, draws=99))
    plug_in, if_calibrated = (
        np.mean([getattr(one, name) for one in found]) for name in ("plug_in", "if_calibrated")
    )
    assert plug_in == pytest.approx(if_calibrated, rel=0.1)
    assert np.mean([one.debiased for one in found]) < 0.6 * plug_in
    assert np.mean([one.p <= 0.05 for one in found]) <= 0.15


def test_the_debiased_error_is_the_true_one_where_that_is_large():
    """Where probabilities are off by far, nothing is taken off that should stay."""
    rng = np.random.default_rng(5)
    z = 2 * rng.normal(size=200_000)
    true = np.abs(expit(0.3 * z) - expit(z)).mean()
    found = [
        calibration_error(*predicted(np.random.default_rng([5, s]), 600, slope=0.3), rng, draws=19)
        for s in range(60)
    ]
    assert np.mean([one.debiased for one in found]) == pytest.approx(true, abs=0.006)
    assert all(one.p == 0.05 for one in found)


def test_the_calibration_line_is_a_logistic_refit():
    """Slope and intercept equal an unpenalised logistic regression, and the truth."""
    event, p = predicted(np.random.default_rng(6), 4000, slope=0.6, intercept=0.5)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], event)
    slope, intercept = calibration_line(event, p)
    assert slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert intercept == pytest.approx(oracle.intercept_[0], abs=1e-4)
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
    found = calibration(data, rng)
    assert (found.domain, found.event) == ("source", "positive")
    assert found.brier == pytest.approx(brier_score_loss(data.label, data.proba[:, 1]))
    assert (found.slope, found.intercept) == calibration_line(data.label == 1, data.proba[:, 1])
    three = calibration(outcomes(rng.random(50) < 0.2, role="target"), rng)
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


def test_rules_keep_their_promise_on_the_source():
    """The asked-for specificity and sensitivity are reached where the rule was applied."""
    data = domain(np.random.default_rng(11), 500)
    at = {rule: measured(data, choose_threshold(rule, data)) for rule in RULES}
    assert at["specificity"].specificity.estimate >= SPECIFICITY
    assert at["sensitivity"].sensitivity.estimate >= SENSITIVITY


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


@pytest.mark.parametrize("repeats", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_moved_threshold_restores_the_rates_under_label_shift(repeats):
    """Prior-corrected scores keep the source's rates at the moved threshold, not at the old."""
    moved, left = [], []
    for seed in range(repeats):
        rng = np.random.default_rng([17, seed])
        source = domain(rng, 1600)
        target = domain(rng, 400, role="target", prevalence=0.8)
        tau = choose_threshold("youden", source)
        prior = estimate_prior(target.proba, np.array([0.5, 0.5]))
        corrected = target.with_(proba=reweighted(target.proba, prior / 0.5))
        aims = measured(source, tau)
        for kept, threshold in (
            (moved, corrected_threshold(tau, 0.5, float(prior[1]))),
            (left, tau),
        ):
            found = measured(corrected, threshold)
            kept.append(
                [
                    found.sensitivity.estimate - aims.sensitivity.estimate,
                    found.specificity.estimate - aims.specificity.estimate,
                ]
            )
    # One binomial sd of a rate of 0.88 on the 320 ill and the 80 healthy of a target.
    sd = np.sqrt(0.88 * 0.12 / np.array([320, 80]))
    assert np.all(np.abs(np.mean(moved, axis=0)) < sd)
    assert np.all(np.abs(np.mean(left, axis=0)) > sd)


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


@pytest.mark.parametrize("tau", [0.0, np.nextafter(1.0, 2.0)])
def test_the_threshold_of_the_quantile_keeps_the_extremes(tau):
    """Calling all or none on the source means all or none on the target."""
    rng = np.random.default_rng(20)
    source, target = rng.random(50), rng.random(30)
    found = quantile_threshold(tau, source, target)
    assert np.all((target >= found) == (tau == 0))


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
