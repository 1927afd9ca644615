"""Labels that are several an image, or missing: every stage runs over the images it can."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import findings
from pipeline.audit.stage import audit
from pipeline.compare import CompareOptions, compare
from pipeline.data.samples import UNLABELLED, load_samples
from pipeline.errors import PartialFailureError
from pipeline.evaluation.paired_tests import holm
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features.extract import extract
from pipeline.report import show
from pipeline.report.page import write_page
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study_file import load_study
from tests.audit.test_stage import copy_pixels
from tests.image_files import encoded
from tests.test_cli import ENGINE, run
from tests.tiny import TORCH, stored_tiny_study, write_images

#: The target is of another data set: texts with ``|`` between, and another name for a finding.
STUDY = """\
name = "chest"
findings = ["Edema", "Pleural Effusion"]
[source]
table = "a/train.csv"
group = '(patient\\d+)/'
[target.nih]
table = "b/entries.csv"
findings = ["Edema", "Pleural Effusion"]
values = {"Pleural Effusion" = "Effusion"}
[store]
path = "features"
[backbone.tiny]
"""
#: Of each hospital; the last twelve of the source have no label of an effusion.
IMAGES = 64


def write_image(path: str, *, edema: bool, effusion: bool) -> None:
    """Edema is bright; an effusion makes the lower half brighter."""
    rng = np.random.default_rng(list(path.encode()))
    pixels = rng.normal(90 + 50 * edema, 25, (40, 40))
    pixels[20:] += 40 * effusion
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(encoded(np.clip(pixels, 0, 255).astype(np.uint8), "PNG"))


@pytest.fixture
def study_file(tiny_folder) -> Path:
    lines, entries = ["Path,Edema,Pleural Effusion"], ["Image Index,Finding Labels,Patient ID"]
    for i in range(IMAGES):
        edema, effusion = i // 2 % 2 == 1, i // 4 % 2 == 1
        write_image(f"a/patient{i // 2:03}/{i:03}.png", edema=edema, effusion=effusion)
        mark = float(effusion) if i < IMAGES - 12 else ("", "-1.0")[i % 2]
        lines.append(f"a/patient{i // 2:03}/{i:03}.png,{float(edema)},{mark}")
        write_image(f"b/images/{i:05}.png", edema=edema, effusion=effusion)
        texts = ["Edema"] * edema + ["Effusion"] * effusion or ["No Finding"]
        entries.append(f"{i:05}.png,{'|'.join(texts)},{i // 2}")
    Path("a/train.csv").write_text("\n".join(lines))
    Path("b/entries.csv").write_text("\n".join(entries))
    Path("study.toml").write_text(STUDY)
    return Path("study.toml")


def test_every_stage_runs_for_each_finding(study_file):
    """One extraction for all; then heads, audit, shift, a page, and a model that predicts."""
    assert f"{2 * IMAGES} computed" in run("features", "study.toml", *ENGINE).stdout
    run("audit", "study.toml", "--no-shortcuts")
    quick = ("study.toml", "--quick", "--no-figures")
    shown = run("heads", *quick, "--only", "linear,prior").stdout
    assert "chest/Edema on tiny, classes not Edema, Edema" in shown
    assert shown.count("\nvalidation: ") == shown.count("\nnih: ") == 2  # each table once
    shifted = json.loads(run("shift", *quick, "--json").stdout)
    assert set(shifted["findings"]) == {"Edema", "Pleural Effusion"}
    assert "results/chest/report.html: 2 findings" in run("report", "study.toml").stdout
    index = Path("results/chest/report.html").read_text()
    for name in ("Edema", "Pleural_Effusion"):
        page = Path(f"results/chest/{name}/report.html").read_text()
        sentence = re.search('<p class="lead">(.*)</p>', page)[1]
        assert f'<a href="{name}/report.html">{name.replace("_", " ")}</a>: {sentence}' in index
        assert index.count(f'<th scope="row">{name.replace("_", " ")}</th>') == 2 + 1 + 4
    for stage, rows in (("heads", 4), ("shift", 2), ("audit", 8)):
        table = json.loads(Path(f"results/chest/findings_{stage}.json").read_text())["rows"]
        assert len(table) == rows
        p = [(row["p"], row["p_adjusted"]) for row in table if row["p"] is not None]
        assert [adjusted for _, adjusted in p] == pytest.approx(holm([raw for raw, _ in p]))
    models = [f"results/chest/{name}/heads/tiny/linear" for name in ("Edema", "Pleural_Effusion")]
    asked = [f"--model={model}" for model in models]
    given = ("b/images", "--csv=p.csv", "--json", *ENGINE)
    predicted = json.loads(run("predict", *asked, *given).stdout)
    assert [predicted[model]["classes"][1] for model in models] == ["Edema", "Pleural Effusion"]
    table = Path("p.csv").read_text().splitlines()
    columns = "not_edema,edema,not_pleural_effusion,pleural_effusion"
    assert table[0] == f"study,path,key,predicted,{columns}"
    assert len(table) == 1 + 2 * IMAGES


def test_a_misspelt_finding_shows_before_the_network_runs(study_file):
    """The others go on, so it is a warning of ``features``."""
    study_file.write_text(STUDY.replace('"Edema"', '"Edma"'))
    said = run("features", study_file, *ENGINE).stderr
    assert "a/train.csv line 1: it is unclear which column is the 'Edma'" in said
    assert "nih: no row of b/entries.csv names 'Edma'" in said


def test_an_image_counts_for_a_finding_that_it_has_a_label_of(study_file):
    """The study itself has all images and no label; what is empty or -1 is left out and said."""
    study = load_study(study_file)
    samples, _ = load_samples(study)
    assert len(samples) == 2 * IMAGES
    assert set(samples.label) == {UNLABELLED}
    for finding, source in (("Edema", IMAGES), ("Pleural Effusion", IMAGES - 12)):
        samples, _ = load_samples(study.of_finding(finding))
        assert samples.classes == (f"not {finding}", finding)
        assert (samples.domain == "source").sum() == source
        assert (samples.domain == "nih").sum() == IMAGES
        assert samples.label[samples.domain == "nih"].mean() == 0.5
    # The last image is one without a label of effusion.
    Path("not.txt").write_text("source/a/patient031/063.png\n")
    for finding, source in (("Edema", IMAGES - 1), ("Pleural Effusion", IMAGES - 12)):
        part = replace(study, exclude=Path("not.txt")).of_finding(finding)
        samples, _ = load_samples(part)
        assert (samples.domain == "source").sum() == source


def test_a_finding_that_fails_does_not_cost_the_others(study_file):
    """It is named, and the command fails at the end."""
    study_file.write_text(STUDY.replace('"Edema",', '"Edema", "Hernia",', 1))
    table = Path("a/train.csv").read_text().replace("Path,", "Path,Hernia,").splitlines()
    lines = [table[0], *(line.replace(".png,", ".png,0,") for line in table[1:])]
    Path("a/train.csv").write_text("\n".join(lines))
    run("features", "study.toml", *ENGINE)
    said = run("heads", study_file, "--quick", "--only", "prior", "--no-figures", code=1)
    assert "Error: Hernia: [source] a has no image of class 'Hernia'" in said.output
    assert "finding 3 of 3: Pleural Effusion" in said.output
    assert Path("results/chest/Pleural_Effusion/heads.json").is_file()


def test_a_p_of_zero_is_adjusted_and_takes_no_other_rows_place(monkeypatch):
    """DeLong's is 0 where many patients are told apart; a row without p stays without."""
    monkeypatch.setattr(findings, "_ROWS", {"heads": lambda _, record: iter(record)})
    study = SimpleNamespace(name="chest", of_finding=lambda finding: finding)
    records = {"a": [{"p": 0.0}], "b": [{"p": None}, {"p": 0.02}], "c": [{"p": 0.5}]}
    rows = findings.compare_findings("heads", study, records)["rows"]
    assert [row["p_adjusted"] for row in rows] == [0.0, None, 0.04, 0.5]


