"""Every metric with its interval, and which way the interval was made."""

import numpy as np
import pytest

from pipeline.evaluation.auroc import auroc_interval
from pipeline.evaluation.bootstrap import bootstrap_interval
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.metrics import METRICS, score
from pipeline.evaluation.scores import places_of, scores
from tests.score_heads import head, place

RATES = {"accuracy", "sensitivity", "specificity"}


def of_one(where, proba, **options):
    return scores(where, {"h": proba}, **options)["h"]


def test_independent_images_have_wilsons_and_delongs_intervals():
    """Rates in closed form, each over the images that it is a rate of."""
    where = place()
    found = of_one(where, p := head(where.label, 1.0))
    right = p.argmax(1) == where.label
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(right.sum(), 60)
    positive = where.label == 1
    assert found["sensitivity"].low == wilson(right[positive].sum(), 30)[0]
    assert found["specificity"].high == wilson(right[~positive].sum(), 30)[1]
    assert (found["auroc"].low, found["auroc"].high) == auroc_interval(where.label, p[:, 1])
    methods = {metric: interval.method for metric, interval in found.items()}
    assert methods == {
        m: "Wilson" if m in RATES else "DeLong" if m == "auroc" else "patient bootstrap"
        for m in METRICS
    }


def test_several_images_of_a_patient_are_drawn_together():
    """No plain rate any more; the area's variance is by patient too."""
    where = place(each=3)
    found = of_one(where, p := head(where.label, 1.0))
    methods = {metric: interval.method for metric, interval in found.items()}
    assert methods == {
        m: "DeLong by patient" if m == "auroc" else "patient bootstrap" for m in METRICS
    }
    assert all((i.images, i.patients) == (60, 20) for i in found.values())
    alone = bootstrap_interval(
        METRICS["accuracy"](where.label, p), where.group, where.rng("scores")
    )
    assert (found["accuracy"].low, found["accuracy"].high) == (alone.low, alone.high)
    low, high = auroc_interval(where.label, p[:, 1], group=where.group)
    assert (found["auroc"].low, found["auroc"].high) == (low, high)


def test_every_interval_holds_its_value():
    """Whatever the metric and the number of classes, but for a calibration error.

    That one is biased upwards in every draw, so its percentiles may lie above it.
    """
    for classes in (2, 3):
        where = place(each=3, n=90, classes=classes)
        found = of_one(where, head(where.label, 1.0, classes=classes))
        for metric, interval in found.items():
            assert interval.low < interval.high, metric
            assert interval.low <= interval.estimate <= interval.high or metric == "ece"


def test_more_classes_have_macro_scores_with_bootstrap_intervals():
    """And no sensitivity: of which class?"""
    where = place(classes=3)
    found = of_one(where, p := head(where.label, 1.0, classes=3))
    assert set(found) == set(METRICS) - {"sensitivity", "specificity"}
    assert found["accuracy"].method == "Wilson"
    assert found["auroc"].method == "patient bootstrap"
    assert found["auroc"].estimate == pytest.approx(score("auroc", where.label, p))


def test_all_right_is_not_certainty():
    """Every draw of patients agrees, so each patient counts as one trial of a rate."""
    where = place(each=3)
    found = of_one(where, np.eye(2)[where.label])
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(20, 20)
    assert found["sensitivity"].low == wilson(10, 10)[0]
    assert found["accuracy"].method == "Wilson, patients as trials"
    assert found["auroc"].low < 1


def test_the_rows_that_a_head_was_trained_on_have_no_interval():
    """Being right on them is no sample of being right elsewhere."""
    where = place(role="fit")
    found = of_one(where, head(where.label, 1.0))
    assert {interval.method for interval in found.values()} == {"none"}
    assert all(np.isnan([interval.low, interval.high]).all() for interval in found.values())


def test_what_a_place_does_not_define_is_left_out_and_no_number():
    """One class only: no area, no specificity of images that are not there."""
    where = place()
    alone = places_of(*[np.full(60, t) for t in ("there", "target")], np.ones(60, int),
                      where.group, 0)[0]  # fmt: skip
    found = of_one(alone, head(alone.label, 1.0))
    assert {"auroc", "average_precision", "specificity"}.isdisjoint(found)
    assert found["sensitivity"].method == "Wilson"


def test_a_class_in_one_patient_has_no_variance():
    """Its area is a number without an interval."""
    where = place(n=40, each=4)
    group = np.where(where.label == 1, "p1", where.group)
    (one,) = places_of(*[np.full(40, t) for t in ("there", "target")], where.label, group, 0)
    found = of_one(one, head(where.label, 1.0))["auroc"]
    assert np.isfinite(found.estimate)
    assert (found.method, np.isnan(found.low)) == ("none", True)


def test_another_head_beside_it_changes_no_interval():
    """Heads share the draws; dropping one moves none of the others'."""
    where = place(each=2)
    p = {seed: head(where.label, 1.0, seed) for seed in range(3)}
    together = scores(where, p, draws=200)
    assert together[1] == scores(where, {1: p[1]}, draws=200)[1]
