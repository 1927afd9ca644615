"""The leaderboard opens the target labels once, at the end, under a declared plan."""

import copy
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.errors import CheckFailedError, StudyError, UnknownNameError
from pipeline.shift.adapt import FIXES, FixSettings, Source, fix_named
from pipeline.shift.adapt_eval import (
    FixPlan,
    SealedLabels,
    Target,
    _auroc,
    _k_shot,
    halves,
    paired_difference,
    predict_target,
    score,
)
from tests import shifted_worlds as worlds

PLAN = FixPlan(seeds=(0, 1), shots=(5, 25), draws=200)


def small_world(seed=4):
    """Return a source and a target that are quick to adapt to, with patients of two images."""
    world = worlds.draw("affine", seed)
    source = Source(
        features=world.source[:300],
        labels=world.source_labels[:300],
        groups=np.arange(300) // 2,
        settings=PLAN.settings,
    )
    target = Target(features=world.target[:200], groups=np.arange(200) // 2)
    return source, target, world.target_labels[:200]


def test_predictions_do_not_depend_on_sealed_labels():
    """Metamorphic: permuted or deleted labels leave every prediction bit-identical, unread."""
    assert {field.name for field in fields(Target)} == {"features", "groups"}
    source, target, labels = small_world()
    variants = (labels, np.random.default_rng(1).permutation(labels), None)
    made = []
    for variant in variants:
        sealed = SealedLabels(variant, PLAN.digest())
        made.append(predict_target(source, target, PLAN))
        assert sealed.reads == 0
    for other in made[1:]:
        for name, probabilities in made[0].probabilities.items():
            assert np.array_equal(other.probabilities[name], probabilities), name


def test_no_half_is_predicted_by_a_model_that_saw_it():
    """Cross-fitting: no row is predicted by a model that was adapted to it."""
    source, target, _ = small_world()
    plan = replace(PLAN, seeds=(0,))
    seen = []

    def spy(source, rows, rng):
        seen.append(rows)
        predictor = FIXES["standardisation"](source, rows, rng)

        def check(features):
            shared = (features[:, None] == rows[None]).all(axis=2).any()
            assert not shared
            return source.standardise(features)

        return replace(predictor, transform=check)

    with pytest.MonkeyPatch.context() as patch:
        spied = {"source_only": FIXES["source_only"], "coral": spy}
        patch.setattr("pipeline.shift.adapt_eval.fix_named", spied.get)
        made = predict_target(source, target, replace(plan, fixes=tuple(spied)))
    assert sum(len(rows) for rows in seen) == len(target.features)
    assert np.isfinite(made.probabilities["coral"]).all()


def test_leaderboard_reads_the_labels_once_and_keeps_k_shot_rows_apart():
    """Rows that use target labels stand in a block of their own; the baseline is no winner."""
    source, target, labels = small_world()
    sealed = SealedLabels(labels, PLAN.digest())
    board = score(predict_target(source, target, PLAN), sealed, source, target, PLAN)
    assert board.reads == sealed.reads == 1
    assert [row.name for row in board.rows] == list(FIXES)
    assert [row.name for row in board.k_shot] == ["k_shot(5)", "k_shot(25)"]
    assert all(row.uses_target_labels for row in board.k_shot)
    assert not any(row.uses_target_labels for row in board.rows)
    by_name = {row.name: row for row in board.rows}
    base = by_name["source_only"]
    assert (base.difference.estimate, base.p_holm, base.negative_transfer) == (0, 1, False)
    better = by_name["standardisation"]
    gain = better.accuracy - base.accuracy
    assert better.difference.estimate == pytest.approx(gain)
    assert better.difference.low > 0
    assert better.p_holm < 0.06
    assert 0.5 < better.auroc <= 1
    assert {"prior0", "prior1"} == set(by_name["prior_shift"].notes)
    assert 0 < by_name["importance_weighting"].notes["effective_rows"] <= 300


def weighted_alone(source, rows):
    """Importance weighting of one half as its docstring has it, head by head."""
    z = source.standardise(rows)
    domain = np.repeat([0, 1], [len(source.standard), len(z)])
    balance = len(domain) / (2 * np.bincount(domain))
    both = np.vstack([source.standard, z])
    classifier = source.fit(both, labels=domain, weights=balance[domain])
    ratio = np.exp(classifier.decision_function(source.standard)) ** source.settings.ratio_exponent
    ratio = np.minimum(ratio, np.quantile(ratio, source.settings.ratio_clip))
    return source.fit(source.standard, weights=ratio / ratio.mean())


def shot_alone(source, target, labels, k, cut):
    """One k-shot head, fitted to the rows that are shown and to no others."""
    order = np.random.default_rng([cut.seed, 5, k]).permutation(cut.adapt)
    shown = np.concatenate([order[labels[order] == c][:k] for c in (0, 1)])
    return source.fit(source.standardise(target.features[shown]), labels=labels[shown])


def test_heads_fitted_together_equal_heads_fitted_alone():
    """Batches of weighted, bagged and k-shot heads change nothing beyond the solver's tolerance."""
    source, target, labels = small_world()
    together = predict_target(source, target, PLAN).probabilities
    made = together["importance_weighting"]
    shots = _k_shot(source, target, labels, PLAN)
    for cut in halves(target.groups, PLAN.seeds):
        rows = source.standardise(target.features[cut.score])
        alone = {
            "weighted": (weighted_alone(source, target.features[cut.adapt]), made),
            **{
                str(k): (shot_alone(source, target, labels, k, cut), shots[f"k_shot({k})"])
                for k in PLAN.shots
            },
        }
        for head, table in alone.values():
            found = table[cut.index, cut.score]
            np.testing.assert_allclose(found, head.predict_proba(rows), atol=1e-5)


def test_the_leaderboard_is_the_same_twice():
    """Seeds are of the plan, so two runs agree to the last bit."""
    source, target, labels = small_world()
    boards = [
        score(
            predict_target(source, target, PLAN),
            SealedLabels(labels, PLAN.digest()),
            source,
            target,
            PLAN,
        )
        for _ in range(2)
    ]
    assert repr(boards[0]) == repr(boards[1])


def test_shots_that_a_half_cannot_provide_are_left_out():
    """Asking for more labelled images than there are gives fewer rows, not an error."""
    source, target, labels = small_world()
    plan = replace(PLAN, fixes=("source_only",), shots=(5, 500))
    sealed = SealedLabels(labels, plan.digest())
    board = score(predict_target(source, target, plan), sealed, source, target, plan)
    assert [row.name for row in board.k_shot] == ["k_shot(5)"]


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


def test_predictions_of_another_plan_are_not_scored():
    """Labels opened under one plan cannot judge predictions made under another."""
    source, target, labels = small_world()
    plan = replace(PLAN, fixes=("source_only",))
    other = replace(plan, draws=99)
    sealed = SealedLabels(labels, other.digest())
    with pytest.raises(CheckFailedError, match="another plan"):
        score(predict_target(source, target, plan), sealed, source, target, other)
    assert sealed.reads == 0


def test_sealed_labels_do_not_leak_by_printing_copying_or_pickling():
    """Their only way out is unseal."""
    sealed = SealedLabels(np.array([7, 7, 7]), "abc")
    assert "7" not in repr(sealed)
    assert not hasattr(sealed, "labels")
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="memory only"):
            leak(sealed)


