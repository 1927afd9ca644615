"""The head of a shift: the best of the comparison, with the probabilities that are stored there."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline import report
from pipeline.compare import QUICK, CompareOptions, compare
from pipeline.data.patients import patient_folds
from pipeline.errors import MissingResultsError, PartialFailureError
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.extract import extract
from pipeline.shift.detect import LEVEL
from pipeline.shift.head import fit_source
from pipeline.shift.stage import ShiftOptions, analyse, feature_map
from pipeline.study_file import load_study
from tests.made_up import embedded
from tests.tiny import TORCH, rewrite, stored_tiny_study, write_images

SHORT = ShiftOptions(draws=19, seeds=1)
HEADS = ("linear", "ridge", "lda", "prior")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two small hospitals, whose features are stored."""
    return load_study(stored_tiny_study(tmp_path, monkeypatch, source=120, target=60))


def shift(study, **options):
    """The record, and its only target."""
    record = analyse(study, replace(SHORT, **options))
    return record, record["targets"][0]


@pytest.mark.parametrize("wanted", [None, "prior"])
def test_numbers_of_the_shift_are_those_of_the_comparison(study, wanted):
    """Of the best head, or of the one asked for; the source out of fold."""
    compared = compare(study, CompareOptions(heads=HEADS))["backbones"][0]
    name = wanted or compared["best"]
    record, target = shift(study, head=wanted)
    assert target["head"] == name
    assert f"the head is {name}, " in target["about_head"]
    assert target["about_head"] in " ".join(report.show("shift", record).split())
    scores = {
        (d["domain"], row["head"]): row["scores"] for d in compared["domains"] for row in d["rows"]
    }
    of_head = scores["there", name]["accuracy"]["estimate"]
    assert target["accuracy"]["target"] == pytest.approx(of_head)
    kept, stored = (read_predictions(study.results / f)["tiny"] for f in _FILES)
    ((trained, proba),) = kept.proba.items()
    np.testing.assert_array_equal(proba, stored.proba[trained])
    assert np.isfinite(proba).all()
    source = kept.domain == "source"
    right = (proba[source].argmax(1) == kept.label[source]).mean()
    assert target["accuracy"]["source"] == pytest.approx(right)
    assert target["source_images"] == source.sum()
    errors = {row["name"]: row["estimate"] for row in target["error_table"]["errors"]}
    assert errors["target"] == pytest.approx(1 - of_head)


_FILES = ("shift.h5", "probabilities.h5")


def test_no_head_makes_a_shift_of_its_own(study):
    """Out of fold a head has other scores than the saved one, also if the images do not differ."""
    write_images(Path("there"), 60, seed=2)
    extract(study, TORCH)
    compare(study, CompareOptions(heads=HEADS))
    by_prior, by_ridge = (shift(study, head=h)[1]["detection"] for h in ("prior", "ridge"))
    assert min(test["p"] for test in by_prior if test["p"] is not None) > LEVEL
    assert by_prior == by_ridge


def test_after_a_quick_comparison_the_source_is_what_was_held_out(study):
    """Validation alone: what the head was fitted to says nothing about new patients."""
    compare(study, replace(QUICK, heads=HEADS))
    _, target = shift(study)
    kept = read_predictions(study.results / "shift.h5")["tiny"]
    assert target["source_images"] == (kept.split == "validation").sum() < 120
    assert f"the {target['source_images']} images that it was tested on" in target["about_head"]


def test_a_target_that_is_lost_leaves_the_head_of_the_others(study):
    """What is stored of them holds, also where single images of a target are gone."""
    far = replace(study.targets[0], name="far")
    compare(replace(study, targets=(far, *study.targets)), replace(QUICK, heads=("ridge",)))
    listed = study.results / "lost.txt"
    listed.write_text("there/a/p2000_0.png\n")
    _, target = shift(replace(study, exclude=listed))
    assert (target["head"], target["images"]) == ("ridge", 59)
    kept, stored = (read_predictions(study.results / f)["tiny"] for f in _FILES)
    ((trained, proba),) = kept.proba.items()
    rows = np.isin(stored.domain, ("source", "there"))
    rows[np.flatnonzero(stored.domain == "there")[0]] = False
    np.testing.assert_array_equal(proba, stored.proba[trained][rows])
    assert np.all(kept.key == stored.key[rows])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda results: (results / "heads.json").unlink(), "there is no .*heads.json"),
        (lambda results: (results / "probabilities.h5").unlink(), "probabilities.h5 is not the "),
        (lambda results: rewrite(results / "heads.json", {"schema": 7}), "by another version"),
    ],
)
def test_without_a_comparison_a_linear_head_is_fitted_and_that_is_said(study, damage, said):
    """And what cannot be had is refused where it was asked for by name."""
    compare(study, replace(QUICK, heads=("ridge",)))
    damage(study.results)
    record, target = shift(study)
    assert target["head"] == "linear"
    assert re.search(f"fitted for this analysis, because .*{said}", target["about_head"])
    assert target["about_head"] in " ".join(report.show("shift", record).split())
    with pytest.raises(MissingResultsError, match=f"the head ridge cannot be analysed: .*{said}"):
        shift(study, head="ridge")


