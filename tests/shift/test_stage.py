"""Stage 4 from the store: what it writes, that labels stay sealed, and its refusals."""

import json
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

import pipeline.features.load as load_module
from pipeline.data.samples import load_samples
from pipeline.errors import PartialFailureError, StudyError
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.extract import extract
from pipeline.features.load import FeatureTable, load_features
from pipeline.shift import stage
from pipeline.shift.adapt import ADAPTERS
from pipeline.shift.head import fit_source
from pipeline.shift.stage import SCHEMA, ShiftOptions, analyse
from pipeline.study_file import load_study
from pipeline.words import to_jsonable
from tests.tiny import TORCH, record_of, stored_tiny_study, write_images

SHORT = ShiftOptions(draws=99, seeds=2)
ABSENT = '[target.far]\npath = "far"\nlabels = "absent"\ngroup = \'^(p\\d+)\'\n'


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Thirty patients a domain: a brighter target, and one of loose images without labels.

    All patients but the last of a domain have a sex and an age. The features are stored.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tiny")
        file = stored_tiny_study(folder, patch, source=120, target=120)
        write_images(folder / "sorted", 100, seed=3, shift=30)
        (folder / "far").mkdir()
        for image in (folder / "sorted").rglob("*.png"):
            image.rename(folder / "far" / image.name)
        shutil.rmtree(folder / "sorted")
        text = file.read_text()
        for number, site in enumerate(("here", "there"), start=1):
            rows = [f"p{number}{i:03},{'FM'[i % 2]},{20.0625 + 2 * i}" for i in range(29)]
            (folder / f"{site}.csv").write_text("\n".join(["patient,sex,age", *rows]))
            text = text.replace(f'path = "{site}"', f'path = "{site}"\nattributes = "{site}.csv"')
        asked = f"{ABSENT}[subgroups]\nsex = true\nage = [50]\n[store]"
        file.write_text(text.replace("[store]", asked))
        loaded = load_study(file)
        extract(loaded, TORCH)
        yield loaded


@pytest.fixture(scope="module")
def record(study):
    return analyse(replace(study, human_error=0.03), SHORT)


def only(study, name, **changes):
    """The study with one target."""
    targets = tuple(replace(t, **changes) for t in study.targets if t.name == name)
    return replace(study, targets=targets)


def targets_of(study):
    """Entries of the targets."""
    return analyse(study, SHORT)["targets"]


def test_a_brighter_hospital_is_found_and_said(study, record):
    """Tests, effects, table and methods are in the file, and agree with one another."""
    target = record["targets"][0]
    on_disk = record_of(study.results / "shift.json")
    assert on_disk == record
    assert (on_disk["schema"], on_disk["classes"]) == (SCHEMA, ["a", "b"])
    assert (target["labelled"], target["images"], target["patients"]) == (True, 120, 30)
    assert min(row["p_adjusted"] for row in target["detection"] if row["p"] is not None) <= 0.05
    loss = target["accuracy"]["source"] - target["accuracy"]["target"]
    for name in ("all", "class", "score", "threshold", "transfer"):
        terms = [row["estimate"] for row in target["effects"] if row["decomposition"] == name]
        assert sum(terms) == pytest.approx(loss)
    first, *_ = target["error_table"]["errors"]
    assert (first["name"], first["estimate"], first["low"]) == ("human", 0.03, None)
    assert target["error_table"]["not_identifiable"] == {}
    assert {row["method"] for row in target["adaptation"]} >= set(ADAPTERS)
    assert [row["domain"] for row in target["calibration"]] == ["source", "target"]
    assert target["covariates"] == []  # no audit has measured the images
    assert "headrace audit" in target["covariates_summary"]


