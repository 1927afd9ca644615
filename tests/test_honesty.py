"""Nothing is learnt or chosen from validation and target rows: their labels and features say so."""

from dataclasses import replace

import joblib
import numpy as np
import pytest

import pipeline.compare as compare_module
from pipeline.compare import CompareOptions, compare
from pipeline.data.patients import FIT
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.heads import HEADS
from pipeline.heads.mlp import TrainedMLP
from pipeline.study import load_study
from tests.tiny import install_tiny_backbone, write_tiny_study

OPTIONS = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=4))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A tiny study whose features are stored."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = load_study(write_tiny_study(tmp_path, source=80, target=40))
    extract(loaded, OPTIONS)
    return loaded


def other_labels(joined):
    """Validation and target labels permuted, within each domain, and then turned round."""
    label, rng = joined.samples.label.copy(), np.random.default_rng(0)
    for domain in np.unique(joined.samples.domain):
        rows = (joined.samples.domain == domain) & (joined.samples.split != FIT)
        label[rows] = 1 - rng.permutation(label[rows])
    return replace(joined, samples=replace(joined.samples, label=label))


def other_features(joined):
    """Validation and target features far from where they were."""
    X = joined.X.copy()
    X[joined.samples.split != FIT] *= 100
    return replace(joined, X=X)


def what_is_fitted(study, monkeypatch, change=lambda joined: joined):
    """Every model, and whatever a run says that rests on the fit split alone."""
    load, fit_all, kept = compare_module.load_features, compare_module.fit_all, []

    def fitting(joined, *rest):
        done, failed = fit_all(joined, *rest)
        kept.extend((one, one.proba[joined.samples.split == FIT]) for one in done)
        return done, failed

    with monkeypatch.context() as patched:
        patched.setattr(compare_module, "load_features", lambda *given: change(load(*given)))
        patched.setattr(compare_module, "fit_all", fitting)
        report = compare(study, CompareOptions(seeds=2, draws=50))
    table = report.tables["tiny"]
    assert not report.failures
    details = [replace(d, seconds=0.0, curves=looked_past(d.curves)) for d in table.details]
    return kept, (table.honest, table.procedures, details)


@pytest.mark.parametrize("change", [other_labels, other_features])
def test_validation_and_target_select_nothing(study, monkeypatch, change):
    """With other labels, or other features, every head of the table is the same bit for bit."""
    before, told = what_is_fitted(study, monkeypatch)
    after, told_again = what_is_fitted(study, monkeypatch, change)
    joint = {f"{name}_ensemble" for name, spec in HEADS.items() if spec.seeded}
    assert {one.head for one, _ in before} == {*HEADS} | joint
    for (one, proba), (two, proba_again) in zip(before, after, strict=True):
        assert (one.head, one.seed) == (two.head, two.seed)
        for a, b in zip(learnt(one.model), learnt(two.model), strict=True):
            assert not [n for n in a if a[n] != b[n]], one.head
        np.testing.assert_array_equal(proba, proba_again)
        if change is other_labels:
            np.testing.assert_array_equal(one.proba, two.proba)
    assert told == told_again


def learnt(model) -> list[dict[str, str]]:
    """A digest of all that a model has learnt and chosen; of nothing for an ensemble's mean."""
    return [{name: digest(value) for name, value in vars(step).items()} for step in model or []]


def looked_past(curves):
    """Curves without those that are drawn of validation rows, which nothing is learnt from."""
    return {n: c for n, c in (curves or {}).items() if not n.startswith("validation_")}


def digest(value) -> str:
    """A search tree also counts how it was asked, which is nothing that it learnt."""
    if isinstance(value, TrainedMLP):
        value = replace(value, curves=looked_past(value.curves))
    if isinstance(value, dict) and "validation_loss" in value:
        value = looked_past(value)
    return joblib.hash(value.get_arrays() if hasattr(value, "get_arrays") else value)
