"""Trained heads in pairs: which test, which interval, which word."""

from dataclasses import replace

import numpy as np
import pytest
from MLstatkit import Delong_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipeline.evaluation.compare_heads import adjusted_verdict, best_by_validation, best_sets, pairs
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.paired_tests import sign_flip
from tests.score_heads import head, place


def heads(y, gains=(1.0, 1.2, 0.0, 3.0)):
    return {f"h{i}": head(y, gain, seed=i) for i, gain in enumerate(gains)}


def by(found, metric):
    return {pair.head: pair for pair in found if pair.metric == metric}


def test_independent_images_are_compared_exactly():
    """H-T2: McNemar and Holm equal statsmodels, DeLong MLstatkit."""
    where = place(n=200)
    p = heads(where.label)
    found = pairs(where, p, "h0", draws=200)
    right = {name: one.argmax(1) == where.label for name, one in p.items()}
    for name, pair in by(found, "accuracy").items():
        b, c = (right[name] & ~right["h0"]).sum(), (right["h0"] & ~right[name]).sum()
        assert (pair.only_head, pair.only_baseline) == (b, c)
        assert pair.p == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue)
        assert pair.difference == pytest.approx((b - c) / 200)
        assert pair.low <= pair.difference <= pair.high
        assert (pair.p_method, pair.ci_method) == ("McNemar exact", "paired patient bootstrap")
    for name, pair in by(found, "auroc").items():
        assert pair.p == pytest.approx(Delong_test(where.label, p[name][:, 1], p["h0"][:, 1])[1])
        assert pair.p_method == "paired DeLong"
    for metric in ("accuracy", "auroc"):
        rows = by(found, metric).values()
        expected = multipletests([pair.p for pair in rows], method="holm")[1]
        assert [pair.p_holm for pair in rows] == pytest.approx(list(expected))


def test_a_much_better_head_is_better_and_a_worse_one_worse():
    """The interval lies on the side of the difference."""
    where = place(n=200, each=2)
    found = by(pairs(where, heads(where.label), "h0", draws=300), "accuracy")
    assert (found["h3"].verdict, found["h2"].verdict) == ("better", "worse")
    assert found["h3"].low > 0 > found["h2"].high


def test_images_of_one_patient_are_compared_by_patient():
    """McNemar would count them as independent: whole patients change sides instead."""
    where = place(n=120, each=4)
    p = heads(where.label)
    found = by(pairs(where, p, "h0", draws=200), "accuracy")["h3"]
    step = (p["h3"].argmax(1) == where.label) * 1.0 - (p["h0"].argmax(1) == where.label)
    assert found.p == sign_flip(step, where.group, where.rng("flips"))
    assert found.p_method == "sign flips by patient"
    assert by(pairs(where, p, "h0", draws=200), "auroc")["h3"].p_method == (
        "paired DeLong by patient"
    )


@pytest.mark.parametrize("each", [1, 3])
def test_swapping_two_heads_flips_the_signs(each):
    """H-T5: the difference and the ends, exactly; the p stays."""
    where = place(n=90, each=each)
    p = heads(where.label, (1.0, 2.0))
    there = pairs(where, p, "h0", draws=300)
    back = pairs(where, p, "h1", draws=300)
    for one, two in zip(there, back, strict=True):
        assert (one.difference, one.low, one.high) == pytest.approx(
            (-two.difference, -two.high, -two.low), abs=1e-12
        )
        assert one.p == two.p
        assert {one.verdict, two.verdict} in ({"better", "worse"}, {"equivalent"},
                                              {"inconclusive"})  # fmt: skip


@pytest.mark.parametrize("each", [1, 3])
def test_dropping_a_head_changes_no_other_pair(each):
    """H-T5: raw p and interval; only Holm's p knows how many were asked."""
    where = place(n=90, each=each)
    p = heads(where.label)
    all_of = by(pairs(where, p, "h0", draws=300), "accuracy")
    del p["h1"]
    fewer = by(pairs(where, p, "h0", draws=300), "accuracy")
    for name, pair in fewer.items():
        assert (pair.p, pair.low, pair.high) == (
            all_of[name].p,
            all_of[name].low,
            all_of[name].high,
        )
        assert pair.p_holm <= all_of[name].p_holm


