"""The demo is the same on every machine, and its hospitals differ as they declare."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline import demo as code
from pipeline.data.attributes import read_attributes
from pipeline.demo import CANVAS, CLASSES, SITES, SOURCE, Hospital, Patient, chest, cohort, expose
from pipeline.errors import StudyError
from pipeline.study_file import load_study

TINY = {"n_source": 4, "n_target": 3}
PATIENT = Patient(name="patient0001", label="normal")


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def other(number, **changes):
    return replace(PATIENT, name=f"patient{number:04d}", **changes)


def grey(patient=PATIENT, visit=1, **hospital):
    film = expose(chest(patient), patient, Hospital(**{"noise": 0.0, **hospital}), visit=visit)
    return film.astype(float) / 255


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a small demo; nobody changes it."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "demo"
    code.write_demo(folder, **TINY)
    return folder


def test_a_demo_is_a_study_that_headrace_reads_and_its_images_are_those_of_its_patients(demo):
    """8-bit grey, 224 x 224; the patient pattern, attributes and backbone fit."""
    study = load_study(demo / "study.toml")
    assert (study.name, study.seed, study.source.validation) == ("demo", 0, 0.2)
    assert [(s.name, s.edges) for s in study.subgroups] == [("sex", None), ("age", (40, 65))]
    for domain, site in zip(study.domains, SITES, strict=True):
        assert (domain.path, domain.group) == (demo / site, r"^(patient\d+)")
        _, groups = read_attributes(domain.attributes, study.subgroups)
        assert set(groups) == {p.name.split("_")[0] for p in (demo / site).rglob("*.png")}
    images = {}
    for path in demo.rglob("*.png"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (224, 224))
            images[path.name] = np.asarray(image)
    assert len(images) == 7
    patient = next(iter(cohort(SOURCE, 4, first=1, seed=0)))
    film = expose(chest(patient), patient, SOURCE)
    assert np.array_equal(images[f"{patient.name}_1.png"], film)


def test_equal_arguments_give_equal_bytes_and_another_seed_others(demo, tmp_path):
    """Whatever the folder."""
    code.write_demo(tmp_path / "again", **TINY)
    assert files(demo) == files(tmp_path / "again")
    file = code.write_demo(tmp_path / "other", seed=1, backbone="densenet121", **TINY)
    assert not set(files(demo).values()) & set(files(tmp_path / "other").values())
    study = load_study(file)
    assert (study.seed, study.backbones[0].name) == (1, "densenet121")


def test_what_is_there_already_is_refused_untouched_and_an_interrupted_demo_leaves_nothing(
    tmp_path, monkeypatch
):
    """A folder or a file; a seed is not negative."""
    file = tmp_path / "demo" / "study.toml"
    file.parent.mkdir()
    file.write_text("mine")
    for place in (file, file.parent):
        with pytest.raises(StudyError, match="is there already: remove it, or choose another"):
            code.write_demo(place, **TINY)
    with pytest.raises(StudyError, match="seed -1: allowed is 0 or more"):
        code.write_demo(tmp_path / "new", seed=-1)

    def full_disk(*_args, **_settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        code.write_demo(tmp_path / "new", **TINY)
    assert files(tmp_path) == {file.relative_to(tmp_path): b"mine"}
    assert list(tmp_path.iterdir()) == [file.parent]


@pytest.mark.parametrize("prevalence", [0.1, 0.35, 0.8])
def test_counts_are_the_declared_ones(prevalence):
    """Images add up exactly, pneumonia to within two images, 1 to 3 images a patient."""
    names = []
    for first, images in ((1, 400), (2, 200)):
        people = cohort(Hospital(prevalence=prevalence), images, first=first, seed=3)
        assert sum(people.values()) == images
        assert set(people.values()) == {1, 2, 3}
        ill = sum(count for patient, count in people.items() if patient.label == "pneumonia")
        assert abs(ill - prevalence * images) <= 2
        names += [patient.name for patient in people]
    assert len(set(names)) == len(names)  # no patient is at both hospitals


def test_neither_prevalence_nor_more_images_move_the_patients_before():
    """The same patients come as often; those who were ill at a low prevalence stay so."""
    low, high = (cohort(Hospital(prevalence=p), 400, first=1, seed=0) for p in (0.3, 0.6))
    assert [(p.name, n) for p, n in low.items()] == [(p.name, n) for p, n in high.items()]
    ill_low, ill_high = ({p.name for p in who if p.label == CLASSES[1]} for who in (low, high))
    assert len(ill_low - ill_high) <= 2
    assert len(ill_high) > 1.5 * len(ill_low)
    fewer, more = (cohort(SOURCE, images, first=1, seed=0).items() for images in (50, 100))
    counts = [[(patient.name, count) for patient, count in people] for people in (fewer, more)]
    assert counts[0][:-1] == counts[1][: len(fewer) - 1]  # the last may have been cut short


def test_pneumonia_adds_density_inside_the_lungs_only_and_visits_differ_in_pose_only():
    """The disease leaves the anatomy; two images of a patient are alike more than of two."""
    added = chest(replace(PATIENT, label="pneumonia")) - chest(PATIENT)
    assert added.min() > -1e-6
    assert added.max() > 0.1
    x = np.abs(np.linspace(-code.REACH, code.REACH, CANVAS))
    assert added[:, x < 0.06].max() < 0.01  # the spine
    assert added[:, x > 0.9].max() < 0.01  # the chest wall and the arms
    assert added[x > 0.95].max() < 0.01  # the neck and the abdomen
    first, again = grey(), grey(visit=2)
    assert not np.array_equal(first, again)
    others = [np.abs(first - grey(other(number))).mean() for number in range(2, 8)]
    assert np.abs(first - again).mean() < np.mean(others)


def test_each_number_of_a_hospital_has_the_declared_effect():
    """A gain cut at white, an exponent, white noise, a Gaussian blur, a zoom about the centre."""
    plain, bright = grey(), grey(exposure=1.3)
    assert np.abs(bright - np.minimum(1.3 * plain, 1)).max() < 0.005
    assert bright.mean() > 1.15 * plain.mean()
    for gamma in (0.6, 1.5):
        assert np.abs(grey(gamma=gamma) - plain**gamma)[plain > 0.1].max() < 0.01
    for noise in (0.02, 0.06):
        added = grey(noise=noise) - plain
        grain = added[(plain > 0.3) & (plain < 0.7)]
        assert grain.std() == pytest.approx(noise, rel=0.05)
        assert abs(grain.mean()) < 0.1 * noise
        assert abs(np.corrcoef(added[:, 1:].ravel(), added[:, :-1].ravel())[0, 1]) < 0.02
    middle, soft = plain[20:-20, 20:-20], grey(blur=1.5)[20:-20, 20:-20]
    assert soft.mean() == pytest.approx(middle.mean(), abs=0.002)
    expected = ndimage.gaussian_filter(middle, 1.5)[8:-8, 8:-8]
    assert np.abs(soft[8:-8, 8:-8] - expected).max() < 0.015
    enlarged = Image.fromarray(plain[56:168, 56:168].astype(np.float32)).resize((224, 224))
    inner = (slice(20, -20), slice(30, -30))  # clear of the collimator's border
    near = [np.asarray(film)[inner].ravel() for film in (enlarged, grey(field_of_view=2.0))]
    assert np.corrcoef(*near)[0, 1] > 0.98


def test_marker_lies_in_the_corner_as_often_as_declared_for_each_class():
    """It is bright, in the upper right of the picture, and changes nothing else."""
    for number in range(1, 8):
        plain, changed = grey(other(number)), grey(other(number), marker_normal=1.0)
        rows, columns = np.nonzero(plain != changed)
        assert rows.size > 30
        assert rows.max() < 224 / 6
        assert columns.min() > 224 * 5 / 6
        assert changed[plain != changed].min() > 0.9
    hospital = Hospital(noise=0.0, marker_normal=0.2, marker_pneumonia=0.9)
    air = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for label, wanted in zip(CLASSES, (0.2, 0.9), strict=True):
        people = [other(number, label=label) for number in range(300)]
        seen = np.mean([expose(air, p, hospital, size=64).max() > 200 for p in people])
        assert seen == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 300))
