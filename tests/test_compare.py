"""Stage 2: fitted on the fit split alone, scored everywhere, kept for later stages."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

import pipeline.compare as compare_module
import pipeline.compare as fitting_module
import pipeline.features.backbones as backbones_module
import pipeline.heads.out_of_fold as out_of_fold_module
from cache.store import FeatureStore
from pipeline.compare import QUICK, CompareOptions, compare
from pipeline.errors import UnknownNameError
from pipeline.evaluation.metrics import METRICS
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.heads import HEADS
from pipeline.study import Concatenation, load_study
from tests.tiny import install_tiny_backbone, write_tiny_study

OPTIONS = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=4))


def only(*heads, seeds=2):
    """Options for some heads."""
    return CompareOptions(heads=heads, seeds=seeds)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study whose features are stored."""
    install_tiny_backbone(monkeypatch, tmp_path)
    table = backbones_module.BACKBONES
    monkeypatch.setattr(backbones_module, "BACKBONES", {**table, "tiny2": table["tiny"]})
    monkeypatch.chdir(tmp_path)
    loaded = load_study(write_tiny_study(tmp_path, source=80, target=40))
    extract(loaded, OPTIONS)
    return loaded


def test_every_head_is_scored_on_every_domain_by_every_metric(study):
    """A tidy row for each; role says fit, validation or target."""
    report = compare(study, CompareOptions(seeds=2))
    found = {(row.head, row.domain, row.role, row.metric) for row in report.rows}
    places = [("source", "fit"), ("source", "validation"), ("there", "target")]
    heads = [*HEADS, "mlp_ensemble", "forest_ensemble", "boosting_ensemble"]
    assert found == {(h, d, r, m) for h in heads for d, r in places for m in METRICS}
    assert not report.failures
    linear = [r for r in report.rows if (r.head, r.metric) == ("linear", "accuracy")]
    assert min(row.estimate for row in linear if row.domain == "source") > 0.9