@pytest.mark.parametrize("each", [1, 3])
def test_the_order_of_the_images_changes_nothing(each):
    """H-T5: patients are drawn, not places in a list."""
    where = place(n=90, each=each)
    p, order = heads(where.label), np.random.default_rng(0).permutation(90)
    turned = replace(where, label=where.label[order], group=where.group[order])
    there = pairs(where, p, "h0", draws=100)
    again = pairs(turned, {name: one[order] for name, one in p.items()}, "h0", draws=100)
    for one, two in zip(there, again, strict=True):
        numbers = [(q.difference, q.low, q.high, q.p) for q in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-12)
        assert one.verdict == two.verdict


@pytest.mark.parametrize(("n", "word"), [(60, "inconclusive"), (1000, "equivalent")])
def test_no_difference_in_few_images_is_no_equivalence(n, word):
    """Where no image of 60 differs, one of 20 may; of 1000 that is ruled out."""
    where = place(n=n)
    p = head(where.label, 1.0)
    for pair in pairs(where, {"a": p, "b": p}, "a", draws=100):
        assert (pair.difference, pair.p, pair.verdict) == (0, 1, word)
        assert pair.low == -pair.high < 0


def test_a_side_on_which_nothing_was_seen_is_not_closed():
    """One head is right wherever the other is: it may yet be wrong where the other is right."""
    where = place(n=100)
    right = np.eye(2)[where.label]
    other = right.copy()
    other[:4] = 1 - other[:4]
    (pair,) = by(pairs(where, {"a": right, "b": other}, "a"), "accuracy").values()
    assert (pair.only_head, pair.only_baseline) == (0, 4)
    none = wilson(0, 100)[1]
    assert pair.high > 0 > pair.low
    assert none - 0.04 < pair.high < none
    assert pair.low == pytest.approx(-0.08, abs=0.011)


def test_pairs_cover_a_difference_that_few_images_show():
    """A difference of half a point, often unseen in 60 images, is within 95 % of intervals."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(200):
        where = place(seed=seed)
        right = rng.random((2, 60)) < [[0.995], [0.99]]
        proba = {f"h{k}": np.eye(2)[np.where(hit, where.label, 1 - where.label)]
                 for k, hit in enumerate(right)}  # fmt: skip
        (pair,) = by(pairs(where, proba, "h1", draws=200), "accuracy").values()
        held += pair.low <= 0.005 <= pair.high
    assert held >= 186


@pytest.mark.parametrize(
    ("p_holm", "word"), [(0.01, "better"), (0.049, "better"), (0.05, "inconclusive")]
)
def test_one_head_of_many_is_not_called_better_by_chance(p_holm, word):
    """The interval is of one pair, so the word also needs the adjusted p."""
    assert adjusted_verdict(0.02, 0.05, p_holm) == word


def test_equivalence_needs_no_small_p():
    """An interval within a point says enough."""
    assert adjusted_verdict(-0.005, 0.005, 1.0) == "equivalent"


@pytest.mark.parametrize("classes", [3, 2])
def test_areas_are_compared_only_where_delong_can(classes):
    """Two classes, each in two patients."""
    where = place(classes=classes, n=60 if classes == 3 else 30, each=1 if classes == 3 else 15)
    p = {name: head(where.label, 1.0, i, classes) for i, name in enumerate("ab")}
    assert {pair.metric for pair in pairs(where, p, "a", draws=100)} == {"accuracy"}
    assert {one.metric for one in best_sets(where, p, draws=100)} == {"accuracy"}


@pytest.mark.parametrize(("patients", "compared"), [(9, False), (10, True)])
def test_areas_of_a_handful_of_patients_are_not_compared(patients, compared):
    """A normal law for three positive patients gives p of 1e-25."""
    y = np.repeat([0, 1], [200, patients])
    where = replace(place(n=len(y)), label=y, group=np.arange(len(y)).astype(str))
    found = pairs(where, heads(y), "h0", draws=50)
    assert bool(by(found, "auroc")) == compared
    assert len(by(found, "accuracy")) == 3


def test_the_best_set_holds_the_best_and_not_the_surely_worse():
    """By name, with p of each head."""
    where = place(n=200)
    for found in best_sets(where, heads(where.label), draws=300):
        assert found.members == ("h3",)
        assert set(found.p) == {"h0", "h1", "h2", "h3"}
        assert found.p["h3"] == 1


def test_the_best_is_the_most_accurate_and_of_equals_the_better_calibrated():
    """Never the first of the table by chance."""
    where = place()
    sure = np.eye(2)[where.label] * 0.8 + 0.1
    faint = np.eye(2)[where.label] * 0.2 + 0.4
    p = {"wrong": 1 - sure, "faint": faint, "sure": sure}
    assert best_by_validation(where, p) == "sure"
