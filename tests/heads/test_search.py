"""Fitting for a comparison: what folds see, what they choose, what fails."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from pipeline import parallel
from pipeline.data.patients import patient_folds
from pipeline.heads import HEADS, HeadSpec, search
from pipeline.heads.base import PREPROCESSING, make_preprocessing
from pipeline.heads.search import HeadSearch, head_folds
from tests.made_up import made_up_rows

PLAIN = HeadSpec(make=lambda _: LogisticRegression(C=0.1), about="")


def fit(data, specs, repeats=0, **more):
    """Fits and failures."""
    search = HeadSearch(data, specs, **{"seeds": (3,), "preprocessing": StandardScaler} | more)
    fits = search.fit(data.features, np.arange(len(data)))
    return search.out_of_fold(fits, repeats), search.failures


@pytest.mark.parametrize("count", [1, 3], ids=["one view", "three views"])
def test_out_of_fold_rows_are_predicted_by_a_head_that_has_not_seen_their_patient(count):
    """The same as by hand, scaler and all, in each repeat; of views it learns from all.

    What is predicted is the mean of the views. No view of a patient held out is learned from.
    """
    data = made_up_rows(gap=1.0)
    views = np.random.default_rng(0).normal(data.features[:, None], 1, (120, count, 8)).astype("f4")
    data = data.with_(features=views.mean(axis=1))
    fits, failures = fit(data, {"lr": PLAIN}, repeats=2, views=views if count > 1 else None)
    assert not failures

    def by_hand(rows):
        again = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        again.fit(np.concatenate(views[rows]), np.repeat(data.label[rows], count))
        return again.predict_proba(data.features)

    for repeat, found in enumerate(fits["lr"].out_of_fold):
        for train, test in patient_folds(data.label, data.group, seed=3 + repeat):
            expected = by_hand(train)[test]
            np.testing.assert_allclose(found[test], expected, atol=1e-6)
    np.testing.assert_allclose(fits["lr"].proba[0], by_hand(np.arange(120)), atol=1e-6)


def test_the_choice_is_the_lowest_log_loss_on_patients_held_out():
    """Images of a patient that are nearly the same must not vouch for each other."""
    rng = np.random.default_rng(3)
    base = np.repeat(rng.normal(size=(40, 60)), 4, 0)  # nothing to learn but the patients
    data = made_up_rows(n=160, d=60, each=4)
    data = data.with_(features=(base + 0.05 * rng.normal(size=(160, 60))).astype(np.float32))
    images = replace(data, group=np.arange(160).astype(str))
    chosen = [
        fit(rows, {"linear": HEADS["linear"]})[0]["linear"].chosen["C"] for rows in (data, images)
    ]
    assert chosen[0] < chosen[1] / 10


def test_neighbours_keep_the_rows_that_they_were_fitted_to_without_a_copy(monkeypatch):
    """Their features would be pickled, sent and read: three times the memory."""
    data, shared = made_up_rows(gap=1.0), []

    def watched(jobs, **more):
        shared.extend(more["shared"])
        return parallel.run_each(jobs, **more)

    monkeypatch.setattr(search, "run_each", watched)
    fits, _ = fit(data, {"knn": HEADS["knn"]})
    assert any(fits["knn"].models[0].head._fit_X is rows for rows in shared)


@pytest.mark.parametrize("name", ["ridge", "svm", "prototype"])
def test_of_many_patients_what_a_head_chose_itself_is_not_chosen_again(name, monkeypatch):
    """A fold is fitted with the penalty, or kernel, and the calibration that all rows chose."""
    monkeypatch.setattr(search, "_NESTED_BELOW", 0)
    data = made_up_rows(gap=1.0)
    fits, _ = fit(data, {name: HEADS[name]}, repeats=1)
    model = fits[name].models[0].head
    assert model.fixed_params_["calibration"] is model.calibration_
    train, test = patient_folds(data.label, data.group, seed=3)[0]
    scaler = StandardScaler().fit(data.features[train])
    again = HEADS[name].make(3).set_params(**model.fixed_params_)
    again.fit(scaler.transform(data.features[train]), data.label[train])
    expected = again.predict_proba(scaler.transform(data.features[test]))
    np.testing.assert_allclose(fits[name].out_of_fold[0, test], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "ridge", "knn"])
def test_of_few_patients_each_fold_chooses_by_its_own_rows(name):
    """The same as a whole search in the rows of each fold."""
    data = made_up_rows(gap=0.5, n=90)
    fits, _ = fit(data, {name: HEADS[name]}, repeats=1)
    for train, test in patient_folds(data.label, data.group, seed=3):
        scaler = StandardScaler().fit(data.features[train])
        part = data.take(train).with_(features=scaler.transform(data.features[train]))
        alone, _ = fit(part, {name: HEADS[name]}, preprocessing=FunctionTransformer)
        model = alone[name].models[0]
        expected = model.predict_proba(scaler.transform(data.features[test]))
        np.testing.assert_allclose(fits[name].out_of_fold[0, test], expected, atol=1e-4)


def test_a_fold_of_too_few_patients_to_choose_by_takes_the_choice_of_all_rows():
    """Two patients of a class: one is left in a fold, which cannot be divided again."""
    data = made_up_rows(gap=1.0, n=40, each=2)
    data = data.with_(label=np.isin(data.group, np.unique(data.group)[:2]).astype(np.int64))
    fits, failures = fit(data, {"linear": HEADS["linear"]}, repeats=1)
    assert not failures
    assert np.isfinite(fits["linear"].out_of_fold).all()


@pytest.mark.parametrize("name", [name for name, spec in HEADS.items() if spec.fit_path])
def test_a_path_gives_what_its_heads_give_one_at_a_time(name):
    """Of rows that were fitted too, which have a neighbour at no distance."""
    data, spec = made_up_rows(3, n=90, gap=1.0), HEADS[name]
    heads = [spec.make(0).set_params(**choice) for choice in spec.choices]
    other = np.concatenate([data.features[:20], made_up_rows(3, n=20, seed=5).features])
    found = spec.fit_path(heads, data.features, data.label, other)
    for choice, proba in zip(spec.choices, found, strict=True):
        alone = spec.make(0).set_params(**choice).fit(data.features, data.label)
        expected = alone.predict_proba(other)
        if spec.calibrated:
            proba = alone.calibration_.proba(proba)  # noqa: PLW2901
        np.testing.assert_allclose(proba, expected, atol=2e-3)


def test_a_choice_that_cannot_be_fitted_is_not_chosen():
    """Forty rows have no 45 neighbours in a fold; the head is fitted with fewer."""
    fits, _ = fit(made_up_rows(n=40, each=1), {"knn": HEADS["knn"]})
    assert fits["knn"].chosen["n_neighbors"] in {5, 15}


class Bad(DummyClassifier):
    """A classifier that goes wrong in one way."""

    def __init__(self, how=""):
        super().__init__(strategy="prior")
        self.how = how

    def fit(self, X, y):
        if isinstance(self.how, BaseException):
            raise self.how
        if self.how == "folds" and len(X) < 120:
            raise np.linalg.LinAlgError("singular")
        while self.how == "endless":
            time.sleep(0.001)
        return super().fit(X, y)

    def predict_proba(self, X):
        proba = super().predict_proba(X)
        changed = {"nan": proba * np.nan, "shape": proba[:, :1], "sum": 2 * proba, "minus": -proba}
        return changed.get(self.how, proba)


WAYS = {
    "singular": (np.linalg.LinAlgError("singular"), "singular"),
    "large": (MemoryError(), "MemoryError"),
    "mistake": (KeyError("x"), "KeyError: 'x'"),
    "leaves": (SystemExit(3), "SystemExit: 3"),
    "endless": ("endless", "it did not end within 1 s"),
    "nan": ("nan", "not all numbers of 0 or more"),
    "minus": ("minus", "not all numbers of 0 or more"),
    "shape": ("shape", "shape"),
    "sum": ("sum", "do not add up to 1"),
}


def test_a_head_that_fails_is_listed_and_the_others_go_on():
    """Whatever it raises, nonsense, or no end; whether on folds or on all rows."""
    data = made_up_rows(n=40)
    bad = {
        name: HeadSpec(make=lambda _, how=how: Bad(how), about="")
        for name, (how, _) in WAYS.items()
    }
    chooses = replace(bad["nan"], choices=({"how": "nan"}, {"how": "sum"}))
    fits, failures = fit(data, {**bad, "chooses": chooses, "lr": PLAIN}, repeats=1, limit=1.0)
    assert set(fits) == {"lr"}
    assert fits["lr"].out_of_fold is not None
    assert set(failures) == {*WAYS, "chooses"}
    for name, (_, reason) in WAYS.items():
        assert reason in failures[name]


def test_a_class_of_one_patient_is_a_reason_for_every_head_that_needs_folds():
    """The others are fitted."""
    data = made_up_rows(n=20, each=2)
    data = replace(data, group=np.where(data.label == 1, "only", data.group))
    fits, failures = fit(data, {"linear": HEADS["linear"], "lr": PLAIN})
    assert set(fits) == {"lr"}
    assert "one patient alone" in failures["linear"]


def test_a_head_that_fails_out_of_fold_keeps_its_scores():
    """It is no candidate for the best; so is none where the folds cannot be made."""
    bad = HeadSpec(make=lambda _: Bad("folds"), about="")
    fits, failures = fit(made_up_rows(), {"bad": bad, "lr": PLAIN}, repeats=1)
    assert failures == {"bad": "out of fold: singular"}
    assert [fits[name].out_of_fold is None for name in ("bad", "lr")] == [True, False]
    one = replace(made_up_rows(), group=np.where(made_up_rows().label == 1, "one", "x"))
    fits, failures = fit(one, {"lr": PLAIN}, repeats=1)
    assert "one patient alone" in failures["out of fold"]
    assert fits["lr"].out_of_fold is None


def test_stochastic_heads_are_fitted_for_every_seed_and_the_others_once():
    """Predictions of each, for all rows of the study."""
    data = made_up_rows()
    fits, _ = fit(data, {n: HEADS[n] for n in ("mlp", "prior")}, seeds=(3, 4))
    assert (fits["mlp"].seeds, fits["prior"].seeds) == ((3, 4), (3,))
    for one in fits.values():
        for model, proba in zip(one.models, one.proba, strict=True):
            np.testing.assert_array_equal(model.predict_proba(data.features), proba)
    assert (fits["mlp"].proba[0] != fits["mlp"].proba[1]).any()


@pytest.mark.parametrize("patients", [0, 300], ids=["many patients", "few patients"])
def test_out_of_fold_a_stochastic_head_is_the_ensemble_of_its_seeds(patients, monkeypatch):
    """One seed alone errs more than the ensemble that is applied to a target."""
    monkeypatch.setattr(search, "_NESTED_BELOW", patients)
    data = made_up_rows(gap=1.0)
    fits, _ = fit(data, {"forest": HEADS["forest"]}, seeds=(3, 4), repeats=2)
    for repeat, found in enumerate(fits["forest"].out_of_fold):
        for train, test in patient_folds(data.label, data.group, seed=3 + repeat):
            scaler = StandardScaler().fit(data.features[train])
            of_seeds = [
                HEADS["forest"]
                .make(seed + repeat)
                .fit(scaler.transform(data.features[train]), data.label[train])
                .predict_proba(scaler.transform(data.features[test]))
                for seed in (3, 4)
            ]
            np.testing.assert_allclose(found[test], np.mean(of_seeds, axis=0), atol=1e-6)


def test_out_of_fold_one_perceptron_stands_for_all():
    """Others would take a third of the time of a run; they err by less than a point less."""
    data, only = made_up_rows(gap=1.0), {"mlp": HEADS["mlp"]}
    by_seeds = [fit(data, only, seeds=s, repeats=1)[0]["mlp"] for s in ((3, 4), (3,))]
    assert [len(found.models) for found in by_seeds] == [2, 1]
    np.testing.assert_array_equal(*(found.out_of_fold for found in by_seeds))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_the_same_on_one_core_and_on_two(name, monkeypatch):
    """Bit by bit: choices, held-out probabilities, all seeds."""
    data, found = made_up_rows(n=60, gap=1.0, each=2), []
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "_cores", lambda cores=cores: cores)
        fits, failures = fit(data, {name: HEADS[name]}, seeds=(0, 1, 2), repeats=1)
        assert not failures
        found.append(fits[name])
    assert found[0].chosen == found[1].chosen
    np.testing.assert_array_equal(found[0].proba, found[1].proba)
    np.testing.assert_array_equal(found[0].out_of_fold, found[1].out_of_fold)


@pytest.mark.parametrize("limit", ["_MANY_ROWS", "_MANY_SCORES"])
def test_of_many_rows_or_classes_one_fold_is_held_out(limit, monkeypatch):
    """The others have no out-of-fold probabilities, and say so."""
    monkeypatch.setattr(search, limit, 100)
    data = made_up_rows()
    fits, _ = fit(data, {"linear": HEADS["linear"]}, repeats=1)
    ((_, test),) = head_folds(data, 3)
    known = np.isfinite(fits["linear"].out_of_fold[0]).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(known), test)


@pytest.mark.parametrize("widths", [(8,), (5, 3)], ids=["one backbone", "two backbones"])
@pytest.mark.parametrize("preprocessing", PREPROCESSING)
def test_every_head_learns_three_classes_under_every_preprocessing(preprocessing, widths):
    """From features whose last column never varies."""
    data = made_up_rows(3, n=150)
    data.features[:, -1] = 1.0
    make = partial(make_preprocessing, preprocessing, widths)
    fits, failures = fit(data, HEADS, seeds=(0,), preprocessing=make)
    assert not failures
    assert list(fits) == list(HEADS)
    for name, one in fits.items():
        right = (one.proba[0].argmax(1) == data.label).mean()
        assert right > (0.3 if name == "prior" else 0.8), name


def test_no_row_has_a_say_in_the_choice_for_its_own_fold():
    """The choice that is best on the other folds, though another is best on all rows."""
    sure, y = np.array([[0.9, 0.1]]), np.zeros(4, np.int64)
    by_choice = np.stack([np.repeat(sure, 4, 0), np.full((4, 2), 0.5)])
    by_choice[0, :2] = (0.001, 0.999)  # wrong in the first fold, and best in the second
    found = search.cross_fitted_choice(by_choice, y, [np.arange(2), np.arange(2, 4)])
    assert found[:2].tolist() == by_choice[0, :2].tolist()
    assert found[2:].tolist() == by_choice[1, 2:].tolist()