@pytest.mark.parametrize("stage", ["heads", "shift"])
@pytest.mark.parametrize(("patients", "is_tested"), [(9, False), (10, True)])
def test_an_auroc_of_few_patients_is_not_tested(monkeypatch, stage, patients, is_tested):
    """As heads are compared: of fewer the normal law of DeLong's test is not to be believed."""
    label = np.tile(np.repeat([0, 1], [30, patients]), 2)
    score = np.random.default_rng(0).normal(label)
    kept = SimpleNamespace(
        domain=np.repeat(["source", "far"], len(label) // 2),
        split=np.full(len(label), "target"),
        label=label,
        patient=np.arange(len(label)),
        proba={("linear", 0): np.stack([-score, score], axis=1)},
    )
    monkeypatch.setattr(findings, "read_predictions", lambda _: {"tiny": kept})
    best = {"head": "linear", "scores": {}}
    domain = {"domain": "far", "role": "target", "images": len(label), "rows": [best]}
    target = {"target": "far", "labelled": True, "head": "linear", "effects": []}
    target |= {"backbone": "tiny", "auroc": {"source": 0.8, "target": 0.8}}
    record = {"backbones": [{"backbone": "tiny", "domains": [domain]}], "targets": [target]}
    (row,) = findings._ROWS[stage](SimpleNamespace(results=Path()), record)
    assert (row["p"] is not None) == is_tested


# Targets without labels are images of no class: looked at by every stage, scored by none.

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
    with pytest.raises(PartialFailureError, match=rf"^target\.{few}: Images: "):
        analyse(replace(study, targets=tuple(one)), ShiftOptions(draws=99, seeds=2))
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
