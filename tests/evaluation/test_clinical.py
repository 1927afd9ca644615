"""Net benefit, likelihood ratios and calibration in the large are those of their papers."""

import numpy as np
import pytest

from pipeline.data.domain import DomainData
from pipeline.data.patients import draw_patients
from pipeline.evaluation.compare_heads import (
    THRESHOLDS,
    clinical,
    compare_heads,
    net_benefit,
)
from pipeline.evaluation.intervals import Interval, wilson
from pipeline.evaluation.paired_tests import patients_to_settle


def domain(label, positive, group=None):
    """Rows with the probability of class 1."""
    group = np.arange(len(label)) if group is None else group
    return DomainData(
        name="far", role="target", group=group, label=np.asarray(label),
        proba=np.c_[1 - np.asarray(positive), positive],
    )  # fmt: skip


def found(label, positive, group=None):
    """Of 400 draws."""
    data = domain(label, positive, group)
    return clinical(data, draw_patients(data.group, np.random.default_rng(0), draws=400))


def test_net_benefit_is_the_count_of_its_definition():
    """Vickers and Elkin 2006: TP / n - FP / n * pt / (1 - pt); nobody is missed at a low one."""
    label, positive = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.15, 0.3, 0.1, 0.05])
    assert net_benefit(label, positive, 0.2) == pytest.approx(1 / 5 - 1 / 5 * 0.25)
    assert net_benefit(label, np.ones(5), 0.5) == pytest.approx(2 / 5 - 3 / 5)
    curve = found(label, positive)["net_benefit"]
    assert [one["threshold"] for one in curve] == list(THRESHOLDS)
    assert curve[0]["head"] == pytest.approx(curve[0]["treat_all"])


def test_likelihood_ratios_of_a_table_of_four():
    """80 of 100 ill and 30 of 100 healthy called ill; the interval is near Deeks and Altman's."""
    label = np.repeat([1, 0], 100)
    positive = np.r_[np.repeat([0.9, 0.2], [80, 20]), np.repeat([0.9, 0.2], [30, 70])]
    ratios = found(label, positive)
    error = np.sqrt(1 / 80 - 1 / 100 + 1 / 30 - 1 / 100)
    expected = (8 / 3) * np.exp(np.array([0, -1.96, 1.96]) * error)
    plus = [ratios["lr_positive"][end] for end in ("estimate", "low", "high")]
    assert plus == pytest.approx(expected, rel=0.06)
    assert ratios["lr_negative"]["estimate"] == pytest.approx(0.2 / 0.7)


def test_a_head_without_an_error_has_ratios_that_are_not_known_to_be_infinite():
    """LR+ is at least something, LR- at most something."""
    ratios = found(np.repeat([1, 0], 40), np.repeat([0.99, 0.01], 40))
    assert ratios["lr_positive"]["estimate"] == ratios["lr_positive"]["high"] == np.inf
    assert 5 < ratios["lr_positive"]["low"] < 20
    assert ratios["lr_negative"]["estimate"] == ratios["lr_negative"]["low"] == 0
    assert 0.05 < ratios["lr_negative"]["high"] < 0.2


def test_calibration_in_the_large_is_observed_less_predicted():
    """Zero is outside where a head says twice as many as there are."""
    rng = np.random.default_rng(1)
    label = (rng.random(600) < 0.2).astype(int)
    off = found(label, np.full(600, 0.4))["observed_minus_predicted"]
    assert off["estimate"] == pytest.approx(label.mean() - 0.4)
    assert off["high"] < 0 < found(label, np.full(600, 0.2))["observed_minus_predicted"]["high"]
    assert found(np.zeros(9, int), np.zeros(9)) is None
    label = np.repeat([0, 1], 20)  # surely and rightly called: one of the next may not be
    sure = found(label, label * 1.0)["observed_minus_predicted"]
    assert sure["high"] == -sure["low"] == wilson(0, 40)[1]


def test_so_many_patients_settle_a_comparison():
    """A known spread: the sample size of the textbook, and none for a difference of one point."""

    def of(gap, half, patients=100):
        return Interval(
            estimate=gap, low=gap - half, high=gap + half, images=patients, patients=patients,
            method="made up",
        )  # fmt: skip

    sd = 0.4  # of one patient's difference
    needed = (1.95996 + 0.84162) ** 2 * sd**2 / 0.05**2
    assert patients_to_settle(of(0.05, 1.95996 * sd / 10)) == pytest.approx(needed, abs=1)
    assert patients_to_settle(of(0.0, 0.02)) == pytest.approx(
        100 * (2.80158 / 1.95996 * 2) ** 2, abs=1
    )
    assert patients_to_settle(of(0.05, float("nan"))) is None


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
