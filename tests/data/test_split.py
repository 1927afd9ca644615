"""The split of the source: by patient, stratified, the same whatever is added; and as it came."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.patients import VALIDATION, join_duplicates, split_by_patient
from pipeline.errors import StudyError
from tests.data.test_patients import arrays, cohorts


@given(cohorts, st.integers(0, 5))
def test_no_patient_stands_on_both_sides(rows, seed):
    """Whatever the cohort, a patient is in fit or in validation."""
    label, group = arrays(rows)
    split = split_by_patient(label, group, share=0.2, seed=seed)
    sides = {g: {s for h, s in zip(group, split, strict=True) if h == g} for g in group}
    assert all(len(s) == 1 for s in sides.values())


@given(cohorts)
def test_every_class_is_on_both_sides(rows):
    """Stratified: no class is missing from fit or validation."""
    label, group = arrays(rows)
    split = split_by_patient(label, group, share=0.2, seed=0)
    assert len({*zip(label.tolist(), split, strict=True)}) == 4


@given(cohorts, st.randoms())
def test_the_order_of_images_changes_nothing(rows, random):
    """Seeded by patient, not by position."""
    shuffled = random.sample(rows, len(rows))
    one = dict(
        zip(arrays(rows)[1], split_by_patient(*arrays(rows), share=0.3, seed=1), strict=True)
    )
    two = split_by_patient(*arrays(shuffled), share=0.3, seed=1)
    assert one == dict(zip(arrays(shuffled)[1], two, strict=True))


def test_the_share_is_met_in_each_class():
    """With many small patients each class holds out the share asked for."""
    rng = np.random.default_rng(0)
    group = [f"p{i}" for i in rng.integers(0, 600, 2000)]
    label = np.array([int(g[1:]) % 2 for g in group])
    held_out = split_by_patient(label, group, share=0.2, seed=0) == VALIDATION
    for k in (0, 1):
        assert held_out[label == k].mean() == pytest.approx(0.2, abs=0.005)


@given(st.integers(0, 10**6), st.sampled_from([(6, 30, 150), (8, 30, 240), (9, 40, 360)]))
def test_patients_with_mixtures_of_many_classes_are_split(seed, size):
    """Nearly every patient has a mixture of their own; each class still stands on both sides."""
    classes, patients, images = size
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    group = [f"p{i}" for i in rng.integers(patients, size=images)]
    held_out = split_by_patient(label, group, share=0.2, seed=seed) == VALIDATION
    assert set(label[held_out]) == set(label[~held_out]) == set(range(classes))
    assert 0.1 < held_out.mean() < 0.4


def test_a_class_with_one_patient_cannot_be_split():
    """The message names the class, counts in words, and speaks of the pattern, the usual cause."""
    label, group = np.array([0, 0, 1, 1]), ["a", "b", "c", "c"]
    with pytest.raises(
        StudyError,
        match=r"class 'ill' of \[source\] has images of 1 patient, too few.*the group pattern",
    ):
        split_by_patient(label, group, share=0.2, seed=0, names=("well", "ill"))


def test_patients_that_share_an_image_become_one_transitively():
    """A and b share a picture, b and c another: none of the three may be parted."""
    group = ["a", "b", "b", "c", "d"]
    key = [b"1", b"1", b"2", b"2", b"3"]
    joined = join_duplicates(group, key)
    assert len(set(joined[:4])) == 1
    assert joined[4] == "d"
