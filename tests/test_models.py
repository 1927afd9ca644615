"""Saved heads: the same probabilities without the library, and files that only hold data."""

import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from cache.recipe import Recipe
from pipeline.errors import ModelError
from pipeline.heads import HEADS, make_head
from pipeline.heads.calibrated import CalibratedHead
from pipeline.heads.preprocessing import Whitener
from pipeline.heads.save_files import Model, Network, load_model, save_model
from pipeline.heads.save_kinds import KINDS, predict_proba
from pipeline.heads.save_part import Part, check_part
from pipeline.heads.save_portable import NotPortableError, _rounded_down, to_part

#: Heads that a study may name, beside those of the table.
OTHERS = {
    "logistic regression": LogisticRegression(max_iter=1000),
    "extra trees": ExtraTreesClassifier(20, random_state=0),
    "calibrated by scikit-learn": CalibratedClassifierCV(SVC(), ensemble=False, cv=3),
    "calibrated on each fold": CalibratedClassifierCV(SVC(kernel="linear"), cv=3),
    "neighbours by distance": KNeighborsClassifier(5, weights="distance"),
    "linear support vectors": CalibratedHead(LinearSVC()),
    # Of two classes its coefficients are (d,), where others have (1, d).
    "least squares by scikit-learn": CalibratedHead(RidgeClassifier()),
}
TREATMENTS = {
    "standardise": StandardScaler(),
    "none": FunctionTransformer(),
    "l2": Normalizer(),
    "pca_whiten": Whitener(),
}
RECIPE = Recipe(
    backbone="tiny", cut="end", pooling="mean", weights="0" * 64, preprocessing={"size": 32}
)


def world(classes, d=9, n=90, seed=0):
    """Rows of overlapping classes, and other rows, float32."""
    rng = np.random.default_rng([classes, d, n, seed])
    y = np.arange(n) % classes
    X = rng.normal(size=(n, d)) + y[:, None] * rng.normal(size=d) * 0.5
    return X.astype(np.float32), y, rng.normal(size=(200, d)).astype(np.float32)


def quick(name, seed=0):
    """A head that is fitted in no time."""
    few = {"mlp": {"epochs": 2}, "forest": {"n_estimators": 15}, "boosting": {"max_iter": 10}}
    return make_head(name, seed=seed, **few.get(name, {})) if name in HEADS else OTHERS[name]


def fitted(head, treatment, X, y):
    return make_pipeline(treatment, head).fit(X, y)


def model_of(part, classes=2, dim=9, **more):
    return Model(
        head="some", study="tiny", classes=tuple(f"c{k}" for k in range(classes)),
        networks=(Network(recipe=RECIPE, dim=dim, weights="imagenet"),), part=part, seeds=(0,),
        parameters=({},), images=90, version="0", **more,
    )  # fmt: skip


def same(part, estimator, *rows):
    for X in rows:
        expected = estimator.predict_proba(X)
        np.testing.assert_allclose(predict_proba(part, X), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", [*HEADS, *OTHERS])
def test_a_saved_head_says_what_the_fitted_one_says(name, classes, tmp_path):
    """Every head of the table, through its file, within 1e-6."""
    X, y, other = world(classes)
    head = fitted(quick(name), StandardScaler(), X, y)
    save_model(tmp_path / "m", model_of(to_part(head), classes))
    same(load_model(tmp_path / "m").part, head, X, other)


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("name", ["linear", "forest", "boosting", "mlp", "svm"])
def test_the_treatment_is_part_of_the_saved_head(name, treatment):
    """Features come as the backbone gave them."""
    X, y, other = world(3)
    head = fitted(quick(name), TREATMENTS[treatment], X, y)
    part = to_part(head)
    assert check_part(part, KINDS, d=9, classes=3) == 3
    same(part, head, X, other)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(
        ["linear", "forest", "boosting", "naive_bayes", "calibrated on each fold"]
    ),
    classes=st.integers(2, 6),
    d=st.integers(1, 40),
    n=st.integers(40, 120),
)
def test_any_shape_is_saved_the_same(name, classes, d, n):
    """Whatever the number of classes, features and rows."""
    X, y, other = world(classes, d, n)
    head = fitted(quick(name), StandardScaler(), X, y)
    part = to_part(head)
    check_part(part, KINDS, d=d, classes=classes)
    same(part, head, X, other)


