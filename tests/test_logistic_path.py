"""All penalties and folds at once reach scikit-learn's optimum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.heads import logistic as newton
from pipeline.heads.logistic import LogisticHead, solve_path
from pipeline.heads.preprocessing import untreated
from pipeline.heads.search import Problem, train_head


def problem(classes: int, n: int = 150, d: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    return (rng.normal(size=(n, d)) + 0.7 * np.eye(classes, d)[y]) @ mixing, y


def fold_weights(n: int, folds: int, penalties: int) -> np.ndarray:
    weights = np.ones((folds, penalties, n))
    for fold in range(folds):
        weights[fold][:, fold::folds] = 0
    return weights.reshape(-1, n)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("wide", [False, True])
def test_ten_penalties_by_five_folds_equal_scikit_learn(classes, wide):
    """Coefficients within 1e-3 relative, probabilities within 1e-4; also with d > n."""
    X, y = problem(classes, n=60 if wide else 150, d=90 if wide else 40)
    penalties = np.logspace(-4, 1, 10)
    C = np.tile(penalties, 5)
    weights = fold_weights(len(X), 5, 10)
    path = solve_path(X, y, C=C, weights=weights)
    proba = path.proba(X)
    for v in range(0, 50, 3):
        rows = weights[v] > 0
        oracle = LogisticRegression(C=C[v], tol=1e-10, max_iter=20000, solver="newton-cg")
        oracle.fit(X[rows], y[rows])
        distance = np.linalg.norm(path.coef[v] - oracle.coef_) / np.linalg.norm(oracle.coef_)
        assert distance < 1e-3
        np.testing.assert_allclose(proba[v], oracle.predict_proba(X), atol=1e-4)


def test_weights_count_as_repeated_rows():
    """A row of weight two is the row twice."""
    X, y = problem(2)
    weights = np.ones((1, len(X)))
    weights[0, :30] = 2
    twice = np.r_[np.arange(len(X)), np.arange(30)]
    one = solve_path(X, y, C=np.array([0.1]), weights=weights)
    two = solve_path(X[twice], y[twice], C=np.array([0.1]), weights=np.ones((1, len(twice))))
    np.testing.assert_allclose(one.coef, two.coef, rtol=1e-4, atol=1e-7)


def test_many_rows_are_solved_for_few_problems_at_a_time(monkeypatch):
    """A dozen arrays of scores would otherwise be larger than the features; the answer stays."""
    X, y = problem(3)
    C, weights = np.logspace(-3, 1, 7), np.ones((7, len(X)))
    together = solve_path(X, y, C=C, weights=weights)
    monkeypatch.setattr(newton, "_SCORES", 2 * 3 * len(X))
    parts = solve_path(X, y, C=C, weights=weights)
    np.testing.assert_allclose(parts.coef, together.coef, rtol=1e-4, atol=1e-6)


def test_a_problem_is_the_same_alone_and_in_company():
    """Its company ends later or sooner; it does not care."""
    X, y = problem(2)
    C = np.logspace(-3, 1, 6)
    together = solve_path(X, y, C=C, weights=np.ones((6, len(X))))
    for v in range(6):
        alone = solve_path(X, y, C=C[v : v + 1], weights=np.ones((1, len(X))))
        np.testing.assert_allclose(alone.coef[0], together.coef[v], rtol=1e-3, atol=1e-6)


def test_separable_classes_have_an_answer():
    """The penalty keeps the weights finite."""
    X = np.r_[np.random.default_rng(0).normal(size=(20, 3)) - 9, np.ones((20, 3)) * 9]
    path = solve_path(X, np.repeat([0, 1], 20), C=np.array([10.0]), weights=np.ones((1, 40)))
    assert np.isfinite(path.coef).all()
    assert path.proba(X)[0, -1, 1] > 0.99


def test_a_fold_of_one_class_is_refused():
    """Which problem it is stands in the message."""
    X, y = problem(2)
    weights = np.ones((2, len(X)))
    weights[1, y == 1] = 0
    with pytest.raises(ValueError, match="problem 1 has rows of one class only"):
        solve_path(X, y, C=np.ones(2), weights=weights)


def test_the_head_equals_scikit_learns_classifier():
    """Same parameters, same answers, original class labels."""
    X, y = problem(3)
    names = np.array(["a", "b", "c"])[y]
    ours = LogisticHead(C=0.3).fit(X, names)
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=5000).fit(
        X.astype(np.float32).astype(float), names
    )
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    assert list(ours.classes_) == ["a", "b", "c"]


def test_the_penalty_is_chosen_by_patients_held_out():
    """Images of a patient that are nearly the same must not vouch for each other."""
    rng = np.random.default_rng(3)
    patients = 40
    base = rng.normal(size=(patients, 60))
    label = np.arange(patients) % 2  # nothing to learn but the patients themselves
    X = np.repeat(base, 4, 0) + 0.05 * rng.normal(size=(patients * 4, 60))
    group = np.repeat([f"p{i}" for i in range(patients)], 4)
    fitted = {}
    for name, groups in (("patients", group), ("images", np.array([str(i) for i in range(160)]))):
        p = Problem(
            X=untreated(X.astype(np.float32)), y=np.repeat(label, 4), group=groups, seeds=(0,)
        )
        fitted[name] = train_head("linear", p)[0].C
    assert fitted["patients"] < fitted["images"] / 10


def test_many_rows_are_solved_as_exactly_as_asked_and_no_further():
    """A large gradient of many rows is not a large distance from the optimum."""
    X, y = problem(2, n=4000, d=8)
    penalties, weights = np.array([1e-3, 1.0, 100.0]), np.ones((3, len(X)))
    exact = solve_path(X, y, C=penalties, weights=weights, tol=1e-9)
    rough = solve_path(X, y, C=penalties, weights=weights, tol=1e-3)
    error = np.linalg.norm(rough.coef - exact.coef, axis=(1, 2))
    assert (error <= 1e-3 * np.linalg.norm(exact.coef, axis=(1, 2))).all()
    assert rough.steps <= 6  # by the gradient alone 7
