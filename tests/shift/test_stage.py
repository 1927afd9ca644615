"""Stage 4 from the store: what it writes, that labels stay sealed, and its refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import report
from pipeline.data.leaks import WARNING, Finding
from pipeline.errors import StudyError
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.load import FeatureTable, load_features
from pipeline.shift import stage
from pipeline.shift.adapt import ADAPTERS
from pipeline.shift.domains import fit_source
from pipeline.shift.label_free import NO_OVERLAP
from pipeline.shift.stage import SCHEMA, ShiftOptions, analyse
from pipeline.study import load_study
from pipeline.words import to_jsonable
from tests.result_files import record_of
from tests.tiny import stored_tiny_study, write_images

SHORT = ShiftOptions(draws=99, seeds=2)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study with thirty patients a domain, the target brighter, features stored."""
    return load_study(stored_tiny_study(tmp_path, monkeypatch, source=120, target=120))


def written(study):
    return record_of(study.results / "shift.json")


def the_target(study):
    """What ``shift.json`` says of the only target, but for the time it took."""
    (target,) = written(study)["targets"]
    del target["provenance"]["seconds"]
    return target


def numbers_in(value):
    """How many numbers a JSON value holds."""
    if isinstance(value, dict):
        return sum(map(numbers_in, value.values()))
    if isinstance(value, list):
        return sum(map(numbers_in, value))
    return int(isinstance(value, int | float) and not isinstance(value, bool))


# --- what is written


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The study with its record and what is on disk, for tests that only look."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tiny")
        study = load_study(stored_tiny_study(folder, patch, source=120, target=120))
        yield study, analyse(study, SHORT), the_target(study)


def test_a_brighter_hospital_is_found_and_said(found):
    """Tests, effects, table and methods are in the file, and agree with one another."""
    study, record, target = found
    assert written(study) == record
    assert (written(study)["schema"], written(study)["classes"]) == (SCHEMA, ["a", "b"])
    assert (target["labelled"], target["images"], target["patients"]) == (True, 120, 30)
    assert min(row["p_adjusted"] for row in target["detection"] if row["p"] is not None) <= 0.05
    effects = {row["name"]: row for row in target["effects"]}
    loss = effects["accuracy_loss"]
    assert loss["estimate"] == pytest.approx(
        target["accuracy"]["source"] - target["accuracy"]["target"]
    )
    for first, second in (
        ("class_mix", "within_class"),
        ("confidence_shift", "y_given_score"),
        ("threshold", "discrimination"),
        ("target_hardness", "transfer_gap"),
    ):
        total = effects[first]["estimate"] + effects[second]["estimate"]
        assert total == pytest.approx(loss["estimate"])
        assert effects[first]["division"] == effects[second]["division"]
    # One number, one interval: the table and the effects draw the same patients.
    steps = {row["name"]: row for row in target["error_table"]["steps"]}
    assert (steps["mismatch"]["low"], steps["mismatch"]["high"]) == (loss["low"], loss["high"])
    assert set(target["error_table"]["not_identifiable"]) == {"avoidable_bias"}
    assert {row["method"] for row in target["adaptation"]} >= set(ADAPTERS)
    assert any(row["target_labels"] for row in target["adaptation"])
    assert [row["domain"] for row in target["calibration"]] == ["source", "target"]
    unreliable = {row["moved_by"] for row in target["thresholds"] if not row["reliable"]}
    assert unreliable == ({"prior", "quantile"} if target["labels_needed"] else set())
    assert target["covariates"] == []  # no audit has measured the images
    assert "headrace audit" in target["covariates_summary"]


def test_the_record_is_small_and_says_what_it_rests_on(found):
    """Under 600 numbers; digests of inputs and plan, seeds, how often labels were read."""
    _, _, target = found
    assert numbers_in(target) < 600
    rests = target["provenance"]
    assert rests["inputs"]["source"] != rests["inputs"]["target"]
    assert {len(rests["inputs"][name]) for name in ("source", "target")} == {64}
    assert len(rests["inputs"]["recipes"]) == 1
    assert len(rests["plan"]) == 64
    assert rests["label_reads"] == 2  # to score the methods, and to take the loss apart
    assert rests["seeds"] == {"study": 0, "permutations": 0, "halves": 2}
    assert any("30 patients" in caveat for caveat in target["caveats"])


