"""A loss is taken apart into terms that add up, and no term claims more than it may."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pipeline.data.attributes import Grouping
from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError
from pipeline.shift.decompose import decompose, error_table, fit_few_patients
from pipeline.shift.head import INVERSE_PENALTY, fit_source
from pipeline.shift.verdict import dominant
from tests.made_up import calibrated, embedded, outcomes, scored

rows = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=3, max_size=40)


def of(effects, decomposition):
    return [effect for effect in effects.values() if effect.decomposition == decomposition]


@given(rows, rows)
def test_terms_are_kitagawas_and_add_up_to_the_loss(source, target):
    """Sums over classes written out with plain loops, whatever classes a domain lacks."""
    both = []
    for pairs, role in ((source, "source"), (target, "target")):
        label, wrong = map(np.array, zip(*pairs, strict=True))
        both.append(outcomes(wrong, label=label, role=role))
    mix = within = 0.0
    for k in range(3):
        p, q = (np.mean(data.label == k) for data in both)
        e_p, e_q = (data.wrong()[data.label == k].mean() if (data.label == k).any() else None
                    for data in both)  # fmt: skip
        if p or q:
            e_p, e_q = (e_q if e_p is None else e_p), (e_p if e_q is None else e_q)
            mix += (q - p) * (e_p + e_q) / 2
            within += (e_q - e_p) * (p + q) / 2
    effects = decompose(*both, draws=20)
    assert effects["class_mix"].estimate == pytest.approx(mix, abs=1e-12)
    assert effects["within_class"].estimate == pytest.approx(within, abs=1e-12)
    loss = both[1].wrong().mean() - both[0].wrong().mean()
    for decomposition in ("all", "class", "score"):
        total = sum(effect.estimate for effect in of(effects, decomposition))
        assert total == pytest.approx(loss, abs=1e-12)


def test_score_terms_are_those_of_an_isotonic_curve():
    """The expected error is scikit-learn's curve of the source, read at the target's scores."""
    rng = np.random.default_rng(7)
    s, t = calibrated(rng, 300), calibrated(rng, 200, role="target", prevalence=0.8, move=2)
    curve = IsotonicRegression(increasing=False, out_of_bounds="clip")
    curve.fit(s.proba.max(axis=1), s.wrong())
    expected = curve.predict(t.proba.max(axis=1)).mean()
    effects = decompose(s, t, draws=20)
    assert effects["confidence_shift"].estimate == pytest.approx(expected - s.wrong().mean())
    assert effects["y_given_score"].estimate == pytest.approx(t.wrong().mean() - expected)


def errors(data, threshold):
    return np.sum((data.proba[:, 1] >= threshold) != (data.label == 1))


def fewest(data):
    """The threshold of fewest errors, by trying each."""
    values = np.unique(data.proba[:, 1])
    tried = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
    return tried[int(np.argmin([errors(data, threshold) for threshold in tried]))]


@pytest.mark.parametrize(("n", "levels"), [(101, 1 << 30), (101, 8), (11, 8), (14, 8), (17, 8)])
def test_threshold_terms_are_those_of_a_plain_search(n, levels):
    """Cross-fitted errors equal those of trying every threshold on the other half, ties too.

    A threshold that lies between two scores of one half may be a score of the other.
    """
    rng = np.random.default_rng(12)
    s, t = calibrated(rng, 200), calibrated(rng, n, role="target", reach=0.7, move=1.0)
    t = scored(np.round(t.proba[:, 1] * levels) / levels, t.label, role="target")
    effects = decompose(s, t, seed=1, draws=20)
    (_, a), (_, b) = patient_folds(None, t.group, folds=2, seed=1)
    best = (errors(t.take(a), fewest(t.take(b))) + errors(t.take(b), fewest(t.take(a)))) / n
    assert effects["threshold"].estimate == pytest.approx(errors(t, 0.5) / n - best)
    assert effects["discrimination"].estimate == pytest.approx(best - errors(s, 0.5) / 200)
    areas = [roc_auc_score(data.label, data.proba[:, 1]) for data in (s, t)]
    assert effects["auroc_loss"].estimate == pytest.approx(areas[0] - areas[1])


def test_a_handful_of_images_without_an_error_refutes_nothing():
    """Draws of a few right images agree; no effect is settled, on either side of 0."""
    rng = np.random.default_rng(4)
    source, target = calibrated(rng, 300, reach=0.7), calibrated(rng, 3, reach=0.7, role="target")
    effects = decompose(source, target.with_(label=target.predicted()))
    for name in ("accuracy_loss", "within_class", "y_given_score"):
        assert effects[name].low < 0 < effects[name].high
    for patients in (4, 200):  # all draws of a perfect target agree on an AUROC of 1
        label = np.arange(patients) % 2
        perfect = scored(0.1 + 0.8 * label, label, role="target")
        assert (decompose(source, perfect)["auroc_loss"].high < 0) == (patients == 200)


def test_a_head_that_never_calls_a_rare_class_proves_no_error_rate():
    """It is wrong about all of that class and about nothing else, in every draw of both domains."""
    label = (np.arange(300) < 6).astype(int)
    both = [scored(np.full(300, 0.1), label, role=role) for role in ("source", "target")]
    within = decompose(*both, draws=50)["within_class"]
    assert within.low < -0.005
    assert within.high > 0.005


def test_of_terms_that_are_nothing_none_is_the_largest():
    """No head errs: ties are shared, and every decomposition allows for errors that nobody saw."""
    rng = np.random.default_rng(5)
    both = [calibrated(rng, 20, role=role) for role in ("source", "target")]
    effects = decompose(*(data.with_(label=data.predicted()) for data in both))
    for decomposition in ("class", "score"):
        assert [effect.largest for effect in of(effects, decomposition)] == [0.5, 0.5]
        assert dominant(effects.values(), decomposition) is None
    shift, changed = effects["confidence_shift"], effects["y_given_score"]
    assert shift.low < 0 == shift.high
    assert changed.low == 0 < changed.high
    assert effects["discrimination"].low < 0


@pytest.mark.parametrize(
    ("source", "target", "decomposition", "named"),
    [
        ({}, {"move": 4}, "threshold", "threshold"),
        ({}, {"move": 4}, "class", "within_class"),
        ({"move": -3, "prevalence": 0.2}, {"move": -3, "prevalence": 0.8}, "class", "class_mix"),
        *(({}, {}, decomposition, None) for decomposition in ("class", "score", "threshold")),
    ],
)
def test_what_was_planted_is_named(source, target, decomposition, named):
    """A moved threshold, more of the class that the head gets wrong; where nothing is, nothing."""
    rng = np.random.default_rng(20)
    pair = calibrated(rng, 1000, **source), calibrated(rng, 500, role="target", **target)
    effects = decompose(*pair, draws=300)
    assert dominant(effects.values(), decomposition) == named
    if not target:
        assert effects["accuracy_loss"].low <= 0 <= effects["accuracy_loss"].high
    if target == {"move": 4}:
        assert abs(effects["auroc_loss"].estimate) < 0.02


def test_another_mix_of_patients_is_split_off_where_the_source_shows_every_group():
    """Old patients err in 40 of 100 cases; they are a tenth of the source, nine of the target."""
    rng = np.random.default_rng(12)
    both, ages = [], []
    for role, share in (("source", 0.1), ("target", 0.9)):
        old = (rng.random(400) < share).astype(int)
        wrong = rng.random(400) < np.where(old, 0.4, 0.05)
        both.append(outcomes(wrong, label=np.arange(400) % 3, role=role))
        ages.append(Grouping(attribute="age", names=("young", "old", "oldest"), member=old))
    effects = decompose(*both, groupings=[tuple(ages)])
    assert dominant(effects.values(), "by age") == "age_mix"
    total = effects["age_mix"].estimate + effects["within_age"].estimate
    assert total == pytest.approx(effects["accuracy_loss"].estimate)
    unseen = replace(ages[1], member=np.where(np.arange(400) < 40, 2, ages[1].member))
    assert "age_mix" not in decompose(*both, groupings=[(ages[0], unseen)])


def test_one_class_has_no_threshold_and_sealed_labels_no_loss():
    """The message names the domain."""
    rng = np.random.default_rng(23)
    source, target = calibrated(rng, 50), calibrated(rng, 50, role="target", prevalence=0.0)
    assert "threshold" not in decompose(source, target, draws=20)
    with pytest.raises(StudyError, match="needs the labels of target"):
        decompose(source, target.sealed())


# The error table.

TRANSFER = ("target_hardness", "transfer_gap")


def two_classes(rng, n, *, width=12, apart=1.0, images=4):
    """Two classes apart in 2 features."""
    label = np.arange(n) // images % 2
    return rng.normal(size=(n, width)) + apart * label[:, None] * (np.arange(width) < 2)


@pytest.fixture(scope="module")
def model():
    """Patients of four images."""
    return fit_source(embedded(two_classes(np.random.default_rng(5), 240), images=4))


@pytest.fixture(scope="module")
def reversed_target(model):
    """The source's hospital with one feature turned round."""
    features = two_classes(np.random.default_rng(6), 240)
    features[:, 0] *= -1
    return model.apply(embedded(features, role="target", images=4))


