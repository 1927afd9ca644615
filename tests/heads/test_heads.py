"""Every head keeps the same contract; preprocessing before it, and heads that a study adds."""

import numpy as np
import pytest
from sklearn.base import clone

from pipeline.errors import StudyError
from pipeline.heads import HEADS
from pipeline.heads.base import PREPROCESSING, make_preprocessing
from pipeline.heads.custom import all_heads
from pipeline.study import CustomHead
from pipeline.study_file import load_study
from tests.made_up import made_up_rows
from tests.test_study_file import write


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_keeps_scikit_learns_contract(name, classes):
    """Probabilities (n, K) row by row, the same for the same seed; separated classes are learnt.

    The input is not touched, classes keep their names, another width is refused, and patients
    are taken, as text, where ``groups`` is true.
    """
    rows, spec = made_up_rows(classes), HEADS[name]
    X, y, more = rows.features, np.array(["a", "b", "c"])[rows.label], {}
    if spec.groups:
        more = {"groups": rows.group}
    before, head = X.copy(), spec.make(3).fit(X, y, **more)
    p = head.predict_proba(X)
    np.testing.assert_array_equal(X, before)
    assert p.shape == (len(X), classes)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert list(head.classes_) == sorted(set(y))
    np.testing.assert_array_equal(head.classes_[p.argmax(1)], head.predict(X))
    np.testing.assert_allclose(head.predict_proba(X[::-1].copy())[::-1], p, atol=1e-6)
    np.testing.assert_array_equal(clone(head).fit(X, y, **more).predict_proba(X), p)
    if name != "prior":
        assert (head.predict(X) == y).mean() > 0.9
        with pytest.raises(ValueError, match="features"):
            head.predict_proba(X[:, :5])


@pytest.mark.parametrize("name", HEADS)
def test_the_table_says_what_is_true(name):
    """A stochastic head moves with its seed, no other; the choices are of real parameters."""
    rows, spec = made_up_rows(n=60, gap=1.0), HEADS[name]
    X, y = rows.features, rows.label
    p = [spec.make(seed).fit(X[:40], y[:40]).predict_proba(X) for seed in (0, 1)]
    assert (p[0] != p[1]).any() == spec.stochastic
    assert all(choice.keys() <= spec.make(0).get_params().keys() for choice in spec.choices)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        *((name, {}, r"one class only \(1\)") for name in ("mlp", "ridge", "lda", "prototype")),
        ("ridge", {"penalties": (1.0, 0.0)}, "allowed are"),
        ("lda", {"shrinkage": "none"}, "allowed are"),
        ("lda", {"shrinkage": 1.5}, "allowed are"),
        ("mlp", {"depth": 0}, "allowed are"),
        ("mlp", {"hidden": 0}, "allowed are"),
        ("mlp", {"dropout": 1.0}, "allowed are"),
    ],
)
def test_what_cannot_be_learnt_or_is_not_allowed_is_refused(name, setting, message):
    """One class, which is named; a setting, with what is allowed."""
    labels = [0, 1, 0, 1] if setting else [1, 1, 1, 1]
    with pytest.raises(ValueError, match=message):
        HEADS[name].make(0).set_params(**setting).fit(np.eye(4, dtype=np.float32), labels)


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("widths", [(8,), (3, 5)])
def test_rows_stay_apart_and_the_input_as_it_is(name, widths):
    """Row order, float32, finite numbers; a row is transformed alone as in company."""
    X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    before = X.copy()
    fitted = make_preprocessing(name, widths).fit(X)
    found = fitted.transform(X)
    np.testing.assert_array_equal(X, before)
    assert np.isfinite(found).all()
    assert found.dtype == np.float32
    np.testing.assert_allclose(fitted.transform(X[3:5]), found[3:5], atol=1e-5)


def test_each_does_what_it_says():
    """Unit variance, unit length, uncorrelated; two backbones weigh the same."""
    X = np.random.default_rng(0).normal(size=(200, 8)) @ np.diag([1, 1, 1, 50, 50, 50, 50, 9])
    X = X.astype(np.float32)
    done = {name: make_preprocessing(name, (3, 5)).fit(X).transform(X) for name in PREPROCESSING}
    np.testing.assert_allclose(done["standardise"].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(done["l2"], axis=1), 1, rtol=1e-4)
    white = np.cov(done["pca_whiten"].T)
    np.testing.assert_allclose(white, np.eye(len(white)), atol=1e-3)
    np.testing.assert_array_equal(done["none"], X)
    X[:, 3:] *= 1e4
    for name in ("standardise", "l2"):
        again = make_preprocessing(name, (3, 5)).fit(X).transform(X)
        np.testing.assert_allclose(again, done[name], atol=1e-4)