def test_the_record_is_small_and_says_what_it_rests_on(study, record):
    """Under 600 numbers; recipe, plan, how often labels were read; arrays are kept apart.

    The heads that score the source out of fold score the target too: one of all images is surer.
    """
    target = record["targets"][0]
    assert len(re.findall(r"[:\[ ]-?\d", json.dumps(target))) < 600
    rests = target["provenance"]
    assert (len(rests["recipes"]), len(rests["plan"])) == (1, 64)
    assert rests["label_reads"] == 2  # to score the methods, and to take the loss apart
    assert any("30 patients" in caveat for caveat in target["caveats"])
    proba = read_predictions(study.results / "shift.h5")["tiny"].proba["linear", 0]
    table = load_features(study, study.backbones[0], load_samples(study)[0])
    model, target = fit_source(table.domain("source")), table.domain("there")
    np.testing.assert_allclose(proba[model.data.row], model.data.proba, atol=1e-9)
    np.testing.assert_allclose(proba[target.row], model.cross_fit(target).proba, atol=1e-9)
    with h5py.File(study.results / "shift.h5") as file:
        assert file["tiny/curves/there/embedding"].shape == (240, 2)


def test_a_target_without_labels_gets_an_estimate_with_its_warning(study, record):
    """What needs labels is empty; the labelled target is not touched by it."""
    near, far = record["targets"]
    assert (far["target"], far["labelled"], far["images"]) == ("far", False, 100)
    limits = far["accuracy_range"]["low"], far["accuracy_range"]["high"]
    assert limits == (None, None) or 0 <= limits[0] <= limits[1] <= 1
    assert sum(row["estimate"] for row in far["accuracy_range"]["prevalence"]) == pytest.approx(1)
    for name in ("effects", "adaptation", "calibration", "thresholds", "subgroups", "covariates"):
        assert far[name] == []
    assert far["error_table"] is far["accuracy"]["target"] is None
    assert (far["provenance"]["label_reads"], far["provenance"]["plan"]) == (0, None)
    assert "no labels" in far["verdict"][0]
    (alone,) = targets_of(replace(only(study, "there"), human_error=0.03))
    assert near == alone


def test_groups_of_the_target_stand_beside_those_of_the_source(study, record):
    """Each attribute's groups; sensitivity is at the transferred threshold of Youden's rule."""
    target = record["targets"][0]
    groups = target["subgroups"]
    assert [(g["attribute"], g["group"], g["images"]) for g in groups] == [
        ("sex", "F", 60), ("sex", "M", 56), ("sex", "unknown", 4),
        ("age", "< 50", 60), ("age", "50 or more", 56), ("age", "unknown", 4),
    ]  # fmt: skip
    assert [g["reason"][:7] for g in groups if g["group"] == "unknown"] == ["too few"] * 2
    assert {"sex_mix", "within_sex", "age_mix"} <= {row["name"] for row in target["effects"]}
    for group in groups[:2]:
        assert 0 <= group["metrics"]["accuracy"]["source"] <= 1
    (youden,) = (
        row["sensitivity"]["estimate"]
        for row in target["thresholds"]
        if (row["rule"], row["domain"]) == ("youden", "target")
    )
    hits = sum(round(30 * g["metrics"]["sensitivity"]["estimate"]) for g in groups[:2])
    assert hits == pytest.approx(60 * youden, abs=4)  # 28 of M, and 2 of nobody knows whom
    for secret in (b"p1003", b"20.0625", b"26.0625", b"here.csv"):  # nothing of a patient
        for path in study.results.iterdir():
            assert path.is_dir() or secret not in path.read_bytes()


class StillSealedError(Exception):
    """Raised by a test where the labels are about to be opened."""


def relabelled(*given):
    """Features of the study, the target's labels in the opposite order."""
    table = load_features(*given)
    label, in_target = table.samples.label.copy(), table.samples.domain == "there"
    label[in_target] = label[in_target][::-1]
    return replace(table, samples=replace(table.samples, label=label))


def test_other_labels_of_the_target_move_no_prediction(study, monkeypatch):
    """Metamorphic: before the seal breaks, a target with other labels gives the same bits."""
    made = []

    def stop(predictions, sealed, _, target, __):
        assert sealed.reads == 0
        assert target.label is None
        made.append(predictions)
        raise StillSealedError

    def keeping(function):
        def kept(source, target, *given, **named):
            assert target.label is None
            made.append(function(source, target, *given, **named))
            return made[-1]

        return kept

    for name in ("detect", "estimate_accuracy"):
        monkeypatch.setattr(stage, name, keeping(getattr(stage, name)))
    monkeypatch.setattr(stage, "score", stop)
    for load in (load_features, relabelled):
        monkeypatch.setattr(load_module, "load_features", load)
        with pytest.raises(StillSealedError):
            analyse(only(study, "there"), SHORT)
    assert len(made) == 6
    for before, after in zip(made[:3], made[3:], strict=True):
        np.testing.assert_equal(to_jsonable(before), to_jsonable(after))


