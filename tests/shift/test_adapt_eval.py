"""Methods are compared on labels that are opened once, at the end, under a declared plan."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.data.domain import DomainData
from pipeline.data.patients import patient_folds
from pipeline.errors import CheckFailedError, StudyError
from pipeline.evaluation.paired_tests import holm
from pipeline.heads.logistic import fit_weighted
from pipeline.shift import adapt_eval
from pipeline.shift.adapt import ADAPTERS
from pipeline.shift.adapt_eval import AdaptationPlan, SealedLabels, predict_target, score
from pipeline.shift.head import fit_source
from tests.shift import worlds
from tests.shift.worlds import embedded

PLAN = AdaptationPlan(seeds=(0, 1), shots=(5, 25), draws=200)
BASE = replace(PLAN, methods=("source_only",))


@pytest.fixture(scope="module")
def world():
    """A model, a sealed target of patients with two images, and its labels."""
    drawn = worlds.draw("affine", 4)
    source = embedded(drawn.source[:300], label=drawn.source_labels[:300], images=2)
    target = embedded(drawn.target[:200], role="target", images=2).sealed()
    return fit_source(source), target, drawn.target_labels[:200]


def scored(world, plan=PLAN, label=None, target=None):
    """The rows under a plan."""
    model, target, truth = world[0], world[1] if target is None else target, world[2]
    sealed = SealedLabels(truth if label is None else label, plan.digest())
    return score(predict_target(model, target, plan), sealed, model, target, plan)[0]


@pytest.fixture(scope="module")
def rows(world):
    return scored(world)


def test_no_row_is_predicted_by_a_model_that_saw_it(world, monkeypatch):
    """Cross-fitting by patient: each row once a seed, by a model adapted to other patients."""
    model, target, _ = world
    seen, predicted = [], []

    def spy(_model, features, parts):
        seen.extend(parts)

        def predictor(part):
            def predict(rows):
                predicted.append(len(rows))
                assert not (rows[:, None] == features[part][None]).all(axis=2).any()
                return model.predict_proba(rows)

            return predict

        return [predictor(part) for part in parts]

    monkeypatch.setattr(adapt_eval, "ADAPTERS", {**ADAPTERS, "spy": spy})
    tables = predict_target(model, target, replace(PLAN, methods=("spy",)))
    assert sum(map(len, seen)) == sum(predicted) == 2 * len(target)
    assert all(len(np.unique(target.group[part])) * 2 == len(part) for part in seen)
    assert np.isfinite(tables["spy"]).all()


def test_every_method_has_its_row_and_the_fewest_labels_that_help_the_last(rows):
    """The baseline is compared with nothing; p is adjusted by Holm."""
    assert [row["method"] for row in rows[:-1]] == list(ADAPTERS)
    assert rows[-1]["method"] in {f"{k} labels per class" for k in PLAN.shots}
    assert [row["target_labels"] for row in rows] == [False] * len(ADAPTERS) + [True]
    base, better = rows[:2]
    assert base["difference"] is None
    assert better["difference"]["estimate"] == pytest.approx(better["accuracy"] - base["accuracy"])
    assert better["difference"]["low"] > 0
    p, adjusted = zip(
        *((row["difference"]["p"], row["difference"]["p_adjusted"]) for row in rows[1:-1]),
        strict=True,
    )
    np.testing.assert_allclose(adjusted, holm(p))


def test_numbers_of_a_row_are_means_over_the_divisions(world, rows):
    """As scikit-learn has them; each half is predicted by a model adapted to the other patients."""
    model, target, label = world
    accuracy, auroc = [], []
    for seed in PLAN.seeds:
        proba = np.empty((200, 2))
        for fit, held in patient_folds(None, target.group, folds=2, seed=seed):
            (predictor,) = ADAPTERS["coral"](model, target.features, [fit])
            proba[held] = predictor(target.features[held])
        accuracy.append(np.mean(proba.argmax(axis=1) == label))
        auroc.append(roc_auc_score(label, proba[:, 1]))
    row = next(row for row in rows if row["method"] == "coral")
    assert (row["accuracy"], row["auroc"]) == pytest.approx((np.mean(accuracy), np.mean(auroc)))
    assert scored(world, BASE, np.zeros(200, int))[0]["auroc"] is None  # a class is absent


def test_heads_with_labels_are_fitted_to_so_many_images_of_each_class(world, monkeypatch):
    """As weights of the rows, five of each class; their predictions are those of single heads."""
    model, target, label = world
    plan, shown = replace(BASE, shots=(5, 500)), []  # 500 are more than a half can provide

    def watched(rows, labels, *, C, weights):
        shown.append(weights)
        return fit_weighted(rows, labels, C=C, weights=weights)

    monkeypatch.setattr(adapt_eval, "fit_weighted", watched)
    _, row = scored(world, plan)
    rows, right = model.standardise(target.features), np.zeros(200)
    halves = [
        fold for s in plan.seeds for fold in patient_folds(None, target.group, folds=2, seed=s)
    ]
    for weights, (fit, held) in zip(shown[0], halves, strict=True):
        images = np.flatnonzero(weights)
        assert np.isin(images, fit).all()
        assert np.bincount(label[images]).tolist() == [5, 5]
        alone = model.fit(rows[images], label[images])
        right[held] += alone.predict(rows[held]) == label[held]
    assert row["accuracy"] == pytest.approx(right.mean() / len(plan.seeds))


def made_up_best(world, seed, gain=0.01, patients=300):
    """Six methods that truly gain one point each, on outcomes alone: the best, and its looks."""
    rng = np.random.default_rng([61, seed])
    target = DomainData(name="x", role="target", group=np.arange(patients))
    right = rng.random(patients) < 0.8
    tables = {}
    for name in ADAPTERS:
        change = rng.random(patients)
        better = ~right & (change < (0.05 + gain / 2) / 0.2)
        worse = right & (change < (0.05 - gain / 2) / 0.8)
        hit = right if name == "source_only" else (right | better) & ~worse
        tables[name] = np.eye(2)[hit.astype(int)][None]
    plan = replace(PLAN, seeds=(0,), shots=())
    sealed = SealedLabels(np.ones(patients, int), plan.digest())
    rows, best = score(tables, sealed, world[0], target, plan)
    return best, max(row["difference"]["estimate"] for row in rows[1:])


def test_the_gain_of_the_best_method_is_corrected_for_the_choice(world):
    """Of six equally good methods the best looks two points too good; the number said does not."""
    best, apparent = zip(*(made_up_best(world, seed) for seed in range(80)), strict=True)
    assert np.mean(apparent) > 0.025
    assert np.mean([method.estimate for method in best]) == pytest.approx(0.01, abs=0.007)
    assert np.mean([method.low <= 0.01 <= method.high for method in best]) >= 0.85
    assert np.mean([method.shown for method in best]) <= 0.1


def test_the_labels_that_are_needed_are_the_fewest_that_are_shown_to_help(world):
    """Where the source's head is turned round a few labels do; where it is perfect, none."""
    model, target, label = world
    plan = replace(BASE, shots=(5, 10, 25, 40), draws=500)
    row = scored(world, plan, 1 - label)[-1]
    assert row["difference"]["low"] > 0
    assert row["difference"]["p_adjusted"] < 0.05
    truth = model.predict_proba(target.features).argmax(axis=1)
    perfect = scored(world, replace(plan, shots=(2, 5)), truth)
    assert perfect[-1]["method"] == "5 labels per class"


