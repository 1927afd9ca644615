"""Targets without labels: read as images of no class, looked at by every stage, scored by none."""

import html
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.audit.stage import audit
from pipeline.compare import CompareOptions, compare
from pipeline.data.samples import UNLABELLED
from pipeline.errors import PartsError
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features.extract import extract
from pipeline.report import show
from pipeline.report.page import write_page
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study_file import load_study
from tests.audit.test_stage import copy_pixels
from tests.tiny import TORCH, stored_tiny_study, write_images

SHORT = ShiftOptions(draws=99, seeds=2)
ABSENT = '[target.far]\npath = "far"\nlabels = "absent"\ngroup = \'^(p\\d+)\'\n'


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A source, a labelled target, and one whose images lie loosely in their folder; stored."""
    file = stored_tiny_study(tmp_path, monkeypatch, source=120, target=80)
    for image in write_images(Path("far"), 100, seed=3, shift=30).rglob("*.png"):
        image.rename(Path("far", image.name))
    file.write_text(file.read_text().replace("[store]", f"{ABSENT}[store]"))
    extract(load_study(file), TORCH)
    return load_study(file)


def test_heads_predict_and_do_not_score(study):
    """Probabilities are kept, no row is about the target, and the text says so."""
    record = compare(study, CompareOptions(heads=("linear",), seeds=1))
    (backbone,) = record["backbones"]
    assert {one["domain"] for one in backbone["domains"]} == {"source", "there"}
    assert json.loads((study.results / "heads.json").read_text())["unlabelled"] == {"far": 100}
    kept = read_predictions(study.results / PROBABILITIES)["tiny"]
    far = kept.domain == "far"
    assert set(kept.label[far]) == {UNLABELLED}
    assert kept.proba["linear", 0][far].sum(axis=1) == pytest.approx(1)
    assert "far has 100 images without labels" in show("heads", record)


def test_the_audit_tests_what_needs_no_label_and_names_what_it_did_not_test(study):
    """Leaks are found, the domain is separated; a test that needs its labels is named."""
    folder = study.source.path.parent
    image = next((folder / "here" / "b").iterdir())
    copy_pixels(image, folder / "far" / "copy.png")
    extract(study, TORCH)
    results = audit(study, shortcuts=False)["results"]
    about = {f["check"]: f for f in results if f["where"] == "far"}
    assert "it has no labels" in about["file properties"]["text"]
    (domain,) = [f for f in results if f["check"] == "domain" and "far" in f["where"]]
    assert "far has no labels, so not by class" in domain["text"]
    (leak,) = [f for f in results if f["severity"] == "leak"]
    assert "far/copy.png" in leak["examples"]


@pytest.mark.parametrize("few", ["there", "far"])
def test_a_target_of_one_patient_is_left_out_and_said(study, few):
    """With labels or without; the other is compared, and the page contradicts nothing."""
    one = [replace(t, group="^(p)") if t.name == few else t for t in study.targets]
    with pytest.raises(PartsError, match=rf"^target\.{few}: Images: "):
        analyse(replace(study, targets=tuple(one)), SHORT)
    written = json.loads((study.results / "shift.json").read_text())
    assert [t["target"] for t in written["targets"]] == [t.name for t in one if t.name != few]
    (left,) = written["not_compared"]
    assert (left["target"], left["backbone"]) == (few, "tiny")
    compare(study, CompareOptions(heads=("linear",), repeats=0))
    written_page = write_page(study)
    page = html.unescape(Path(written_page["file"]).read_text())
    for text in (show("shift", written), page):
        assert "not compared" in text
        assert f"the group pattern of [target.{few}]" in " ".join(text.split())
    assert all(sentence in page for sentence in written["targets"][0]["verdict"])
    assert "far has 100 images without labels" in page
    assert not written_page["stale"]
