"""A loss is taken apart into terms that add up, and no term claims more than it may."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from pipeline.data.attributes import Grouping
from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError
from pipeline.shift.decompose import decompose, divide, dominant
from tests.shift.worlds import domain, outcomes, scored

rows = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=3, max_size=40)


def of(effects, division):
    return {name: one for name, one in effects.items() if one.division == division}


def made(found, role="source"):
    """A domain of drawn (class, wrong) pairs."""
    label, wrong = map(np.array, zip(*found, strict=True))
    return outcomes(wrong, label=label, role=role)


# --- terms


@given(rows, rows)
def test_terms_add_up_to_the_loss(source, target):
    """By class and by score, to 1e-12, whatever classes a domain lacks."""
    s, t = made(source), made(target, "target")
    effects = decompose(s, t, draws=20)
    loss = t.wrong().mean() - s.wrong().mean()
    assert effects["accuracy_loss"].estimate == pytest.approx(loss, abs=1e-12)
    for division in ("class", "score"):
        total = sum(one.estimate for one in of(effects, division).values())
        assert total == pytest.approx(loss, abs=1e-12)


def test_class_terms_are_kitagawas():
    """Both terms equal the sums over classes, written out with plain loops."""
    rng = np.random.default_rng(1)
    both = [
        outcomes(rng.random(n) < e, label=rng.choice(3, n, p=p), role=role)
        for role, n, p, e in (
            ("source", 200, (0.2, 0.3, 0.5), 0.1),
            ("target", 150, (0.5, 0.3, 0.2), 0.3),
        )
    ]
    mix = rates = 0.0
    for k in range(3):
        p, q = (np.mean(one.label == k) for one in both)
        e_p, e_q = (one.wrong()[one.label == k].mean() for one in both)
        mix += (q - p) * (e_p + e_q) / 2
        rates += (e_q - e_p) * (p + q) / 2
    effects = decompose(*both, draws=20)
    assert effects["class_mix"].estimate == pytest.approx(mix, abs=1e-12)
    assert effects["within_class"].estimate == pytest.approx(rates, abs=1e-12)


def test_score_terms_are_those_of_an_isotonic_curve():
    """The expected error is scikit-learn's curve of the source, read at the target's scores."""
    rng = np.random.default_rng(7)
    s, t = domain(rng, 300), domain(rng, 200, role="target", prevalence=0.8, move=2)
    curve = IsotonicRegression(increasing=False, out_of_bounds="clip")
    curve.fit(s.proba.max(axis=1), s.wrong())
    expected = curve.predict(t.proba.max(axis=1)).mean()
    effects = decompose(s, t, draws=20)
    assert effects["confidence_shift"].estimate == pytest.approx(expected - s.wrong().mean())
    assert effects["y_given_score"].estimate == pytest.approx(t.wrong().mean() - expected)


# --- threshold


def errors(data, threshold):
    return np.sum((data.proba[:, 1] >= threshold) != (data.label == 1))


def fewest(data):
    """The threshold of fewest errors, by trying each."""
    values = np.unique(data.proba[:, 1])
    tried = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
    return tried[int(np.argmin([errors(data, one) for one in tried]))]


@pytest.mark.parametrize(
    ("n", "levels"), [(101, 1 << 30), *((n, 8) for n in (101, *range(11, 19)))]
)
def test_threshold_terms_are_those_of_a_plain_search(n, levels):
    """Cross-fitted errors equal those of trying every threshold on the other half, ties too.

    A threshold that lies between two scores of one half may be a score of the other.
    """
    rng = np.random.default_rng(12)
    s, t = domain(rng, 200), domain(rng, n, role="target", reach=0.7, move=1.0)
    t = scored(np.round(t.proba[:, 1] * levels) / levels, t.label, role="target")
    effects = decompose(s, t, seed=1, draws=20)
    (_, a), (_, b) = patient_folds(None, t.group, folds=2, seed=1)
    best = (errors(t.take(a), fewest(t.take(b))) + errors(t.take(b), fewest(t.take(a)))) / n
    e_t = errors(t, 0.5) / n
    assert effects["threshold"].estimate == pytest.approx(e_t - best)
    assert effects["discrimination"].estimate == pytest.approx(best - errors(s, 0.5) / 200)
    areas = [roc_auc_score(one.label, one.proba[:, 1]) for one in (s, t)]
    assert effects["auroc_loss"].estimate == pytest.approx(areas[0] - areas[1])


@pytest.mark.parametrize("patients", [4, 200])
def test_a_perfect_target_is_as_sure_as_it_is_large(patients):
    """All draws of it agree on an AUROC of 1; four patients do not show that it rises."""
    source = domain(np.random.default_rng(15), 200, reach=0.7)
    label = np.arange(patients) % 2
    target = scored(0.1 + 0.8 * label, label, role="target")
    loss = decompose(source, target)["auroc_loss"]
    assert loss.estimate == pytest.approx(roc_auc_score(source.label, source.proba[:, 1]) - 1)
    assert (loss.high < 0) == (patients == 200)


# --- intervals


def test_a_handful_of_images_without_an_error_refutes_nothing():
    """Draws of three right images agree; no effect is settled, on either side of 0."""
    rng = np.random.default_rng(4)
    source, target = domain(rng, 300, reach=0.7), domain(rng, 3, reach=0.7, role="target")
    effects = decompose(source, target.with_(label=target.predicted()))
    for name in ("accuracy_loss", "within_class", "y_given_score"):
        assert effects[name].low < 0 < effects[name].high


def test_of_terms_that_are_nothing_none_is_the_largest():
    """No head errs: ties are shared, and every division allows for errors that nobody saw."""
    rng = np.random.default_rng(5)
    both = [domain(rng, 20, role=role) for role in ("source", "target")]
    effects = decompose(*(one.with_(label=one.predicted()) for one in both))
    for division in ("class", "score"):
        assert [one.largest for one in of(effects, division).values()] == [0.5, 0.5]
        assert dominant(effects.values(), division) is None
    shift, changed = effects["confidence_shift"], effects["y_given_score"]
    assert shift.low < 0 == shift.high
    assert changed.low == 0 < changed.high
    assert effects["discrimination"].low < 0


def test_a_cause_is_dominant_only_if_sure():
    """The largest term is named at 90 % of the draws, and only if it is a loss."""
    noise = 0.01 * np.random.default_rng(18).normal(size=(2, 500))

    def effects(a, b):
        drawn = {"a": a + noise[0], "b": b + noise[1]}
        return divide("d", {"a": a, "b": b}, drawn, data=(), edges={})

    assert dominant(effects(0.1, 0.0).values(), "d") == "a"
    assert dominant(effects(0.01, 0.0).values(), "d") is None
    gain = effects(-0.1, -0.3)
    assert gain["a"].largest == 1
    assert dominant(gain.values(), "d") is None


# --- planted shifts


def test_a_moved_threshold_is_named():
    """Scores that all rise: the threshold carries the loss and the AUROC none of it."""
    rng = np.random.default_rng(19)
    effects = decompose(domain(rng, 800), domain(rng, 400, role="target", move=4), draws=300)
    assert dominant(effects.values(), "threshold") == "threshold"
    assert abs(effects["auroc_loss"].estimate) < 0.02
    assert dominant(effects.values(), "class") == "within_class"


def test_the_class_mix_is_named():
    """More of the class that the head gets wrong: the mix carries the loss."""
    rng = np.random.default_rng(20)
    source = domain(rng, 1500, move=-3, prevalence=0.2)
    target = domain(rng, 800, role="target", move=-3, prevalence=0.8)
    effects = decompose(source, target, draws=300)
    assert dominant(effects.values(), "class") == "class_mix"


def test_nothing_is_named_where_nothing_shifted():
    """Two samples of one population: the loss contains 0 and no term of it is a cause."""
    rng = np.random.default_rng(21)
    effects = decompose(domain(rng, 800), domain(rng, 400, role="target"), draws=300)
    assert effects["accuracy_loss"].low <= 0 <= effects["accuracy_loss"].high
    divisions = {one.division for one in effects.values()}
    assert [dominant(effects.values(), one) for one in divisions] == [None] * 5


def test_the_seed_decides_all_numbers():
    """The same numbers twice; others under another seed."""
    rng = np.random.default_rng(22)
    pair = domain(rng, 200), domain(rng, 150, role="target", move=1)
    assert decompose(*pair, draws=50) == decompose(*pair, draws=50)
    assert decompose(*pair, draws=50) != decompose(*pair, draws=50, seed=1)


def test_three_classes_and_one_have_no_threshold():
    """Everything but the threshold and the AUROC."""
    rng = np.random.default_rng(23)
    label = rng.integers(0, 3, 200)
    both = [outcomes(rng.random(200) < 0.2, label=label, role=r) for r in ("source", "target")]
    assert {one.division for one in decompose(*both, draws=20).values()} == {
        "all", "class", "score"
    }  # fmt: skip
    one_class = domain(rng, 50, role="target", prevalence=0.0)
    assert "threshold" not in decompose(domain(rng, 50), one_class, draws=20)


@pytest.mark.parametrize(
    ("change", "message"), [("labels", "needs the labels"), ("patients", "of one patient")]
)
def test_what_cannot_be_taken_apart_is_refused(change, message):
    """Sealed labels and a single patient are named."""
    rng = np.random.default_rng(24)
    source, target = domain(rng, 200), domain(rng, 200, role="target")
    broken = target.sealed() if change == "labels" else replace(target, group=np.zeros(200, int))
    with pytest.raises(StudyError, match=message):
        decompose(source, broken)


def test_another_mix_of_patients_is_split_off_where_the_source_shows_every_group():
    """Old patients err in 40 of 100 cases; they are a tenth of the source, nine of the target."""
    rng = np.random.default_rng(12)
    both, ages = [], []
    for role, share in (("source", 0.1), ("target", 0.9)):
        old = (rng.random(400) < share).astype(int)
        wrong = rng.random(400) < np.where(old, 0.4, 0.05)
        both.append(outcomes(wrong, label=np.arange(400) % 3, role=role))
        ages.append(Grouping(attribute="age", names=("young", "old", "oldest"), member=old))
    found = decompose(*both, groupings=[tuple(ages)])
    assert dominant(found.values(), "by age") == "age_mix"
    total = found["age_mix"].estimate + found["within_age"].estimate
    assert total == pytest.approx(found["accuracy_loss"].estimate)
    unseen = replace(ages[1], member=np.where(np.arange(400) < 40, 2, ages[1].member))
    assert "age_mix" not in decompose(*both, groupings=[(ages[0], unseen)])
