"""Patients and pictures in two roles are found; clean studies stay clean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit.stage import SAMPLES
from pipeline.data.leaks import (
    LEAK,
    NOTE,
    OK,
    WARNING,
    Finding,
    check_leaks,
    check_near_copies,
    check_patients,
    near_rows,
    roles_of,
)
from pipeline.data.samples import load_samples
from pipeline.errors import UnknownNameError
from pipeline.study import load_study
from tests.audit_worlds import coarse_pixels, facts_of, near_copies_of, smooth_study
from tests.tiny import install_tiny_backbone, write_tiny_study


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A tiny study of 80 images in the source and 40 in the target, in the current folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return write_tiny_study(tmp_path, source=80, target=40)


def test_a_patient_in_fit_and_validation_is_a_leak(study_file):
    """E-T1: the split itself is checked and not believed."""
    study = load_study(study_file)
    samples, _ = load_samples(study)
    group = samples.group.copy()
    fit, held = (np.flatnonzero(samples.split == s)[0] for s in ("fit", "validation"))
    group[fit] = group[held]
    (leak,) = check_patients(study, replace(samples, group=group))
    assert (leak.severity, leak.values["patients"]) == (LEAK, 1)
    assert leak.where == "source fit and source validation"
    (clean,) = check_patients(study, samples)
    assert clean.severity == OK


def test_ids_that_two_hospitals_share_and_names_without_one_are_warnings(study_file):
    """Hospitals number alike; without a pattern nobody can know."""
    study = load_study(study_file)
    Path("there/a/p1000_99.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    Path("there/b/nobody.png").write_bytes(Path("there/b/p2000_1.png").read_bytes())
    samples, _ = load_samples(study)
    met, alone = sorted(check_patients(study, samples), key=lambda f: "match" in f.found)
    assert (met.severity, met.where) == (WARNING, "source and there")
    assert met.found == "1 patient id is in both"
    assert alone.found.startswith("1 of 42 names match no patient")
    blind = replace(study, source=replace(study.source, group=None))
    (first, *_) = check_patients(blind, load_samples(blind)[0])
    assert (first.severity, first.where) == (WARNING, "source")
    assert "image-level split" in first.found


def test_one_picture_under_two_labels_is_listed(study_file):
    """A warning with both paths; copies within a role are a note."""
    Path("there/b/p2000_98.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = load_study(study_file)
    samples, _ = load_samples(study, SAMPLES)
    found = {(f.check, f.where): f.severity for f in check_leaks(study, samples)}
    assert found[("label conflicts", "all roles")] == WARNING
    assert found[("copies", "there")] == NOTE
    (conflict,) = [f for f in check_leaks(study, samples) if f.check == "label conflicts"]
    assert conflict.values["pictures"] == [["there/a/p2000_0.png", "there/b/p2000_98.png"]]


def test_a_copy_shifted_by_one_pixel_is_found_and_strangers_are_not(tmp_path, monkeypatch):
    """The moved copy is a near copy, the pixel copy an exact one; nothing else is named."""
    install_tiny_backbone(monkeypatch, tmp_path)
    samples, clean = near_copies_of(smooth_study(tmp_path / "clean"))
    assert clean.pairs == ()
    assert [f.severity for f in clean.findings] == [OK]
    study_file = smooth_study(tmp_path / "copied", [(4, 8, 1), (7, 11, 1), (10, 20, 0)])
    samples, near = near_copies_of(study_file)
    names = {tuple(Path(samples.items[r].path).name for r in pair.rows) for pair in near.pairs}
    assert names == {("ph004.png", "pt008.png"), ("ph007.png", "pt011.png")}
    assert {f.severity for f in near.findings} == {WARNING}
    leaks = check_leaks(load_study(study_file), samples, facts_of(study_file, samples))
    assert [f.values["images"] for f in leaks if f.severity == LEAK] == [1]


def test_copies_within_a_role_do_not_hide_those_across_roles(tmp_path, monkeypatch):
    """One picture under two patients of a role must not pass for what chance resembles."""
    install_tiny_backbone(monkeypatch, tmp_path)
    study_file = smooth_study(tmp_path, [(4, 8, 1)])
    for i in range(20, 26):
        copy = tmp_path / "here" / "a" / f"pcopy{i}.png"
        copy.write_bytes((tmp_path / "here" / "a" / f"ph{2 * i:03}.png").read_bytes())
    samples, _ = load_samples(load_study(study_file), SAMPLES)
    # As if every image were its own patient: duplicates within fit, under two names.
    alone = replace(samples, group=np.array([i.path for i in samples.items]))
    near = check_near_copies(alone, coarse_pixels(samples), facts_of(study_file, samples))
    names = [Path(samples.items[r].path).name for pair in near.pairs for r in pair.rows]
    assert names == ["ph004.png", "pt008.png"]
    assert roles_of(samples)[near_rows(samples, near.pairs)].tolist() == ["there"]


def test_an_unknown_severity_is_refused():
    """The message lists the known ones."""
    with pytest.raises(UnknownNameError, match="known: leak, warning, note, ok"):
        Finding(check="x", severity="bad", where="y", found="z")
