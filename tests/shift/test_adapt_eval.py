"""Methods are compared on labels that are opened once, at the end, under a declared plan."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from pipeline.data.domain import DomainData
from pipeline.data.patients import patient_folds
from pipeline.errors import CheckFailedError, StudyError
from pipeline.heads.logistic import fit_weighted
from pipeline.shift.adapt import ADAPTERS, AdapterSettings, adapt
from pipeline.shift.adapt_eval import (
    AdaptationPlan,
    AdaptedPredictions,
    SealedLabels,
    predict_target,
    score,
)
from pipeline.shift.domains import fit_source
from tests import shifted_worlds as worlds

PLAN = AdaptationPlan(seeds=(0, 1), shots=(5, 25), draws=200)


@pytest.fixture(scope="module")
def world():
    """A model, a sealed target of patients with two images, and its labels."""
    drawn = worlds.draw("affine", 4)
    source = DomainData(
        name="source",
        role="source",
        group=np.arange(300) // 2,
        label=drawn.source_labels[:300].astype(np.int64),
        features=drawn.source[:300],
    )
    target = DomainData(
        name="there", role="target", group=np.arange(200) // 2, features=drawn.target[:200]
    )
    return fit_source(source), target, drawn.target_labels[:200]


def scored(world, plan=PLAN, label=None):
    """The result under a plan."""
    model, target, truth = world
    sealed = SealedLabels(truth if label is None else label, plan.digest())
    return score(predict_target(model, target, plan), sealed, model, target, plan)


def test_no_row_is_predicted_by_a_model_that_saw_it(world, monkeypatch):
    """Cross-fitting by patient: each row once a seed, by a model adapted to other patients."""
    model, target, _ = world
    parts_seen, predicted = [], []

    def spy(_model, features, parts, _settings):
        parts_seen.extend(parts)

        def predictor(part):
            def predict(rows):
                predicted.append(len(rows))
                assert not (rows[:, None] == features[part][None]).all(axis=2).any()
                return model.predict_proba(rows)

            return predict

        return [predictor(part) for part in parts]

    monkeypatch.setattr(
        "pipeline.shift.adapt.ADAPTERS", {"source_only": ADAPTERS["source_only"], "spy": spy}
    )
    made = predict_target(model, target, replace(PLAN, methods=("source_only", "spy")))
    assert sum(map(len, parts_seen)) == sum(predicted) == 2 * len(target)
    assert all(len(np.unique(target.group[part])) * 2 == len(part) for part in parts_seen)
    assert np.isfinite(made.proba["spy"]).all()


def test_the_labels_are_read_once_and_every_method_has_its_row(world):
    """Rows that use target labels stand apart; the baseline is compared with nothing."""
    model, target, label = world
    sealed = SealedLabels(label, PLAN.digest())
    result = score(predict_target(model, target, PLAN), sealed, model, target, PLAN)
    assert result.reads == sealed.reads == 1
    assert [row.method for row in result.rows] == list(ADAPTERS)
    assert [row.labels_per_class for row in result.label_curve] == [5, 25]
    assert not any(row.labels_per_class for row in result.rows)
    by_name = {row.method: row for row in result.rows}
    base, better = by_name["source_only"], by_name["standardisation"]
    assert base.difference is None
    assert better.difference.interval.estimate == pytest.approx(better.accuracy - base.accuracy)
    assert better.difference.interval.low > 0
    assert better.difference.p_adjusted < 0.06
    assert better.difference.verdict == "better"
    assert 0.5 < better.auroc <= 1


def test_numbers_of_a_row_are_means_over_the_divisions(world):
    """Accuracy and AUROC as scikit-learn has them, from predictions made by hand."""
    model, target, label = world
    accuracy, auroc = [], []
    for seed in PLAN.seeds:
        proba = np.empty((200, 2))
        for fit, held in patient_folds(None, target.group, folds=2, seed=seed):
            (predictor,) = adapt("coral", model, target.features[fit])
            proba[held] = predictor(target.features[held])
        accuracy.append(np.mean(proba.argmax(axis=1) == label))
        auroc.append(roc_auc_score(label, proba[:, 1]))
    row = next(row for row in scored(world).rows if row.method == "coral")
    assert row.accuracy == pytest.approx(np.mean(accuracy))
    assert row.auroc == pytest.approx(np.mean(auroc))


def test_heads_with_labels_are_fitted_to_so_many_images_of_each_class(world, monkeypatch):
    """As weights of the rows, five of each class; their predictions are those of single heads."""
    model, target, label = world
    plan = replace(PLAN, methods=("source_only",), shots=(5,))
    shown = []

    def watched(rows, labels, *, C, weights):
        shown.append(weights)
        return fit_weighted(rows, labels, C=C, weights=weights)

    monkeypatch.setattr("pipeline.shift.adapt_eval.fit_weighted", watched)
    (row,) = scored(world, plan).label_curve
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
    assert row.accuracy == pytest.approx(right.mean() / len(plan.seeds))


def test_p_values_are_adjusted_over_the_methods(world):
    """By Holm, the baseline aside; the heads with labels are a family of their own."""
    result = scored(world)
    for rows in (result.rows[1:], result.label_curve):
        p = [row.difference.p for row in rows]
        expected = multipletests(p, method="holm")[1]
        np.testing.assert_allclose([row.difference.p_adjusted for row in rows], expected)


def made_up_result(world, seed, gain=0.01, patients=300):
    """Six methods that truly gain one point each, on outcomes alone."""
    rng = np.random.default_rng([61, seed])
    target = DomainData(name="there", role="target", group=np.arange(patients))
    right = rng.random(patients) < 0.8
    names, tables = list(ADAPTERS), {}
    for name in names:
        change = rng.random(patients)
        better = ~right & (change < (0.05 + gain / 2) / 0.2)
        worse = right & (change < (0.05 - gain / 2) / 0.8)
        hit = right if name == "source_only" else (right | better) & ~worse
        tables[name] = np.eye(2)[hit.astype(int)][None]
    plan = replace(PLAN, seeds=(0,), shots=())
    sealed = SealedLabels(np.ones(patients, int), plan.digest())
    made = AdaptedPredictions(proba=tables, plan_hash=plan.digest())
    return score(made, sealed, world[0], target, plan)


def test_the_gain_of_the_best_method_is_corrected_for_the_choice(world):
    """Of six equally good methods the best looks two points too good; the number said does not."""
    found = [made_up_result(world, seed) for seed in range(80)]
    gains = np.array([one.best.gain.estimate for one in found])
    apparent = [
        max(row.difference.interval.estimate for row in one.rows if row.difference) for one in found
    ]
    assert np.mean(apparent) > 0.025
    assert np.mean(gains) == pytest.approx(0.01, abs=0.007)
    held = np.mean([one.best.gain.low <= 0.01 <= one.best.gain.high for one in found])
    assert held >= 0.85
    assert np.mean([one.best.shown for one in found]) <= 0.1


def test_the_labels_that_are_needed_are_the_fewest_that_are_shown_to_help(world):
    """Where the source's head is turned round a few labels do; where it is perfect, none."""
    _, _, label = world
    plan = replace(PLAN, methods=("source_only",), shots=(5, 10, 25, 40), draws=500)
    result = scored(world, plan, 1 - label)
    needed = result.enough_labels
    for row in result.label_curve:
        enough = row.difference.interval.low > 0 and row.difference.p_adjusted < 0.05
        assert enough == (row.labels_per_class >= needed)
    assert needed in plan.shots
    perfect = world[0].predict_proba(world[1].features).argmax(axis=1)
    assert scored(world, plan, perfect).enough_labels is None


