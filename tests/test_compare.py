"""Stage 2: fitted on the fit split alone, scored everywhere, kept for later stages."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import pipeline.compare as compare_module
import pipeline.fitting as fitting_module
from cache import FeatureStore
from pipeline.compare import CompareOptions, compare
from pipeline.engines import EngineChoice
from pipeline.errors import UnknownNameError
from pipeline.extract import ExtractOptions, extract
from pipeline.heads import HEADS
from pipeline.metrics import METRICS
from pipeline.splits import FIT
from pipeline.study import load_study
from pipeline.tables import heads_text
from tests.tiny import install_tiny_backbone, write_tiny_study

OPTIONS = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=4))


def only(*heads, seeds=2):
    """Options for some heads."""
    return CompareOptions(heads=heads, seeds=seeds)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study whose features are stored."""
    install_tiny_backbone(monkeypatch, tmp_path)
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
    assert min(row.value for row in linear if row.domain == "source") > 0.9


def test_the_file_is_tidy_and_says_what_the_report_says(study):
    """results/<name>/heads.json for whoever reads it next."""
    report = compare(study, only("prior", "linear"))
    written = json.loads((study.results / "heads.json").read_text())
    assert written["study"] == "tiny"
    assert set(written["rows"][0]) == {
        "backbone", "head", "seed", "domain", "role", "metric", "value", "seconds",
        "low", "high", "n", "groups", "ci_method",
    }  # fmt: skip
    assert len(written["rows"]) == len(report.rows)


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
    assert row["value"] == pytest.approx(accuracy)


@pytest.mark.parametrize("head", HEADS)
def test_labels_of_validation_and_target_select_nothing(study, monkeypatch, head):
    """With those labels permuted, every probability stays the same bit for bit."""
    compare(study, only(head))
    before = _proba(study, head)
    load = compare_module.load_joined

    def permuted(*arguments):
        joined = load(*arguments)
        label = joined.samples.label.copy()
        other = joined.samples.split != FIT
        label[other] = 1 - label[other]
        return replace(joined, samples=replace(joined.samples, label=label))

    monkeypatch.setattr(compare_module, "load_joined", permuted)
    compare(study, only(head))
    np.testing.assert_array_equal(_proba(study, head), before)


@pytest.mark.parametrize("head", [h for h in HEADS if h != "prior"])
def test_features_of_validation_and_target_select_nothing(study, monkeypatch, head):
    """Neither scaler nor head sees them: what is fitted does not move with them."""
    compare(study, only(head))
    before = _proba(study, head)
    load = compare_module.load_joined

    def moved(*arguments):
        joined = load(*arguments)
        X = joined.X.copy()
        X[joined.samples.split == "target"] *= 100
        return replace(joined, X=X)

    monkeypatch.setattr(compare_module, "load_joined", moved)
    compare(study, only(head))
    np.testing.assert_array_equal(_proba(study, head)[:80], before[:80])


def _proba(study, head):
    with h5py.File(study.results / "probabilities.h5") as file:
        return file[f"tiny/heads/{head}/0"][:]


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
    assert "knn on tiny failed: singular" in heads_text(report)


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


def test_rows_have_intervals_by_patient(study):
    """Two images a patient: the interval is a bootstrap of patients and holds the value."""
    report = compare(study, only("linear"))
    row = next(r for r in report.rows if (r.role, r.metric) == ("target", "log_loss"))
    assert row.low < row.value < row.high
    assert (row.n, row.groups, row.ci_method) == (40, 10, "patient bootstrap")


def test_heads_are_compared_with_the_baseline_on_the_same_images(study):
    """Difference, interval, Holm-adjusted p and a word, never on the fit split."""
    report = compare(study, only("linear", "prior", "lda"))
    pairs = report.pairs["tiny"]
    assert {p.head for p in pairs} == {"prior", "lda"}
    assert {p.domain for p in pairs} == {"source", "there"}
    prior = next(p for p in pairs if (p.head, p.domain, p.metric) == ("prior", "there", "accuracy"))
    assert prior.verdict == "worse"
    assert prior.low <= prior.difference <= prior.high < 0
    assert prior.p <= prior.p_holm < 0.05
    assert "accuracy against linear on there, tiny" in heads_text(report)


def test_an_unknown_head_shows_before_any_work(study, monkeypatch):
    """A typo costs no minute."""
    monkeypatch.setattr(FeatureStore, "read", lambda *_: pytest.fail("read before the check"))
    with pytest.raises(UnknownNameError, match="known: mlp, linear"):
        compare(study, only("linear", "lienar"))


def test_the_table_ranks_by_validation_and_names_the_positive_class(study):
    """For people: best first."""
    text = heads_text(compare(study, only("prior", "linear")))
    lines = text.splitlines()
    assert lines[0] == "tiny: accuracy / AUROC; positive class: b"
    ranked = [line.split()[1] for line in lines if line.startswith(" tiny")]
    assert ranked == ["linear", "prior"]


def test_two_runs_give_the_same_table(study):
    """Seeded by purpose: same study, same numbers."""
    values = [[row.value for row in compare(study, only(*HEADS)).rows] for _ in range(2)]
    assert values[0] == values[1]


def test_one_image_of_a_class_costs_no_table(study, monkeypatch):
    """No variance, so no comparison by AUROC; everything else is there."""
    load = compare_module.load_joined

    def rare(*arguments):
        joined = load(*arguments)
        label = joined.samples.label.copy()
        far = np.flatnonzero(joined.samples.domain == "there")
        label[far] = 0
        label[far[0]] = 1
        return replace(joined, samples=replace(joined.samples, label=label))

    monkeypatch.setattr(compare_module, "load_joined", rare)
    report = compare(study, only("linear", "prior"))
    pairs = {(p.domain, p.metric) for p in report.pairs["tiny"]}
    assert ("there", "accuracy") in pairs
    assert ("there", "auroc") not in pairs
