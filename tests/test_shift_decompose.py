"""A loss is taken apart into terms that add up, and no term claims more than it may."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from pipeline.errors import StudyError
from pipeline.shift.decompose import (
    DecomposeSettings,
    decompose,
    kitagawa,
    score_identity,
)
from pipeline.shift.domains import Cohort
from pipeline.shift.effects import dominant, labelled

FAST = DecomposeSettings(draws=300)


def cohort(rng, n, *, prevalence=0.5, reach=1.5, move=0.0, first=0):
    """Draw two classes with exact posteriors at prevalence 0.5; ``move`` adds to the logit."""
    labels = (rng.random(n) < prevalence).astype(int)
    signal = rng.normal(size=n) + reach * (2 * labels - 1)
    positive = expit(2 * reach * signal + move)
    return Cohort(
        features=np.column_stack([signal, rng.normal(size=(n, 3))]),
        probabilities=np.column_stack([1 - positive, positive]),
        groups=np.arange(n) + first,
        labels=labels,
    )


def known(rng, labels, wrong, first=0, draws=50):
    """Build a labelled domain with given outcomes."""
    n, classes = len(labels), 3
    called = np.where(wrong, (labels + 1) % classes, labels)
    return labelled(
        Cohort(
            features=np.zeros((n, 1)),
            probabilities=np.eye(classes)[called],
            groups=np.arange(n) + first,
            labels=labels,
        ),
        rng,
        draws,
    )


outcomes = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=3, max_size=40)


@given(outcomes, outcomes)
def test_kitagawa_terms_add_up_to_the_gap(source, target):
    """A-T1: mix + rate = e_T - e_S to 1e-12, whatever classes a domain lacks."""
    rng = np.random.default_rng(0)
    s, t = (known(rng, *map(np.array, zip(*rows, strict=True))) for rows in (source, target))
    terms = kitagawa(s, t)
    total = sum(gap.estimate for gap in terms.values())
    assert total == pytest.approx(t.error() - s.error(), abs=1e-12)


def test_a_handful_of_images_without_an_error_refutes_nothing():
    """Draws of three right images agree; neither the loss nor Y given the score is settled."""
    rng = np.random.default_rng(4)
    source, target = cohort(rng, 300, reach=0.7), cohort(rng, 3, reach=0.7, first=1000)
    target = replace(target, labels=target.probabilities.argmax(axis=1))
    found = decompose(source, target, FAST)
    for gap in (found.total, found.kitagawa["rate"], found.score.terms["y_given_score"]):
        assert gap.low < 0 < gap.high


def test_of_terms_that_are_nothing_none_is_the_largest():
    """No head errs: ties are shared, and every view allows for errors that nobody saw."""
    rng = np.random.default_rng(5)
    sides = [replace(cohort(rng, 20, first=first), labels=None) for first in (0, 100)]
    source, target = (replace(s, labels=s.probabilities.argmax(axis=1)) for s in sides)
    found = decompose(source, target, FAST)
    for family in (found.kitagawa, found.score.terms):
        assert [gap.p_largest for gap in family.values()] == [0.5, 0.5]
        assert dominant(family) is None
    shift, changed = found.score.terms["confidence_shift"], found.score.terms["y_given_score"]
    assert shift.low < 0 == shift.high
    assert changed.low == 0 < changed.high
    assert found.threshold.terms["discrimination"].low < 0


def test_kitagawa_is_the_formula():
    """Both terms equal the sums over classes, written out with plain loops."""
    rng = np.random.default_rng(1)
    sides = [
        known(rng, rng.choice(3, n, p=p), rng.random(n) < e)
        for n, p, e in ((200, (0.2, 0.3, 0.5), 0.1), (150, (0.5, 0.3, 0.2), 0.3))
    ]
    mix = rates = 0.0
    for k in range(3):
        p, q = (np.mean(side.labels == k) for side in sides)
        e_p, e_q = (side.wrong[side.labels == k].mean() for side in sides)
        mix += (q - p) * (e_p + e_q) / 2
        rates += (e_q - e_p) * (p + q) / 2
    terms = kitagawa(*sides)
    assert terms["mix"].estimate == pytest.approx(mix, abs=1e-12)
    assert terms["rate"].estimate == pytest.approx(rates, abs=1e-12)


def test_kitagawa_mix_is_nothing_when_the_mix_is_equal():
    """A-T1: equal class shares leave no mix term."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    terms = kitagawa(known(rng, labels, rng.random(60) < 0.1), known(rng, labels, labels == 1))
    assert terms["mix"].estimate == pytest.approx(0, abs=1e-15)


