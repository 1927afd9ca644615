"""The whole of stage 4 on generated hospitals: it names what was made to differ, and no more."""

from dataclasses import replace

import pytest

from pipeline.audit.stage import audit
from pipeline.demo import SITES, SOURCE, write_demo
from pipeline.features.extract import extract
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study

pytestmark = pytest.mark.slow
pytest.importorskip("timm", reason="the backbone with weights at hand is timm's")

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
    folder = tmp_path_factory.mktemp("phantoms")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = write_hospitals(folder, n_source=160, n_target=120)
        extract(study)
        audit(study, shortcuts=False)
        record = analyse(study, ShiftOptions(draws=199, seeds=1))
    return {target["target"]: target for target in record["targets"]}


def test_what_was_made_to_differ_is_named_first_and_nothing_between_equal_hospitals(targets):
    """Exposure, noise and markers; more ill patients are no other way of taking images."""
    for name, (_, cause) in HOSPITALS.items():
        named = [row["name"] for row in targets[name]["covariates"] if row["named"]]
        assert (named[0] if named else None) == cause, name
    same = targets["same"]
    assert min(row["p_adjusted"] for row in same["detection"]) > 0.05
    assert not same["causes"]
