"""Heads on one domain: which interval, which test, which word, and what a clinician asks."""

from dataclasses import replace

import numpy as np
import pytest
from MLstatkit import Delong_test

from pipeline.data.domain import DomainData
from pipeline.data.items import Item
from pipeline.data.patients import draw_patients
from pipeline.data.samples import UNLABELLED, Samples
from pipeline.evaluation.bootstrap import bootstrap_interval
from pipeline.evaluation.compare_heads import (
    THRESHOLDS,
    clinical,
    compare_heads,
    eval_sets,
    net_benefit,
    rank_heads,
    score_heads,
)
from pipeline.evaluation.intervals import rate_interval, rate_of, wilson
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.paired_tests import holm, mcnemar, sign_flip
from pipeline.evaluation.predictions import predictions_file, predictions_of, read_predictions
from pipeline.randomness import stream
from pipeline.results import write_set
from tests.made_up import domain, head, scored


def heads(y, gains=(1.0, 1.2, 0.0, 3.0)):
    return {f"h{i}": head(y, gain, seed=i) for i, gain in enumerate(gains)}


def of_one(data, proba, **options):
    return score_heads(data, {"h": proba}, seed=0, **options)["h"]


def compared(data, proba, baseline="h0"):
    return compare_heads(data, proba, baseline, seed=0)


def ends(one):
    return one.low, one.high


# --- every metric with its interval


@pytest.mark.parametrize("each", [1, 3])
def test_shares_have_their_interval_and_the_rest_percentiles(each):
    """Each over the images that it is a share of; what is no share is drawn by patient."""
    data = domain(each=each)
    found = of_one(data, p := head(data.label, 1.0))
    right = p.argmax(1) == data.label
    positive = data.label == 1
    assert found["accuracy"] == rate_interval(right, data.group)
    for name, of in (("sensitivity", positive), ("specificity", ~positive)):
        assert found[name].images == 30
        alone = rate_interval(right[of], data.group[of])
        assert ends(found[name]) == pytest.approx(ends(alone), abs=1e-9)
    by_class = [data.group[data.label == k] for k in (0, 1)]
    area = rate_of(METRICS["auroc"](data.label, p), data.group, *by_class)
    assert found["auroc"] == area.interval()
    precision = rate_of(
        METRICS["average_precision"](data.label, p), data.group, data.group[positive]
    )
    assert ends(found["average_precision"]) == pytest.approx(precision.bounds())
    share = "Clopper-Pearson" if each == 1 else "Clopper-Pearson by patient"
    assert {metric: interval.method for metric, interval in found.items()} == {
        m: "patient bootstrap" if m in ("brier", "log_loss") else share for m in METRICS
    } | {"balanced_accuracy": share.replace("Clopper-Pearson", "MOVER")}
    alone = bootstrap_interval(
        [METRICS["brier"](data.label, p)], data.group, stream("scores B target", 0)
    )
    assert found["brier"] == alone


def test_f1_has_the_interval_of_a_rate():
    """Of the right calls among the images that are positive or called so: F1 = 2 J / (1 + J)."""
    data = domain(each=3)
    p = head(data.label, 0.5)
    found, called = of_one(data, p)["f1"], p.argmax(1) == 1
    either = called | (data.label == 1)
    rate = rate_interval((called & (data.label == 1))[either], data.group[either])
    assert ends(found) == pytest.approx([2 * end / (1 + end) for end in ends(rate)])


@pytest.mark.parametrize("wrong", [0, 4])
def test_the_mean_of_two_classes_is_as_open_as_both(wrong):
    """Labels by patient: the squares of both distances add, also where a class has no error."""
    group = np.repeat(np.arange(24), 2)
    data = replace(domain(n=48), group=group, label=(group < 4).astype(int))
    called = np.where(
        (np.arange(48) < wrong) | (np.arange(48) % 9 == 8), 1 - data.label, data.label
    )
    found = of_one(data, np.eye(2)[called])
    both = [found["sensitivity"], found["specificity"]]
    low, high = (
        np.hypot(*(getattr(one, end) - one.estimate for one in both)) / 2 for end in ("low", "high")
    )
    middle = found["balanced_accuracy"]
    assert middle.estimate - middle.low == pytest.approx(low)
    assert middle.high == pytest.approx(min(1, middle.estimate + high))


