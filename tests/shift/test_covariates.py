"""Acquisition differences: the declared one is named, chance is not, and mix is apart."""

import numpy as np
import pytest

from pipeline.data.domain import DomainData
from pipeline.shift.covariates import CLASS_MIX, acquisition_differences, summary


def hospital(seed, *, n=150, ill=0.5, shift=0.0, effect_of_illness=2.0):
    """Images of patients with two each; ``loud`` may be shifted, ``calm`` never is."""
    rng = np.random.default_rng(seed)
    label = np.repeat((rng.random(n) < ill).astype(np.int64), 2)
    noise = np.repeat(rng.normal(size=(n, 2)), 2, axis=0) * 0.8 + rng.normal(size=(2 * n, 2)) * 0.6
    data = DomainData(name="x", role="target", group=np.repeat(np.arange(n), 2), label=label)
    return data, {
        "loud": noise[:, 0] + shift + effect_of_illness * label,
        "calm": noise[:, 1] + effect_of_illness * label,
    }


def differences(source, target):
    return acquisition_differences(source, target, np.random.default_rng(0))


def named(source, target):
    return [one.name for one in differences(source, target) if one.named]


def test_a_shifted_measure_is_named_alone():
    """One standard deviation, within classes."""
    found = differences(hospital(0), hospital(1, shift=1.0))
    assert [one.name for one in found if one.named] == ["loud"]
    assert found[0].low < 1.0 < found[0].high


def test_another_class_mix_is_named_and_no_measure_with_it():
    """Illness moves every measure by two standard deviations; that is no acquisition."""
    assert named(hospital(0), hospital(1, ill=0.85)) == [CLASS_MIX]


def test_nothing_is_named_between_halves_of_one_hospital():
    """In forty pairs without any difference."""
    assert not [n for i in range(40) for n in named(hospital(2 * i), hospital(2 * i + 1))]


def test_the_estimate_is_the_mean_of_cohens_d_over_classes():
    """Against the formula written out."""
    one, two = hospital(0), hospital(1, shift=0.4)
    each = []
    for k in (0, 1):
        a, b = (measures["loud"][data.label == k] for data, measures in (one, two))
        each.append((b.mean() - a.mean()) / np.sqrt((a.var() + b.var()) / 2))
    found = {d.name: d for d in differences(one, two)}
    assert found["loud"].estimate == pytest.approx(np.mean(each))


def test_what_cannot_be_measured_is_left_out():
    """Some NaN change little; a measure that never varies is not named."""
    one, two = hospital(0), hospital(1, shift=1.0)
    one[1]["loud"][:5] = np.nan
    assert named(one, two) == ["loud"]
    still = one[0], {"loud": np.ones(300), "calm": one[1]["calm"]}
    assert not named(still, still)


def test_a_mark_that_all_of_one_hospital_have_is_named():
    """It varies nowhere within a hospital, which must make it neither nothing nor endless."""
    one, two = hospital(0), hospital(1)
    for (_, measures), value in ((one, 0.0), (two, 1.0)):
        measures["calm"][:] = value
    assert named(one, two) == ["calm"]
    (calm, *_) = differences(one, two)
    assert (calm.low, calm.estimate, calm.high) == (10, 10, 10)
    assert "calm (+10 sd within classes, or beyond)" in summary([calm])


@pytest.mark.parametrize("patients", [3, 9, 10])
def test_a_handful_of_patients_names_nothing(patients):
    """Draws of a few patients are too much alike to say how far the next ones may be."""
    found = named(hospital(0), hospital(1, n=patients, shift=5.0))
    assert found == (["loud"] if patients == 10 else [])


def test_the_summary_says_what_differs_most_or_that_nothing_is_shown():
    """Images that were never measured are said to be so."""
    shifted = summary(differences(hospital(0), hospital(1, shift=1.0)))
    assert shifted.startswith("What differs most is loud (+")
    equal = summary(differences(hospital(0), hospital(1)))
    assert equal == (
        "None of these is shown to differ by a medium step or more: calm, class mix, loud."
    )
    assert "`headrace audit STUDY` measures them" in summary(None)
