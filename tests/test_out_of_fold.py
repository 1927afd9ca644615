"""Heads again on folds of the fit split: what they see, and what is made of it."""

import baycomp
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from pipeline.compare import honest_bests, procedures
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.selection import bbc_cv
from pipeline.heads import HeadSpec
from pipeline.heads.calibrated import CalibratedHead
from pipeline.heads.out_of_fold import FitSplit, OutOfFold, at_chosen, out_of_fold, with_seed

#: Heads of these tests are made elsewhere; nothing else is special about them.
ANY = dict.fromkeys(("lr", "f", "nb", "bad"), HeadSpec(make=GaussianNB, about=""))


@pytest.fixture
def fit():
    """80 rows of 40 patients among 100; the rest must never be looked at."""
    rng = np.random.default_rng(0)
    patient = np.arange(80) // 2
    y = patient % 2
    X = rng.normal(size=(100, 4)).astype(np.float32)
    rows = np.arange(80) + 10
    X[rows] += 1.0 * y[:, None]
    X[:10] = X[90:] = np.nan
    return FitSplit(X=X, rows=rows, y=y, group=patient.astype(str), seed=3)


def fitted(estimator, fit):
    return make_pipeline(StandardScaler(), estimator).fit(fit.X[fit.rows], fit.y)


def test_each_row_is_asked_of_a_head_that_has_not_seen_its_patient(fit):
    """The same as doing it by hand, scaler and all, on scikit-learn's folds."""
    found = out_of_fold({"lr": fitted(LogisticRegression(C=0.1), fit)}, fit, repeats=2, specs=ANY)
    X = fit.X[fit.rows]
    for repeat in range(2):
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=3 + repeat)
        for number, (inside, outside) in enumerate(folds.split(X, fit.y, fit.group)):
            assert set(fit.group[inside]).isdisjoint(fit.group[outside])
            again = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
            expected = again.fit(X[inside], fit.y[inside]).predict_proba(X[outside])
            np.testing.assert_allclose(found.proba["lr"][repeat, outside], expected)
            assert (found.fold[repeat, outside] == number).all()


def test_a_repeat_has_other_folds_and_another_seed(fit):
    """Everything that can vary does, and the same for all heads."""
    forest = fitted(RandomForestClassifier(5, random_state=99), fit)
    found = out_of_fold({"f": forest}, fit, repeats=2, specs=ANY)
    assert (found.fold[0] != found.fold[1]).any()
    X, (inside, outside) = fit.X[fit.rows], fit.folds(1)[0]
    again = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=3 + 1))
    expected = again.fit(X[inside], fit.y[inside]).predict_proba(X[outside])
    np.testing.assert_array_equal(found.proba["f"][1, outside], expected)
    alone = out_of_fold({"nb": fitted(GaussianNB(), fit), "f": forest}, fit, repeats=1, specs=ANY)
    np.testing.assert_array_equal(alone.proba["f"][0], found.proba["f"][0])


def test_a_head_that_draws_nothing_stays_so(fit):
    """No random state is put where the head has none."""
    model = with_seed(at_chosen(fitted(LogisticRegression(), fit)), 4)
    assert model[-1].random_state is None


def test_the_chosen_parameters_are_kept_and_not_chosen_again(fit):
    """Of several candidates only the one that was taken is left."""
    head = CalibratedHead(LinearSVC(), candidates=({"C": 1e-6}, {"C": 1.0}))
    model = fitted(head, fit)
    again = at_chosen(model)
    assert again[-1].candidates == (model[-1].best_params_,)
    assert not hasattr(again[-1], "estimator_")


def test_a_head_that_fails_on_a_fold_is_named_and_the_others_go_on(fit):
    """With its reason."""

    class Fails(GaussianNB):
        def fit(self, X, y):
            if len(y) < 80:
                raise ValueError("singular")
            return super().fit(X, y)

    models = {"bad": fitted(Fails(), fit), "nb": fitted(GaussianNB(), fit)}
    found = out_of_fold(models, fit, repeats=1, specs=ANY)
    assert set(found.proba) == {"nb"}
    assert found.failures == {"bad": "singular"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, None])
