"""Leaks and near duplicates are found where they were planted; clean studies stay clean."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import near_duplicates
from pipeline.data.index import SMALL
from pipeline.data.leaks import LEAK, NOTE, OK, WARNING, check_leaks
from pipeline.data.near_duplicates import find_duplicates, stored_duplicates
from pipeline.data.samples import ALL_IMAGES, load_samples
from pipeline.study_file import load_study
from tests.data.copies import COPIES, measures_of_samples, small, smooth_picture, smooth_study
from tests.tiny import edited, flip


def results_of(study, samples, check="overlap", measures=None):
    """The results of one check."""
    found, _ = check_leaks(study, samples, measures)
    return [result for result in found if result.check == check]


def test_a_patient_in_fit_and_validation_is_a_leak(study_file):
    """E-T1: the split itself is checked and not believed."""
    study = load_study(study_file)
    samples, _ = load_samples(study)
    group = samples.group.copy()
    fit, held = (np.flatnonzero(samples.split == s)[0] for s in ("fit", "validation"))
    group[fit] = group[held]
    (leak,) = results_of(study, replace(samples, group=group))
    assert (leak.severity, leak.text) == (LEAK, "1 patient is in both")
    assert leak.where == "source fit and source validation"
    (clean,) = results_of(study, samples)
    assert (clean.severity, clean.where) == (OK, "all images")


def test_ids_that_two_hospitals_share_are_a_note_and_names_without_one_a_warning(study_file):
    """Hospitals number alike; without a pattern nobody can know."""
    study = load_study(study_file)
    Path("there/a/p1000_99.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    Path("there/b/nobody.png").write_bytes(Path("there/b/p2000_1.png").read_bytes())
    samples, _ = load_samples(study)
    (met,) = results_of(study, samples)
    assert (met.severity, met.where, met.share) == (NOTE, "source fit and there", 0.0)
    assert met.text == "1 patient id is in both"
    (alone,) = results_of(study, samples, "patients")
    assert alone.text.startswith("the patient of 1 of 22 images is unknown")
    blind = replace(study, source=replace(study.source, group=None))
    (first, *_) = results_of(blind, load_samples(blind)[0], "patients")
    assert (first.severity, first.where) == (WARNING, "source")
    assert first.text.startswith("the patient of 40 of 40 images is unknown")


def test_one_picture_under_two_labels_is_listed(study_file):
    """A warning with both paths; copies within a split are a note."""
    Path("there/b/p2000_98.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = load_study(study_file)
    samples, _ = load_samples(study, ALL_IMAGES)
    (conflict,) = results_of(study, samples, "label conflicts")
    assert (conflict.severity, conflict.where) == (WARNING, "all images")
    assert conflict.examples == "there/a/p2000_0.png = there/b/p2000_98.png"
    (copies,) = results_of(study, samples, "copies")
    assert (copies.severity, copies.where) == (NOTE, "there")


@pytest.fixture
def overlap(tiny_folder):
    """Finds the one overlap between the source and the target of a study of smooth pictures."""

    def find(study_file):
        study = load_study(study_file)
        samples, _ = load_samples(study, ALL_IMAGES)
        split = np.where(samples.domain == "source", "fit", "target")
        measures = measures_of_samples(study_file, samples)
        (found,) = results_of(study, replace(samples, split=split), measures=measures)
        return found

    return find


@pytest.mark.parametrize(
    ("copied", "severity", "text"),
    [
        (0, OK, "no patient and no image is in two splits (200 patients)"),
        (2, WARNING, "2 near duplicates are in both"),
        (3, LEAK, "3 near duplicates are in both"),
    ],
)
def test_so_many_near_duplicates_are_a_leak(tmp_path, overlap, copied, severity, text):
    """Two alone may be chance, and are a warning; all names and splits are in the result."""
    how = ("recompressed", "scaled by 1/2", "brightened")
    found = overlap(smooth_study(tmp_path, [(4 + k, 8 + k, how[k]) for k in range(copied)]))
    assert (found.severity, found.text) == (severity, text)
    if copied:
        assert found.where == "source fit and there"
        assert "source/a/ph004.png = there/a/pt008.png" in found.examples
        assert found.share == copied / 80


def test_ids_for_which_a_picture_speaks_are_a_leak(tmp_path, overlap):
    """One near duplicate is enough if its patient is the same; the patient's others count too."""
    study_file = smooth_study(tmp_path, [(4, 8, "recompressed")])
    folder = tmp_path / "there" / "a"
    (folder / "pt008.png").rename(folder / "ph004_2.png")
    (folder / "pt010.png").rename(folder / "ph004_3.png")
    (folder / "pt012.png").rename(folder / "ph006_2.png")
    edited(study_file, {"^(p\\w+)": "^(p[a-z]+[0-9]+)"})
    leak = overlap(study_file)
    assert (leak.severity, leak.text) == (LEAK, "1 near duplicate and 2 patient ids are in both")
    assert leak.share == 3 / 80


