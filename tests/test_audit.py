"""The audit: planted leaks and shortcuts are found, clean studies stay clean, exit codes."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pipeline.audit.contact_sheet import SIDE, SheetPair, draw
from pipeline.audit.shortcuts import MASKED, check_facts, check_hospital, check_masked
from pipeline.audit.stage import AuditOptions, audit, probed
from pipeline.data.facts import FACTS
from pipeline.data.images import PixelPolicy
from pipeline.data.index import FactsIndex, measure_missing
from pipeline.data.leaks import (
    LEAK,
    NOTE,
    OK,
    WARNING,
    Finding,
    check_leaks,
    check_near_copies,
    check_patients,
    near_rows,
    refuse_leaks,
    roles_of,
)
from pipeline.data.samples import SampleOptions, load_samples, read_exclusions
from pipeline.data.sources import read_image
from pipeline.demo.hospital import Hospital, Shot, expose
from pipeline.demo.phantom import Patient, chest
from pipeline.errors import CheckFailedError, StudyError, UnknownNameError
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features import backbones
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.features.load import load_features
from pipeline.progress import Progress
from pipeline.study import load_study
from tests.test_cli import ENGINE, run
from tests.tiny import FileWeights, install_tiny_backbone, write_tiny_study

TORCH = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=8))
LENIENT = SampleOptions(allow_conflicts=True, allow_leaks=True)


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A tiny study of 80 images here and 40 there; the current folder is its folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return write_tiny_study(tmp_path, source=80, target=40)


def in_role(samples, split, label):
    """File of the first image of a split and a label."""
    (rows,) = np.nonzero((samples.split == split) & (samples.label == label))
    return Path(samples.items[rows[0]].file)


def copy_pixels(source: Path, target: Path) -> None:
    """The same pixels in other bytes: no hash of the file can tell."""
    Image.open(source).save(target, compress_level=1, pnginfo=None, optimize=False)
    assert source.read_bytes() != target.read_bytes()


def severities(findings):
    """Severity by check and place."""
    return {(f.check, f.where): f.severity for f in findings}


def test_a_clean_study_has_no_leak(study_file):
    """Every check of leaks is ok, and the command ends well."""
    run("features", study_file, *ENGINE)
    result = json.loads(run("audit", study_file, "--no-probes", "--json").stdout)
    found = {f["check"]: f["severity"] for f in result["findings"]}
    assert {found[name] for name in ("patients", "copies", "label conflicts")} == {OK}
    assert result["counts"][LEAK] == 0
    assert json.loads(Path("results/tiny/audit.json").read_text()) == result


def test_a_pixel_copy_in_fit_and_validation_ends_with_exit_code_3(study_file):
    """E-T1: whatever its bytes; the text names both files, the report is written all the same."""
    samples, _ = load_samples(load_study(study_file))
    validation, fit = in_role(samples, "validation", 0), in_role(samples, "fit", 0)
    copy_pixels(fit, validation)
    run("features", study_file, *ENGINE)
    result = run("audit", study_file, "--no-probes", code=3)
    assert "1 image in both, to the pixel" in result.stderr
    assert f"{fit.name} = source/a/{validation.name}" in " ".join(result.stdout.split())
    written = json.loads(Path("results/tiny/audit.json").read_text())
    assert written["findings"][0]["severity"] == LEAK
    shown = run("audit", study_file, "--no-probes", "--json", code=3).stdout
    assert json.loads(shown)["counts"][LEAK] == 1


def test_the_shift_stage_refuses_a_leak_that_an_audit_found(study_file):
    """Exit code 3 before any number, unless the leak is accepted."""
    samples, _ = load_samples(load_study(study_file))
    copy_pixels(in_role(samples, "fit", 1), in_role(samples, "validation", 1))
    run("features", study_file, *ENGINE)
    run("audit", study_file, "--no-probes", code=3)
    refused = run("shift", study_file, "--draws", 19, "--seeds", 1, code=3)
    assert "source fit and source validation: 1 image in both" in refused.stderr
    assert not Path("results/tiny/shift.json").exists()


def test_identical_files_of_source_and_target_are_listed_and_not_only_the_first_error(study_file):
    """An audit goes on where features and heads stop, and says the same with code 3."""
    (image,) = list(Path("here/a").glob("p1000_0.png"))
    Path("there/a/p9000_0.png").write_bytes(image.read_bytes())
    study = load_study(study_file)
    extract(study, replace(TORCH, samples=LENIENT))
    with pytest.raises(CheckFailedError, match="1 image of a target is also in the source"):
        load_samples(study)
    report = audit(study, AuditOptions(probes=False))
    leaks = [f for f in report.findings if f.severity == LEAK]
    assert [(f.check, f.where.split(" and ")[1]) for f in leaks] == [("copies", "there")]
    with pytest.raises(CheckFailedError, match="1 image in both"):
        refuse_leaks(report.findings)


def test_a_patient_in_fit_and_validation_is_a_leak(study_file):
    """E-T1: the split itself is checked and not believed."""
    study = load_study(study_file)
    samples, _ = load_samples(study)
    group = samples.group.copy()
    fit, held = (np.flatnonzero(samples.split == s)[0] for s in ("fit", "validation"))
    group[fit] = group[held]
    (leak,) = check_patients(study, replace(samples, group=group))
    assert (leak.severity, leak.values["patients"]) == (LEAK, 1)
    assert leak.where == "source fit and source validation"
    (clean,) = check_patients(study, samples)
    assert clean.severity == OK


def test_ids_that_two_hospitals_share_and_names_without_one_are_warnings(study_file):
    """Hospitals number alike; without a pattern nobody can know."""
    study = load_study(study_file)
    Path("there/a/p1000_99.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    Path("there/b/nobody.png").write_bytes(Path("there/b/p2000_1.png").read_bytes())
    samples, _ = load_samples(study)
    met, alone = sorted(check_patients(study, samples), key=lambda f: "match" in f.found)
    assert (met.severity, met.where) == (WARNING, "source and there")
    assert met.found == "1 patient id is in both"
    assert alone.found.startswith("1 of 42 names match no patient")
    blind = replace(study, source=replace(study.source, group=None))
    (first, *_) = check_patients(blind, load_samples(blind)[0])
    assert (first.severity, first.where) == (WARNING, "source")
    assert "image-level split" in first.found


def test_one_picture_under_two_labels_is_listed(study_file):
    """A warning with both paths; copies within a role are a note."""
    Path("there/b/p2000_98.png").write_bytes(Path("there/a/p2000_0.png").read_bytes())
    study = load_study(study_file)
    samples, _ = load_samples(study, LENIENT)
    found = severities(check_leaks(study, samples))
    assert found[("label conflicts", "all roles")] == WARNING
    assert found[("copies", "there")] == NOTE
    (conflict,) = [f for f in check_leaks(study, samples) if f.check == "label conflicts"]
    assert conflict.values["pictures"] == [["there/a/p2000_0.png", "there/b/p2000_98.png"]]


def smooth_study(folder: Path, copies=()) -> Path:
    """60 smooth pictures here and 40 there; ``copies`` names (of here, of there, shift)."""
    rng = np.random.default_rng(5)
    pictures = {}
    for name, count in (("here", 240), ("there", 160)):
        for i in range(count):
            coarse = rng.uniform(0, 255, (9, 9)).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
            pictures[name, i] = picture
    for of_here, of_there, shift in copies:
        moved = pictures["here", of_here].transform((96, 96), 0, (1, 0, shift, 0, 1, 0))
        pictures["there", of_there] = moved
    for (name, i), picture in pictures.items():
        file = folder / name / "ab"[i % 2] / f"p{name[0]}{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    study = folder / "study.toml"
    study.write_text(
        "name = 'smooth'\n[source]\npath = 'here'\ngroup = '^(p\\w+)'\n"
        "[target.there]\npath = 'there'\ngroup = '^(p\\w+)'\n"
        "[backbone.tiny]\n[store]\npath = 'features'\n"
    )
    return study


def near_copies(folder, copies=()):
    """Samples and near copies; a coarse look at the picture stands in for features."""
    samples, _ = load_samples(load_study(smooth_study(folder, copies)), LENIENT)
    index = FactsIndex(folder)
    with Progress("facts") as progress:
        assert measure_missing(index, samples.key, samples.items, progress) == {}
    looks = np.stack(
        [read_image(i).pixels(PixelPolicy(size=12))[..., 0].ravel() for i in samples.items]
    )
    found = check_near_copies(samples, looks.astype(np.float32), index.facts(samples.key))
    return samples, found


def test_a_copy_shifted_by_one_pixel_is_found_and_strangers_are_not(tmp_path, monkeypatch):
    """E-T1: the moved copy is a near copy, the pixel copy an exact one; nothing else is named."""
    install_tiny_backbone(monkeypatch, tmp_path)
    samples, clean = near_copies(tmp_path / "clean")
    assert clean.pairs == ()
    assert [f.severity for f in clean.findings] == [OK]
    samples, found = near_copies(tmp_path / "copied", [(4, 8, 1), (7, 11, 1), (10, 20, 0)])
    names = {tuple(Path(samples.items[r].path).name for r in pair.rows) for pair in found.pairs}
    assert names == {("ph004.png", "pt008.png"), ("ph007.png", "pt011.png")}
    assert {f.severity for f in found.findings} == {WARNING}
    index = FactsIndex(tmp_path / "copied")
    study = load_study(tmp_path / "copied" / "study.toml")
    leaks = check_leaks(study, samples, index.facts(samples.key))
    assert [f.values["images"] for f in leaks if f.severity == LEAK] == [1]


def test_copies_within_a_role_do_not_hide_those_across_roles(tmp_path, monkeypatch):
    """One picture under two patients of a role must not pass for what chance resembles."""
    install_tiny_backbone(monkeypatch, tmp_path)
    smooth_study(tmp_path, [(4, 8, 1)])
    for i in range(20, 26):
        copy = tmp_path / "here" / "a" / f"pcopy{i}.png"
        copy.write_bytes((tmp_path / "here" / "a" / f"ph{2 * i:03}.png").read_bytes())
    samples, _ = load_samples(load_study(tmp_path / "study.toml"), LENIENT)
    index = FactsIndex(tmp_path)
    with Progress("facts") as progress:
        measure_missing(index, samples.key, samples.items, progress)
    looks = np.stack(
        [read_image(i).pixels(PixelPolicy(size=12))[..., 0].ravel() for i in samples.items]
    )
    # As if every image were its own patient: duplicates within fit, under two names.
    alone = replace(samples, group=np.array([i.path for i in samples.items]))
    found = check_near_copies(alone, looks.astype(np.float32), index.facts(samples.key))
    names = [Path(samples.items[r].path).name for pair in found.pairs for r in pair.rows]
    assert names == ["ph004.png", "pt008.png"]
    assert roles_of(samples)[near_rows(samples, found.pairs)].tolist() == ["there"]


def marker_network(state):
    """A few random filters, the strongest answer of each quarter: sees a marker, no disease."""
    import torch
    from torch import nn

    network = nn.Sequential(
        nn.Conv2d(3, 12, 4, stride=2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(1)
    )
    network.load_state_dict({k: torch.as_tensor(v) for k, v in state.items()})
    return network


@pytest.fixture
def marker_backbone(tmp_path, monkeypatch):
    """Put the backbone ``marks`` into the table."""
    import torch

    rng = torch.Generator().manual_seed(1)
    file = tmp_path / "marks.pth"
    torch.save(
        {"0.weight": torch.randn(12, 3, 4, 4, generator=rng), "0.bias": torch.ones(12)}, file
    )
    spec = backbones.Spec(
        dim=48,
        policy=PixelPolicy(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        network=marker_network,
        pretrained=FileWeights(file),
    )
    table = MappingProxyType({**backbones.BACKBONES, "marks": spec})
    monkeypatch.setattr(backbones, "BACKBONES", table)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)


@pytest.fixture(scope="module")
def films():
    """Films of 100 healthy phantoms, each without and with a marker.

    Healthy, because an opacity low in the lung does reach the corners of a film.
    """
    patients = [Patient(name=f"p{i}", label="normal") for i in range(100)]
    chests = [(patient, chest(patient)) for patient in patients]
    return [
        [expose(drawn, Shot(p, Hospital(marker_normal=m), 1, 112)) for m in (0.0, 1.0)]
        for p, drawn in chests
    ]


def audited_phantoms(name, films, *, marker):
    """Audit of films with drawn labels; with ``marker`` all of class b have one."""
    rng, folder = np.random.default_rng(0), Path(name)
    for i, label in enumerate(rng.permutation(np.repeat(["a", "b"], 50))):
        file = folder / "here" / label / f"p{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(films[i][marker and label == "b"]).save(file)
    text = "[source]\npath = 'here'\ngroup = 'p...'\n[backbone.marks]\n[store]\npath = 'features'\n"
    (folder / "study.toml").write_text(f"name = '{name}'\n{text}")
    study = load_study(folder / "study.toml")
    extract(study, TORCH)
    extract(probed(study), TORCH)
    report = audit(study)
    return study, report, {f.check: f for f in report.findings if f.where == "source"}


def test_a_planted_marker_is_found_in_the_corners_and_at_the_border(marker_backbone, films):
    """E-T2: the corners alone tell the label, and so does the picture without its centre."""
    *_, found = audited_phantoms("marked", films, marker=True)
    for check in ("corners", "border"):
        assert found[check].values["auc"] > 0.95, check
        assert found[check].severity == WARNING


def test_what_few_patients_cannot_show_is_no_warning(study_file):
    """Three images can always be told from 80 by something: a note, and that they are few."""
    for kind, keep in (("a", 2), ("b", 1)):
        for image in sorted(Path("there", kind).iterdir())[keep:]:
            image.unlink()
    study = load_study(study_file)
    study = replace(study, targets=(replace(study.targets[0], group=None),))
    samples, _ = load_samples(study)
    there = samples.domain == "there"
    apart = np.random.default_rng(0).normal(size=(len(samples), 2)) + 4 * there[:, None]
    (hospital,) = check_hospital(samples, apart, "tiny")
    facts = np.zeros(len(samples), FACTS)
    facts["height"] = facts["width"] = facts["file_bytes"] = 40
    facts["mean"] = apart[:, 0]
    *_, stored = check_facts(samples, facts)
    for found in (hospital, stored):
        assert found.where == "source and there"
        assert found.values["auc"] > 0.9
        assert (found.severity, found.advice) == (NOTE, "")
        assert found.found.endswith("too few patients to say")
    assert "may or may not be told" in stored.found


def test_warnings_are_said_once(study_file):
    """Each backbone gathers the samples anew, and each would say it of each domain."""
    text = study_file.read_text().replace("group = '^(p\\d+)'\n", "")
    study_file.write_text(text)
    run("features", study_file, *ENGINE)
    said = run("audit", study_file, "--probes", *ENGINE).stderr.splitlines()
    about = [line for line in said if "no `group` pattern" in line]
    assert [line.split(":")[1].strip() for line in about] == ["source", "there"]


def test_without_a_marker_corners_and_border_tell_nothing(marker_backbone, films):
    """E-T3: the intervals cover one half, and no warning; so do those of most other labels."""
    study, _, seen = audited_phantoms("unmarked", films, marker=False)
    rng = np.random.default_rng(3)
    for choice in probed(study).backbones:
        check, joined = MASKED[choice.mask][0], load_features(study, choice)
        assert seen[check].severity == OK
        assert seen[check].values["low"] < 0.5 < seen[check].values["high"]
        found = []
        for _ in range(20):
            drawn = replace(joined.samples, label=rng.permutation(joined.samples.label))
            found += check_masked(drawn, joined.X, choice.mask)
        # Fewer than 17 of 20 would be seen in 0.3 % of runs if 95 % cover.
        covered = sum(f.values["low"] < 0.5 < f.values["high"] for f in found)
        assert covered >= 17, (choice.mask, covered)
        assert abs(np.mean([f.values["auc"] for f in found]) - 0.5) < 0.05


def test_the_probes_need_features_of_their_own(study_file):
    """They have their own stores; without them the audit says so and asks nothing."""
    study = load_study(study_file)
    extract(study, TORCH)
    found = {f.check: f for f in audit(study).findings}
    assert found["border"].severity == found["corners"].severity == NOTE
    assert "--probes" in found["border"].advice
    before = json.loads((study.results / "features.json").read_text())
    run("audit", study_file, *ENGINE)
    stores = {p.name for p in Path("features").glob("tiny-*")}
    assert len(stores) == 3
    assert json.loads((study.results / "features.json").read_text()) == before
    found = {f.check: f for f in audit(study).findings}
    assert "auc" in found["border"].values


@pytest.fixture
def copied_study(tmp_path, monkeypatch):
    """Two moved copies of fit in the target, with stage 2's probabilities; and the two pairs."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(smooth_study(tmp_path, [(4, 8, 1), (6, 10, 1)]))
    extract(study, TORCH)
    run("heads", tmp_path / "study.toml", "--only", "linear")
    found = near_copies(tmp_path, [(4, 8, 1), (6, 10, 1)])[1]
    monkeypatch.setattr("pipeline.audit.stage.check_near_copies", lambda *_: found)
    return study, found


