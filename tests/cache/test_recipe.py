"""A recipe names all that makes features comparable; meta.json keeps it, with the canaries."""

import json
from contextlib import suppress
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CanaryError, StoreFormatError
from cache.recipe import FORMAT, Recipe, check_canaries, relative_l2
from cache.store import FeatureStore
from tests import cache_jobs as jobs

CANARIES = np.linspace(1, 2, 12, dtype=np.float32).reshape(4, 3)
CPU = {"device": "cpu", "torch": "2.14"}

CHANGED = {
    "backbone": "other",
    "cut": "elsewhere",
    "pooling": "max",
    "weights": "1" * 64,
    "preprocessing": {"resize": 9, "mean": [0.5]},
    "precision": "bf16",
    "format": FORMAT + 1,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_each_field_changes_the_fingerprint(field):
    """Two recipes that differ anywhere never share a store, and the difference has a name."""
    other = jobs.recipe_with(**{field: CHANGED[field]})
    assert other.fingerprint != jobs.RECIPE.fingerprint
    assert other.folder != jobs.RECIPE.folder
    name = "preprocessing.resize" if field == "preprocessing" else field
    assert set(jobs.RECIPE.changes_to(other)) == {name}


json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.floats(-2, 2),
    st.sampled_from(["", "1", "null"]),
)
transforms = st.dictionaries(
    st.sampled_from("abc"), st.one_of(json_values, st.lists(json_values, max_size=2)), max_size=3
)


@given(here=transforms, there=transforms)
def test_recipes_differ_if_and_only_if_a_change_is_named(here, there):
    """Also for 1, 1.0 and true, and for null beside absent, which JSON tells apart."""
    a, b = jobs.recipe_with(preprocessing=here), jobs.recipe_with(preprocessing=there)
    assert (a.fingerprint == b.fingerprint) == (not a.changes_to(b))


@given(transform=transforms)
def test_a_recipe_survives_json(transform):
    """What is read back has the same fingerprint; the order of keys says nothing."""
    recipe = jobs.recipe_with(preprocessing=transform)
    back = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    turned = jobs.recipe_with(preprocessing=dict(reversed(transform.items())))
    assert back.fingerprint == recipe.fingerprint == turned.fingerprint


def test_the_fingerprint_of_format_1_never_moves():
    """If this value changes, every store of every user is lost: raise FORMAT instead."""
    fingerprint = "b8c8069213d2014f"
    assert jobs.RECIPE.fingerprint[:16] == fingerprint
    assert jobs.RECIPE.folder == f"tiny-{fingerprint}"


def test_a_folder_name_is_safe_for_any_backbone():
    """Slashes, colons and spaces of a network's name do not reach the disk."""
    assert jobs.recipe_with(backbone="timm:a/../b c").folder.startswith("timm_a_.._b_c-")


@pytest.fixture
def store(store):
    """With canaries."""
    check_canaries(store.path, store.recipe, CANARIES, provenance=CPU)
    return store


def _edit(store, change):
    file = store.path / "meta.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


def test_a_newer_store_is_refused_with_the_way_out(store):
    """Its rows may mean something else; the message says how to upgrade."""
    _edit(store, lambda meta: meta["recipe"].update(format=FORMAT + 1, novelty=1))
    with pytest.raises(StoreFormatError, match=r"format 2, .*up to 1: upgrade it \(pip install"):
        FeatureStore.open(store.path)


def test_the_first_network_founds_the_canaries_and_the_same_one_passes(store):
    """Rounding of another engine passes too, with its distance."""
    assert check_canaries(store.path, store.recipe, CANARIES, provenance=CPU) == 0
    distance = check_canaries(store.path, store.recipe, CANARIES * (1 + 2e-5), provenance={})
    assert 1e-5 < distance < 3e-5