def test_probabilities_and_arrays_for_figures_are_kept_apart(found):
    """Out of fold on the source; the embedding stands beside them."""
    study, _, _ = found
    proba = read_predictions(study.results / "shift.h5")["tiny"].proba["linear", 0]
    table = load_features(study, study.variants[0], None)
    model, target = fit_source(table.domain("source")), table.domain("there")
    np.testing.assert_allclose(proba[model.data.row], model.data.proba, atol=1e-9)
    np.testing.assert_allclose(proba[target.row], model.predict_proba(target.features), atol=1e-9)
    with h5py.File(study.results / "shift.h5") as file:
        curves = file["tiny/curves/there"]
        assert curves["embedding"].shape == (240, 2)
        assert set(curves["embedding_label"][:]) == {0, 1}


def test_people_are_told_at_most_forty_lines_of_a_target(found):
    """Verdict, effects and methods; the rest is in the files."""
    _, record, _ = found
    text = report.show("shift", record)
    assert len(text.splitlines()) <= 40
    for sentence in record["targets"][0]["verdict"]:
        assert sentence in " ".join(text.split())


def test_a_known_human_error_starts_the_table(study):
    """``human_error`` fills the first row, and the step from there is no longer unknown."""
    analyse(replace(study, human_error=0.03), SHORT)
    table = the_target(study)["error_table"]
    errors = {row["name"]: row["estimate"] for row in table["errors"]}
    steps = {row["name"]: row["estimate"] for row in table["steps"]}
    assert errors["human"] == 0.03
    assert table["errors"][0]["low"] is None
    assert steps["avoidable_bias"] == pytest.approx(errors["source_training"] - 0.03)
    assert table["not_identifiable"] == {}


# --- sealed labels


class StillSealedError(Exception):
    """Raised by a test where the labels are about to be opened."""


def relabelled(change):
    """Features of the study, the target's labels changed."""

    def load(*given):
        table = load_features(*given)
        label, far = table.samples.label.copy(), table.samples.domain == "there"
        label[far] = change(label[far])
        return replace(table, samples=replace(table.samples, label=label))

    return load


CHANGES = {"constant": np.zeros_like, "reversed": lambda label: label[::-1]}


@pytest.mark.parametrize("change", CHANGES)
def test_deleted_labels_of_the_target_move_no_prediction(study, monkeypatch, change):
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
    for load in (load_features, relabelled(CHANGES[change])):
        monkeypatch.setattr(stage, "load_features", load)
        with pytest.raises(StillSealedError):
            analyse(study, SHORT)
    assert len(made) == 6
    for before, after in zip(made[:3], made[3:], strict=True):
        np.testing.assert_equal(to_jsonable(before), to_jsonable(after))


def test_other_labels_of_the_target_move_nothing_that_needs_none(study, monkeypatch):
    """Metamorphic: all that is said of a target without labels stays the same."""
    analyse(study, SHORT)
    before = the_target(study)
    monkeypatch.setattr(stage, "load_features", relabelled(CHANGES["reversed"]))
    analyse(study, SHORT)
    after = the_target(study)
    for name in ("detection", "domain_auc", "shared_patients", "accuracy_range"):
        assert after[name] == before[name]
    assert after["effects"] != before["effects"]


# --- targets without labels


ABSENT = '[target.far]\npath = "far"\nlabels = "absent"\ngroup = \'^(p\\d+)\'\n'


@pytest.fixture
def both(study):
    """A labelled target, and one whose images lie loosely in their folder."""
    from pipeline.features.engines import EngineChoice
    from pipeline.features.extract import ExtractOptions, extract

    folder = study.source.path.parent
    write_images(folder / "sorted", 100, seed=3, shift=30)
    (folder / "far").mkdir()
    for image in (folder / "sorted").rglob("*.png"):
        image.rename(folder / "far" / image.name)
    shutil.rmtree(folder / "sorted")
    file = folder / "study.toml"
    file.write_text(file.read_text().replace("[store]", f"{ABSENT}[store]"))
    found = load_study(file)
    engine = EngineChoice(engine="torch", device="cpu", batch_size=8)
    extract(found, ExtractOptions(engine=engine))
    return found


