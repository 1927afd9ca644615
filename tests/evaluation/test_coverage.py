"""Intervals hold the truth as often as they say, and never have a width of zero."""

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.evaluation.intervals import rate_interval
from tests.evaluation.coverage import (
    PATIENTS,
    WORLDS,
    coverage,
    patients_of,
    right_by_patient,
    samples,
)

#: Of a goal of 95 %; above it an interval may be long where patients are few.
LEAST = 0.93
CELLS = [(name, truth) for name, (_, truths) in WORLDS.items() for truth in truths]


def least(repeats: int) -> float:
    """What all but one in 10,000 samples of that coverage reach."""
    return binom.ppf(1e-4, repeats, LEAST) / repeats


@pytest.mark.parametrize(("name", "truth"), CELLS)
def test_intervals_of_thirty_patients_hold_the_truth(name, truth):
    """A hundred samples of each world: an interval that holds in 75 % would be found out."""
    held, _, width = coverage(WORLDS[name][0], 30, truth, 100)
    assert held >= least(100) > 0.8
    assert width > 0


def test_an_interval_that_takes_images_for_patients_is_found_out():
    """The same test fails where images of a patient count as independent."""

    def blind(rng, patients, truth):
        group = patients_of(rng, patients)
        found = rate_interval(right_by_patient(rng, group, truth), np.arange(len(group)))
        return found.low, found.high, truth

    assert coverage(blind, 100, 0.8, 200)[0] < least(200)


@pytest.mark.slow
@pytest.mark.parametrize("patients", PATIENTS)
@pytest.mark.parametrize(("name", "truth"), CELLS)
def test_intervals_hold_the_truth_in_a_thousand_samples(name, truth, patients):
    """From 10 to 400 patients; AUROCs of 10 patients are not compared, and not asked for."""
    if name == "difference in AUROC" and patients == 10:
        pytest.skip("below 10 patients of each class no AUROCs are compared")
    repeats = samples(1000, patients)
    held, _, width = coverage(WORLDS[name][0], patients, truth, repeats)
    assert held >= least(repeats)
    assert width > 0