def test_scores_are_given_with_and_without_near_copies(copied_study):
    """From stage 2's probabilities: the scores of scikit-learn on the rows that stay."""
    study, _ = copied_study
    report = audit(study, AuditOptions(probes=False))
    (row,) = [r for r in report.scores if r.everything.role == "there"]
    assert (row.everything.n, row.without_near_copies.n) == (160, 158)
    assert row.everything.low < row.everything.accuracy < row.everything.high
    kept = read_predictions(study.results / PROBABILITIES)["tiny"]
    far = kept.domain == "there"
    names = [i.path for i in load_features(study, study.backbones[0]).samples.items]
    stay = far & ~np.isin(names, ["a/pt008.png", "a/pt010.png"])
    for rows, score in ((far, row.everything), (stay, row.without_near_copies)):
        proba, label = kept.proba["linear", 0][rows], kept.label[rows]
        assert score.auroc == pytest.approx(roc_auc_score(label, proba[:, 1]))
        assert score.accuracy == (proba.argmax(axis=1) == label).mean()


def test_near_copies_can_be_left_out_by_the_list_that_the_audit_writes(copied_study, monkeypatch):
    """The study names the file; a second audit, which finds none, keeps its lines."""
    study, found = copied_study
    report = audit(study, AuditOptions(probes=False))
    assert [pair["number"] for pair in report.near_copies] == [1, 2]
    with Image.open(study.results / "near_copies.png") as sheet:
        assert sheet.width > 2 * (2 * SIDE)
    listed = study.results / "leave_out.txt"
    assert read_exclusions(listed) == ("there/a/pt008.png", "there/a/pt010.png")
    nothing = replace(found, pairs=())
    monkeypatch.setattr("pipeline.audit.stage.check_near_copies", lambda *_: nothing)
    again = audit(replace(study, exclude=listed), AuditOptions(probes=False))
    assert again.images == report.images - 2
    assert not (study.results / "near_copies.png").exists()
    assert read_exclusions(listed) == report.leave_out == again.leave_out
    audit(study, AuditOptions(probes=False))
    assert not listed.exists()


def test_a_sheet_without_pairs_and_an_unknown_severity_are_refused():
    """Both are mistakes of ours and say so."""
    with pytest.raises(StudyError, match="at least one pair"):
        draw([])
    with pytest.raises(UnknownNameError, match="known: leak, warning, note, ok"):
        Finding(check="x", severity="bad", where="y", found="z")


def test_a_sheet_has_both_pictures_side_by_side():
    """Left and right picture keep their grey; a long line does not leave its column."""
    grey = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (40, 90)]
    data = draw([SheetPair(pixels=(grey[0], grey[1]), lines=("1.", "long " * 40))])
    sheet = np.asarray(Image.open(BytesIO(data)))
    assert (sheet[20, 20, 0], sheet[20, 20 + SIDE, 0]) == (40, 90)
    assert (sheet[:, -10:] == 255).all()