@pytest.mark.parametrize("classes", [2, 3])
def test_every_interval_holds_its_value(classes):
    """Whatever the metric and the number of classes."""
    data = domain(each=3, n=90, classes=classes)
    intervals = of_one(data, head(data.label, 1.0, classes=classes))
    missing = {"sensitivity", "specificity"} if classes > 2 else set()  # of which class?
    assert set(intervals) == set(METRICS) - missing
    for metric, interval in intervals.items():
        assert interval.low <= interval.estimate <= interval.high, metric
        assert interval.low < interval.high, metric
        if classes > 2:  # of two, some are of the images of one class
            assert (interval.images, interval.patients) == (90, 30), metric


@pytest.mark.parametrize("classes", [2, 3])
def test_all_right_is_not_certainty(classes):
    """No share of a perfect head has an interval without width."""
    data = domain(each=3, classes=classes)
    for metric, interval in of_one(data, np.eye(classes)[data.label]).items():
        if metric in ("brier", "log_loss"):
            assert interval.method == "none"
            assert np.isnan([interval.low, interval.high]).all()
        else:
            assert interval.high == interval.estimate == 1
            assert interval.low < 0.95


def test_what_one_class_does_not_define_is_left_out_and_no_number():
    """One class only: no area, no specificity of images that are not there."""
    data = replace(domain(), label=np.ones(60, int))
    found = of_one(data, head(data.label, 1.0))
    assert {"auroc", "average_precision", "specificity"}.isdisjoint(found)
    assert found["sensitivity"].method == "Clopper-Pearson"


# --- pairs of heads


def test_independent_images_are_compared_exactly():
    """McNemar's test, DeLong's as MLstatkit has it, and Holm over the heads."""
    data = domain(n=200)
    p = heads(data.label)
    found = compared(data, p)
    right = {name: one.argmax(1) == data.label for name, one in p.items()}
    for name, one in found["accuracy"].items():
        assert one.p == mcnemar(right[name], right["h0"])
        step = right[name].mean() - right["h0"].mean()
        assert one.interval.estimate == pytest.approx(step)
        assert one.interval.low <= step <= one.interval.high
        assert (one.test, one.interval.method) == ("McNemar exact", "MOVER")
    for name, one in found["auroc"].items():
        assert one.p == pytest.approx(Delong_test(data.label, p[name][:, 1], p["h0"][:, 1])[1])
        assert one.test == "paired DeLong"
    for rows in found.values():
        assert set(rows) == {"h1", "h2", "h3"}
        adjusted = holm([one.p for one in rows.values()])
        assert [one.p_adjusted for one in rows.values()] == pytest.approx(adjusted)


def test_images_of_one_patient_are_compared_by_patient():
    """McNemar would count them as independent: whole patients change sides instead."""
    data = domain(n=120, each=4)
    p = heads(data.label)
    found = compared(data, p)
    step = (p["h3"].argmax(1) == data.label) * 1.0 - (p["h0"].argmax(1) == data.label)
    one = found["accuracy"]["h3"]
    assert one.p == sign_flip(step, data.group, stream("flips B target", 0))
    assert one.test == "sign flips by patient"
    assert found["auroc"]["h3"].test == "paired DeLong by patient"


@pytest.mark.parametrize("each", [1, 3])
def test_neither_another_order_nor_another_head_changes_a_pair(each):
    """Heads swapped: signs and ends flip. Images in another order, a head less: nothing moves."""
    data = domain(n=90, each=each)
    p, order = heads(data.label), np.random.default_rng(0).permutation(90)
    swapped = compared(data, p, "h1")
    turned = compared(data.take(order), {name: one[order] for name, one in p.items()})
    fewer = compared(data, {name: one for name, one in p.items() if name != "h1"})

    def numbers(difference):
        interval = difference.interval
        return interval.estimate, interval.low, interval.high, difference.p

    for metric, rows in compared(data, p).items():
        estimate, low, high, same = numbers(rows["h1"])
        expected = (-estimate, -high, -low, same)
        assert numbers(swapped[metric]["h0"]) == pytest.approx(expected, abs=1e-12)
        opposite = {"better": "worse", "worse": "better"}
        verdict = rows["h1"].verdict
        assert swapped[metric]["h0"].verdict == opposite.get(verdict, verdict)
        for name, one in rows.items():
            assert numbers(turned[metric][name]) == pytest.approx(numbers(one), abs=1e-12)
            assert turned[metric][name].verdict == one.verdict
        for name, one in fewer[metric].items():  # the adjusted p alone knows how many there are
            assert (one.p, one.interval) == (rows[name].p, rows[name].interval)
            assert one.p_adjusted <= rows[name].p_adjusted