def test_the_file_is_tidy_and_says_what_the_report_says(study):
    """results/<name>/heads.json for whoever reads it next."""
    report = compare(study, only("prior", "linear"))
    written = json.loads((study.results / "heads.json").read_text())
    assert (written["schema"], written["study"], written["positive"]) == (4, "tiny", "b")
    assert set(written["rows"][0]) == {
        "backbone", "head", "seed", "domain", "role", "metric", "estimate", "seconds",
        "low", "high", "images", "patients", "method",
    }  # fmt: skip
    assert len(written["rows"]) == len(report.rows)
    with (study.results / "heads.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [list(row) for row in table[:1]] == [list(written["rows"][0])]
    assert [float(row["estimate"]) for row in table] == [row["estimate"] for row in written["rows"]]
    assert {row["low"] for row in table if row["role"] == "fit"} == {""}


def test_the_file_tells_of_each_head_how_it_came_to_be(study):
    """What was chosen, confusion matrices that add up, and every comparison by backbone."""
    compare(study, only("linear", "mlp"))
    written = json.loads((study.results / "heads.json").read_text())
    chosen = {(one["head"], one["seed"]): one["chosen"] for one in written["details"]}
    assert chosen["linear", 0]["C"] in HEADS["linear"].grid["C"]
    assert set(chosen) == {("linear", 0), ("mlp", 0), ("mlp", 1)}
    curves = {one["head"]: one["curves"] for one in written["details"]}
    assert len(curves["mlp"]["fit_loss"]) == 30
    assert curves["linear"] is None
    counts = {(c["head"], c["role"]): c["counts"] for c in written["confusion"]}
    assert np.sum(counts["mlp_ensemble", "target"]) == 40
    rows = {(r["head"], r["role"], r["metric"]): r["estimate"] for r in written["rows"]}
    right = np.trace(counts["linear", "target"]) / 40
    assert rows["linear", "target", "accuracy"] == pytest.approx(right)
    lists = ("pairs", "best_sets", "seed_spread", "confusion", "honest", "procedures")
    assert {one["backbone"] for name in lists for one in written[name]} == {"tiny"}
    assert {one["among"] for one in written["honest"]} == {2}


def test_without_repeats_nothing_is_fitted_again(study, monkeypatch):
    """What --quick leaves out is left out, not made cheaper."""
    monkeypatch.setattr(compare_module, "out_of_fold", lambda *_, **__: pytest.fail("fitted"))
    report = compare(study, replace(QUICK, heads=("linear", "prior")))
    assert (report.tables["tiny"].honest, report.tables["tiny"].procedures) == ((), ())


def test_a_head_that_fails_out_of_fold_keeps_its_scores(study, monkeypatch):
    """It has its row with a reason, and is no candidate for the honest best."""
    again = out_of_fold_module.at_chosen

    def failing(model):
        if isinstance(model, DummyClassifier):
            raise np.linalg.LinAlgError("singular")
        return again(model)

    monkeypatch.setattr(out_of_fold_module, "at_chosen", failing)
    report = compare(study, only("linear", "lda", "prior"))
    assert [(f.head, f.reason) for f in report.failures] == [("prior", "out of fold: singular")]
    assert {one.among for one in report.tables["tiny"].honest} == {2}
    assert "prior" in {row.head for row in report.rows}


def test_probabilities_are_kept_for_each_image_under_its_key(study):
    """So that a later stage can pair two heads on the same images."""
    compare(study, only("linear"))
    with h5py.File(study.results / "probabilities.h5") as file:
        group = file["tiny"]
        proba = group["heads/linear/0"][:]
        assert proba.shape == (120, 2)
        assert group["key"].shape == (120, 32)
        label, split = group["label"][:], group["split"].asstr()[:]
    report = json.loads((study.results / "heads.json").read_text())
    accuracy = (proba.argmax(1) == label)[split == "target"].mean()
    row = next(r for r in report["rows"] if (r["role"], r["metric"]) == ("target", "accuracy"))
    assert row["estimate"] == pytest.approx(accuracy)


def test_a_head_that_fails_is_reported_and_the_others_go_on(study, monkeypatch):
    """One singular matrix does not cost the table."""
    train = fitting_module.train_head

    def singular(name, problem, *rest):
        if name == "knn":
            raise ValueError("singular")
        return train(name, problem, *rest)

    monkeypatch.setattr(fitting_module, "train_head", singular)
    report = compare(study, only("knn", "prior"))
    assert [(f.head, f.reason) for f in report.failures] == [("knn", "singular")]
    assert {row.head for row in report.rows} == {"prior"}


def test_seeds_have_their_rows_and_an_ensemble_of_its_own(study):
    """Three seeds are three rows, and the mean of their probabilities is a fourth."""
    report = compare(study, only("mlp", seeds=3))
    rows = [r for r in report.rows if r.metric == "accuracy" and r.role == "target"]
    assert [(r.head, r.seed) for r in rows] == [
        ("mlp", 0), ("mlp", 1), ("mlp", 2), ("mlp_ensemble", 0)
    ]  # fmt: skip
    with h5py.File(study.results / "probabilities.h5") as file:
        heads = file["tiny/heads"]
        members = [heads[f"mlp/{seed}"][:] for seed in range(3)]
        np.testing.assert_allclose(heads["mlp_ensemble/0"][:], np.mean(members, 0), atol=1e-6)


def test_every_treatment_has_rows_of_its_own(study):
    """Named where it is not the default, and never the baseline's doing."""
    options = CompareOptions(heads=("linear", "mlp"), seeds=2, treatments=("standardise", "l2"))
    report = compare(study, options)
    heads = {"linear", "mlp", "mlp_ensemble"}
    assert {row.head for row in report.rows} == heads | {
        "linear@l2", "mlp@l2", "mlp@l2_ensemble"
    }  # fmt: skip
    assert {p["baseline"] for p in report.tables["tiny"].pairs} == {"linear"}
    with pytest.raises(UnknownNameError, match="unknown treatment 'l3'; known: standardise, none"):
        compare(study, CompareOptions(treatments=("l3",)))


def test_backbones_side_by_side_are_a_variant_like_any_other(study):
    """Twice the columns, the same images, rows of its own; stage 1 knows nothing of it."""
    tiny = study.backbones[0]
    both = replace(
        study,
        backbones=(tiny, replace(tiny, name="tiny2")),
        concatenations=(Concatenation(name="tiny+tiny2"),),
    )
    extract(both, OPTIONS)
    report = compare(both, only("linear", "prior"))
    assert {row.backbone for row in report.rows} == {"tiny", "tiny2", "tiny+tiny2"}
    joined = compare_module.load_features(both, both.variants[-1])
    width = joined.X.shape[1] // 2
    assert joined.widths == (width, width)
    np.testing.assert_array_equal(joined.X[:, :width], joined.X[:, width:])


def test_curves_of_validation_are_kept_and_change_nothing(study):
    """An mlp remembers how it learned; the watched rows are in no weight."""
    joined = compare_module.load_features(study, study.backbones[0])
    plan = fitting_module.Plan(heads=("mlp",), seeds=(0,))
    head = fitting_module.fit_all(joined, plan)[0][0].model[-1]
    assert set(head.curves_) == {
        "fit_loss", "fit_accuracy", "validation_loss", "validation_accuracy"
    }  # fmt: skip
    assert {len(curve) for curve in head.curves_.values()} == {head.epochs}
    rows = joined.samples.split != "target"
    unseen = replace(joined, X=joined.X[rows], samples=joined.samples.where(rows))
    fit = np.where(unseen.samples.split == "validation", "target", unseen.samples.split)
    blind = replace(unseen, samples=replace(unseen.samples, split=fit))
    other = fitting_module.fit_all(blind, plan)[0][0].model[-1]
    np.testing.assert_array_equal(other.trained_.layers[0][0], head.trained_.layers[0][0])


def test_rows_have_intervals_by_patient(study):
    """Two images a patient: the interval is a bootstrap of patients and holds the value."""
    report = compare(study, only("linear"))
    row = next(r for r in report.rows if (r.role, r.metric) == ("target", "log_loss"))
    assert row.low < row.estimate < row.high
    assert (row.images, row.patients, row.method) == (40, 10, "patient bootstrap")


def test_heads_are_compared_with_the_baseline_on_the_same_images(study):
    """Difference, interval, Holm-adjusted p and a word, never on the fit split."""
    report = compare(study, only("linear", "prior", "lda"))
    pairs = [p for p in report.tables["tiny"].pairs if p["reference"] == "baseline"]
    assert {p["head"] for p in pairs} == {"prior", "lda"}
    assert {(p["domain"], p["role"]) for p in pairs} == {
        ("source", "validation"),
        ("there", "target"),
    }
    prior = next(
        p for p in pairs if (p["head"], p["domain"], p["metric"]) == ("prior", "there", "accuracy")
    )
    assert prior["verdict"] == "worse"
    assert prior["low"] <= prior["estimate"] <= prior["high"] < 0
    assert prior["p"] <= prior["p_adjusted"] < 0.05


def test_an_unknown_head_shows_before_any_work(study, monkeypatch):
    """A typo costs no minute."""
    monkeypatch.setattr(FeatureStore, "read", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(UnknownNameError, match="known: mlp, linear"):
        compare(study, only("linear", "lienar"))


def test_two_runs_give_the_same_table(study):
    """Seeded by purpose: same study, same numbers."""
    values = [[row.estimate for row in compare(study, only(*HEADS)).rows] for _ in range(2)]
    assert values[0] == values[1]


def test_one_image_of_a_class_costs_no_table(study, monkeypatch):
    """No variance, so no comparison by AUROC; everything else is there."""
    load = compare_module.load_features

    def rare(*arguments):
        joined = load(*arguments)
        label = joined.samples.label.copy()
        far = np.flatnonzero(joined.samples.domain == "there")
        label[far] = 0
        label[far[0]] = 1
        return replace(joined, samples=replace(joined.samples, label=label))

    monkeypatch.setattr(compare_module, "load_features", rare)
    report = compare(study, only("linear", "prior"))
    pairs = {(p["domain"], p["metric"]) for p in report.tables["tiny"].pairs}
    assert ("there", "accuracy") in pairs
    assert ("there", "auroc") not in pairs