def test_a_column_that_hardly_varies_decides_nothing():
    """A new image that its filter answers to lies near the others; the rest has unit variance.

    A backbone of small numbers beside one of large numbers is not taken for dead.
    """
    scale = np.array([1, 1, 1, 1, 1e-3, 1e-3, 1e-3, 1e-3])
    dead = np.array([0, 1e-5, 0, 0, 0, 0, 1e-5, 0])
    rows = np.random.default_rng(0).normal(size=(200, 8))
    X = np.asarray(rows * np.where(dead, dead, 1) * scale, np.float32)
    fitted = make_preprocessing("standardise", (4, 4)).fit(X)
    np.testing.assert_allclose(fitted.transform(X).std(0)[dead == 0], 1, rtol=1e-4)
    assert np.abs(fitted.transform((3 * scale)[None].astype(np.float32))).max() < 5


# Heads that a study adds.

CLASS = "sklearn.neighbors.KNeighborsClassifier"
GOOD = """
[source]
path = "."
[backbone.densenet121]
[backbone.googlenet]
[backbone."densenet121+googlenet"]
[head.near]
estimator = "sklearn.neighbors.KNeighborsClassifier"
n_neighbors = 7
[head.small]
base = "mlp"
hidden = 8
"""


def test_a_study_adds_heads_and_concatenations(tmp_path):
    """The networks stay what stage 1 runs; later stages see the concatenation too."""
    study = load_study(write(tmp_path, GOOD))
    assert [b.name for b in study.backbones] == ["densenet121", "googlenet"]
    assert study.variants["densenet121+googlenet"] == list(study.backbones)
    table = all_heads((*study.heads, CustomHead(name="s", base="linear", parameters={"C": 0.001})))
    assert table["small"].make(0).hidden == 8
    rows = made_up_rows()
    added = table["near"].make(0)
    assert added.n_neighbors == 7
    assert added.fit(rows.features, rows.label).score(rows.features, rows.label) > 0.9
    assert table["s"].make(0).C == 0.001
    assert list(table["s"].choices) == [{}]  # what is given is not searched for
    support = CustomHead(name="v", base="svm", parameters={"C": 1.0})
    assert all_heads((support,))["v"].choices == [{"kernel": "linear"}, {"kernel": "rbf"}]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("n_neighbors", "k"), r"unknown parameter 'k' in \[head.near\]; allowed: .*n_neighbors"),
        ((CLASS, "os.path.join"), r"allowed is sklearn.MODULE.CLASS"),
        ((CLASS, "sklearn.svm._classes.SVC"), r"allowed is sklearn.MODULE"),
        ((CLASS, "sklearn.neighbors.KNeighborsRegressor"), r"is no classifier of scikit-learn"),
        ((CLASS, "sklearn.neighbors.None"), r"scikit-learn has none"),
        ((CLASS, "sklearn.ensemble.VotingClassifier"), r"unknown parameter 'n_neighbors'"),
        ((f'{CLASS}"\nn_neighbors = 7', 'sklearn.svm.LinearSVC"'), r"gives no probabilities"),
        (("head.near", "head.svm"), r"\[head.svm\]: the name is taken"),
        (('base = "mlp"', 'base = "lstm"'), r"unknown base 'lstm'; allowed: mlp"),
        (('base = "mlp"', ""), r"write either estimator"),
        (("hidden = 8", "hiden = 8"), r"unknown parameter 'hiden' .* hidden"),
        (('"densenet121+googlenet"', '"densenet121+resnet50"'), r"must stand once"),
        (('"densenet121+googlenet"', '"densenet121+densenet121"'), r"must stand once"),
    ],
)
def test_a_mistake_is_refused_with_what_is_allowed(tmp_path, change, sentence):
    """Before any work of the stage."""
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(StudyError, match=sentence):
        all_heads(load_study(write(tmp_path, text)).heads)