def test_kitagawa_rate_is_nothing_when_the_rates_are_equal():
    """A-T1: equal errors within the classes leave no rate term."""
    rng = np.random.default_rng(3)
    wrong = np.tile([True, False, False, False, False], 12)
    source, target = np.repeat([0, 1, 2], [30, 20, 10]), np.repeat([0, 1, 2], [10, 15, 35])
    hard = (source == 0) & wrong, (target == 0) & wrong
    terms = kitagawa(known(rng, source, hard[0]), known(rng, target, hard[1]))
    assert terms["rate"].estimate == pytest.approx(0, abs=1e-15)
    assert terms["mix"].estimate < 0


def test_kitagawa_counts_a_lacking_class_as_mix():
    """A class that the target lacks takes its errors along: all of that is mix, none is rate."""
    rng = np.random.default_rng(4)
    source, target = np.repeat([0, 1], 20), np.repeat([0], 20)
    terms = kitagawa(known(rng, source, source == 1), known(rng, target, target == 1))
    assert terms["mix"].estimate == pytest.approx(-0.5)
    assert terms["rate"].estimate == pytest.approx(0)


def test_score_identity_is_exact():
    """A-T5: what importance mapping misses is the Y|score term, to 1e-12."""
    rng = np.random.default_rng(7)
    s = labelled(cohort(rng, 300), rng, 50)
    t = labelled(cohort(rng, 200, prevalence=0.8, move=2), rng, 50)
    split = score_identity(s, t)
    missed = t.error() - split.expected_error
    assert split.terms["y_given_score"].estimate == pytest.approx(missed, abs=1e-12)
    total = sum(gap.estimate for gap in split.terms.values())
    assert total == pytest.approx(t.error() - s.error(), abs=1e-12)


def test_decompose_names_a_moved_threshold():
    """Scores that all rise: the threshold carries the loss and the AUROC none of it."""
    rng = np.random.default_rng(19)
    found = decompose(cohort(rng, 800), cohort(rng, 400, move=4, first=1000), FAST)
    assert dominant(found.threshold.terms) == "transfer"
    assert abs(found.threshold.auroc_loss.estimate) < 0.02
    assert dominant(found.kitagawa) == "rate"


def test_decompose_names_the_class_mix():
    """More of the class that the head gets wrong: the mix carries the loss."""
    rng = np.random.default_rng(20)
    source = cohort(rng, 1500, move=-3, prevalence=0.2)
    target = cohort(rng, 800, move=-3, prevalence=0.8, first=2000)
    found = decompose(source, target, FAST)
    assert dominant(found.kitagawa) == "mix"


def test_decompose_is_silent_when_nothing_shifted():
    """Two samples of one population: the loss contains 0 and no term of it is a cause."""
    rng = np.random.default_rng(21)
    found = decompose(cohort(rng, 800), cohort(rng, 400, first=1000), FAST)
    assert found.total.low <= 0 <= found.total.high
    families = [found.kitagawa, found.score.terms, found.threshold.terms]
    assert [dominant(terms) for terms in families] == [None] * 3


def test_decompose_gives_the_same_numbers_twice():
    """The seed decides all draws."""
    rng = np.random.default_rng(22)
    pair = cohort(rng, 200), cohort(rng, 150, move=1, first=1000)
    assert decompose(*pair, FAST) == decompose(*pair, FAST)


def test_decompose_has_no_threshold_for_three_classes():
    """More than two classes: everything but the threshold."""
    rng = np.random.default_rng(23)

    def domain(first):
        labels = rng.integers(0, 3, 200)
        features = rng.normal(size=(200, 4)) + np.eye(3, 4)[labels]
        odds = np.exp(features[:, :3])
        return Cohort(
            features=features,
            probabilities=odds / odds.sum(axis=1, keepdims=True),
            groups=np.arange(200) + first,
            labels=labels,
        )

    found = decompose(domain(0), domain(1000), FAST)
    assert found.threshold is None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": None}, "labels of both"), ({"groups": np.zeros(200, int)}, "of one patient")],
)
def test_decompose_refuses_what_it_cannot_answer(change, message):
    """Sealed labels and a single patient are named."""
    rng = np.random.default_rng(24)
    whole = cohort(rng, 200)
    broken = Cohort(**{**vars(whole), **change})
    with pytest.raises(StudyError, match=message):
        decompose(whole, broken, FAST)