def test_shots_that_a_half_cannot_provide_are_left_out(world):
    """Asking for more labelled images than there are gives fewer rows, not an error."""
    plan = replace(PLAN, methods=("source_only",), shots=(5, 500))
    assert [row.labels_per_class for row in scored(world, plan).label_curve] == [5]
    result = scored(world, replace(plan, shots=(500,)))
    assert result.label_curve == ()
    assert result.enough_labels is None


def test_a_target_without_a_class_has_no_auroc(world):
    """None, not a number of one class."""
    result = scored(world, replace(PLAN, methods=("source_only",)), np.zeros(200, int))
    assert result.rows[0].auroc is None


def test_copies_of_each_image_add_no_confidence(world):
    """Patients are the units of interval and p-value."""
    model, target, label = world
    plan = replace(PLAN, methods=("source_only", "standardisation"), seeds=(0,), shots=())
    differences = []
    for times in (1, 4):
        copied = target.take(np.repeat(np.arange(200), times))
        # Statistics of copies are those of the images; pseudo-counts would move them.
        same = replace(plan, settings=AdapterSettings(pseudo_count=0))
        sealed = SealedLabels(np.repeat(label, times), same.digest())
        result = score(predict_target(model, copied, same), sealed, model, copied, same)
        differences.append(result.rows[1].difference)
    alone, copied = differences
    assert copied.interval.low == pytest.approx(alone.interval.low)
    assert copied.interval.high == pytest.approx(alone.interval.high)
    assert copied.p == pytest.approx(alone.p)


