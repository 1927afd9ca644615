"""A fit is used again only where nothing that it depends on has changed."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.heads import HEADS, fit_cache
from pipeline.heads.fit_cache import FILE, fit_file, fit_key, read_fit
from pipeline.heads.save import DESCRIPTION
from pipeline.heads.search import Fit
from pipeline.results import write_set
from tests.result_files import rewrite

FIT = Fit(
    models=("never written",),
    seeds=(0, 1),
    proba=np.arange(12.0).reshape(2, 3, 2),
    chosen={"C": 0.1, "kernel": "rbf"},
    path=[{"C": 0.1, "log_loss": np.float64(0.5)}],
    curves={"fit_loss": [0.7, 0.5]},
    out_of_fold=np.full((2, 3, 2), np.nan),
    seconds=1.5,
)


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path / DESCRIPTION, {}, {"model.safetensors": b"x", **fit_file("key", FIT)})
    return tmp_path


def test_a_fit_comes_back_without_its_models(folder):
    """Numbers as they were; as many divisions in folds as are needed."""
    found, digests = read_fit(folder, "key", repeats=1)
    assert digests.keys() == {DESCRIPTION, "model.safetensors", FILE}
    assert found.models == ()
    for name in ("seeds", "chosen", "path", "curves", "seconds"):
        assert getattr(found, name) == getattr(FIT, name)
    np.testing.assert_array_equal(found.proba, FIT.proba)
    np.testing.assert_array_equal(found.out_of_fold, FIT.out_of_fold[:1])
    assert read_fit(folder, "key", repeats=0)[0].out_of_fold is None


def test_what_cannot_be_used_is_no_error(folder):
    """Another key, too few divisions, a damaged file, a head that is not saved, nothing at all."""
    assert read_fit(folder, "other", repeats=0) is None
    assert read_fit(folder, "key", repeats=3) is None
    rewrite(folder / DESCRIPTION, files=fit_file("key", replace(FIT, out_of_fold=None)))
    assert read_fit(folder, "key", repeats=1) is None
    assert read_fit(folder, "key", repeats=0) is not None
    for name in (FILE, "model.safetensors", DESCRIPTION):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        assert read_fit(folder, "key", repeats=0) is None
        (folder / name).write_bytes(data)
    (folder / DESCRIPTION).unlink()
    assert read_fit(folder, "key", repeats=0) is None


def test_the_key_moves_with_everything_that_a_fit_depends_on(monkeypatch):
    """Data, parameters, grid, seeds of a stochastic head, preprocessing, code."""

    def key(data="d", spec=HEADS["mlp"], seeds=(0, 1), preprocessing="standardise"):
        return fit_key(data, spec, seeds=seeds, preprocessing=preprocessing)

    mlp = HEADS["mlp"]
    others = [
        key(data="e"),
        key(spec=HEADS["linear"]),
        key(spec=replace(mlp, make=lambda seed: mlp.make(seed).set_params(hidden=8))),
        key(spec=replace(mlp, grid={"learning_rate": (1e-4, 1e-3)})),
        key(seeds=(0, 1, 2)),
        key(preprocessing="l2"),
    ]
    assert len({key(), *others}) == 7
    assert key() == key()
    same = [key(spec=HEADS["linear"], seeds=seeds) for seeds in ((0,), (0, 1))]
    assert same[0] == same[1]
    first = key()
    monkeypatch.setattr(fit_cache, "_code_version", lambda: "another")
    assert key() != first