def test_a_target_without_labels_gets_an_estimate_with_its_warning(both):
    """What needs labels is empty; the labelled target is not touched by it."""
    analyse(both, SHORT)
    near, far = written(both)["targets"]
    assert (near["target"], far["target"], far["labelled"]) == ("there", "far", False)
    assert far["images"] == 100
    limits = far["accuracy_range"]["low"], far["accuracy_range"]["high"]
    withheld = far["domain_auc"][0]["low"] > NO_OVERLAP
    assert limits == (None, None) if withheld else 0 <= limits[0] <= limits[1] <= 1
    assert sum(row["predicted"] for row in far["accuracy_range"]["prevalence"]) == pytest.approx(1)
    for name in ("effects", "adaptation", "calibration", "thresholds", "subgroups", "covariates"):
        assert far[name] == []
    assert far["error_table"] is None
    assert far["accuracy"]["target"] is None
    assert (far["provenance"]["label_reads"], far["provenance"]["plan"]) == (0, None)
    assert "no labels" in far["verdict"][0]
    analyse(replace(both, targets=both.targets[:1]), SHORT)
    alone = the_target(both)
    for one in (near, alone):
        del one["provenance"]["leaks"]  # the checks are of the whole study
    del near["provenance"]["seconds"]
    assert near == alone


def test_what_the_checks_find_of_one_target_is_no_caveat_of_the_other(both, monkeypatch):
    """A patient shared by the source and `far` says nothing of `there`."""
    finding = Finding(check="patients", severity=WARNING, where="source and far", text="1 shared")
    monkeypatch.setattr(stage, "check_leaks", lambda *_: [finding])
    near, far = analyse(both, SHORT)["targets"]
    assert "source and far: 1 shared." in far["caveats"]
    assert "source and far: 1 shared." not in near["caveats"]


# --- few patients


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


def analyse_few(study, monkeypatch, domain: str, patients: dict[int, int]):
    """Stage 4 on what :func:`few_in` leaves."""
    monkeypatch.setattr(
        stage, "load_features", lambda *given: few_in(domain, patients, load_features(*given))
    )
    return analyse(study, SHORT)


