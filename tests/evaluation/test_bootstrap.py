"""The patient bootstrap: shared draws, seeds beside patients, and what must not change it."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.data.patients import draw_patients
from pipeline.evaluation.bootstrap import bootstrap_interval, percentile_interval
from pipeline.evaluation.metrics import METRICS, weighted_mean


def two_heads(seed: int = 0, patients: int = 40, size: int = 3):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"p{i:02d}" for i in range(patients)], size)
    y = rng.integers(0, 2, len(group))
    heads = [1 / (1 + np.exp(-(rng.normal(size=len(y)) + k * y - k / 2))) for k in (1.0, 2.0)]
    return y, [np.c_[1 - p, p] for p in heads], group


def rng(seed: int = 1):
    return np.random.default_rng(seed)


def test_an_interval_is_that_of_a_plain_loop_over_resampled_patients():
    """Whole patients by hand, the metric on the rows they bring."""
    y, (p, _), group = two_heads()
    found = bootstrap_interval([METRICS["f1"](y, p)], group, rng(), draws=4000)
    patients, values, by_hand = np.unique(group), [], rng(9)
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(group == g) for g in by_hand.choice(patients, 40)])
        tp = np.sum((p[rows, 1] > 0.5) & (y[rows] == 1))
        values.append(2 * tp / (np.sum(p[rows, 1] > 0.5) + np.sum(y[rows] == 1)))
    assert (found.low, found.high) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.01)
    assert (found.images, found.patients, found.method) == (120, 40, "patient bootstrap")
    tp = np.sum((p[:, 1] > 0.5) & (y == 1))
    assert found.estimate == pytest.approx(2 * tp / (np.sum(p[:, 1] > 0.5) + y.sum()))


def clustered(rng, patients: int = 60, size: int = 4):
    """Images of patients whose own level moves all their images: ICC one half."""
    group = np.repeat(np.arange(patients), size)
    return rng.normal(size=patients)[group] + rng.normal(size=len(group)), group


@pytest.mark.parametrize("by_patient", [True, False])
def test_only_intervals_by_patient_cover(by_patient):
    """With correlated images the patient bootstrap covers, the naive one does not."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(150):
        value, group = clustered(rng)
        units = group if by_patient else np.arange(len(group))
        low, high = percentile_interval(draw_patients(units, rng, draws=400).mean(value))
        hits += low <= 0 <= high
    if by_patient:
        assert hits / 150 > binom.ppf(0.0005, 150, 0.93) / 150
    else:
        assert hits / 150 < 0.85


def world(rng, seeds: int = 20, patients: int = 50, between: float = 0.5):
    """Score of each seed on each image of patients of two: both have levels of their own."""
    group = np.repeat(np.arange(patients), 2)
    level = rng.normal(size=patients)[group] + rng.normal(size=len(group)) * 0.5
    return level + rng.normal(size=(seeds, 1)) * between, group


@pytest.mark.parametrize("both", [True, False])
def test_only_seeds_and_patients_together_cover_what_both_move(both):
    """The interval over patients of fixed seeds is too short for "this kind of head"."""
    rng, hits, repeats = np.random.default_rng(5), 0, 120
    for _ in range(repeats):
        score, group = world(rng, between=1.0)
        if both:
            found = bootstrap_interval([weighted_mean(s) for s in score], group, rng, draws=400)
        else:
            found = bootstrap_interval([weighted_mean(score.mean(axis=0))], group, rng, draws=400)
        hits += found.low <= 0 <= found.high
    if both:
        assert hits / repeats > binom.ppf(0.0005, repeats, 0.93) / repeats
    else:
        assert hits / repeats < 0.85
