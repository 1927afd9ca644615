"""Targets without labels: read as images of no class, looked at by every stage, scored by none."""

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline.audit.stage as audit_module
from pipeline.audit.stage import audit
from pipeline.compare import CompareOptions, compare
from pipeline.data.leaks import NearPair
from pipeline.data.samples import UNLABELLED
from pipeline.errors import StudyError
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.report import show
from pipeline.report.page import write_page
from pipeline.shift.domains import Cohort
from pipeline.shift.record import to_json
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.shift.unlabelled import NEEDS_LABELS
from pipeline.study import load_study
from pipeline.words import to_jsonable
from tests.audit.test_stage import copy_pixels
from tests.tiny import install_tiny_backbone, write_images, write_tiny_study

OPTIONS = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=8))
SHORT = ShiftOptions(draws=99, seeds=2)
ABSENT = '[target.far]\npath = "far"\nlabels = "absent"\ngroup = \'^(p\\d+)\'\n'


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A source, a labelled target, and one whose images lie loosely in their folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    file = write_tiny_study(tmp_path, source=120, target=80)
    write_images(tmp_path / "sorted", 100, seed=3, shift=30)
    (tmp_path / "far").mkdir()
    for image in (tmp_path / "sorted").rglob("*.png"):
        image.rename(tmp_path / "far" / image.name)
    shutil.rmtree(tmp_path / "sorted")
    file.write_text(file.read_text().replace("[store]", f"{ABSENT}[store]"))
    return file


@pytest.fixture
def study(study_file):
    """The same with its features stored."""
    loaded = load_study(study_file)
    extract(loaded, OPTIONS)
    return loaded


# --- how the images enter


# --- nothing counts a missing label


def test_cohorts_take_no_missing_label():
    """Stages leave such domains out where they begin; what slips through is refused."""
    label, group = np.array([0, 1, UNLABELLED, UNLABELLED]), np.array(list("abcd"))
    with pytest.raises(StudyError, match="labels are None"):
        Cohort(
            features=np.zeros((2, 3)), probabilities=np.full((2, 2), 0.5), groups=group[2:],
            labels=label[2:],
        )  # fmt: skip


# --- stages


def test_heads_predict_and_do_not_score(study):
    """Probabilities are kept, no row is about the target, and the text says so."""
    report = compare(study, CompareOptions(heads=("linear",), seeds=1))
    assert {row.domain for row in report.rows} == {"source", "there"}
    assert {c.domain for c in report.tables["tiny"].confusion} == {"source", "there"}
    assert report.unlabelled == {"far": 100}
    assert json.loads((study.results / "heads.json").read_text())["unlabelled"] == {"far": 100}
    kept = read_predictions(study.results / PROBABILITIES)["tiny"]
    far = kept.domain == "far"
    assert set(kept.label[far]) == {UNLABELLED}
    assert kept.proba["linear", 0][far].sum(axis=1) == pytest.approx(1)
    assert "far: 100 images without labels" in show("heads", to_json(report))


def test_the_audit_tests_what_needs_no_label_and_names_what_it_did_not_test(study):
    """Leaks are found, the domain is separated; a test that needs its labels is named."""
    folder = study.source.path.parent
    image = next((folder / "here" / "b").iterdir())
    copy_pixels(image, folder / "far" / "copy.png")
    extract(study, OPTIONS)
    findings = audit(study, shortcuts=False)["findings"]
    about = {f["check"]: f for f in findings if f["where"] == "far"}
    assert "it has no labels" in about["file properties"]["text"]
    (domain,) = [f for f in findings if f["check"] == "domain" and "far" in f["where"]]
    assert "far has no labels, so not by class" in domain["text"]
    (leak,) = [f for f in findings if f["severity"] == "leak"]
    assert "far/copy.png" in leak["examples"]


def test_near_copies_without_labels_are_listed_without_a_class(study, monkeypatch):
    """No class is made up for them, and what they cost is told of labelled roles alone."""
    compare(study, CompareOptions(heads=("linear",), seeds=1))

    def one_pair(samples, *_):
        rows = (int(np.flatnonzero(samples.split == "fit")[0]), len(samples) - 1)
        return (NearPair(rows=rows, cosine=1.0, bits=0),), []

    monkeypatch.setattr(audit_module, "check_near_copies", one_pair)
    report = audit(study, shortcuts=False)
    (pair,) = report["near_copies"]
    assert [image["label"] for image in pair["images"]] == ["a", "no label"]
    assert report["scores"] == []