def table_of(model, target, **options):
    """With the model's head of the whole source."""
    training = model.apply(model.data)
    return error_table(model.data, target, source=model.data, training=training, **options)


def test_every_step_leads_from_one_error_to_the_next(model, reversed_target):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    table, transfer = table_of(model, reversed_target, human_error=0.01, seed=1)
    level = {row["name"]: row["estimate"] for row in table["errors"]}
    steps = {step.name: step for step in table["steps"]}
    assert list(level) == [
        "human", "source_training", "source_new_patients", "source_few_patients", "target",
        "target_trained",
    ]  # fmt: skip
    for step, start, end in (
        ("avoidable_bias", "human", "source_training"),
        ("variance", "source_training", "source_new_patients"),
        ("mismatch", "source_new_patients", "target"),
        ("target_hardness", "source_few_patients", "target_trained"),
    ):
        assert (steps | transfer)[step].estimate == pytest.approx(level[end] - level[start])
    assert tuple(transfer) == TRANSFER
    parts = sum(effect.estimate for effect in transfer.values())
    assert parts == pytest.approx(steps["mismatch"].estimate)
    assert sum(effect.largest for effect in transfer.values()) == pytest.approx(1)
    assert dominant(transfer.values(), "transfer") == "transfer_gap"
    assert transfer["target_hardness"].low < 0
    assert not table["not_identifiable"]
    # One number has one interval, wherever it stands.
    loss = decompose(model.data, reversed_target, seed=1)["accuracy_loss"]
    assert (steps["mismatch"].low, steps["mismatch"].high) == (loss.low, loss.high)