def few_in(domain: str, patients: dict[int, int], table: FeatureTable) -> FeatureTable:
    """Of a domain, one image of each of so many patients by class; all of the other domain."""
    samples = table.samples
    kinds = np.array([int(item.path.startswith("b")) for item in samples.items])
    stay = samples.domain != domain
    for k, count in patients.items():
        stay[np.flatnonzero((samples.domain == domain) & (kinds == k))[:count]] = True
    alone = np.array([item.path for item in samples.items])
    group = np.where(samples.domain == domain, alone, samples.group)
    kept = replace(samples, group=group).where(stay)
    return replace(table, samples=kept, X=table.X[stay])


@pytest.mark.parametrize(
    ("domain", "patients", "labels"),
    [
        ("there", {0: 1, 1: 1}, "sealed"),
        ("there", {0: 1, 1: 1}, "absent"),
        ("source", {0: 30, 1: 2}, "sealed"),
    ],
)
def test_a_few_patients_go_through(study, monkeypatch, domain, patients, labels):
    """Two of a target are enough for every step, and two of a class of the source."""
    monkeypatch.setattr(
        load_module, "load_features", lambda *given: few_in(domain, patients, load_features(*given))
    )
    asked = replace(only(study, "there", labels=labels), subgroups=())
    (target,) = targets_of(asked)
    assert target["labelled"] == (labels == "sealed")
    assert all(0 <= row["accuracy"] <= 1 for row in target["adaptation"])
    if domain == "there":
        assert not any(row["target_labels"] for row in target["adaptation"])  # too few to learn


def test_a_target_or_backbone_that_fails_does_not_cost_the_others(study, monkeypatch):
    """Each is named with its reason, in the record and by the error at the end."""
    real = stage.analyse_target

    def broken(model, target, **named):
        if target.name == "far":
            raise StudyError("too strange")
        return real(model, target, **named)

    monkeypatch.setattr(stage, "analyse_target", broken)
    tiny = study.backbones[0]
    failed = r"^target\.far: too strange; backbone\.tiny@0: .*no features of tiny@0 .*$"
    with pytest.raises(PartialFailureError, match=failed) as error:
        analyse(replace(study, backbones=(replace(tiny, name="tiny@0"), tiny)), SHORT)
    record = error.value.record
    assert [target["target"] for target in record["targets"]] == ["there"]
    *no_features, far = record["not_compared"]
    assert [skipped["target"] for skipped in no_features] == ["there", "far"]
    assert (far["target"], far["reason"]) == ("far", "too strange")


def test_what_cannot_be_compared_is_refused(study, monkeypatch, tmp_path):
    """No target, a target of one patient, a wrong file: before any head is fitted."""
    monkeypatch.setattr(stage, "fit_source", None)
    wrong = tmp_path / "there.csv"
    wrong.write_text("patient,age\np2000,3\n")
    for asked, message in (
        (replace(study, targets=()), r"no \[target.NAME\]"),
        (only(study, "far", group="^(p)"), r"no target can be compared\. far: Images: 100, all of"),
        (only(study, "there", attributes=wrong), "no column 'sex'"),
    ):
        with pytest.raises(StudyError, match=message):
            analyse(asked, SHORT)


@pytest.mark.parametrize("option", [{"draws": 18}, {"seeds": 0}])
def test_too_few_draws_or_divisions_are_refused_with_what_is_allowed(option):
    """Before anything is computed."""
    with pytest.raises(StudyError, match="ask for 19 draws or more, .* and for 1 seed or more"):
        ShiftOptions(**option)
    ShiftOptions(draws=19, seeds=1)