def test_seeds_are_saved_as_their_ensemble(tmp_path):
    """The mean of the members' probabilities."""
    X, y, other = world(2)
    heads = [fitted(quick("mlp", seed), StandardScaler(), X, y) for seed in (0, 1)]
    part = Part(kind="mean", parts=tuple(map(to_part, heads)))
    save_model(tmp_path / "m", model_of(part))
    mean = np.mean([head.predict_proba(other) for head in heads], axis=0)
    np.testing.assert_allclose(load_model(tmp_path / "m").predict_proba(other), mean, atol=1e-6)


def test_an_estimator_without_a_portable_form_is_refused_with_its_reason():
    """By type and by setting; a subclass may compute something else."""
    X, y, _ = world(2)

    class Mine(LogisticRegression):
        pass

    for head, reason in (
        (DecisionTreeClassifier(), "DecisionTreeClassifier has no portable form; known:"),
        (CalibratedClassifierCV(SVC(), method="isotonic"), "method = 'isotonic'"),
        (KNeighborsClassifier(p=1), "p = 1"),
        (CalibratedHead(SVC(kernel="poly")), "kernel = 'poly'"),
        (Mine(), "Mine has no portable form"),
    ):
        with pytest.raises(NotPortableError, match=reason):
            to_part(fitted(head, StandardScaler(), X, y))


@pytest.mark.parametrize(("name", "keeps"), [("knn", True), ("svm", True), ("linear", False)])
def test_a_file_says_whether_it_holds_features_of_patients(name, keeps, tmp_path):
    """Neighbours and support vectors are rows of the fit split."""
    X, y, _ = world(2)
    save_model(tmp_path / "m", model_of(to_part(fitted(quick(name), StandardScaler(), X, y))))
    written = json.loads((tmp_path / "m" / "model.json").read_text())
    assert written["contains_training_features"] is keeps


def saved_forest(folder: Path):
    X, y, _ = world(2)
    head = RandomForestClassifier(3, max_depth=3, random_state=0)
    save_model(folder, model_of(to_part(fitted(head, StandardScaler(), X, y))))
    return folder


def rewrite(folder: Path, change_json=None, change_arrays=None):
    """What somebody could do to both files, with a digest that fits."""
    values = json.loads((folder / "model.json").read_text())
    arrays = dict(load((folder / "model.safetensors").read_bytes()))
    if change_arrays:
        change_arrays(arrays)
    data = save(arrays)
    values |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if change_json:
        change_json(values)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "model.json").write_text(json.dumps(values))


def set_in(name, at, value):
    """A change of one number of an array."""

    def change(arrays):
        key = next(key for key in arrays if key.endswith(f".{name}"))
        arrays[key] = arrays[key].copy()
        arrays[key][at] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_in("left", 0, 0), "does not come after its parent"),  # a cycle
        (set_in("right", 0, 10**6), "does not come after its parent"),
        (set_in("left", 0, -5), "does not come after its parent"),
        (set_in("feature", 0, 9), "a feature is not in 0 to 8"),
        (set_in("feature", 0, -2), "a feature is not in 0 to 8"),
        (set_in("root", 1, 0), "its roots are no places of trees"),
        (set_in("value", (0, 0), np.nan), "not finite"),
        (set_in("threshold", 0, np.nan), "not finite"),
        (lambda arrays: arrays.update(more=np.zeros(3)), "which no part uses"),
        (lambda arrays: arrays.pop(next(iter(arrays))), "is not in model.safetensors"),
    ],
)
def test_trees_that_would_not_end_are_refused(change, reason, tmp_path):
    """Cycles, children and features out of range, and what is not finite."""
    folder = saved_forest(tmp_path / "m")
    rewrite(folder, change_arrays=change)
    with pytest.raises(ModelError, match=reason):
        load_model(folder)


def test_two_parents_of_one_node_are_refused(tmp_path):
    """Otherwise a small file could be a tree of any size."""

    def change(arrays):
        left, right = (next(k for k in arrays if k.endswith(e)) for e in (".left", ".right"))
        arrays[left] = arrays[left].copy()
        arrays[left][0] = arrays[right][0]

    folder = saved_forest(tmp_path / "m")
    rewrite(folder, change_arrays=change)
    with pytest.raises(ModelError, match="not exactly one parent"):
        load_model(folder)


