"""Patients: their ids, the split, the folds and the draws; the rows of a domain stay together."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.data import patients as patients_module
from pipeline.data.domain import DomainData
from pipeline.data.patients import (
    VALIDATION,
    draw_patients,
    join_duplicates,
    patient_folds,
    split_by_patient,
    text_in_path,
)
from pipeline.errors import StudyError

cohorts = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=8, max_size=120
).filter(lambda rows: all(len({p for k, p in rows if k == c}) > 1 for c in (0, 1)))


def arrays(rows):
    label = np.array([k for k, _ in rows])
    return label, [f"{k}-{p}" for k, p in rows]


@pytest.mark.parametrize(
    ("path", "pattern", "patient"),
    [
        ("normal/IM-0115-0001.jpeg", r"^(person\d+|(?:NORMAL2-)?IM-\d+)", "IM-0115"),
        ("pneumonia/sub/person12_virus_3.jpeg", r"^(person\d+)", "person12"),
        ("x/00000061_012.png", r"^\d{8}", "00000061"),
        ("x/other.png", r"^\d{8}", None),
    ],
)
def test_the_patient_is_read_from_the_files_name(path, pattern, patient):
    """First group, else the whole match; the folder plays no part."""
    assert text_in_path(path, pattern) == patient


def apart(folds, group) -> bool:
    """No patient in both parts of a fold, every row tested once."""
    return all(not set(group[in_]) & set(group[out]) for in_, out in folds) and sorted(
        np.concatenate([out for _, out in folds]).tolist()
    ) == list(range(len(group)))


#: Two patients of class 1 are the lightest, so folds of equal size have them in one fold.
LIGHT = [(0, patient) for patient in range(4) for _ in range(4)] + [(0, 4)] * 2 + [(1, 0), (1, 1)]


@example(LIGHT, 0, 5)
@given(cohorts, st.integers(0, 5), st.sampled_from([2, 5]))
def test_folds_keep_patients_apart_and_show_every_class(rows, seed, most):
    """Stratified folds: what is fitted on one has seen every class."""
    label, group = arrays(rows)
    folds = patient_folds(label, np.array(group), folds=most, seed=seed)
    assert apart(folds, np.array(group))
    assert 2 <= len(folds) <= most
    assert all(set(label[in_]) == {0, 1} for in_, _ in folds)


def test_too_few_patients_for_folds_are_refused():
    """A head that is fitted to the others would never have seen the class."""
    with pytest.raises(StudyError, match="a class has images of one patient alone"):
        patient_folds(np.array([0, 0, 1]), np.arange(3), seed=0)
    with pytest.raises(StudyError, match="all images are of one patient alone"):
        patient_folds(None, np.zeros(4), seed=0)
    assert len(patient_folds(np.array([0, 1, 0, 1, 0]), np.array([0, 0, 1, 1, 2]), seed=0)) == 2


def test_draws_take_patients_whole():
    """All images of a patient are drawn equally often, and each draw has as many patients."""
    draws = draw_patients(["a", "b", "a", "c", "b"], np.random.default_rng(0), draws=50)
    weights = draws.weights()
    assert weights.shape == (50, 5)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_every_draw_has_every_class_where_labels_are_given():
    """A class of one patient in twenty is missed by a third of the draws; those are redrawn."""
    groups = np.repeat(np.arange(20), 2)
    label = (groups == 7).astype(int)
    plain = draw_patients(groups, np.random.default_rng(0), draws=50)
    assert (plain.weights()[:, label == 1] == 0).any()
    draws = draw_patients(groups, np.random.default_rng(0), draws=50, label=label)
    assert len(draws) == 50
    assert (draws.weights()[:, label == 1] > 0).all()
    assert (draws.weights().sum(axis=1) == 40).all()


def test_a_statistic_does_not_depend_on_the_blocks(monkeypatch):
    """However many rows fit in a block, each draw is evaluated once."""
    rng = np.random.default_rng(0)
    group, values = rng.integers(0, 40, 120), rng.normal(size=120)
    draws = draw_patients(group, rng, draws=50)
    whole, means = draws.apply(lambda w: w @ values / w.sum(axis=1)), draws.mean(values)
    np.testing.assert_allclose(means, whole)
    monkeypatch.setattr(patients_module, "_BLOCK_CELLS", 7 * 120)
    assert len(list(draws.blocks())) == 8
    np.testing.assert_allclose(draws.apply(lambda w: w @ values / w.sum(axis=1)), whole)
    np.testing.assert_allclose(draws.mean(values), means)


def test_some_rows_of_the_same_patients_share_the_draws():
    """Pairing across subsets of rows; a draw without any of them has no mean."""
    group = np.array([3, 1, 1, 2])
    draws = draw_patients(group, np.random.default_rng(0), draws=40)
    some = draws.of(group[2:])
    np.testing.assert_array_equal(some.weights(), draws.weights()[:, 2:])
    means = some.mean(np.array([1.0, 0.0]))
    missed = (some.weights() == 0).all(axis=1)
    assert missed.any()
    assert np.isnan(means[missed]).all()
    assert np.isfinite(means[~missed]).all()


@given(cohorts, st.integers(0, 5), st.randoms())
def test_patients_stay_whole_and_classes_are_on_both_sides(rows, seed, random):
    """Whatever the cohort; by patient and not by position, so that the order changes nothing."""
    (label, group), shuffled = arrays(rows), arrays(random.sample(rows, len(rows)))
    split = split_by_patient(label, group, share=0.2, seed=seed)
    side_of = dict(zip(group, split, strict=True))
    assert [side_of[patient] for patient in group] == split.tolist()
    assert len({*zip(label.tolist(), split, strict=True)}) == 4
    again = split_by_patient(*shuffled, share=0.2, seed=seed)
    assert side_of == dict(zip(shuffled[1], again, strict=True))


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
    """Nearly every patient has a mixture of their own; each class is still in both parts."""
    classes, patients, images = size
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    group = [f"p{i}" for i in rng.integers(patients, size=images)]
    held_out = split_by_patient(label, group, share=0.2, seed=seed) == VALIDATION
    assert set(label[held_out]) == set(label[~held_out]) == set(range(classes))
    assert 0.1 < held_out.mean() < 0.4


def test_patients_with_rare_mixtures_are_not_held_out_in_excess():
    """Where the rarest class asks for a patient, the others of his classes have him too."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        label, group = rng.integers(14, size=500), rng.integers(100, size=500).astype(str)
        split = split_by_patient(label, list(group), share=0.2, seed=seed)
        shares.append((split == VALIDATION).mean())
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)


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


