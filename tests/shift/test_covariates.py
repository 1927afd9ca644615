"""Acquisition differences: the declared one is named, chance is not, and neither is illness."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.audit.stage import audit
from pipeline.data.domain import DomainData
from pipeline.demo import SITES, SOURCE, write_demo
from pipeline.features.extract import extract
from pipeline.shift.covariates import acquisition_differences, summary
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study_file import load_study


def hospital(seed, *, n=150, ill=0.5, shift=0.0):
    """Images of patients with two each; ``loud`` may be shifted, ``calm`` never is.

    Illness moves every measure by two standard deviations.
    """
    rng = np.random.default_rng(seed)
    label = np.repeat((rng.random(n) < ill).astype(np.int64), 2)
    noise = np.repeat(rng.normal(size=(n, 2)), 2, axis=0) * 0.8 + rng.normal(size=(2 * n, 2)) * 0.6
    data = DomainData(name="x", role="target", group=np.repeat(np.arange(n), 2), label=label)
    return data, {"loud": noise[:, 0] + shift + 2 * label, "calm": noise[:, 1] + 2 * label}


def differences(source, target):
    """Of two domains, each with what was measured in its images."""
    (data_s, measures_s), (data_t, measures_t) = source, target
    row_s, row_t = np.split(np.arange(len(data_s) + len(data_t)), [len(data_s)])
    measures = {name: np.r_[measures_s[name], measures_t[name]] for name in measures_s}
    both = data_s.with_(row=row_s), data_t.with_(row=row_t)
    return acquisition_differences(*both, measures, np.random.default_rng(0), draws=500)


def named(source, target):
    return [row.name for row in differences(source, target) if row.shown]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shift": 1.0}, ["loud"]),
        ({"ill": 0.85}, []),  # illness is no acquisition
        *(({"n": n, "shift": 5.0}, []) for n in (3, 9)),  # draws of a few are too much alike
        ({"n": 10, "shift": 5.0}, ["loud"]),
    ],
)
def test_what_was_made_to_differ_is_named_alone(change, names):
    """A shifted measure; of another class mix, or a handful of patients, nothing."""
    assert named(hospital(0), hospital(1, **change)) == names


def test_nothing_is_named_between_halves_of_one_hospital():
    """In ten pairs without any difference."""
    assert not [n for i in range(10) for n in named(hospital(2 * i), hospital(2 * i + 1))]


def test_the_estimate_is_the_mean_of_cohens_d_over_classes():
    """Against the formula written out; its interval holds the truth."""
    both = hospital(0), hospital(1, shift=0.4)
    each = []
    for k in (0, 1):
        a, b = (measures["loud"][data.label == k] for data, measures in both)
        each.append((b.mean() - a.mean()) / np.sqrt((a.var() + b.var()) / 2))
    loud = next(row for row in differences(*both) if row.name == "loud")
    assert loud.estimate == pytest.approx(np.mean(each))
    assert loud.low < 0.4 < loud.high


def test_what_cannot_be_measured_is_left_out_and_what_never_varies_is_compared():
    """Some NaN change little; a mark that all of one hospital have, and none of the other."""
    source, target = hospital(0), hospital(1, shift=1.0)
    source[1]["loud"][:5] = np.nan
    assert named(source, target) == ["loud"]
    for (_, measures), value in ((source, 0.0), (target, 1.0)):
        measures["calm"][:] = value
    assert not named((source[0], {"calm": np.ones(300)}), (source[0], {"calm": np.ones(300)}))
    (calm, *_) = differences(source, target)
    assert (calm.name, calm.low, calm.estimate, calm.high) == ("calm", 10, 10, 10)
    assert "calm (+10 or more)" in summary([calm])


def test_the_summary_says_what_differs_most_or_that_nothing_is_shown():
    """Images that were never measured are said to be so."""
    shifted = summary(differences(hospital(0), hospital(1, shift=1.0)))
    assert shifted.startswith("The images differ most in loud (+")
    assert summary(differences(hospital(0), hospital(1))) == (
        "No measure is shown to differ by half a standard deviation or more: calm, loud."
    )
    assert "run `headrace audit STUDY`" in summary(None)


# The whole of stage 4 on generated hospitals.

#: By target what its hospital does otherwise, and the name that must come first.
HOSPITALS = {
    "same": ({}, None),
    "bright": ({"exposure": 1.25}, "exposure"),
    "grainy": ({"noise": 0.04}, "noise"),
    "marking": ({"marker_normal": 0.7, "marker_pneumonia": 0.7}, "corner_marks"),
    "sicker": ({"prevalence": 0.85}, None),
}
PATIENTS = r"group = '^(patient\d+)'"


def write_hospitals(folder, n_source, n_target):
    """One source and a target for each change; patients of a target are in no other role."""
    lines = ['name = "phantoms"', "[source]", f'path = "same/{SITES[0]}"', PATIENTS]
    for name, (change, _) in HOSPITALS.items():
        target = replace(SOURCE, **change)
        images = n_source if name == "same" else 1
        write_demo(folder / name, seed=3, n_source=images, n_target=n_target, target=target)
        lines += [f"[target.{name}]", f'path = "{name}/{SITES[1]}"', PATIENTS]
    (folder / "study.toml").write_text("\n".join([*lines, "[backbone.efficientnet_lite0]", ""]))
    return load_study(folder / "study.toml")


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """What the stage found of each target."""
    pytest.importorskip("timm", reason="the backbone with weights at hand is timm's")
    folder = tmp_path_factory.mktemp("phantoms")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = write_hospitals(folder, n_source=160, n_target=120)
        extract(study)
        audit(study, shortcuts=False)
        record = analyse(study, ShiftOptions(draws=199, seeds=1))
    return {target["target"]: target for target in record["targets"]}


@pytest.mark.slow
def test_what_was_made_to_differ_is_named_first_and_nothing_between_equal_hospitals(targets):
    """Exposure, noise and markers; more ill patients are no other way of taking images."""
    for name, (_, cause) in HOSPITALS.items():
        named = [row["name"] for row in targets[name]["covariates"] if row["shown"]]
        assert (named[0] if named else None) == cause, name
    same = targets["same"]
    assert min(row["p_adjusted"] for row in same["detection"]) > 0.05
    assert not same["causes"]