def nested(depth):
    part = {"kind": "same", "settings": {}, "arrays": {}, "parts": []}
    for _ in range(depth):
        part = {"kind": "chain", "settings": {}, "arrays": {}, "parts": [part]}
    return part


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"part": nested(50)}, "nested more than"),
        ({"part": {**nested(0), "kind": "os.system"}}, "unknown part"),
        ({"part": None}, "expected an object"),
        ({"classes": ["a"]}, "two or more different names"),
        ({"classes": "ab"}, "classes is str"),
        ({"networks": []}, "not a list of objects"),
        ({"seeds": ["x"]}, "no integer"),
        ({"format": 2}, "has format 2"),
        ({"format": None}, "no description"),
        ({"sha256": "0"}, "SHA-256"),
        ({"bytes": 1}, "not the one"),
        ({"images": float("nan")}, "NaN, which is no number"),
    ],
)  # fmt: skip
def test_a_description_that_is_none_is_one_clear_error(change, reason, tmp_path):
    """Wrong types, deep nesting, NaN, an unknown kind."""
    folder = saved_forest(tmp_path / "m")
    rewrite(folder, change_json=lambda values: values.update(change))
    with pytest.raises(ModelError, match=reason):
        load_model(folder)


def test_nesting_that_breaks_the_parser_is_one_clear_error(tmp_path):
    """A hundred thousand brackets."""
    folder = saved_forest(tmp_path / "m")
    (folder / "model.json").write_text('{"format":1,"part":' + "[" * 100_000)
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path):
    """What a crash between the two files leaves."""
    one, two = saved_forest(tmp_path / "one"), tmp_path / "two"
    X, y, _ = world(2)
    save_model(two, model_of(to_part(fitted(quick("linear"), StandardScaler(), X, y))))
    (one / "model.safetensors").replace(two / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors is not the one"):
        load_model(two)
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read"):
        load_model(one)


def test_a_folder_without_a_head_says_where_heads_are(tmp_path):
    """One level too high is the likely mistake."""
    saved_forest(tmp_path / "heads" / "forest")
    with pytest.raises(ModelError, match=r"name one: .*forest"):
        load_model(tmp_path / "heads")
    with pytest.raises(ModelError, match=r"there is no model.json; `headrace heads` writes"):
        load_model(tmp_path / "nowhere")
    assert load_model(tmp_path / "heads" / "forest" / "model.json").head == "some"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value, path=()):
    """Every place in JSON values."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items):
            yield from places(inner, (*path, key))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_anything_in_a_description_is_a_head_or_one_error_of_ours(data, tmp_path):
    """Whatever stands in any place: no crash, no endless loop."""
    folder = tmp_path / "m"
    X, y, other = world(2)
    name = data.draw(st.sampled_from(["linear", "knn", "boosting", "prototype"]))
    part = to_part(fitted(quick(name), StandardScaler(), X, y))
    save_model(folder, model_of(part))

    def change(values):
        where = data.draw(st.sampled_from([p for p in places(values) if p]))
        for key in where[:-1]:
            values = values[key]
        values[where[-1]] = data.draw(JSON)

    rewrite(folder, change_json=change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = load_model(folder)
            proba = found.predict_proba(other)
        except ModelError:
            return
    assert proba.shape == (200, 2)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_any_bytes_of_arrays_are_a_head_or_one_error_of_ours(at, byte, cut, tmp_path):
    """With a digest that fits, as an attacker would have it."""
    folder = saved_forest(tmp_path / "m")
    data = bytearray((folder / "model.safetensors").read_bytes())
    at %= len(data)
    data[at] = byte
    data = data[:at] if cut else data
    (folder / "model.safetensors").write_bytes(data)
    values = json.loads((folder / "model.json").read_text())
    values |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "model.json").write_text(json.dumps(values))
    try:
        proba = load_model(folder).predict_proba(world(2)[2])
    except ModelError:
        return
    assert np.isfinite(proba).all()


def test_features_of_another_width_are_refused():
    """Before anything is computed from them."""
    X, y, _ = world(2)
    model = model_of(to_part(fitted(quick("linear"), StandardScaler(), X, y)))
    with pytest.raises(ModelError, match=r"features of shape \(90, 4\): the head takes \(n, 9\)"):
        model.predict_proba(X[:, :4])


def test_a_head_that_does_not_fit_its_classes_is_never_written(tmp_path):
    """What is written can be read."""
    X, y, _ = world(3)
    model = replace(model_of(to_part(fitted(quick("lda"), StandardScaler(), X, y)), 3), seeds=(0,))
    with pytest.raises(ModelError, match="3 numbers for 2 classes"):
        save_model(tmp_path / "m", replace(model, classes=("a", "b")))
    assert not (tmp_path / "m").exists()


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_threshold_in_float32_sends_every_float32_the_same_way(threshold, x):
    """It is rounded down, never to the nearest."""
    x = np.float32(x)
    for value in (
        x,
        np.nextafter(np.float32(threshold), np.float32(np.inf)),
        np.float32(threshold),
    ):
        short = _rounded_down(np.array([threshold]))[0]
        assert (value <= short) == (np.float64(value) <= threshold)