# The rows of one domain: arrays that stay together.


def four_images(**changes) -> DomainData:
    """Four images of three patients, every array given."""
    arrays = {
        "group": np.array(["a", "b", "a", "c"]),
        "label": np.array([0, 1, 0, 1]),
        "features": np.arange(8, dtype=np.float32).reshape(4, 2),
        "proba": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]),
        "key": np.zeros((4, 32), np.uint8),
        "row": np.array([7, 3, 5, 9]),
    }
    return DomainData(**{"name": "B", "role": "target", **arrays, **changes})


def test_rows_are_taken_from_every_array():
    """Numbers or a mask: row i of each array stays the same image."""
    data = four_images()
    for taken in (data.take(np.array([3, 1])), data.take(np.array([False, True, False, True]))):
        order = np.argsort(taken.row)
        assert taken.row[order].tolist() == [3, 9]
        assert taken.group[order].tolist() == ["b", "c"]
        assert taken.features[order].tolist() == [[2, 3], [6, 7]]
        np.testing.assert_array_equal(taken.proba[order], data.proba[[1, 3]])
    assert (taken.name, taken.role, len(taken), len(data)) == ("B", "target", 2, 4)
    assert data.sealed().take(np.array([0])).label is None
    assert data.patients == 3
    with pytest.raises(StudyError, match="no images"):
        data.take(np.array([], int))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.array([0, 1])}, "one row per image, got .*'label': 2"),
        ({"label": np.array([0, 1, -1, 0])}, "B: some images have no label"),
        ({"proba": np.full((4, 2), np.nan)}, "proba hold NaN or infinity"),
        ({"features": np.full((4, 2), np.inf)}, "features hold NaN or infinity"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    """The message names the domain and the array."""
    with pytest.raises(StudyError, match=message):
        four_images(**changes)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (DomainData.get_label, "needs the labels of B"),
        (DomainData.get_proba, "no head has been applied to B"),
        (DomainData.get_features, "without features"),
    ],
)
def test_what_is_missing_is_said(ask, message):
    """Labels may be sealed, probabilities not there yet."""
    with pytest.raises(ValueError, match=message):
        ask(DomainData(name="B", role="target", group=np.arange(3)))