@pytest.mark.parametrize(("n", "word"), [(60, "inconclusive"), (1000, "equivalent")])
def test_no_difference_in_few_images_is_no_equivalence(n, word):
    """Where no image of 60 differs, one of 20 may; of 1000 that is ruled out."""
    data = domain(n=n)
    p = head(data.label, 1.0)
    for rows in compared(data, {"h0": p, "b": p}).values():
        one = rows["b"]
        assert (one.interval.estimate, one.p, one.verdict) == (0, 1, word)
        assert one.interval.low == -one.interval.high < 0


def test_a_side_on_which_nothing_was_seen_is_not_closed():
    """One head is right wherever the other is: it may yet be wrong where the other is right."""
    data = domain(n=100)
    right = np.eye(2)[data.label]
    other = right.copy()
    other[:4] = 1 - other[:4]
    interval = compared(data, {"a": right, "b": other}, "a")["accuracy"]["b"].interval
    assert interval.estimate == pytest.approx(-0.04)
    assert -0.12 < interval.low < -0.08
    assert 0 < interval.high < 0.02


def test_mean_aurocs_of_equal_heads_are_rarely_called_different():
    """Three classes, several images a patient: p is below 0.05 in about 5 %, and spread evenly."""
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        label = (np.arange(60) % 3)[group]
        common = rng.normal(size=(60, 3))[group]

        def head(rng=rng, label=label, common=common):
            value = common + rng.normal(size=(len(label), 3)) + 1.2 * np.eye(3)[label]
            value = np.exp(value)
            return value / value.sum(axis=1, keepdims=True)

        data = DomainData(name="x", role="target", group=group, label=label)
        heads = compare_heads(data, {"one": head(), "other": head()}, "one", seed=0)
        p.append(heads["auroc"]["other"].p)
        assert heads["auroc"]["other"].test == "paired jackknife by patient"
    assert np.mean(np.array(p) < 0.05) <= 0.15
    assert np.mean(np.array(p) < 0.5) > 0.3


@pytest.mark.parametrize(("patients", "metrics"), [(9, 1), (10, 2)])
def test_areas_of_a_handful_of_patients_are_not_compared(patients, metrics):
    """A normal law for three positive patients gives p of 1e-25."""
    y = np.repeat([0, 1], [200, patients])
    data = replace(domain(n=len(y)), label=y)
    found = compared(data, heads(y))
    assert list(found) == ["accuracy", "auroc"][:metrics]
    assert len(found["accuracy"]) == 3


def test_the_best_is_the_most_accurate_and_of_equals_the_better_calibrated():
    """Never the first of the table by chance."""
    data = domain()
    sure = np.eye(2)[data.label] * 0.8 + 0.1
    faint = np.eye(2)[data.label] * 0.2 + 0.4
    p = {"wrong": 1 - sure, "faint": faint, "sure": sure}
    assert rank_heads(data, p)[0] == "sure"


# --- what is evaluated at all, and what is kept of each image

SAMPLES = Samples(
    items=tuple(Item(f"{k}.png", "x", f"/{k}.png", None, None) for k in "abcde"),
    key=tuple(bytes([k]) * 32 for k in range(5)),
    label=np.array([0, 1, 1, UNLABELLED, 0]),
    group=np.array(["mrs-a", "mr-b", "mrs-a", "mr-c", "mr-d"]),
    domain=np.array(["source", "B", "source", "far", "B"]),
    split=np.array(["fit", "target", "validation", "target", "target"]),
    classes=("normal", "pneumonia"),
)


def test_each_labelled_domain_is_evaluated_in_each_role():
    """Rows of a target without labels are left out where evaluation begins."""
    found = eval_sets(SAMPLES)
    assert [(one.name, one.role, one.row.tolist()) for one in found] == [
        ("B", "target", [1, 4]), ("source", "validation", [2]),
    ]  # fmt: skip
    assert found[0].label.tolist() == [1, 0]