def test_copies_of_each_image_add_no_confidence(world):
    """Patients are the units of interval and p-value."""
    plan = replace(PLAN, methods=("source_only", "prior_shift"), seeds=(0,), shots=())
    differences = []
    for times in (1, 4):
        copied, label = world[1].take(np.repeat(np.arange(200), times)), np.repeat(world[2], times)
        differences.append(scored(world, plan, label, copied)[1]["difference"])
    assert differences[1] == pytest.approx(differences[0])


def test_labels_open_only_under_the_plan_they_were_sealed_with(world):
    """A plan changed afterwards is refused, and the reading is not counted."""
    sealed = SealedLabels(np.arange(3), PLAN.digest())
    other = replace(PLAN, seeds=(5,))
    with pytest.raises(CheckFailedError, match="run the declared plan"):
        score({}, sealed, world[0], world[1], other)
    assert sealed.reads == 0
    opened = sealed.unseal(PLAN.digest())
    opened[:] = 9
    assert sealed.unseal(PLAN.digest()).tolist() == [0, 1, 2]
    assert sealed.reads == 2
    with pytest.raises(StudyError, match="can adapt to it, but not be scored"):
        SealedLabels(None, "abc").unseal("abc")


def test_sealed_labels_do_not_leak_by_printing_copying_or_pickling():
    """Their only way out is unseal."""
    sealed = SealedLabels(np.array([7, 7, 7]), "abc")
    assert "7" not in repr(sealed)
    assert not hasattr(sealed, "label")
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="memory only"):
            leak(sealed)


def test_everything_that_could_be_tuned_changes_the_digest_of_the_plan(monkeypatch):
    """The plan itself, and every setting of a method."""
    changes = {"shots": (5,), "methods": ("source_only",), "seeds": (1, 0), "draws": 100}
    assert set(changes) == set(vars(PLAN))
    digests = [replace(PLAN, **{name: value}).digest() for name, value in changes.items()]
    for name in adapt_eval.SETTINGS:
        monkeypatch.setattr(adapt_eval, "SETTINGS", {**adapt_eval.SETTINGS, name: 99})
        digests.append(PLAN.digest())
    assert len(set(digests)) == len(digests)