def test_labels_open_only_under_the_plan_they_were_sealed_with():
    """A plan changed afterwards is refused, and the reading is not counted."""
    sealed = SealedLabels(np.arange(3), PLAN.digest())
    with pytest.raises(CheckFailedError, match="run the declared plan"):
        sealed.unseal(replace(PLAN, seeds=(5,)).digest())
    assert sealed.reads == 0
    opened = sealed.unseal(PLAN.digest())
    opened[:] = 9
    assert sealed.unseal(PLAN.digest()).tolist() == [0, 1, 2]
    assert sealed.reads == 2


def test_predictions_of_another_plan_are_not_scored(world):
    """Labels opened under one plan cannot score predictions made under another."""
    model, target, label = world
    plan = replace(PLAN, methods=("source_only",))
    other = replace(plan, draws=99)
    sealed = SealedLabels(label, other.digest())
    with pytest.raises(CheckFailedError, match="another plan"):
        score(predict_target(model, target, plan), sealed, model, target, other)
    assert sealed.reads == 0


def test_sealed_labels_do_not_leak_by_printing_copying_or_pickling():
    """Their only way out is unseal."""
    sealed = SealedLabels(np.array([7, 7, 7]), "abc")
    assert "7" not in repr(sealed)
    assert not hasattr(sealed, "label")
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="memory only"):
            leak(sealed)


def test_a_target_without_labels_can_be_predicted_but_not_scored():
    """The error says what can still be done."""
    with pytest.raises(StudyError, match="can adapt to it, but not be scored"):
        SealedLabels(None, "abc").unseal("abc")


def test_every_setting_of_the_plan_changes_its_digest():
    """Nothing that could be tuned afterwards stays outside the hash."""
    changed = [
        replace(PLAN, shots=(5,)),
        replace(PLAN, methods=("source_only",)),
        replace(PLAN, seeds=(1, 0)),
        replace(PLAN, draws=100),
        replace(PLAN, inverse_penalty=1.0),
        *(replace(PLAN, settings=AdapterSettings(**{name: 1})) for name in vars(AdapterSettings())),
    ]
    assert len({plan.digest() for plan in (PLAN, *changed)}) == len(changed) + 1
    assert AdaptationPlan().digest() == AdaptationPlan().digest()


def test_plans_that_do_not_fit_and_targets_of_one_patient_are_refused(world):
    """Each error says what is missing."""
    model, target, _ = world
    with pytest.raises(StudyError, match="lack the baseline 'source_only'"):
        predict_target(model, target, replace(PLAN, methods=("coral",)))
    with pytest.raises(StudyError, match=r"the head has C = 0.01, the plan 1: fit"):
        predict_target(model, target, replace(PLAN, inverse_penalty=1.0))
    with pytest.raises(StudyError, match="one patient"):
        predict_target(model, replace(target, group=np.zeros(200)), PLAN)
