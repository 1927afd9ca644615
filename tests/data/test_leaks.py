"""Leaks are found where they were planted; clean studies stay clean."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.leaks import LEAK, NOTE, OK, WARNING, check_leaks, find_leaks, refuse_leaks
from pipeline.data.samples import ALL_IMAGES, load_samples
from pipeline.errors import CheckFailedError
from pipeline.study_file import load_study
from tests.data.copies import measures_of_samples, smooth_study
from tests.tiny import edited, install_tiny_backbone


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
    assert (clean.severity, clean.where) == (OK, "all roles")


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
    """A warning with both paths; copies within a role are a note."""
    Path("there/b/p2000_98.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = load_study(study_file)
    samples, _ = load_samples(study, ALL_IMAGES)
    (conflict,) = results_of(study, samples, "label conflicts")
    assert (conflict.severity, conflict.where) == (WARNING, "all roles")
    assert conflict.examples == "there/a/p2000_0.png = there/b/p2000_98.png"
    (copies,) = results_of(study, samples, "copies")
    assert (copies.severity, copies.where) == (NOTE, "there")


@pytest.fixture
def overlap(tmp_path, monkeypatch):
    """Finds the one overlap between the source and the target of a study of smooth pictures."""
    install_tiny_backbone(monkeypatch, tmp_path)

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
        (0, OK, "no patient and no picture is in two roles (200 patients)"),
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


def test_a_pixel_copy_is_a_leak_and_can_be_refused(study_file):
    """The error names both files and what to do; without measures only equal files are known."""
    study = load_study(study_file)
    shutil.copy(next(Path("here/a").iterdir()), "there/a/p9000_0.png")
    samples, _ = load_samples(study, ALL_IMAGES)
    (leak,) = find_leaks(study, samples)
    assert (leak.severity, leak.text) == (LEAK, "1 identical image is in both")
    to_do = "--write-exclude FILE.*; --allow-leaks lets heads, finetune and shift go on"
    with pytest.raises(CheckFailedError, match=rf"= there/a/p9000_0.png\. .*{to_do}"):
        refuse_leaks([leak])


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
