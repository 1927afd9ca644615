"""Stage 4 from the store: what it writes, that labels stay sealed, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import StudyError
from pipeline.shift import stage, target
from pipeline.shift.record import SCHEMA, to_json
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study
from pipeline.words import to_jsonable
from tests.tiny import stored_tiny_study

SHORT = ShiftOptions(draws=99, seeds=2)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study with thirty patients a domain, the target brighter, features stored."""
    return load_study(stored_tiny_study(tmp_path, monkeypatch, source=120, target=120))


def test_a_brighter_hospital_is_found_and_said(study):
    """Tests, the prediction of the hospital and the fixes are in the file and in the text."""
    analyse(study, SHORT)
    written = json.loads((study.results / "shift.json").read_text())
    assert written["schema"] == SCHEMA
    (target,) = written["targets"]
    told = target["source_prediction"]["overall"]
    assert told["low"] > 0.5
    assert told["low"] < told["auc"] <= told["high"]
    assert told["p"] == 0.01  # the smallest of 99 permutations
    primary = [row for row in target["detect"] if row["primary"]]
    assert {row["p_holm"] for row in primary if row["p_holm"] is not None}
    assert min(row["p"] for row in primary if row["p"] is not None) <= 0.05
    assert {row["name"] for row in target["fixes"]} >= {"source_only"}
    assert target["verdict"]["text"].startswith("there: ")
    total = target["decomposition"]["total"]["estimate"]
    terms = target["decomposition"]["kitagawa"].values()
    assert sum(term["estimate"] for term in terms) == pytest.approx(total)
    steps = target["gaps"]
    there, here = target["ng"]["t_test"]["estimate"], target["ng"]["s_traindev"]["estimate"]
    assert steps["mismatch"]["est"] == pytest.approx(there - here) == pytest.approx(total)
    parts = steps["target_hardness"]["est"] + steps["transfer_gap"]["est"]
    assert parts == pytest.approx(total)
    assert set(target["not_identifiable"]) == {"avoidable_bias"}
    assert target["ng"]["human"] is None
    # One number, one interval: the table and the verdict draw the same patients.
    whole = target["decomposition"]["total"]
    assert steps["mismatch"]["ci_sampling"] == [whole["low"], whole["high"]]
    low, high = steps["mismatch"]["ci_retrain"]
    assert low <= steps["mismatch"]["est"] <= high
    assert {*target["calib"]} == {"source", "target"}
    ways = {(use["domain"], use["way"]) for use in target["operating_points"]}
    moved = {("target", way) for way in ("carried", "prior", "quantile")}
    assert ways == {("source", "chosen"), *moved}
    unreliable = {use["way"] for use in target["operating_points"] if not use["reliable"]}
    assert unreliable == ({"prior", "quantile"} if target["verdict"]["labels_needed"] else set())


def test_the_record_says_what_it_rests_on(study):
    """Roles with their counts, seeds, digests of the inputs, caveats, checks, family of tests."""
    analyse(study, SHORT)
    (target,) = json.loads((study.results / "shift.json").read_text())["targets"]
    roles = target["roles"]
    assert {*roles} == {"S_fit", "S_sel", "S_traindev", "T_adapt", "T_dev", "T_test"}
    assert (roles["T_test"]["images"], roles["T_test"]["patients"]) == (120, 30)
    assert not roles["T_adapt"]["labels"]
    assert roles["S_sel"]["images"] == 0
    assert target["seeds"]["halves of the target"] == [0, 1]
    inputs = target["inputs"]
    assert inputs["plan"] == target["plan_hash"]
    assert inputs["source"] != inputs["target"]
    assert [len(inputs[name]) for name in ("source", "target")] == [64, 64]
    assert len(inputs["recipes"]) == 1
    assert any("30 patients" in caveat for caveat in target["caveats"])
    assert {row["severity"] for row in target["leak"]} <= {"note", "ok", "warning"}