def test_a_head_is_given_rows_as_its_spec_says(fit, dtype):
    """In a dtype, so that no copy in another is made, or to be taken part by part."""
    seen = []

    class Watches(GaussianNB):
        def fit(self, X, y, groups):
            seen.append((X, groups))
            return super().fit(X[:], y)

    model = make_pipeline(StandardScaler(), Watches())
    model.fit(fit.X[fit.rows], fit.y, watches__groups=fit.group)
    seen.clear()
    spec = HeadSpec(make=Watches, about="", dtype=dtype, grouped=True)
    found = out_of_fold({"w": model}, fit, repeats=1, specs={"w": spec})
    assert {getattr(X, "dtype", None) for X, _ in seen} == {dtype and np.dtype(dtype)}
    for (X, groups), (inside, _) in zip(seen, fit.folds(0), strict=True):
        assert len(X) == len(inside)
        np.testing.assert_array_equal(groups, fit.group[inside])
    expected = out_of_fold({"nb": fitted(GaussianNB(), fit)}, fit, repeats=1, specs=ANY)
    np.testing.assert_allclose(found.proba["w"], expected.proba["nb"], rtol=1e-4)


def made_up(heads=("a", "b", "c"), repeats=2, n=100):
    rng = np.random.default_rng(5)
    y = np.arange(n) % 2
    proba = {}
    for gain, name in enumerate(heads):
        p = 1 / (1 + np.exp(-(rng.normal(size=(repeats, n)) + (y - 0.5) * gain)))
        proba[name] = np.stack([1 - p, p], axis=2)
    fold = np.stack([rng.permutation(np.arange(n) % 5) for _ in range(repeats)])
    return OutOfFold(fold=fold, proba=proba, failures={}), y


def test_procedures_equal_baycomp():
    """H-T2: on the differences over all splits of all repeats."""
    found, y = made_up()
    scores = {
        name: np.array([
            ((p[fold == k].argmax(1)) == y[fold == k]).mean()
            for fold, p in zip(found.fold, proba, strict=True) for k in range(5)
        ])
        for name, proba in found.proba.items()
    }  # fmt: skip
    rows = [one for one in procedures(found, y, "a") if one.metric == "accuracy"]
    assert [one.head for one in rows] == ["b", "c"]
    for one in rows:
        d = scores[one.head] - scores["a"]
        worse, equal, better = baycomp.two_on_single(
            scores["a"], scores[one.head], rope=0.01, runs=2
        )
        assert (one.worse, one.equal, one.better) == pytest.approx((worse, equal, better))
        assert one.difference == pytest.approx(d.mean())
        assert one.splits == 10


def test_procedures_turned_round_change_their_signs():
    """H-T5."""
    found, y = made_up(("a", "b"))
    there, back = procedures(found, y, "a"), procedures(found, y, "b")
    for one, two in zip(there, back, strict=True):
        assert (one.difference, one.worse) == pytest.approx((-two.difference, two.better))


def test_without_the_baseline_there_is_nothing_to_compare_with():
    """An empty table, no crash."""
    found, y = made_up()
    assert procedures(found, y, "linear") == []
    assert honest_bests(OutOfFold(fold=found.fold, proba={}, failures={}), y, y, 0) == []


def test_the_honest_best_is_that_of_the_first_repeat():
    """By accuracy and by area; apparent minus honest is the optimism."""
    found, y = made_up()
    group = np.arange(100)
    for one in honest_bests(found, y, group, seed=7):
        expected = bbc_cv(
            [METRICS[one.metric](y, p[0]) for p in found.proba.values()],
            group,
            np.random.default_rng([7, *b"honest best"]),
        )
        assert (one.honest, one.apparent) == (expected.interval.estimate, expected.apparent)
        assert one.optimism == one.apparent - one.honest
        assert (one.head, one.among, one.images, one.patients) == ("c", 3, 100, 100)