def test_a_target_without_labels_can_be_predicted_but_not_scored():
    """The error says what can still be done."""
    with pytest.raises(StudyError, match="can be run, not scored"):
        SealedLabels(None, "abc").unseal("abc")


def test_every_setting_of_the_plan_changes_its_digest():
    """Nothing that could be tuned afterwards stays outside the hash."""
    changed = [
        replace(PLAN, shots=(5,)),
        replace(PLAN, fixes=("source_only",)),
        replace(PLAN, settings=FixSettings(pseudo_count=1)),
    ]
    assert len({plan.digest() for plan in (PLAN, *changed)}) == 4
    assert FixPlan().digest() == FixPlan().digest()


def test_plans_without_a_baseline_or_with_unknown_fixes_are_refused():
    """Both errors say what to write instead."""
    source, target, _ = small_world()
    with pytest.raises(StudyError, match="lack the baseline 'source_only'"):
        predict_target(source, target, replace(PLAN, fixes=("coral",)))
    with pytest.raises(UnknownNameError, match=r"'magic'.*source_only, standardisation"):
        fix_named("magic")
    with pytest.raises(StudyError, match="one patient"):
        predict_target(source, replace(target, groups=np.zeros(200)), PLAN)


def test_paired_differences_respect_patients():
    """Copies of each image add no confidence; an equal pair of predictors has p = 1."""
    rng = np.random.default_rng(8)
    once = rng.normal(0.1, 1, 60)
    groups = np.arange(60)
    alone = paired_difference(once, groups, np.random.default_rng(0))
    copied = paired_difference(np.repeat(once, 5), np.repeat(groups, 5), np.random.default_rng(0))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.p == pytest.approx(alone.p)
    assert paired_difference(np.zeros(9), np.arange(9), rng).p == 1
    assert paired_difference(once + 1, groups, rng).p == pytest.approx(1 / 2001)


def test_areas_of_many_classes_are_macro_one_against_rest():
    """As scikit-learn has them, over the seeds; nothing where the target lacks a class."""
    rng = np.random.default_rng(0)
    labels, table = np.arange(90) % 3, rng.dirichlet(np.ones(3), size=(2, 90))
    expected = [roc_auc_score(labels, one, multi_class="ovr") for one in table]
    assert _auroc(table, labels) == pytest.approx(np.mean(expected))
    assert _auroc(table, np.minimum(labels, 1)) is None