def test_probabilities_are_read_as_they_were_written(tmp_path):
    """Every field, for every backbone and predictor."""
    proba = np.random.default_rng(0).dirichlet(np.ones(2), 5)
    kept = predictions_of(SAMPLES, {("linear", 0): proba, ("mlp", 3): proba[::-1]})
    files = {"p.h5": predictions_file({"net": kept, "other": kept})}
    write_set(tmp_path / "p.json", {}, files)
    read = read_predictions(tmp_path / "p.h5")
    assert set(read) == {"net", "other"}
    found = read["net"]
    assert found.classes == ("normal", "pneumonia")
    for name in ("key", "label", "patient", "domain", "split"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    assert set(found.proba) == {("linear", 0), ("mlp", 3)}
    np.testing.assert_array_equal(found.proba["linear", 0], proba)
    assert found.patient[0] == found.patient[2] != found.patient[1]


def test_no_patient_and_no_path_is_in_the_file_of_probabilities():
    """Results are passed on more freely than images."""
    content = predictions_file({"net": predictions_of(SAMPLES, {})})
    assert b"mrs-a" not in content
    assert b"a.png" not in content


# --- what a clinician asks


def asked(label, positive):
    """Of 400 draws; ``positive`` is the probability of class 1."""
    data = scored(positive, label)
    return clinical(data, draw_patients(data.group, np.random.default_rng(0), draws=400))


def test_net_benefit_is_the_count_of_its_definition():
    """Vickers and Elkin 2006: TP / n - FP / n * pt / (1 - pt); nobody is missed at a low one."""
    label, positive = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.15, 0.3, 0.1, 0.05])
    assert net_benefit(label, positive, 0.2) == pytest.approx(1 / 5 - 1 / 5 * 0.25)
    assert net_benefit(label, np.ones(5), 0.5) == pytest.approx(2 / 5 - 3 / 5)
    curve = asked(label, positive)["net_benefit"]
    assert [row["threshold"] for row in curve] == list(THRESHOLDS)
    assert curve[0]["head"] == pytest.approx(curve[0]["treat_all"])


def test_likelihood_ratios_of_a_table_of_four():
    """80 of 100 ill and 30 of 100 healthy called ill; the interval is near Deeks and Altman's.

    A head without an error has ratios that are not known to be infinite.
    """
    positive = np.repeat([0.9, 0.2, 0.9, 0.2], [80, 20, 30, 70])
    ratios = asked(np.repeat([1, 0], 100), positive)
    error = np.sqrt(1 / 80 - 1 / 100 + 1 / 30 - 1 / 100)
    expected = (8 / 3) * np.exp(np.array([0, -1.96, 1.96]) * error)
    assert [*ratios["lr_positive"].values()] == pytest.approx(expected, rel=0.06)
    assert ratios["lr_negative"]["estimate"] == pytest.approx(0.2 / 0.7)
    ratios = asked(np.repeat([1, 0], 40), np.repeat([0.99, 0.01], 40))
    assert ratios["lr_positive"]["estimate"] == ratios["lr_positive"]["high"] == np.inf
    assert 5 < ratios["lr_positive"]["low"] < 20
    assert ratios["lr_negative"]["estimate"] == ratios["lr_negative"]["low"] == 0
    assert 0.05 < ratios["lr_negative"]["high"] < 0.2


def test_calibration_in_the_large_is_observed_less_predicted():
    """Zero is outside where a head says twice as many as there are."""
    label = (np.random.default_rng(1).random(600) < 0.2).astype(int)
    off = asked(label, np.full(600, 0.4))["observed_minus_predicted"]
    assert off["estimate"] == pytest.approx(label.mean() - 0.4)
    assert off["high"] < 0 < asked(label, np.full(600, 0.2))["observed_minus_predicted"]["high"]
    assert asked(np.zeros(9, int), np.zeros(9)) is None
    label = np.repeat([0, 1], 20)  # surely and rightly called: one of the next may not be
    sure = asked(label, label * 1.0)["observed_minus_predicted"]
    assert sure["high"] == -sure["low"] == wilson(0, 40)[1]
