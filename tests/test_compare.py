"""Stage 2: fitted to the fit split alone, scored everywhere, kept for later stages."""

from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest

import pipeline.compare as compare_module
import pipeline.evaluation.heads_record as record_module
import pipeline.features.backbones as backbones_module
import pipeline.features.load as load_module
from pipeline.compare import QUICK, THOROUGH, CompareOptions, compare
from pipeline.data.patients import FIT
from pipeline.errors import MissingFeaturesError, PartialFailureError, WeightsError
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.predictions import predictions_in, read_predictions
from pipeline.features.extract import extract
from pipeline.heads import HEADS
from pipeline.heads.mlp import MLPHead
from pipeline.heads.search import HeadSearch
from pipeline.results import add_files
from pipeline.study_file import load_study
from tests.tiny import TORCH, record_of, stored_tiny_study

SMALL = CompareOptions(seeds=2, draws=100)


def only(*heads, **more):
    """Options for some heads."""
    return replace(SMALL, heads=heads, **more)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study whose features are stored."""
    file = stored_tiny_study(tmp_path, monkeypatch, source=80, target=40)
    table = backbones_module.BACKBONES
    monkeypatch.setattr(backbones_module, "BACKBONES", {**table, "tiny2": table["tiny"]})
    return load_study(file)


def change_features(monkeypatch, change):
    """Give the stage what a function makes of the stored features."""
    load = load_module.load_features
    monkeypatch.setattr(load_module, "load_features", lambda *given: change(load(*given)))


def with_samples(features, **changes):
    return replace(features, samples=replace(features.samples, **changes))


def rows_of(record, role):
    (backbone,) = record["backbones"]
    (domain,) = [one for one in backbone["domains"] if one["role"] == role]
    return {row["head"]: row for row in domain["rows"]}


def test_every_head_is_scored_on_validation_and_target_by_every_metric(study):
    """A row for each head, the seeds of a stochastic one together; sorted by validation."""
    record = compare(study, SMALL)
    (backbone,) = record["backbones"]
    places = [(d["domain"], d["role"], d["images"], d["patients"]) for d in backbone["domains"]]
    assert [p[:2] for p in places] == [("source", "validation"), ("there", "target")]
    assert places[1][2:] == (40, 10)
    assert backbone["domains"][1]["class_patients"] == [10, 10]
    for one in backbone["domains"]:
        assert {row["head"] for row in one["rows"]} == set(HEADS)
        assert all(set(row["scores"]) == set(METRICS) for row in one["rows"])
        assert [row["head"] for row in one["rows"]] == list(rows_of(record, "validation"))
    accuracy = [row["scores"]["accuracy"]["estimate"] for row in backbone["domains"][0]["rows"]]
    assert accuracy == sorted(accuracy, reverse=True)
    assert backbone["best"] == backbone["domains"][0]["rows"][0]["head"]
    assert rows_of(record, "validation")["linear"]["scores"]["accuracy"]["estimate"] > 0.9
    assert not record["failures"] + record["not_saved"]


def test_the_file_says_what_is_returned_and_scores_are_of_the_stored_probabilities(study):
    """For whoever reads them next, or pairs two heads on the same images; seeds as their mean."""
    record = compare(study, only("prior", "linear", "mlp"))
    assert record_of(study.results / "heads.json") == record
    assert (record["schema"], record["study"], record["positive"]) == (10, "tiny", "b")
    (backbone,) = record["backbones"]
    by_head = {one["head"]: one for one in backbone["heads"]}
    assert by_head["linear"]["chosen"]["C"] in [choice["C"] for choice in HEADS["linear"].choices]
    assert (by_head["linear"]["seeds"], by_head["mlp"]["seeds"]) == (1, 2)
    assert set(by_head["mlp"]["curves"]) == {
        "fit_loss", "fit_accuracy", "validation_loss", "validation_accuracy"
    }  # fmt: skip
    assert by_head["linear"]["curves"] == {}
    corrected = backbone["selection_corrected"]
    assert set(corrected) == {"accuracy", "auroc"}
    assert {one["candidates"] for one in corrected.values()} == {3}
    assert (backbone["reused"], backbone["fitted"]) == (0, 3)
    prior = rows_of(record, "target")["prior"]["differences"]["accuracy"]
    assert prior["verdict"] == "worse"
    assert prior["p"] <= prior["p_adjusted"] < 0.05
    assert rows_of(record, "target")["linear"]["differences"] == {}
    assert [backbone[k] for k in ("seed_spread", "algorithms", "confidence_sets")] == [[], [], []]
    stored = read_predictions(study.results / "probabilities.h5")["tiny"]
    target = stored.split == "target"
    for name, row in rows_of(record, "target").items():
        right = stored.proba[name, 0].argmax(axis=1) == stored.label
        assert row["scores"]["accuracy"]["estimate"] == pytest.approx(right[target].mean())


def test_a_second_run_fits_only_what_is_new(study):
    """The others are read back, with the same numbers; more folds or seeds are another fit."""
    first = compare(study, only("linear", "forest"))
    second = compare(study, only("linear", "forest", "lda"))
    (backbone,) = second["backbones"]
    assert (backbone["reused"], backbone["fitted"]) == (2, 1)
    quick = compare(study, replace(QUICK, heads=("lda",), seeds=2))["backbones"][0]
    assert quick["reused"] == 1
    assert quick["selection_corrected"] == {}
    again = compare(study, only("linear", "forest", "lda"))["backbones"][0]
    assert again["reused"] == 3  # those of other heads had stayed
    more = compare(study, only("linear", "forest", seeds=3, repeats=2))["backbones"][0]
    assert more["reused"] == 0
    other = compare(study, only("linear", preprocessing="l2"))
    assert other["backbones"][0]["reused"] == 0
    assert rows_of(other, "target")["linear"] != rows_of(first, "target")["linear"]
    # Seeded by purpose: the same numbers from the same fits, and from new ones.
    for file in study.results.glob("heads/*/*/fit.safetensors"):
        file.unlink()
    anew = compare(study, only("linear", "forest"))
    assert anew["backbones"][0]["fitted"] == 2
    for role in ("validation", "target"):
        for name, row in rows_of(first, role).items():
            assert rows_of(second, role)[name]["scores"] == row["scores"]
            assert rows_of(second, role)[name]["fit_seconds"] == row["fit_seconds"]
            assert rows_of(anew, role)[name]["scores"] == row["scores"]
            assert rows_of(anew, role)[name]["differences"] == row["differences"]


def test_an_unchanged_run_scores_nothing_again_and_keeps_its_figures(study, monkeypatch):
    """Another baseline is another table; figures that are damaged are drawn again."""
    first = compare(study, only("linear", "prior"))
    figure = "figures/heads-roc-tiny.png"
    add_files(study.results / "heads.json", first, {figure: b"drawn"}, "heads")
    told: list[bytes] = []

    def again(**more):
        return compare(study, only("linear", "prior", **more), lambda _, file: told.append(file))

    with monkeypatch.context() as patched:
        patched.setattr(record_module, "score_heads", lambda *_: pytest.fail("scored again"))
        second = again()
    (one,), (two,) = first["backbones"], second["backbones"]
    assert two == one | {"reused": 2, "fitted": 0}
    assert (study.results / figure).read_bytes() == b"drawn"
    (study.results / figure).write_bytes(b"damaged")
    assert again() == second
    assert not (study.results / figure).exists()
    assert again(baseline="prior")["backbones"][0]["key"] != one["key"]
    assert [bool(file) for file in told] == [False, True, True]


def test_a_head_that_fails_is_reported_and_the_others_go_on(study, monkeypatch):
    """One singular matrix does not cost the table; if all fail there is none."""
    knn = replace(HEADS["knn"], make=lambda _: MLPHead(depth=0), choices=({},))
    monkeypatch.setattr(compare_module, "all_heads", lambda _: {**HEADS, "knn": knn})
    record = compare(study, only("knn", "prior"))
    assert [(f["backbone"], f["head"]) for f in record["failures"]] == [("tiny", "knn")]
    assert set(rows_of(record, "target")) == {"prior"}
    with pytest.raises(MissingFeaturesError, match="no head could be fitted: knn: hidden 256"):
        compare(study, only("knn"))


def test_a_backbone_that_is_left_out_is_reported_and_keeps_its_heads(study):
    """Its features are not made yet, or its weights are on a disk that is not mounted today.

    The error at the end has the record of the others, which is written, and the exit code.
    """
    tiny = study.backbones[0]
    coarse = replace(study, backbones=(replace(tiny, name="tiny@0"), tiny))
    with pytest.raises(PartialFailureError, match=r"^backbone\.tiny@0: .*no features") as error:
        compare(coarse, only("prior"))
    assert error.value.exit_code == MissingFeaturesError.exit_code
    assert error.value.record == record_of(study.results / "heads.json")
    (failure,) = error.value.record["failures"]
    assert failure["head"] == "all heads"
    assert "have no features of tiny@0 yet" in failure["reason"]
    two = replace(study, backbones=(tiny, replace(tiny, name="tiny2")))
    extract(two, TORCH)
    compare(two, only("linear"))
    (model,) = study.results.glob("heads/tiny2/linear/model.json")
    lost = replace(two.backbones[1], weights=str(study.results / "not mounted.pth"))
    with pytest.raises(PartialFailureError, match="not mounted") as error:
        compare(replace(two, backbones=(tiny, lost)), only("linear"))
    assert [entry["backbone"] for entry in error.value.record["backbones"]] == ["tiny"]
    assert model.exists()
    with pytest.raises(WeightsError, match="not mounted"):
        compare(replace(two, backbones=(lost,)), only("linear"))


@pytest.mark.parametrize("count", [0, 1])
def test_at_most_one_image_of_a_class_costs_no_table(study, monkeypatch, count):
    """No variance, so no comparison by AUROC; of none no F1; everything else is there."""

    def rare(features):
        label = features.samples.label.copy()
        target = np.flatnonzero(features.samples.domain == "there")
        label[target] = 0
        label[target[:count]] = 1
        return with_samples(features, label=label)

    change_features(monkeypatch, rare)
    row = rows_of(compare(study, only("linear", "prior")), "target")["prior"]
    assert set(row["differences"]) == {"accuracy"}
    assert row["scores"].keys() >= {"accuracy", "log_loss"}


# Nothing is learnt or chosen from validation and target rows: their labels and features say so.


def other_labels(features):
    """Validation and target labels permuted, within each domain, and then turned round."""
    label, rng = features.samples.label.copy(), np.random.default_rng(0)
    for name in np.unique(features.samples.domain):
        rows = (features.samples.domain == name) & (features.samples.split != FIT)
        label[rows] = 1 - rng.permutation(label[rows])
    return with_samples(features, label=label)


def other_features(features):
    """Validation and target features far from where they were."""
    X = features.X.copy()
    X[features.samples.split != FIT] *= 100
    return replace(features, X=X)


def fitted(study, monkeypatch, change=lambda features: features):
    """Every fit, and whatever the record says that rests on the fit split alone."""
    fits = {}

    class Watched(HeadSearch):
        def out_of_fold(self, *arguments):
            fits.update(super().out_of_fold(*arguments))
            return dict(fits)

    with monkeypatch.context() as patched:
        change_features(patched, change)
        patched.setattr(compare_module, "HeadSearch", Watched)
        record = compare(study, replace(SMALL, thorough=True, repeats=2))
    (backbone,) = record["backbones"]
    heads = [{k: one[k] for k in ("head", "chosen")} for one in backbone["heads"]]
    return fits, (backbone["selection_corrected"], backbone["algorithms"], heads)


def test_validation_and_target_select_nothing(study, monkeypatch):
    """With other labels, or other features, every head of the table is the same bit for bit."""
    before, said = fitted(study, monkeypatch)
    for change in (other_labels, other_features):
        after, said_again = fitted(study, monkeypatch, change)
        assert set(before) == set(after) == set(HEADS)
        for name, fit in before.items():
            for one, two in zip(fit.models, after[name].models, strict=True):
                assert learnt(one) == learnt(two), name
            np.testing.assert_array_equal(fit.out_of_fold, after[name].out_of_fold)
            if change is other_labels:
                np.testing.assert_array_equal(fit.proba, after[name].proba)
        assert said == said_again


def learnt(model) -> list[dict[str, str]]:
    """A digest of all that a model has learnt, without the curves of rows that it only saw."""
    return [
        {k: joblib.hash(v) for k, v in vars(step).items() if k != "curves_"}
        for step in (model.preprocessing, model.head)
    ]


def test_the_table_is_told_before_the_rest_is_done(study):
    """What is told first is in the record that is returned; the correction comes later."""
    told = []
    record = compare(study, only("linear", "prior"), lambda *given: told.append(given))
    ((so_far, file),) = told
    early = predictions_in(file)["tiny"]
    late = read_predictions(study.results / "probabilities.h5")["tiny"]
    unseen = early.split != "fit"
    for trained, proba in early.proba.items():  # out of fold comes later
        np.testing.assert_array_equal(proba[unseen], late.proba[trained][unseen])
        assert np.isnan(proba[~unseen]).all()
        assert np.isfinite(late.proba[trained]).all()
    assert not so_far["backbones"][0].pop("selection_corrected")
    assert record["backbones"][0].pop("selection_corrected")
    for entry in record["backbones"][0]["domains"]:
        for row in entry["rows"]:
            shown = {metric: row["scores"].pop(metric) for metric in ("accuracy", "auroc")}
            assert row["scores"]
            row |= {"scores": shown, "clinical": None}
    assert so_far == record


def test_thorough_adds_spread_algorithms_and_sets(study):
    """For each domain where it has one."""
    assert (THOROUGH.seeds, THOROUGH.thorough) == (10, True)
    options = only("linear", "forest", "prior", thorough=True, repeats=2)
    (backbone,) = compare(study, options)["backbones"]
    spread = {(s["head"], s["role"], s["seeds"]) for s in backbone["seed_spread"]}
    assert spread == {("forest", "validation", 2), ("forest", "target", 2)}
    compared = {(a["head"], a["metric"], a["splits"]) for a in backbone["algorithms"]}
    assert compared == {(h, m, 10) for h in ("forest", "prior") for m in ("accuracy", "auroc")}
    sets = backbone["confidence_sets"]
    assert [s["role"] for s in sets] == ["validation", "target"]
    assert all("linear" in s["members"] and "prior" not in s["members"] for s in sets)