def test_heads_of_few_patients_equal_a_loop_over_single_heads(model):
    """Each is fitted to whole patients and tested on the others."""
    tested, error, _ = fit_few_patients(model.data, 20, np.random.default_rng(0), heads=5)
    features, label = model.data.features, model.data.label
    rng, rows = np.random.default_rng(0), (features - features.mean(0)) / features.std(0)
    wrong = np.full((5, 240), np.nan)
    for errs in wrong:
        fitted = np.isin(model.data.group, rng.permutation(60)[:20])
        rng.random(240)  # chooses images, of which all are wanted here
        head = LogisticRegression(C=INVERSE_PENALTY, tol=1e-8).fit(rows[fitted], label[fitted])
        errs[~fitted] = head.predict(rows[~fitted]) != label[~fitted]
    assert np.array_equal(tested, np.isfinite(wrong).any(axis=0))
    expected = np.nanmean(wrong[:, tested], axis=0)
    np.testing.assert_allclose(error, expected, atol=0.21)
    assert error.mean() == pytest.approx(expected.mean(), abs=0.005)


def of_one_hospital(seed, patients):
    """The steps of a target that differs from the source in nothing but its size."""
    rng = np.random.default_rng([41, seed])
    source, target = (
        embedded(two_classes(rng, 2 * n, width=20, apart=1.5, images=2), role=role, images=2)
        for n, role in ((200, "source"), (patients, "target"))
    )
    model = fit_source(source)
    return table_of(model, model.apply(target), seed=seed)[1]


@pytest.mark.parametrize("repeats", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_small_target_is_not_called_harder(repeats):
    """Thirty patients of the same hospital: no hardness on average, and seldom in one run.

    Compared with the source's own head, trained on ten times as many, it would be.
    """
    tables = [of_one_hospital(seed, 30) for seed in range(repeats)]
    for name in TRANSFER:
        estimates = np.array([steps[name].estimate for steps in tables])
        assert abs(estimates.mean()) < 3 * estimates.std() / np.sqrt(repeats)
        shown = np.mean([steps[name].low > 0 for steps in tables])
        assert shown <= binom.ppf(0.999, repeats, 0.05) / repeats


def test_what_cannot_be_filled_in_has_a_reason(model):
    """Few patients of a class, sealed labels."""
    target = model.apply(
        embedded(two_classes(np.random.default_rng(6), 160, images=1), role="target")
    )
    table, transfer = table_of(model, target.take(np.r_[:8, 8:160:2]))
    assert not transfer
    assert table["not_identifiable"] == {
        "avoidable_bias": "no human error is given",
        "target_hardness": "a class has 4 patients on the target, and 5 are needed to train a head",
    }
    with pytest.raises(StudyError, match="needs the labels of target"):
        table_of(model, target.sealed())
