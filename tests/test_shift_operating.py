"""Thresholds chosen on the source do what their rule says, and are carried honestly."""

import numpy as np
import pytest
from scipy.special import expit, logit

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError, UnknownNameError
from pipeline.evaluation.intervals import Interval, wilson
from pipeline.shift.calibrate import (
    corrected_threshold,
    quantile_threshold,
    rethresholds,
    soundness,
)
from pipeline.shift.domains import Cohort
from pipeline.shift.label_free import estimate_accuracy, estimate_prior, reweighted
from pipeline.shift.operating import (
    RULES,
    OperatingSettings,
    Scores,
    choose_threshold,
    operate,
    predictive_values,
    roc_of,
)


def domain(rng, n, *, prevalence=0.5, reach=1.2, decimals=12):
    """Draw one domain; the scores are exact posteriors at prevalence 0.5."""
    positive = rng.random(n) < prevalence
    signal = rng.normal(size=n) + reach * (2 * positive - 1)
    return Scores(
        probability=np.round(expit(2 * reach * signal), decimals),
        positive=positive,
        groups=np.arange(n),
    )


def plain_choice(rule, scores, settings):
    """Try every threshold between neighbouring scores with plain counts."""
    values = np.unique(scores.probability)
    tried = [0.0, *((values[1:] + values[:-1]) / 2), 1.1]
    ill, healthy = scores.positive, ~scores.positive
    best, chosen = -np.inf, None
    for one in tried:
        found = np.mean(scores.probability[ill] >= one)
        spared = np.mean(scores.probability[healthy] < one)
        wanted = {
            "youden": found + spared,
            "specificity": found if spared >= settings.specificity else -1,
            "sensitivity": spared if found >= settings.sensitivity else -1,
            "cost": -(ill.mean() * (1 - found) * settings.cost_ratio)
            - healthy.mean() * (1 - spared),
        }[rule]
        if wanted > best + 1e-12:
            best, chosen = wanted, one
    return best, chosen


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("rule", RULES)
def test_rules_choose_what_a_plain_search_chooses(rule, decimals):
    """Each rule reaches the best value of its aim, with and without ties."""
    settings = OperatingSettings(cost_ratio=4.0)
    scores = domain(np.random.default_rng(10), 150, decimals=decimals)
    tau = choose_threshold(rule, scores, settings)
    _, chosen = plain_choice(rule, scores, settings)
    assert np.array_equal(scores.probability >= tau, scores.probability >= chosen)


def test_rules_keep_their_promise_on_the_source():
    """The asked-for specificity and sensitivity are reached where the rule was applied."""
    rng = np.random.default_rng(11)
    scores = domain(rng, 500)
    spared = operate(scores, choose_threshold("specificity", scores), rng).specificity
    found = operate(scores, choose_threshold("sensitivity", scores), rng).sensitivity
    assert spared.estimate >= 0.90
    assert found.estimate >= 0.95


def test_roc_runs_from_all_to_none():
    """The ends call everything and nothing positive."""
    roc = roc_of(domain(np.random.default_rng(12), 60))
    assert (roc.sensitivity[0], roc.specificity[0]) == (1, 0)
    assert (roc.sensitivity[-1], roc.specificity[-1]) == (0, 1)
    assert np.all(np.diff(roc.thresholds) > 0)


def test_carried_point_has_wilson_intervals():
    """Sensitivity and specificity are counts of the target, with Wilson's bounds."""
    rng = np.random.default_rng(13)
    scores = domain(rng, 300, prevalence=0.3)
    point = operate(scores, 0.6, rng)
    called, ill = scores.probability >= 0.6, scores.positive
    assert (point.sensitivity.low, point.sensitivity.high) == wilson(
        int(called[ill].sum()), int(ill.sum())
    )
    assert point.specificity.estimate == pytest.approx(np.mean(~called[~ill]))
    assert point.called == pytest.approx(called.mean())


def test_predictive_value_at_the_own_prevalence_is_the_count():
    """At the domain's own prevalence PPV and NPV are the shares among the called."""
    rng = np.random.default_rng(14)
    scores = domain(rng, 400, prevalence=0.3)
    settings = OperatingSettings(prevalences={"own": float(scores.positive.mean())})
    values = operate(scores, 0.5, rng, settings).predictive["own"]
    called = scores.probability >= 0.5
    assert values.ppv[0] == pytest.approx(scores.positive[called].mean())
    assert values.npv[0] == pytest.approx(np.mean(~scores.positive[~called]))
    assert values.ppv[1] < values.ppv[0] < values.ppv[2]


def test_predictive_interval_covers():
    """The bounds at a stated prevalence hold the true PPV at least as often as they say."""
    true = {"se": 0.9, "sp": 0.8, "pi": 0.1}
    ppv = true["se"] * 0.1 / (true["se"] * 0.1 + 0.2 * 0.9)
    hits = 0
    rng = np.random.default_rng(15)
    for _ in range(300):
        counts = rng.binomial(150, [true["se"], true["sp"]])
        rates = [
            Interval(estimate=c / 150, low=lo, high=hi, images=150, patients=150, method="Wilson")
            for c in counts
            for lo, hi in [wilson(int(c), 150)]
        ]
        _, low, high = predictive_values(*rates, true["pi"]).ppv
        hits += low <= ppv <= high
    assert hits / 300 >= 0.93