@pytest.mark.parametrize(
    ("patients", "labels"), [(2, "sealed"), (2, "absent"), (3, "absent"), (4, "sealed")]
)
def test_a_target_of_a_few_patients_goes_through(study, monkeypatch, patients, labels):
    """Two patients are enough for every step, whether their labels are known or not."""
    (there,) = study.targets
    asked = replace(study, targets=(replace(there, labels=labels),))
    counts = {0: patients - patients // 2, 1: patients // 2}
    (target,) = analyse_few(asked, monkeypatch, "there", counts)["targets"]
    assert target["labelled"] == (labels == "sealed")
    assert not target["label_curve"]  # of so few there are none to learn from


@pytest.mark.parametrize("patients", [2, 3])
def test_a_source_class_of_a_few_patients_goes_through(study, monkeypatch, patients):
    """Two patients of a class are enough: folds, draws and controls keep the class."""
    (target,) = analyse_few(study, monkeypatch, "source", {0: 30, 1: patients})["targets"]
    assert all(0 <= row["accuracy"] <= 1 for row in target["adaptation"])


def test_a_target_of_one_patient_is_left_out_and_said(both):
    """The other is compared, and nothing else hides it."""
    one = tuple(replace(t, group="^(p)") if t.name == "far" else t for t in both.targets)
    record = analyse(replace(both, targets=one), SHORT)
    assert [target["target"] for target in record["targets"]] == ["there"]
    (left,) = written(both)["not_compared"]
    assert (left["target"], left["backbone"], left["images"]) == ("far", "tiny", 100)
    assert "the group pattern of [target.far]" in left["reason"]
    assert left["reason"] in " ".join(report.show("shift", record).split())


def test_where_no_target_can_be_compared_the_stage_says_why(study):
    """Rather than write a report of nothing."""
    one = tuple(replace(target, group="^(p)") for target in study.targets)
    with pytest.raises(StudyError, match=r"no target can be compared\. there: Images: 120, all of"):
        analyse(replace(study, targets=one), SHORT)
    assert not (study.results / "shift.json").exists()


# --- subgroups


def with_subgroups(study, *, source=True):
    """The study with ``[subgroups]`` and a file of attributes for each domain."""
    folder = study.source.path.parent
    file = folder / "study.toml"
    text = file.read_text()
    for number, site in enumerate(("here", "there"), start=1):
        rows = [f"p{number}{i:03},{'FM'[i % 2]},{20.0625 + 2 * i}" for i in range(29)]
        (folder / f"{site}.csv").write_text("\n".join(["patient,sex,age", *rows]))
        if source or site == "there":
            text = text.replace(f'path = "{site}"', f'path = "{site}"\nattributes = "{site}.csv"')
    file.write_text(text.replace("[store]", "[subgroups]\nsex = true\nage = [50]\n[store]"))
    return load_study(file)


def test_groups_of_the_target_stand_beside_those_of_the_source(study):
    """Each attribute's groups; sensitivity is at the transferred threshold of Youden's rule."""
    asked = with_subgroups(study)
    analyse(asked, SHORT)
    target = the_target(asked)
    groups = target["subgroups"]
    assert [(g["attribute"], g["group"], g["images"]) for g in groups] == [
        ("sex", "F", 60), ("sex", "M", 56), ("sex", "unknown", 4),
        ("age", "< 50", 60), ("age", "50 or more", 56), ("age", "unknown", 4),
    ]  # fmt: skip
    assert [g["reason"][:7] for g in groups if g["group"] == "unknown"] == ["too few"] * 2
    assert {"sex_mix", "within_sex", "age_mix"} <= {row["name"] for row in target["effects"]}
    assert len(report.show("shift", written(asked)).splitlines()) <= 40
    for group in groups[:2]:
        value = group["metrics"]["accuracy"]
        assert value["low"] <= value["estimate"] <= value["high"]
        assert 0 <= value["source"] <= 1
    youden = next(
        row
        for row in target["thresholds"]
        if (row["rule"], row["domain"], row["moved_by"]) == ("youden", "target", "none")
    )
    found = [g["metrics"]["sensitivity"] for g in groups[:2]]
    hits = sum(round(value["estimate"] * value["images"]) for value in found)
    assert hits <= round(youden["sensitivity"]["estimate"] * 60) <= hits + 2
    for secret in (b"p1003", b"20.0625", b"26.0625", b"here.csv"):  # nothing of a patient
        for path in asked.results.iterdir():
            assert path.is_dir() or secret not in path.read_bytes()


def test_a_study_that_does_not_ask_has_no_subgroups_and_the_same_numbers(study):
    """What is not about subgroups is the same to the last digit."""
    analyse(study, SHORT)
    without = the_target(study)
    assert without.pop("subgroups") == []
    asked = with_subgroups(study, source=False)
    analyse(asked, SHORT)
    found = the_target(asked)
    values = [v for g in found.pop("subgroups") for v in g["metrics"].values()]
    assert {value["source"] for value in values} == {None}
    assert found == without


def test_a_wrong_file_stops_before_any_work(study, monkeypatch):
    """The head is not fitted for an hour to learn of a slip of the pen."""
    asked = with_subgroups(study)
    (study.source.path.parent / "there.csv").write_text("patient,age\np2000,3\n")
    monkeypatch.setattr(stage, "fit_source", None)
    with pytest.raises(StudyError, match="no column 'sex'"):
        analyse(asked, SHORT)


# --- refusals


def test_a_study_without_a_target_has_no_shift(study):
    """The message names the table that is missing."""
    with pytest.raises(StudyError, match=r"no \[target.NAME\]"):
        analyse(replace(study, targets=()), SHORT)


@pytest.mark.parametrize(
    ("option", "got", "least"), [("draws", 18, 19), ("draws", -5, 19), ("seeds", 0, 1)]
)
def test_too_few_draws_or_divisions_are_refused_with_what_is_allowed(option, got, least):
    """Before anything is computed."""
    with pytest.raises(StudyError, match=rf"{option} = {got}: ask for {least} or more; "):
        ShiftOptions(**{option: got})
    ShiftOptions(**{option: least})