@pytest.mark.parametrize(
    "features",
    [CANARIES * (1 + 2e-4), CANARIES[::-1], CANARIES[:3]],
    ids=["scaled", "swapped", "fewer"],
)
def test_another_network_is_refused(store, features):
    """The message tells what changed since, and nothing is written."""
    before = (store.path / "meta.json").read_bytes()
    with pytest.raises(CanaryError, match=r"changed since: torch 2\.14 -> 2\.15\. Undo") as error:
        check_canaries(
            store.path, store.recipe, features, provenance={"device": "cpu", "torch": "2.15"}
        )
    assert error.value.exit_code == 3
    assert (store.path / "meta.json").read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("founded", [True, False])
def test_canaries_that_are_not_finite_are_refused(store, value, founded):
    """A broken network neither passes nor becomes the reference."""
    if not founded:
        (store.path / "meta.json").unlink()
    broken = CANARIES.copy()
    broken[1, 1] = value
    with pytest.raises(CanaryError, match="not finite"):
        check_canaries(store.path, store.recipe, broken, provenance=CPU)
    assert (store.path / "meta.json").exists() == founded


def test_the_canaries_of_another_recipe_are_refused(store):
    """A ``meta.json`` that was copied here says nothing about this store."""
    other = FeatureStore(store.path.parent, jobs.recipe_with(weights="1" * 64))
    other.prepare()
    (other.path / "meta.json").write_bytes((store.path / "meta.json").read_bytes())
    with pytest.raises(StoreFormatError, match="holds another recipe"):
        check_canaries(other.path, other.recipe, CANARIES, provenance=CPU)


def test_relative_l2_is_the_distance_over_the_length():
    """Row by row, against the plain formula; not finite counts as infinitely far."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3, 2)).astype(np.float32)
    expected = [
        sum((float(x) - float(y)) ** 2 for x, y in zip(p.flat, q.flat, strict=True)) ** 0.5
        / sum(float(y) ** 2 for y in q.flat) ** 0.5
        for p, q in zip(a, b, strict=True)
    ]
    assert np.allclose(relative_l2(a, b), expected, rtol=1e-12)
    assert relative_l2(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)) == 0
    a[1, 0, 0], b[2, 0, 0], a[3, 1, 1], b[3, 1, 1] = np.inf, np.nan, np.inf, np.inf
    assert list(np.isinf(relative_l2(a, b))) == [False, True, True, True, False]


DAMAGED = {
    "nothing": b"",
    "no json": b"{",
    "no text": b"\xff\xfe",
    "list": b"[]",
    "nested": b"[" * 200_000,
    "number": b"3",
    "recipe a number": b'{"recipe": 3}',
    "recipe a list": b'{"recipe": []}',
    "recipe empty": b'{"recipe": {}}',
    "a field of a wrong kind": json.dumps({"recipe": jobs.RECIPE.to_json() | {"cut": 3}}).encode(),
    "format of a wrong kind": json.dumps(
        {"recipe": jobs.RECIPE.to_json() | {"format": "x"}}
    ).encode(),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_meta_file_is_a_plain_error(store, case):
    """Both who opens the store and who compares canaries is told which file it is."""
    (store.path / "meta.json").write_bytes(DAMAGED[case])
    with pytest.raises(StoreFormatError):
        FeatureStore.open(store.path)
    with pytest.raises(StoreFormatError, match=r"meta\.json is damaged .*Remove it"):
        check_canaries(store.path, store.recipe, CANARIES, provenance=CPU)


def test_any_flipped_bit_of_the_meta_file_is_an_error_or_harmless(store):
    """A store opens with its own recipe or not at all; canaries pass or refuse."""
    file = store.path / "meta.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        file.write_bytes(data)
        with suppress(StoreFormatError):
            assert FeatureStore.open(store.path).recipe == store.recipe
        with suppress(StoreFormatError, CanaryError):
            assert check_canaries(store.path, store.recipe, CANARIES, provenance=CPU) <= 1e-4