def test_a_known_human_error_starts_the_table(study):
    """``human_error`` fills the first row, and the step from there is no longer unknown."""
    analyse(replace(study, human_error=0.03), SHORT)
    (target,) = json.loads((study.results / "shift.json").read_text())["targets"]
    bias = target["ng"]["s_fit"]["estimate"] - 0.03
    assert target["ng"]["human"] == 0.03
    assert target["gaps"]["avoidable_bias"]["est"] == pytest.approx(bias)
    assert not target["not_identifiable"]


class StillSealedError(Exception):
    """Raised by a test where the labels are about to be opened."""


@pytest.mark.parametrize("deleted", ["constant", "reversed"])
def test_deleted_labels_of_the_target_move_no_prediction(study, monkeypatch, deleted):
    """Metamorphic: before the seal breaks, a target without its labels gives the same bits."""
    made = []

    def stop(predictions, sealed, *_):
        assert sealed.reads == 0
        made.append(predictions)
        raise StillSealedError

    load = stage.load_features

    def without(*arguments):
        joined = load(*arguments)
        label, far = joined.samples.label.copy(), joined.samples.domain == "there"
        label[far] = 0 if deleted == "constant" else label[far][::-1]
        return replace(joined, samples=replace(joined.samples, label=label))

    for name in ("estimate_accuracy", "detect"):
        monkeypatch.setattr(target, name, _keeping(getattr(target, name), made))
    monkeypatch.setattr(target, "score", stop)
    with pytest.raises(StillSealedError):
        analyse(study, SHORT)
    monkeypatch.setattr(stage, "load_features", without)
    with pytest.raises(StillSealedError):
        analyse(study, SHORT)
    half = len(made) // 2
    assert half == 3
    for before, after in zip(made[:half], made[half:], strict=True):
        np.testing.assert_equal(to_jsonable(before), to_jsonable(after))


def _keeping(function, made):
    """Wrap a function so that what it returns is also kept."""

    def kept(*arguments, **options):
        made.append(function(*arguments, **options))
        return made[-1]

    return kept


def test_labels_of_the_target_move_no_prediction(study, monkeypatch):
    """Metamorphic: with the target's labels permuted, all but the scores stays the same."""
    made = []
    predict = target.predict_target

    def watched(*arguments):
        made.append(predict(*arguments))
        return made[-1]

    monkeypatch.setattr(target, "predict_target", watched)
    score = target.score

    def sealed_until_here(predictions, sealed, *rest):
        assert sealed.reads == 0
        return score(predictions, sealed, *rest)

    monkeypatch.setattr(target, "score", sealed_until_here)
    before = to_json(analyse(study, SHORT))["targets"][0]
    load = stage.load_features

    def permuted(*arguments):
        joined = load(*arguments)
        label = joined.samples.label.copy()
        far = joined.samples.domain == "there"
        label[far] = label[far][::-1]
        return replace(joined, samples=replace(joined.samples, label=label))

    monkeypatch.setattr(stage, "load_features", permuted)
    after = to_json(analyse(study, SHORT))["targets"][0]
    for name, table in made[0].proba.items():
        np.testing.assert_array_equal(table, made[1].proba[name])
    for name in ("detect", "source_prediction", "shared_patients"):
        assert after[name] == before[name]
    assert after["lookups_of_target_labels"] == before["lookups_of_target_labels"] == 2
    assert after["forecast"] == before["forecast"]


def test_a_study_without_a_target_has_no_shift(study):
    """The message names the table that is missing."""
    with pytest.raises(StudyError, match=r"no \[target.NAME\]"):
        analyse(replace(study, targets=()), SHORT)


@pytest.mark.parametrize(
    ("option", "got", "least"),
    [("draws", 18, 19), ("draws", -5, 19), ("seeds", 0, 1)],
)
def test_too_few_draws_or_cuts_are_refused_with_what_is_allowed(option, got, least):
    """On the command line and in Python, before anything is computed."""
    with pytest.raises(StudyError, match=rf"{option} = {got}: ask for {least} or more; "):
        ShiftOptions(**{option: got})
    ShiftOptions(**{option: least})
    told = CliRunner().invoke(main, ["shift", "study.toml", f"--{option}", str(got)])
    assert told.exit_code == 2
    assert f"{got} is not in the range x>={least}" in told.output
