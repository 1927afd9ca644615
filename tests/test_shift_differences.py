"""Habits of hospitals: the declared one is named, chance is not, and mix is no habit."""

import numpy as np
import pytest

from pipeline.shift.covariates import CLASS_MIX, Pictures, differences, said


def hospital(seed, *, n=150, ill=0.5, shift=0.0, effect_of_illness=2.0):
    """Pictures of patients with two each; ``loud`` may be shifted, ``calm`` never is."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), 2)
    labels = np.repeat((rng.random(n) < ill).astype(np.int64), 2)
    noise = np.repeat(rng.normal(size=(n, 2)), 2, axis=0) * 0.8 + rng.normal(size=(2 * n, 2)) * 0.6
    return Pictures(
        measures={
            "loud": noise[:, 0] + shift + effect_of_illness * labels,
            "calm": noise[:, 1] + effect_of_illness * labels,
        },
        labels=labels,
        groups=patient.astype(str),
    )


def named(source, target):
    return [d.name for d in differences(source, target, np.random.default_rng(0)) if d.named]


def test_a_shifted_measure_is_named_alone():
    """One standard deviation, within classes."""
    found = differences(hospital(0), hospital(1, shift=1.0), np.random.default_rng(0))
    assert [d.name for d in found if d.named] == ["loud"]
    assert found[0].low < 1.0 < found[0].high


def test_another_class_mix_is_named_and_no_measure_with_it():
    """Illness moves every measure by two standard deviations; that is not a habit."""
    assert named(hospital(0), hospital(1, ill=0.85)) == [CLASS_MIX]


def test_nothing_is_named_between_halves_of_one_hospital():
    """In forty pairs without any difference."""
    assert not [n for i in range(40) for n in named(hospital(2 * i), hospital(2 * i + 1))]


def test_the_effect_is_the_mean_of_cohens_d_over_classes():
    """Against the formula written out."""
    one, two = hospital(0), hospital(1, shift=0.4)
    each = []
    for k in (0, 1):
        a, b = (p.measures["loud"][p.labels == k] for p in (one, two))
        each.append((b.mean() - a.mean()) / np.sqrt((a.var() + b.var()) / 2))
    found = {d.name: d for d in differences(one, two, np.random.default_rng(0))}
    assert found["loud"].effect == pytest.approx(np.mean(each))


def test_what_cannot_be_measured_is_left_out():
    """Some NaN change little; a measure that never varies is not named."""
    one, two = hospital(0), hospital(1, shift=1.0)
    one.measures["loud"][:5] = np.nan
    assert named(one, two) == ["loud"]
    flat = {"loud": np.ones(300), "calm": one.measures["calm"]}
    still = Pictures(measures=flat, labels=one.labels, groups=one.groups)
    assert not named(still, still)


def test_a_mark_that_all_of_one_hospital_have_is_named():
    """It varies nowhere within a hospital, which must make it neither nothing nor endless."""
    one, two = hospital(0), hospital(1)
    for pictures, value in ((one, 0.0), (two, 1.0)):
        pictures.measures["calm"][:] = value
    assert named(one, two) == ["calm"]
    (calm, *_) = differences(one, two, np.random.default_rng(0))
    assert (calm.low, calm.effect, calm.high) == (10, 10, 10)
    assert "calm (+10 sd within classes, or beyond)" in said([calm])


@pytest.mark.parametrize("patients", [3, 9, 10])
def test_a_handful_of_patients_names_nothing(patients):
    """Draws of a few patients are too much alike to say how far the next ones may be."""
    found = named(hospital(0), hospital(1, n=patients, shift=5.0))
    assert found == (["loud"] if patients == 10 else [])
