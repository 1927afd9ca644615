"""A fit is used again only where nothing that it depends on has changed."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from cache.recipe import Recipe
from pipeline import randomness
from pipeline.data import patients
from pipeline.data.grey_levels import Reading
from pipeline.heads import HEADS, mlp, save
from pipeline.heads.save import DESCRIPTION, FIT_FILE, Network, fit_file, fit_keys, read_fit
from pipeline.heads.search import Fit
from pipeline.results import write_set
from tests.heads.made_up_rows import made_up_rows
from tests.result_files import rewrite

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
def folder(tmp_path):
    write_set(tmp_path / DESCRIPTION, {}, {"model.safetensors": b"x", **fit_file("key", FIT)})
    return tmp_path


def test_a_fit_comes_back_without_its_models(folder):
    """Numbers as they were."""
    found, digests = read_fit(folder, "key")
    assert digests.keys() == {DESCRIPTION, "model.safetensors", FIT_FILE}
    assert found.models == ()
    for name in ("seeds", "chosen", "curves", "seconds"):
        assert getattr(found, name) == getattr(FIT, name)
    np.testing.assert_array_equal(found.proba, FIT.proba)
    np.testing.assert_array_equal(found.out_of_fold, FIT.out_of_fold)


def test_what_cannot_be_used_is_no_error(folder):
    """Another key, a damaged file, a head that is not saved, nothing at all."""
    assert read_fit(folder, "other") is None
    rewrite(folder / DESCRIPTION, files=fit_file("key", replace(FIT, out_of_fold=None)))
    assert read_fit(folder, "key")[0].out_of_fold is None
    for name in (FIT_FILE, "model.safetensors", DESCRIPTION):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        assert read_fit(folder, "key") is None
        (folder / name).write_bytes(data)
    (folder / DESCRIPTION).unlink()
    assert read_fit(folder, "key") is None


def test_the_key_moves_with_everything_that_a_fit_depends_on(monkeypatch):
    """Features, labels, parameters, grid, seeds of a stochastic head, preprocessing, code.

    And what is saved beside the fit: classes, the place of the weights, how files are read.
    """
    rows = made_up_rows(n=20)
    samples = SimpleNamespace(
        **dict.fromkeys(("group", "domain", "split"), rows.group),
        label=rows.label,
        classes=("healthy", "ill"),
        items=[SimpleNamespace(reading=Reading())],
    )
    recipe = Recipe(backbone="b", cut="c", pooling="p", weights="00", preprocessing={})
    network = Network(recipe=recipe, dim=8, weights="here.pth")

    def key(
        head="mlp",
        X=rows.features,
        changed=MappingProxyType({}),
        seeds=(0, 1),
        preprocessing="l2",
        network=network,
        **how,
    ):
        return fit_keys(
            SimpleNamespace(**vars(samples) | changed),
            X,
            {head: replace(HEADS[head], **how)},
            seeds=seeds,
            preprocessing=preprocessing,
            networks=[network],
        )[head]

    others = [
        key(X=-rows.features),
        key(changed={"label": 1 - rows.label}),
        key(changed={"classes": ("healthy", "tuberculosis")}),
        key(changed={"items": [SimpleNamespace(reading=Reading(window=(0, 9)))]}),
        key(changed={"items": [SimpleNamespace(reading=Reading(frame="first"))]}),
        key(network=replace(network, weights="there.pth")),
        key(network=replace(network, recipe=replace(recipe, weights="01"))),
        key("linear"),
        key(about="mlp with {'hidden': 8}"),
        key(grid={"learning_rate": (1e-4, 1e-3)}),
        key(seeds=(0, 1, 2)),
        key(preprocessing="none"),
    ]
    assert len({key(), *others}) == 13
    assert key() == key()
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