def test_a_comparison_of_other_images_or_heads_is_not_used(study):
    """Other patients in validation, another name; the linear head is always had by name."""
    compare(study, replace(QUICK, heads=("ridge",)))
    _, target = shift(replace(study, seed=1))
    assert "because heads were compared on other images or features" in target["about_head"]
    _, target = shift(study, head="linear")
    assert "because linear is not among the heads compared" in target["about_head"]


def test_a_head_that_one_backbone_lacks_does_not_cost_the_others(study):
    """Its targets are named with the reason; where no backbone has it, that is the error."""
    compare(study, replace(QUICK, heads=("ridge",)))
    both = replace(study, concatenations=("tiny+tiny",))
    with pytest.raises(PartialFailureError, match=r"^backbone\.tiny\+tiny: the head r") as error:
        shift(both, head="ridge")
    record = error.value.record
    (target,) = record["targets"]
    assert (target["backbone"], target["head"]) == ("tiny", "ridge")
    (left,) = record["not_compared"]
    assert (left["backbone"], left["target"]) == ("tiny+tiny", "there")
    assert "no heads were compared on tiny+tiny" in left["reason"]
    with pytest.raises(MissingResultsError, match="mlp is not among the heads compared on tiny"):
        shift(both, head="mlp")


def rows(n, *, role="source", seed=0, shift=0.0):
    """Two classes apart in the first of 6 features; a feature that never varies."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) // 2 % 2
    features = rng.normal(size=(n, 6)) + 1.5 * label[:, None] * (np.arange(6) == 0) + shift
    features[:, 5] = 3.0
    return embedded(features, role=role, images=2)


def test_the_head_is_that_of_scikit_learn_on_standardised_rows():
    """For all rows, and out of fold by patient; a target is scored without its labels.

    It is scored by the whole head, or each of its patients by the head of one fold.
    """
    data, of_target = rows(120), []
    model = fit_source(data)
    spread = np.where(data.features.std(0) > 0, data.features.std(0), 1)
    scaled = (data.features - data.features.mean(0)) / spread
    alone = LogisticRegression(C=0.01, tol=1e-9).fit(scaled, data.label)
    target = model.apply(data.sealed())
    assert target.label is None
    np.testing.assert_allclose(target.proba, alone.predict_proba(scaled), atol=1e-4)
    for fit, held in patient_folds(data.label, data.group, seed=0):
        assert not set(data.group[fit]) & set(data.group[held])
        fold = LogisticRegression(C=0.01, tol=1e-9).fit(scaled[fit], data.label[fit])
        expected = fold.predict_proba(scaled[held])
        np.testing.assert_allclose(model.data.proba[held], expected, atol=1e-4)
        again = model.cross_fit(data.sealed()).proba
        of_target.append((np.abs(again - fold.predict_proba(scaled)) < 1e-4).all(axis=1))
    assert np.any(of_target, axis=0).all()
    assert np.mean(of_target, axis=1) == pytest.approx(0.2, abs=0.05)
    assert model.prior == pytest.approx([0.5, 0.5])


def test_the_map_shows_a_sample_of_both_domains():
    """At most 500 of each; a shift is its first component."""
    arrays = feature_map(fit_source(rows(1200)), rows(80, role="target", seed=1, shift=4.0))
    target, embedding = arrays["embedding_target"], arrays["embedding"]
    assert ((~target).sum(), target.sum(), embedding.shape) == (500, 80, (580, 2))
    assert abs(embedding[target, 0].mean() - embedding[~target, 0].mean()) > 2
    assert set(arrays["embedding_label"]) == {0, 1}