def test_corrected_threshold_makes_the_same_calls():
    """Probabilities corrected for a prevalence, at the moved threshold: not a call differs."""
    scores = domain(np.random.default_rng(16), 500)
    two = np.column_stack([1 - scores.probability, scores.probability])
    corrected = reweighted(two, np.array([0.15 / 0.5, 0.85 / 0.5]))[:, 1]
    moved = corrected_threshold(0.37, 0.5, 0.85)
    assert np.array_equal(corrected >= moved, scores.probability >= 0.37)


@pytest.mark.parametrize("repeats", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_logit_shift_restores_the_operating_point_under_label_shift(repeats):
    """D-T3: prior-corrected scores keep S's rates at the moved threshold, not at the old one."""
    moved, left = [], []
    for seed in range(repeats):
        rng = np.random.default_rng([17, seed])
        source, target = domain(rng, 1600), domain(rng, 400, prevalence=0.8)
        tau = choose_threshold("youden", source)
        two = np.column_stack([1 - target.probability, target.probability])
        prior = estimate_prior(two, np.array([0.5, 0.5]))
        corrected = Scores(
            probability=reweighted(two, prior / 0.5)[:, 1],
            positive=target.positive,
            groups=target.groups,
        )
        aims = operate(source, tau, rng)
        for kept, threshold in (
            (moved, corrected_threshold(tau, 0.5, float(prior[1]))),
            (left, tau),
        ):
            point = operate(corrected, threshold, rng)
            kept.append(
                [
                    point.sensitivity.estimate - aims.sensitivity.estimate,
                    point.specificity.estimate - aims.specificity.estimate,
                ]
            )
    # One binomial sd of a rate of 0.88 on the 320 ill and the 80 healthy of a target.
    sd = np.sqrt(0.88 * 0.12 / np.array([320, 80]))
    assert np.all(np.abs(np.mean(moved, axis=0)) < sd)
    assert np.all(np.abs(np.mean(left, axis=0)) > sd)


def test_prior_threshold_wins_accuracy_under_label_shift():
    """The prior's threshold makes fewer errors than the carried one; the quantile's makes more."""
    errors = []
    for seed in range(20):
        rng = np.random.default_rng([18, seed])
        source, target = domain(rng, 1600), domain(rng, 400, prevalence=0.9)
        taus = rethresholds(choose_threshold("cost", source), source, target.probability, 0.9)
        wrong = {
            name: np.mean((target.probability >= tau) != target.positive)
            for name, tau in taus.items()
        }
        errors.append([wrong["prior"], wrong["carried"], wrong["quantile"]])
    mean = np.mean(errors, axis=0)
    assert mean[0] < mean[1] < mean[2]


def test_quantile_threshold_mends_a_moved_score():
    """After a monotone change of the scores the same share is called as on the source."""
    rng = np.random.default_rng(19)
    source, target = domain(rng, 1600), domain(rng, 400)
    moved = expit(logit(target.probability.clip(1e-9, 1 - 1e-9)) + 3)
    tau = quantile_threshold(0.5, source.probability, moved)
    assert np.mean(moved >= tau) == pytest.approx(np.mean(source.probability >= 0.5), abs=1 / 400)
    mended = np.mean((moved >= tau) == target.positive)
    assert mended > np.mean((moved >= 0.5) == target.positive) + 0.05


@pytest.mark.parametrize("tau", [0.0, np.nextafter(1.0, 2.0)])
def test_quantile_threshold_keeps_the_extremes(tau):
    """Calling all or none on the source means all or none on the target."""
    rng = np.random.default_rng(20)
    source, target = rng.random(50), rng.random(30)
    found = quantile_threshold(tau, source, target)
    assert np.all((target >= found) == (tau == 0))


@pytest.mark.parametrize("changed", [True, False])
def test_thresholds_moved_without_labels_are_flagged_where_y_given_score_changed(changed):
    """D-T3: the flag is on ``prior`` and ``quantile`` alone, and only after such a change."""
    rng = np.random.default_rng(7)
    sides = []
    for start in (0, 1000):
        scores = domain(rng, 300)
        sides.append(
            Cohort(
                features=scores.probability[:, None],
                probabilities=np.stack([1 - scores.probability, scores.probability], axis=1),
                groups=scores.groups + start,
                labels=scores.positive.astype(np.intp),
            )
        )
    rows = [
        DomainData(name=n, role=n, group=s.groups, label=s.labels, proba=s.probabilities)
        for n, s in zip(("source", "target"), sides, strict=True)
    ]
    estimate = estimate_accuracy(*rows, rng, draws=20)
    found = soundness(*sides, estimate, rng, score_changed=changed)
    flagged = {use.way for use in found.operating if not use.reliable}
    assert flagged == ({"prior", "quantile"} if changed else set())
    assert {use.way for use in found.operating} == {"chosen", "carried", "prior", "quantile"}


def test_operating_refuses_what_it_cannot_answer():
    """An unknown rule, one class only and an impossible prevalence are named."""
    rng = np.random.default_rng(21)
    scores = domain(rng, 50)
    one_class = Scores(probability=np.ones(5) / 2, positive=np.ones(5, bool), groups=np.arange(5))
    with pytest.raises(UnknownNameError, match="known: youden, specificity, sensitivity, cost"):
        choose_threshold("best", scores)
    for refused in (
        lambda: choose_threshold("youden", one_class),
        lambda: operate(one_class, 1, rng),
    ):
        with pytest.raises(StudyError, match="images of both classes"):
            refused()
    with pytest.raises(StudyError, match="a prevalence of 1.5 is none"):
        operate(scores, 0.5, rng, OperatingSettings(prevalences={"x": 1.5}))