def test_ids_within_one_data_set_are_people(study_file):
    """A test part of the source's data, ``[test.NAME]``: the same ids are a leak."""
    study = load_study(study_file)
    Path("there/a/p1000_99.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = replace(study, targets=(replace(study.targets[0], is_source_test=True),))
    (leak,) = results_of(study, load_samples(study)[0])
    assert (leak.severity, leak.text) == (LEAK, "1 patient is in both")
    assert leak.share == 1 / 21
    assert "hospital" not in f"{leak.text} {leak.advice}"


def test_two_targets_that_share_a_picture_are_a_warning(study_file):
    """Each is scored rightly; they are only not independent."""
    shutil.copytree("there", "further")
    further = "[target.further]\npath = 'further'\ngroup = '^(p\\d+)'\n[store]"
    study = edited(study_file, {"[store]": further})
    samples, _ = load_samples(study, ALL_IMAGES)
    (found,) = results_of(study, samples)
    assert (found.severity, found.where) == (WARNING, "there and further")


# Near duplicates are found however they were made; strangers are not.


@pytest.fixture(scope="module")
def pictures():
    """Of 300 patients."""
    rng = np.random.default_rng(0)
    return [smooth_picture(rng) for _ in range(300)]


def gallery_of(pictures, n_fit):
    """Small picture, split and patient; the first are for fitting, the rest are the target."""
    split = np.where(np.arange(len(pictures)) < n_fit, "fit", "target")
    return small(pictures), split, np.array([str(i) for i in range(len(pictures))])


def found(of_all, split, group):
    """Rows of the pairs."""
    return [pair.rows for pair in find_duplicates(of_all, split, group)]


def test_copies_are_found_and_strangers_are_not(pictures):
    """All eight of each kind; nothing else."""
    kinds = [how for how in COPIES for _ in range(8)]
    copies = [COPIES[how](one) for how, one in zip(kinds, pictures, strict=False)]
    pairs = find_duplicates(*gallery_of([*pictures[:200], *copies, *pictures[272:]], 200))
    assert {pair.rows for pair in pairs} == {(k, 200 + k) for k in range(len(kinds))}
    views = {kinds[pair.rows[0]]: pair.how for pair in pairs}
    assert [how for how in kinds[::8] if views[how] == "mirrored"] == ["mirrored"]


def test_burnt_out_copies_are_found_by_their_tones(pictures, monkeypatch):
    """A third of each copy is white; the rest agrees, which textures alone would not show."""
    bright = [one.point([min(255, 85 + round(k * 1.35)) for k in range(256)]) for one in pictures]
    gallery = gallery_of([*pictures[:200], *bright[:40], *pictures[240:]], 200)
    planted = {(k, 200 + k) for k in range(40)}
    assert set(found(*gallery)) == planted
    monkeypatch.setattr(near_duplicates, "_tones", lambda a, _b: np.zeros(len(a)))
    assert len(set(found(*gallery)) & planted) < 35


def test_copies_inside_one_split_are_not_across_splits(pictures):
    """Two views of one patient in one split are no leak, nor do they hide one."""
    copied = list(pictures)
    copied[100:150] = copied[:50]
    copied[250] = copied[160]
    assert found(*gallery_of(copied, 200)) == [(160, 250)]


def test_a_far_split_hides_no_copies(pictures):
    """Images of a third split that all look alike raise that split's limit and no other's."""
    rng = np.random.default_rng(1)
    alike = np.asarray(pictures[0], np.float64)
    far = [
        Image.fromarray(np.uint8(np.clip(alike + rng.normal(0, 12, alike.shape), 0, 255)))
        for _ in range(60)
    ]
    copied = [*pictures[:200], *(COPIES["recompressed"](one) for one in pictures[:14]), *far]
    of_all, _, group = gallery_of(copied, 200)
    split = np.repeat(["fit", "validation", "far"], [200, 14, 60])
    assert [(k, 200 + k) for k in range(14)] == sorted(
        pair for pair in found(of_all, split, group) if pair[1] < 214
    )


def test_pictures_without_any_detail_are_no_copies():
    """Black pictures are equal, not alike."""
    split = np.array(["fit", "target"])
    assert found(np.zeros((2, SMALL, SMALL), np.uint8), split, np.array(["a", "b"])) == []


def test_near_duplicates_are_looked_for_once(tmp_path, monkeypatch):
    """Of the same images in the same splits; what is damaged is not believed."""
    small = np.random.default_rng(0).integers(0, 255, (40, SMALL, SMALL), np.uint8)
    small[21] = small[3]
    splits, group = np.repeat(["fit", "far"], 20), np.arange(40).astype(str)
    (pair,) = stored_duplicates(tmp_path, small, splits, group)
    assert pair.rows == (3, 21)
    (file,) = (tmp_path / "index").glob("near-*/*")
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "find_duplicates", None)
        assert stored_duplicates(tmp_path, small, splits, group) == (pair,)
        with pytest.raises(TypeError):
            stored_duplicates(tmp_path, small, splits[::-1], group)
    flip(file, 3)
    assert stored_duplicates(tmp_path, small, splits, group) == (pair,)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")  # what cannot be kept is only found again
    assert stored_duplicates(tmp_path, small, splits, group) == (pair,)
