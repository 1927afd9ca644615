"""The demo is the same on every machine, and its hospitals differ as they declare."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.data.attributes import read_attributes
from pipeline.demo import SITES, SOURCE, DemoSpec, cohort, write_demo
from pipeline.demo.hospital import Hospital, expose
from pipeline.demo.phantom import CANVAS, CLASSES, REACH, Patient, chest
from pipeline.errors import StudyError
from pipeline.study import load_study

SMALL = DemoSpec(n_source=12, n_target=8)
#: Enough where it is written several times.
TINY = DemoSpec(n_source=4, n_target=3, size=48)
QUIET = Hospital(noise=0.0)
PATIENT = Patient(name="patient0001", label="normal")


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def other(number, **changes):
    return replace(PATIENT, name=f"patient{number:04d}", **changes)


def grey(patient=PATIENT, visit=1, **hospital):
    film = expose(chest(patient), patient, replace(QUIET, **hospital), visit=visit)
    return film.astype(float) / 255


# --- what is written


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, SMALL)
    return folder


def test_images_are_grey_png_of_the_declared_size(demo):
    """8-bit grey, 224 x 224, of what the patient's chest and the hospital give."""
    images = sorted(demo.rglob("*.png"))
    assert len(images) == 20
    for path in images:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (224, 224))
            assert np.asarray(image).std() > 30
    patient, _ = cohort(SMALL, "hospital_a")[0]
    path = demo / "hospital_a" / patient.label / f"{patient.name}_1.png"
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), expose(chest(patient), patient, SOURCE))


def test_study_file_is_one_that_headrace_reads(demo, tmp_path):
    """Both hospitals, the patient pattern, the seed, the attributes and the backbone."""
    study = load_study(demo / "study.toml")
    assert (study.name, study.seed) == ("demo", 0)
    assert (study.source.path, study.source.validation) == (demo / "hospital_a", 0.2)
    assert [(t.name, t.path) for t in study.targets] == [("hospital_b", demo / "hospital_b")]
    assert {d.group for d in study.domains} == {r"^(patient\d+)"}
    assert [(s.name, s.edges) for s in study.subgroups] == [("sex", None), ("age", (40, 65))]
    for domain, site in zip(study.domains, SITES, strict=True):
        _, groups = read_attributes(domain.attributes, study.subgroups)
        assert set(groups) == {patient.name for patient, _ in cohort(SMALL, site)}
    file = write_demo(tmp_path, replace(TINY, seed=3), backbone="densenet121")
    assert [b.name for b in load_study(file).backbones] == ["densenet121"]
    assert load_study(file).seed == 3


def test_same_spec_gives_the_same_bytes_and_another_seed_others(tmp_path):
    """Here or elsewhere; nothing of a larger or an older demo stays."""
    first = files(write_demo(tmp_path / "one", TINY).parent)
    write_demo(tmp_path / "two", replace(TINY, seed=1, n_source=9))
    assert not set(first.values()) & set(files(tmp_path / "two").values())
    write_demo(tmp_path / "two", TINY)
    assert first == files(tmp_path / "two")
    assert Counter(path.parts[0] for path in first) == {
        "hospital_a": 4, "hospital_a.csv": 1, "hospital_b": 3, "hospital_b.csv": 1,
        "study.toml": 1,
    }  # fmt: skip


def test_interrupted_demo_has_no_study_and_can_be_written_again(tmp_path, monkeypatch):
    """A demo cut short shows no study file, and the next run completes it."""
    write_demo(tmp_path / "whole", TINY)
    write_demo(tmp_path / "cut", replace(TINY, seed=5))

    def full_disk(*_args, **_settings):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_demo(tmp_path / "cut", TINY)
    assert not (tmp_path / "cut" / "study.toml").exists()
    write_demo(tmp_path / "cut", TINY)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", ["notes.txt", "hospital_a/normal/scan.png", "hospital_c/x.png", "hospital_b/x/y.png"]
)
def test_folder_with_a_foreign_file_is_refused_untouched(tmp_path, name):
    """Beside an older demo, too, somebody's own file stops the writing before it starts."""
    write_demo(tmp_path, TINY)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = files(tmp_path)
    with pytest.raises(StudyError, match="which no demo wrote; allowed is a new or empty folder"):
        write_demo(tmp_path, replace(TINY, seed=1))
    assert files(tmp_path) == before


def test_what_only_looks_like_a_demo_is_refused(tmp_path):
    """The study file must say so; a file is no folder; a seed is not negative."""
    path = tmp_path / "hospital_a" / "normal" / "patient0001_1.png"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    (tmp_path / "study.toml").write_text('name = "mine"')
    for folder, message in ((tmp_path, "no demo wrote"), (path, "is a file; .* choose another")):
        with pytest.raises(StudyError, match=message):
            write_demo(folder, TINY)
    assert path.read_text() == "mine"
    with pytest.raises(StudyError, match="seed = -1; allowed is 0 or more"):
        DemoSpec(seed=-1)


# --- patients


