"""Saved heads: the same probabilities after reading, and files that are refused with a reason."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LogisticRegression

from cache.recipe import Recipe
from pipeline import randomness
from pipeline.data import patients
from pipeline.errors import ModelError, ResultsError
from pipeline.heads import HEADS, mlp, save
from pipeline.heads.base import PREPROCESSING, PreprocessedHead, make_preprocessing
from pipeline.heads.save import Network, SavedHead, fit_keys, head_folder, load_head, save_head
from pipeline.heads.search import Fit
from tests import tiny
from tests.made_up import made_up_rows

RECIPE = Recipe(
    backbone="tiny", cut="end", pooling="mean", weights="0" * 64, preprocessing={"size": 32}
)
#: Fewer epochs and trees: what is saved has the same parts.
SMALL = {"mlp": {"epochs": 2}, "forest": {"n_estimators": 5}}


#: Of patients that no head was fitted to.
OTHER = made_up_rows(n=50, d=9, seed=1).features


def fitted(name="linear", *, classes=2, seed=0, preprocessing="standardise"):
    rows = made_up_rows(classes, n=90, d=9, gap=0.5)
    if isinstance(head := name, str):
        head = HEADS[name].make(seed).set_params(**SMALL.get(name, {}))
    transformer = make_preprocessing(preprocessing, (9,)).fit(rows.features)
    return PreprocessedHead(transformer, head.fit(transformer.transform(rows.features), rows.label))


def saved(*models, classes=2, **more):
    values = {
        "head": "some", "study": "tiny", "classes": tuple(f"c{k}" for k in range(classes)),
        "networks": (Network(recipe=RECIPE, dim=9, weights="imagenet"),), "models": models,
        "seeds": tuple(range(len(models))), "parameters": {"C": 0.1}, "images": 90,
    }  # fmt: skip
    return SavedHead(**values | more)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "standardise") for name in HEADS), *(("linear", how) for how in PREPROCESSING)],
)
def test_a_head_is_the_same_to_the_last_bit_after_saving(name, how, classes, tmp_path):
    """Every head and every preprocessing of the tables, and two seeds as their mean."""
    models = [fitted(name, classes=classes, seed=seed, preprocessing=how) for seed in (0, 1)]
    save_head(tmp_path / "m", saved(*models, classes=classes))
    expected = np.mean([model.predict_proba(OTHER) for model in models], axis=0)
    np.testing.assert_array_equal(load_head(tmp_path / "m").predict_proba(OTHER), expected)


@pytest.mark.parametrize(("name", "keeps"), [("knn", True), ("svm", True), ("linear", False)])
def test_the_description_comes_back_and_says_whether_it_holds_features_of_patients(
    name, keeps, tmp_path
):
    """Networks with their recipes, seeds; neighbours and support vectors are rows of patients."""
    head = saved(fitted(name), window=(0.0, 9.0))
    save_head(tmp_path / "m", head)
    found = load_head(tmp_path / "m" / "model.json")
    assert replace(found, models=()) == replace(head, models=())
    assert found.contains_training_features is keeps
    values = tiny.record_of(tmp_path / "m" / "model.json")
    assert values["contains_training_features"] is keeps


class _Mine(LogisticRegression):
    """A type of somebody else."""


@pytest.mark.parametrize("head", [_Mine(), GaussianProcessClassifier()], ids=["mine", "process"])
def test_a_head_of_another_type_is_not_written(head, tmp_path):
    """What is written can be read; the message names the type."""
    with pytest.raises(ModelError, match=r"types that are not trusted: .*(_Mine|sklearn)"):
        save_head(tmp_path / "m", saved(fitted(head)))
    assert not (tmp_path / "m").exists()


def rewrite(folder, data=None, **values):
    """What somebody could do to both files, with a digest that fits."""
    files = {} if data is None else {"model.safetensors": data}
    tiny.rewrite(folder / "model.json", values, files)


@pytest.mark.parametrize(
    "name", ["tests.heads.test_save._Mine", "builtins.eval", "sklearn.show_versions"]
)
def test_a_foreign_type_in_a_file_is_named_and_never_built(name, tmp_path, monkeypatch):
    """Even where the digest fits; for an object and for what is built from arguments."""
    for structure in ({"object": name, "state": {}}, {"built": name, "arguments": [], "state": 0}):
        save_head(tmp_path / "m", saved(fitted()))
        text = np.frombuffer(json.dumps({"list": [structure]}).encode(), np.uint8)
        rewrite(tmp_path / "m", safetensors({"structure": text}))
        with pytest.raises(ModelError, match=rf"not trusted: {name}.*Open only files that"):
            load_head(tmp_path / "m")


@pytest.mark.parametrize(
    "change", [{"format": 1}, {"classes": None}, {"networks": [{}]}, {"images": "many"}]
)
def test_a_description_that_does_not_fit_is_one_clear_error(change, tmp_path):
    """Wrong types, another version, another file."""
    save_head(tmp_path / "m", saved(fitted()))
    rewrite(tmp_path / "m", **change)
    reason = "has format 1, this headrace reads 6: install" if "format" in change else "is damaged"
    with pytest.raises(ModelError, match=reason):
        load_head(tmp_path / "m")


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path):
    """What a crash between the two files leaves."""
    for name in ("prior", "linear"):
        save_head(tmp_path / name, saved(fitted(name)))
    (tmp_path / "prior" / "model.safetensors").replace(tmp_path / "linear" / "model.safetensors")
    for name in ("prior", "linear"):
        with pytest.raises(ResultsError, match="safetensors is not the file that model.json"):
            load_head(tmp_path / name)


def test_a_folder_without_a_head_says_where_heads_are(tmp_path):
    """One level too high is the likely mistake."""
    save_head(head_folder(tmp_path, "tiny+two", "forest"), saved(fitted("prior")))
    with pytest.raises(ModelError, match=r"name one: .*forest"):
        load_head(tmp_path / "heads" / "tiny+two")
    with pytest.raises(ModelError, match=r"there is no model.json; `headrace heads` writes"):
        load_head(tmp_path / "nowhere")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), truncated=st.booleans())
def test_any_bytes_are_a_head_or_one_error_of_ours(at, byte, truncated, tmp_path):
    """With a digest that fits; the arrays are numbers of a linear head, so no number can crash."""
    folder = tmp_path / "m"
    save_head(folder, saved(fitted("linear")))
    data = bytearray((folder / "model.safetensors").read_bytes())
    at %= len(data)
    data[at] = byte
    rewrite(folder, bytes(data[:at] if truncated else data))
    try:
        proba = load_head(folder).predict_proba(OTHER)
    except ModelError:
        return
    assert np.isfinite(proba).all()


def test_features_of_another_width_are_refused():
    """Before anything is computed from them."""
    with pytest.raises(ModelError, match=r"features of shape \(50, 4\): the head takes \(n, 9\)"):
        saved(fitted()).predict_proba(OTHER[:, :4])


# What a fit has shown.

FILES = ("model.json", "model.safetensors", save._FIT)
FIT = Fit(
    models=("never written",),
    seeds=(0, 1),
    proba=np.arange(12.0).reshape(2, 3, 2),
    chosen={"C": 0.1, "kernel": "rbf"},
    curves={"fit_loss": [0.7, 0.5]},
    out_of_fold=np.full((2, 3, 2), np.nan),
    seconds=1.5,
)


@pytest.fixture
def stored(tmp_path):
    """Whether the fit is read back, under a key and with as many repeats of the folds."""
    save.save_fit(tmp_path, "tiny", saved(fitted("prior")), FIT, "key")
    return partial(save.read_fit, tmp_path, "tiny", "some")


def test_a_fit_comes_back_without_its_models(stored):
    """Numbers as they were."""
    found, digests = stored("key")
    assert digests.keys() == {f"heads/tiny/some/{name}" for name in FILES}
    assert found.models == ()
    for name in ("seeds", "chosen", "curves", "seconds"):
        assert getattr(found, name) == getattr(FIT, name)
    np.testing.assert_array_equal(found.proba, FIT.proba)
    np.testing.assert_array_equal(found.out_of_fold, FIT.out_of_fold)


def test_what_cannot_be_used_is_no_error(stored, tmp_path):
    """Another key, a damaged file, a head that is not saved, nothing at all."""
    assert stored("other") is None
    folder = head_folder(tmp_path, "tiny", "some")
    for name in FILES:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        assert stored("key") is None
        (folder / name).write_bytes(data)
    assert stored("key") is not None
    (folder / "model.json").unlink()
    assert stored("key") is None


def test_the_key_moves_with_everything_that_a_fit_depends_on(monkeypatch):
    """Features, labels, parameters, choices, seeds of a stochastic head, preprocessing, code.

    And what is saved beside the fit: classes, the place of the weights, how files are read.
    """
    rows = made_up_rows(n=20)
    samples = SimpleNamespace(
        **dict.fromkeys(("group", "domain", "split"), rows.group), label=rows.label
    )
    network = Network(recipe=RECIPE, dim=8, weights="here.pth")

    def key(head="mlp", how=MappingProxyType({}), described=MappingProxyType({}), **more):
        given = {"samples": samples, "X": rows.features, "seeds": (0, 1), "preprocessing": "l2"}
        specs = {head: replace(HEADS[head], **how)}
        unfitted = replace(saved(), **{"networks": (network,)} | described)
        return fit_keys(unfitted, specs=specs, **given | more)[head]

    others = [
        key(X=-rows.features),
        key(samples=SimpleNamespace(**vars(samples) | {"label": 1 - rows.label})),
        key(described={"classes": ("healthy", "tuberculosis")}),
        key(described={"window": (0, 9)}),
        key(described={"frame": "first"}),
        key(described={"networks": (replace(network, weights="there.pth"),)}),
        key(described={"networks": (replace(network, recipe=replace(RECIPE, weights="01")),)}),
        key("linear"),
        key(how={"about": "mlp with {'hidden': 8}"}),
        key(how={"choices": ({"learning_rate": 1e-4}, {})}),
        key(seeds=(0, 1, 2)),
        key(preprocessing="none"),
    ]
    assert len({key(), *others}) == 13
    assert key("linear", seeds=(0,)) == key("linear", seeds=(0, 1))
    first = key()
    monkeypatch.setattr(save, "code_version", lambda *_: "another")
    assert key() != first


def test_the_code_of_folds_and_of_randomness_is_in_the_key(monkeypatch):
    """Beside that of the heads: other folds or other draws are another fit."""
    hashed = set()
    monkeypatch.setattr(Path, "read_bytes", lambda file: hashed.add(file) or b"")
    save.code_version.__wrapped__(*save._CODE)
    for module in (save, mlp, patients, randomness):
        assert Path(module.__file__) in hashed
