"""Leaks are found where they were planted; clean studies stay clean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from pipeline.audit.stage import SAMPLES
from pipeline.data.domain import DomainData
from pipeline.data.leaks import (
    LEAK,
    NOTE,
    OK,
    WARNING,
    Finding,
    check_leaks,
    check_near_copies,
    find_near_copies,
    near_rows,
    roles_of,
    shared_ids,
)
from pipeline.data.samples import load_samples
from pipeline.errors import UnknownNameError
from pipeline.shift.detect import run_tests
from pipeline.study import load_study
from tests.audit_worlds import coarse_pixels, facts_of, near_copies_of, smooth_study
from tests.tiny import install_tiny_backbone, write_tiny_study

SIZE = 96


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A tiny study of 80 images in the source and 40 in the target, in the current folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return write_tiny_study(tmp_path, source=80, target=40)


def about_patients(study, samples):
    """The findings about patients."""
    return [f for f in check_leaks(study, samples) if f.check == "patients"]


def test_a_patient_in_fit_and_validation_is_a_leak(study_file):
    """E-T1: the split itself is checked and not believed."""
    study = load_study(study_file)
    samples, _ = load_samples(study)
    group = samples.group.copy()
    fit, held = (np.flatnonzero(samples.split == s)[0] for s in ("fit", "validation"))
    group[fit] = group[held]
    (leak,) = about_patients(study, replace(samples, group=group))
    assert (leak.severity, leak.values["patients"]) == (LEAK, 1)
    assert leak.where == "source fit and source validation"
    (clean,) = about_patients(study, samples)
    assert clean.severity == OK


def test_ids_that_two_hospitals_share_and_names_without_one_are_warnings(study_file):
    """Hospitals number alike; without a pattern nobody can know."""
    study = load_study(study_file)
    Path("there/a/p1000_99.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    Path("there/b/nobody.png").write_bytes(Path("there/b/p2000_1.png").read_bytes())
    samples, _ = load_samples(study)
    met, alone = sorted(about_patients(study, samples), key=lambda f: "match" in f.text)
    assert (met.severity, met.where) == (WARNING, "source and there")
    assert met.text == "1 patient id is in both"
    assert alone.text.startswith("1 of 42 names match no patient")
    blind = replace(study, source=replace(study.source, group=None))
    (first, *_) = about_patients(blind, load_samples(blind)[0])
    assert (first.severity, first.where) == (WARNING, "source")
    assert "image-level split" in first.text


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
    _, clean, findings = near_copies_of(smooth_study(tmp_path / "clean"))
    assert clean == ()
    assert [f.severity for f in findings] == [OK]
    study_file = smooth_study(tmp_path / "copied", [(4, 8, 1), (7, 11, 1), (10, 20, 0)])
    samples, near, findings = near_copies_of(study_file)
    names = {tuple(Path(samples.items[r].path).name for r in pair.rows) for pair in near}
    assert names == {("ph004.png", "pt008.png"), ("ph007.png", "pt011.png")}
    assert {f.severity for f in findings} == {WARNING}
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
    near, _ = check_near_copies(alone, coarse_pixels(samples), facts_of(study_file, samples))
    names = [Path(samples.items[r].path).name for pair in near for r in pair.rows]
    assert names == ["ph004.png", "pt008.png"]
    assert roles_of(samples)[near_rows(samples, near)].tolist() == ["there"]


def test_an_unknown_severity_is_refused():
    """The message lists the known ones."""
    with pytest.raises(UnknownNameError, match="known: leak, warning, note, ok"):
        Finding(check="x", severity="bad", where="y", text="z")


# --- near copies and shared ids, on arrays


def pictures(rng, n):
    """Draw smooth random images of independent patients, shape (n, 96, 96)."""
    noise = rng.normal(size=(n, SIZE, SIZE))
    return np.stack([gaussian_filter(image, 12) for image in noise])


def looks(images):
    """Reduce images to a coarse grid of 12 x 12 means, much as pooled features do."""
    return images.reshape(len(images), 12, 8, 12, 8).mean(axis=(2, 4)).reshape(len(images), -1)


def difference_hash(images):
    """Return the 64-bit dHash: is each of 8 x 8 cells brighter than its left neighbour?"""
    columns = np.linspace(0, SIZE, 10).astype(int)
    rows = np.linspace(0, SIZE, 9).astype(int)
    cells = np.stack(
        [
            [
                image[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].mean()
                for i in range(8)
                for j in range(9)
            ]
            for image in images
        ]
    ).reshape(-1, 8, 9)
    bits = np.diff(cells, axis=2) > 0
    return np.packbits(bits.reshape(len(images), 64), axis=1).view(np.uint64).ravel()


def gallery_of(images, n_fit):
    """Give each image its own patient; the first are for fitting, the rest are target."""
    return {
        "features": looks(images),
        "hashes": difference_hash(images),
        "roles": np.where(np.arange(len(images)) < n_fit, "fit", "target"),
        "group": np.arange(len(images)),
    }


def test_planted_copies_are_found_and_independent_images_are_not():
    """E-T1: a pixel copy and a copy shifted by one pixel, across roles; nothing else."""
    rng = np.random.default_rng(0)
    images = pictures(rng, 400)
    clean = find_near_copies(**gallery_of(images, 300))
    assert clean == ()
    images[310] = images[17]
    images[320] = shift(images[42], (0, 1), mode="nearest")
    found = find_near_copies(**gallery_of(images, 300))
    assert [pair.rows for pair in found] == [(17, 310), (42, 320)]
    assert found[0].cosine == pytest.approx(1)
    assert found[0].bits == 0
    assert 0 <= found[1].bits <= 4


def test_copies_inside_one_role_are_not_across_roles():
    """Two views of one patient in one role are no leak, nor do they hide one."""
    images = pictures(np.random.default_rng(1), 300)
    images[5] = images[4]
    images[250] = images[9]
    gallery = gallery_of(images, 200)
    gallery["group"][5] = 4
    assert [pair.rows for pair in find_near_copies(**gallery)] == [(9, 250)]


def test_copies_under_two_patients_of_one_role_set_no_threshold():
    """What the hash takes for a copy is not chance: a moved copy across roles is still found."""
    images = pictures(np.random.default_rng(1), 300)
    images[20:26] = images[30:36]
    images[250] = shift(images[9], (0, 1), mode="nearest")
    assert (9, 250) in [pair.rows for pair in find_near_copies(**gallery_of(images, 200))]


def test_alike_in_features_alone_is_no_copy():
    """Both signs must agree: the same features with another hash are not a duplicate."""
    images = pictures(np.random.default_rng(2), 300)
    images[250] = images[9]
    gallery = gallery_of(images, 200)
    gallery["hashes"][250] ^= np.uint64(0b11111)
    assert find_near_copies(**gallery) == ()
    assert len(find_near_copies(**gallery, bits=5)) == 1


def test_patients_and_pictures_in_two_roles_are_listed():
    """E-T1: the overlap of each pair of roles, by id; roles without one are silent."""
    shared = shared_ids(
        {
            "fit": np.array(["p1", "p2", "p3", "p2"]),
            "validation": np.array(["p4", "p2"]),
            "target": np.array(["p5", "p3", "p1"]),
        }
    )
    assert {roles: ids.tolist() for roles, ids in shared.items()} == {
        ("fit", "validation"): ["p2"],
        ("fit", "target"): ["p1", "p3"],
    }


def test_a_leaky_split_is_found_by_the_leak_checks_and_not_by_the_tests():
    """B-T8: duplicated patients make two roles look alike; only their ids and copies tell."""
    rng = np.random.default_rng(3)
    images = pictures(rng, 160)
    images[100:140] = images[:40]
    patients = np.r_[np.arange(100), np.arange(40), np.arange(100, 120)]
    features = looks(images)
    positive = 1 / (1 + np.exp(-30 * features[:, 0]))
    probabilities = np.stack([1 - positive, positive], axis=1)
    fit, held = (
        DomainData(
            name=name, role=name, features=features[r], proba=probabilities[r], group=patients[r]
        )
        for name, r in (("fit", slice(100)), ("held", slice(100, 160)))
    )
    for row in run_tests(fit, held, draws=99):
        assert row.p > 0.05, row.test
    shared = shared_ids({"fit": fit.group, "held": held.group})
    assert shared["fit", "held"].tolist() == list(range(40))
    assert len(find_near_copies(**gallery_of(images, 100))) == 40
