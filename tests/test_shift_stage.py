"""Stage 4 from the store: what it writes, that labels stay sealed, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engines import EngineChoice
from pipeline.errors import StudyError
from pipeline.extract import ExtractOptions, extract
from pipeline.shift import stage
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study
from pipeline.tables import shift_text
from tests.tiny import install_tiny_backbone, write_tiny_study

OPTIONS = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=4))
SHORT = ShiftOptions(draws=99, seeds=2)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study with thirty patients a domain, the target brighter, features stored."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = load_study(write_tiny_study(tmp_path, source=120, target=120))
    extract(loaded, OPTIONS)
    return loaded


def test_a_brighter_hospital_is_found_and_said(study):
    """Tests, the prediction of the hospital and the fixes are in the file and in the text."""
    report = analyse(study, SHORT)
    written = json.loads((study.results / "shift.json").read_text())
    assert written["schema"] == stage.SCHEMA
    (target,) = written["targets"]
    assert target["source_prediction"]["overall"] > 0.6
    primary = [row for row in target["detect"] if row["primary"]]
    assert {row["p_holm"] for row in primary if row["p_holm"] is not None}
    assert min(row["p"] for row in primary if row["p"] is not None) <= 0.05
    assert {row["name"] for row in target["fixes"]} >= {"source_only"}
    assert target["verdict"]["text"].startswith("there: ")
    total = target["decomposition"]["total"]["estimate"]
    terms = target["decomposition"]["kitagawa"].values()
    assert sum(term["estimate"] for term in terms) == pytest.approx(total)
    text = shift_text(report)
    assert "there: " in text
    assert "the hospital can be told from the features with AUC" in text
    assert "fixes that see no label of the target" in text


def test_labels_of_the_target_move_no_prediction(study, monkeypatch):
    """Metamorphic: with the target's labels permuted, all but the scores stays the same."""
    before = stage.to_json(analyse(study, SHORT))["targets"][0]
    load = stage.load_joined

    def permuted(*arguments):
        joined = load(*arguments)
        label = joined.samples.label.copy()
        far = joined.samples.domain == "there"
        label[far] = label[far][::-1]
        return replace(joined, samples=replace(joined.samples, label=label))

    monkeypatch.setattr(stage, "load_joined", permuted)
    after = stage.to_json(analyse(study, SHORT))["targets"][0]
    for name in ("detect", "source_prediction", "shared_patients"):
        assert after[name] == before[name]
    assert after["lookups_of_target_labels"] == before["lookups_of_target_labels"] == 2
    assert after["forecast"] == before["forecast"]


def test_a_study_without_a_target_has_no_shift(study):
    """The message names the table that is missing."""
    with pytest.raises(StudyError, match=r"no \[target.NAME\]"):
        analyse(replace(study, targets=()), SHORT)
