"""What the generated two-hospital demo promises: known differences, and no others."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.data.attributes import read_attributes
from pipeline.demo import SITES, SOURCE, DemoSpec, _attributes_text, cohort, write_demo
from pipeline.demo.hospital import RANGES, Hospital, Shot, expose, render
from pipeline.demo.phantom import CANVAS, CLASSES, REACH, Patient, chest
from pipeline.errors import StudyError, UnknownNameError
from pipeline.study import load_study

SMALL = DemoSpec(n_source=12, n_target=8, size=48)
#: Enough where it is written several times.
TINY = DemoSpec(n_source=4, n_target=3, size=48)
QUIET = Hospital(noise=0.0)
PATIENT = Patient(name="patient0001", label="normal")
SICK = replace(PATIENT, label="pneumonia")


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def grey(hospital, patient=PATIENT, visit=1):
    return render(patient, hospital, visit=visit).astype(float) / 255


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, replace(SMALL, size=224))
    return folder


def test_images_are_grey_png_of_the_declared_size(demo):
    """Every image opens as 8-bit grey, 224 x 224, and shows something."""
    images = sorted(demo.rglob("*.png"))
    assert len(images) == 20
    for path in images:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (224, 224))
            assert np.asarray(image).std() > 30


def test_study_file_is_one_that_headrace_reads(demo):
    """The study names both hospitals, the patient pattern, the seed and the backbone."""
    study = load_study(demo / "study.toml")
    assert (study.name, study.seed) == ("demo", 0)
    assert (study.source.path, study.source.validation) == (demo / "hospital_a", 0.2)
    assert [(t.name, t.path) for t in study.targets] == [("hospital_b", demo / "hospital_b")]
    assert {d.group for d in study.domains} == {r"^(patient\d+)"}
    assert [b.name for b in study.backbones] == ["efficientnet_lite0"]


def test_sex_and_age_of_every_patient_are_known_and_say_nothing(tmp_path):
    """Drawn apart from the pictures: as frequent among the ill as among the healthy."""
    study = load_study(write_demo(tmp_path, SMALL))
    assert [(one.name, one.edges) for one in study.subgroups] == [("sex", None), ("age", (40, 65))]
    for domain, site in zip(study.domains, SITES, strict=True):
        _, groups = read_attributes(domain.attributes, study.subgroups)
        assert set(groups) == {patient.name for patient, _ in cohort(SMALL, site)}
    many = [replace(PATIENT, name=f"patient{i:04}") for i in range(2000)]
    rows = [line.split(",") for line in _attributes_text(many).splitlines()[1:]]
    ages = np.array([int(age) for _, _, age in rows])
    assert np.mean([sex == "F" for _, sex, _ in rows]) == pytest.approx(0.5, abs=0.04)
    assert (ages.min(), ages.max()) == (18, 90)
    sick = [replace(patient, label="pneumonia") for patient in many]
    assert _attributes_text(sick) == _attributes_text(many)


def test_backbone_of_the_study_is_an_argument(tmp_path):
    """The caller's backbone is the study's only one."""
    study = load_study(write_demo(tmp_path, TINY, backbone="densenet121"))
    assert [b.name for b in study.backbones] == ["densenet121"]


def test_same_spec_gives_the_same_bytes(tmp_path):
    """Writing again, here or elsewhere, changes no byte; another seed changes the images."""
    write_demo(tmp_path / "one", TINY)
    first = files(tmp_path / "one")
    write_demo(tmp_path / "one", TINY)
    write_demo(tmp_path / "two", TINY)
    assert first == files(tmp_path / "one") == files(tmp_path / "two")
    write_demo(tmp_path / "two", replace(TINY, seed=1))
    assert not set(first.values()) & set(files(tmp_path / "two").values())


def test_render_equals_what_is_written(demo):
    """The pure function and the files are the same pictures."""
    for patient, count in cohort(SMALL, "hospital_a")[:3]:
        for visit in range(1, count + 1):
            path = demo / "hospital_a" / patient.label / f"{patient.name}_{visit}.png"
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), render(patient, SOURCE, visit=visit))


def test_smaller_demo_leaves_nothing_of_a_larger_one(tmp_path):
    """Images of an older demo never mix with those of a new one."""
    write_demo(tmp_path, SMALL)
    write_demo(tmp_path, replace(SMALL, n_source=3, n_target=2))
    assert Counter(p.parts[0] for p in files(tmp_path)) == {
        "hospital_a": 3,
        "hospital_a.csv": 1,
        "hospital_b": 2,
        "hospital_b.csv": 1,
        "study.toml": 1,
    }


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


def test_own_images_that_are_named_like_a_demo_are_refused(tmp_path):
    """Names alone do not make a folder a demo: its study file must say so."""
    path = tmp_path / "hospital_a" / "normal" / "patient0001_1.png"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    (tmp_path / "study.toml").write_text('name = "mine"')
    with pytest.raises(StudyError, match="which no demo wrote"):
        write_demo(tmp_path, SMALL)
    assert path.read_text() == "mine"


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    """A file is not a folder, and the message says what to do."""
    path = tmp_path / "demo"
    path.write_text("mine")
    with pytest.raises(StudyError, match="is a file; the demo needs a folder: choose another"):
        write_demo(path, SMALL)


@pytest.mark.parametrize("prevalence", [0.1, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("site", SITES)
def test_counts_are_the_declared_ones(site, prevalence):
    """Images add up exactly, pneumonia to within two images, 1 to 3 images a patient."""
    hospital = Hospital(prevalence=prevalence)
    spec = DemoSpec(seed=3, source=hospital, target=hospital)
    people = cohort(spec, site)
    images = spec.n_source if site == "hospital_a" else spec.n_target
    assert sum(count for _, count in people) == images
    assert {count for _, count in people} == {1, 2, 3}
    ill = sum(count for patient, count in people if patient.label == "pneumonia")
    assert abs(ill - prevalence * images) <= 2


def test_no_patient_is_at_both_hospitals():
    """The two hospitals share no patient id and no seed of any purpose."""
    ids = [{p.name for p, _ in cohort(DemoSpec(), site)} for site in SITES]
    assert not ids[0] & ids[1]


def test_unknown_site_is_named_with_the_known_ones():
    """A wrong site lists the right ones."""
    with pytest.raises(UnknownNameError, match="'hospital_c'; known: hospital_a, hospital_b"):
        cohort(SMALL, "hospital_c")


def test_prevalence_moves_labels_and_nothing_else():
    """The same patients come as often; almost all who were ill at a low prevalence stay so."""
    low, high = (
        dict(cohort(DemoSpec(source=Hospital(prevalence=p)), "hospital_a")) for p in (0.3, 0.6)
    )
    assert [(p.name, n) for p, n in low.items()] == [(p.name, n) for p, n in high.items()]
    ill_low, ill_high = ({p.name for p in side if p.label == "pneumonia"} for side in (low, high))
    assert len(ill_low - ill_high) <= 2
    assert len(ill_high) > 1.5 * len(ill_low)


def test_more_images_do_not_move_the_patients_before():
    """A larger demo starts with the patients of the smaller one."""
    small, large = (cohort(DemoSpec(n_source=n), "hospital_a") for n in (50, 100))
    kept = [(p.name, count) for p, count in small[:-1]]  # the last one may have been cut short
    assert kept == [(p.name, count) for p, count in large][: len(kept)]


def test_pneumonia_adds_density_inside_the_lungs_only():
    """The disease leaves the anatomy as it was, and shows."""
    normal, sick = chest(PATIENT), chest(SICK)
    added = sick - normal
    assert added.min() > -1e-6
    assert added.max() > 0.1
    x = np.abs(np.linspace(-REACH, REACH, CANVAS))
    assert added[:, x < 0.06].max() < 0.01  # the spine
    assert added[:, x > 0.9].max() < 0.01  # the chest wall and the arms
    assert added[x > 0.95].max() < 0.01  # the neck and the abdomen


def test_visits_differ_in_pose_and_not_in_person():
    """Two images of a patient are alike more than images of two patients."""
    one, again = grey(QUIET, visit=1), grey(QUIET, visit=2)
    assert not np.array_equal(one, again)
    others = [grey(QUIET, replace(PATIENT, name=f"patient{i:04d}")) for i in range(2, 8)]
    assert np.abs(one - again).mean() < np.mean([np.abs(one - other).mean() for other in others])


def test_exposure_is_a_gain_cut_at_white():
    """Twice the exposure is twice the grey value, to rounding, until it is white."""
    plain, bright = grey(QUIET), grey(replace(QUIET, exposure=1.3))
    assert np.abs(bright - np.minimum(1.3 * plain, 1)).max() < 0.005
    assert bright.mean() > 1.15 * plain.mean()


@pytest.mark.parametrize("gamma", [0.6, 1.5])
def test_gamma_is_an_exponent(gamma):
    """The grey value is raised to gamma, to rounding."""
    plain, curved = grey(QUIET), grey(replace(QUIET, gamma=gamma))
    seen = plain > 0.1  # near black the slope of the power multiplies the rounding
    assert np.abs(curved - plain**gamma)[seen].max() < 0.01


@pytest.mark.parametrize("noise", [0.02, 0.06])
def test_noise_has_the_declared_deviation_and_no_structure(noise):
    """What noise adds is white, of the declared deviation, away from black and white."""
    plain = grey(QUIET)
    added = grey(replace(QUIET, noise=noise)) - plain
    grain = added[(plain > 0.3) & (plain < 0.7)]
    assert grain.std() == pytest.approx(noise, rel=0.05)
    assert abs(grain.mean()) < 0.1 * noise
    assert abs(np.corrcoef(added[:, 1:].ravel(), added[:, :-1].ravel())[0, 1]) < 0.02


def test_blur_takes_detail_and_leaves_brightness():
    """Blur lowers the fine structure a Gaussian of that width lowers, and not the mean."""
    plain, soft = grey(QUIET)[20:-20, 20:-20], grey(replace(QUIET, blur=1.5))[20:-20, 20:-20]
    assert soft.mean() == pytest.approx(plain.mean(), abs=0.002)
    expected = ndimage.gaussian_filter(plain, 1.5)[8:-8, 8:-8]
    assert np.abs(soft[8:-8, 8:-8] - expected).max() < 0.015


def test_field_of_view_is_a_zoom_about_the_centre():
    """At 2 the picture is the enlarged middle of the picture at 1."""
    wide, near = grey(QUIET), grey(replace(QUIET, field_of_view=2.0))
    middle = Image.fromarray(wide[56:168, 56:168].astype(np.float32))
    enlarged = np.asarray(middle.resize((224, 224), Image.Resampling.BILINEAR))
    inner = (slice(20, -20), slice(30, -30))  # clear of the collimator's border
    assert np.corrcoef(enlarged[inner].ravel(), near[inner].ravel())[0, 1] > 0.98


def test_marker_lies_in_the_corner_and_changes_nothing_else():
    """The marker is bright and stays in the upper right ninth of the picture."""
    marked = Hospital(marker_normal=1.0, marker_pneumonia=1.0)
    for number in range(1, 8):
        patient = replace(PATIENT, name=f"patient{number:04d}")
        plain, changed = grey(SOURCE, patient), grey(marked, patient)
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
        people = [Patient(name=f"patient{i:04d}", label=label) for i in range(300)]
        seen = np.mean([expose(air, Shot(p, hospital, 1, 64)).max() > 200 for p in people])
        assert seen == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 300))


def test_identical_hospitals_are_exchangeable_and_a_brighter_one_is_not():
    """With nothing declared the mean grey agrees within chance; a gain of 1.15 shows."""
    people = [
        [Patient(name=f"patient{2 * i + odd:04d}", label="normal") for i in range(30)]
        for odd in (1, 2)
    ]
    chests = [[chest(p) for p in side] for side in people]

    def t_of(*hospitals):
        means = [
            [expose(drawn, Shot(p, hospital, 1, 64)).mean() for drawn, p in zip(c, s, strict=True)]
            for c, s, hospital in zip(chests, people, hospitals, strict=True)
        ]
        error = np.sqrt(sum(np.var(m, ddof=1) / len(m) for m in means))
        return (np.mean(means[1]) - np.mean(means[0])) / error

    assert abs(t_of(SOURCE, SOURCE)) < 3
    assert t_of(SOURCE, Hospital(exposure=1.15)) > 5


def test_every_number_of_a_hospital_has_a_range():
    """No parameter is undeclared."""
    assert list(RANGES) == [field.name for field in fields(Hospital)]


@pytest.mark.parametrize("name", RANGES)
def test_value_outside_its_range_is_refused_with_the_range(name):
    """The message names the parameter, the value and what is allowed; so for not-a-number."""
    low, high = RANGES[name]
    for value in (low - 0.1, high + 0.1, float("nan")):
        with pytest.raises(StudyError, match=rf"{name} = {value}; allowed is {low:g} to {high:g}"):
            Hospital(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("n_source", 0), ("size", 16)])
def test_spec_outside_its_range_is_refused(name, value):
    """The message names the number and the least allowed."""
    with pytest.raises(StudyError, match=rf"{name} = {value}; allowed is \d+ or more"):
        DemoSpec(**{name: value})


def test_demo_needs_no_torch():
    """Importing the generator loads no network library."""
    code = "import sys, pipeline.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