@pytest.mark.parametrize("prevalence", [0.1, 0.35, 0.8])
def test_counts_are_the_declared_ones(prevalence):
    """Images add up exactly, pneumonia to within two images, 1 to 3 images a patient."""
    hospital = Hospital(prevalence=prevalence)
    spec = DemoSpec(seed=3, source=hospital, target=hospital)
    names = []
    for site, images in zip(SITES, (spec.n_source, spec.n_target), strict=True):
        people = cohort(spec, site)
        assert sum(count for _, count in people) == images
        assert {count for _, count in people} == {1, 2, 3}
        ill = sum(count for patient, count in people if patient.label == "pneumonia")
        assert abs(ill - prevalence * images) <= 2
        names += [patient.name for patient, _ in people]
    assert len(set(names)) == len(names)  # no patient is at both hospitals


def test_neither_prevalence_nor_more_images_move_the_patients_before():
    """The same patients come as often; those who were ill at a low prevalence stay so."""
    low, high = (
        dict(cohort(DemoSpec(source=Hospital(prevalence=p)), "hospital_a")) for p in (0.3, 0.6)
    )
    assert [(p.name, n) for p, n in low.items()] == [(p.name, n) for p, n in high.items()]
    ill_low, ill_high = ({p.name for p in who if p.label == CLASSES[1]} for who in (low, high))
    assert len(ill_low - ill_high) <= 2
    assert len(ill_high) > 1.5 * len(ill_low)
    fewer = cohort(DemoSpec(n_source=50), "hospital_a")[:-1]  # the last may have been cut short
    more = cohort(DemoSpec(n_source=100), "hospital_a")[: len(fewer)]
    assert [(p.name, n) for p, n in fewer] == [(p.name, n) for p, n in more]


def test_pneumonia_adds_density_inside_the_lungs_only():
    """The disease leaves the anatomy as it was, and shows."""
    added = chest(replace(PATIENT, label="pneumonia")) - chest(PATIENT)
    assert added.min() > -1e-6
    assert added.max() > 0.1
    x = np.abs(np.linspace(-REACH, REACH, CANVAS))
    assert added[:, x < 0.06].max() < 0.01  # the spine
    assert added[:, x > 0.9].max() < 0.01  # the chest wall and the arms
    assert added[x > 0.95].max() < 0.01  # the neck and the abdomen


def test_visits_differ_in_pose_and_not_in_person():
    """Two images of a patient are alike more than images of two patients."""
    first, again = grey(), grey(visit=2)
    assert not np.array_equal(first, again)
    others = [np.abs(first - grey(other(number))).mean() for number in range(2, 8)]
    assert np.abs(first - again).mean() < np.mean(others)


# --- what a hospital declares


def test_exposure_is_a_gain_cut_at_white_and_gamma_an_exponent():
    """To rounding; near black the slope of the power multiplies it."""
    plain, bright = grey(), grey(exposure=1.3)
    assert np.abs(bright - np.minimum(1.3 * plain, 1)).max() < 0.005
    assert bright.mean() > 1.15 * plain.mean()
    for gamma in (0.6, 1.5):
        assert np.abs(grey(gamma=gamma) - plain**gamma)[plain > 0.1].max() < 0.01


def test_noise_has_the_declared_deviation_and_no_structure():
    """What noise adds is white, of the declared deviation, away from black and white."""
    plain = grey()
    for noise in (0.02, 0.06):
        added = grey(noise=noise) - plain
        grain = added[(plain > 0.3) & (plain < 0.7)]
        assert grain.std() == pytest.approx(noise, rel=0.05)
        assert abs(grain.mean()) < 0.1 * noise
        assert abs(np.corrcoef(added[:, 1:].ravel(), added[:, :-1].ravel())[0, 1]) < 0.02


def test_blur_takes_detail_and_leaves_brightness():
    """Blur lowers the fine structure a Gaussian of that width lowers, and not the mean."""
    plain, soft = grey()[20:-20, 20:-20], grey(blur=1.5)[20:-20, 20:-20]
    assert soft.mean() == pytest.approx(plain.mean(), abs=0.002)
    expected = ndimage.gaussian_filter(plain, 1.5)[8:-8, 8:-8]
    assert np.abs(soft[8:-8, 8:-8] - expected).max() < 0.015


def test_field_of_view_is_a_zoom_about_the_centre():
    """At 2 the picture is the enlarged middle of the picture at 1."""
    middle = Image.fromarray(grey()[56:168, 56:168].astype(np.float32))
    enlarged = np.asarray(middle.resize((224, 224), Image.Resampling.BILINEAR))
    inner = (slice(20, -20), slice(30, -30))  # clear of the collimator's border
    near = grey(field_of_view=2.0)
    assert np.corrcoef(enlarged[inner].ravel(), near[inner].ravel())[0, 1] > 0.98


def test_marker_lies_in_the_corner_and_changes_nothing_else():
    """The marker is bright and stays in the upper right ninth of the picture."""
    for number in range(1, 8):
        plain, changed = grey(other(number)), grey(other(number), marker_normal=1.0)
        rows, columns = np.nonzero(plain != changed)
        assert rows.size > 30
        assert rows.max() < 224 / 6
        assert columns.min() > 224 * 5 / 6
        assert changed[plain != changed].min() > 0.9


def test_marker_comes_as_often_as_declared_for_each_class():
    """A shortcut is as strong as the two probabilities say."""
    hospital = Hospital(noise=0.0, marker_normal=0.2, marker_pneumonia=0.9)
    air = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for label, wanted in zip(CLASSES, (0.2, 0.9), strict=True):
        people = [other(number, label=label) for number in range(300)]
        seen = np.mean([expose(air, p, hospital, size=64).max() > 200 for p in people])
        assert seen == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 300))