def test_shift_foretells_and_names_what_needs_labels(study):
    """The forecast is an interval with its warning; the labelled target is told as ever."""
    analyse(study, SHORT)
    written = json.loads((study.results / "shift.json").read_text())
    assert [t["target"] for t in written["targets"]] == ["there"]
    (far,) = written["unlabelled"]
    assert (far["target"], far["images"]) == ("far", 100)
    assert far["needs_labels"] == list(NEEDS_LABELS)
    low, high = far["forecast"]["low"], far["forecast"]["high"]
    assert 0 <= low <= high <= 1
    assert sum(far["called"]) == pytest.approx(1)
    assert {"ng", "gaps", "fixes", "decomposition", "verdict"}.isdisjoint(far)
    assert far["roles"]["T_test"]["used_for"] == "needs labels"
    assert not any(role["labels"] for name, role in far["roles"].items() if name[0] == "T")
    assert {row["name"] for row in far["detect"]} >= {"bbsd_ks", "ridge_c2st", "mmd_aggregated"}
    text = " ".join(show("shift", written).split())
    assert f"{100 * low:.1f} % to {100 * high:.1f} %" in text
    assert far["forecast"]["warning"] in text
    assert "so the assumption is in doubt" in text


@pytest.mark.parametrize("few", ["there", "far"])
def test_a_target_of_one_patient_is_left_out_and_said(study, few):
    """With labels or without; the other is compared, and nothing else hides it."""
    one = [replace(t, group="^(p)") if t.name == few else t for t in study.targets]
    analyse(replace(study, targets=tuple(one)), SHORT)
    written = json.loads((study.results / "shift.json").read_text())
    assert [t["target"] for t in written["targets"] + written["unlabelled"]] == [
        t.name for t in one if t.name != few
    ]
    (left,) = written["not_compared"]
    assert (left["target"], left["backbone"]) == (few, "tiny")
    compare(study, CompareOptions(heads=("linear",), repeats=0))
    written_page = write_page(study)
    page = html.unescape(written_page.file.read_text())
    for text in (show("shift", written), page):
        assert "not compared" in text
        assert f"the group pattern of [target.{few}]" in " ".join(text.split())
    assert not written_page.stale


def test_where_no_target_can_be_compared_the_stage_says_why(study):
    """Rather than write a report of nothing."""
    one = tuple(replace(t, group="^(p)") for t in study.targets)
    with pytest.raises(StudyError, match=r"no target can be compared\. there: Images: 80, all of"):
        analyse(replace(study, targets=one), SHORT)
    assert not (study.results / "shift.json").exists()


def test_a_target_without_labels_changes_nothing_of_one_with_them(study):
    """The labelled target's entry is the same with and without the other."""
    both = to_json(analyse(study, SHORT))["targets"][0]
    alone = to_json(analyse(replace(study, targets=study.targets[:1]), SHORT))["targets"][0]
    for one in (both, alone):
        # The checks of leaks are of the whole study.
        del one["seconds"], one["leak"]
    np.testing.assert_equal(both, alone)


def test_labels_that_are_there_and_called_absent_are_not_read(study):
    """The forecast of a labelled folder is that of its sealed twin, and its names do not count."""
    (there, _) = study.targets
    sealed = to_json(analyse(replace(study, targets=(there,)), SHORT))["targets"][0]
    blind = replace(study, targets=(replace(there, labels="absent"),))
    absent = to_json(analyse(blind, SHORT))
    assert absent["targets"] == []
    (found,) = absent["unlabelled"]
    for name in ("forecast", "detect", "source_prediction", "shared_patients"):
        np.testing.assert_equal(to_jsonable(found[name]), to_jsonable(sealed[name]))


def test_the_report_page_tells_what_is_foretold_and_sees_no_contradiction(study):
    """A target that no table of scores can hold is none that a record lacks."""
    compare(study, CompareOptions(heads=("linear",), repeats=0))
    report = analyse(study, SHORT)
    written_page = write_page(study)
    page = html.unescape(written_page.file.read_text())
    (blind,) = to_jsonable(to_json(report))["unlabelled"]
    assert blind["said"] in page
    assert all(what in page for what in NEEDS_LABELS)
    assert "far: 100 images without labels" in page
    assert not written_page.stale
