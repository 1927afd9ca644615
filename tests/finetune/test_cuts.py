"""The frozen prefix runs once; its activations are read back for every epoch."""

import numpy as np
import pytest
import torch

import pipeline.finetune.cuts as cuts_module
from cache.store import FeatureStore
from pipeline.data.samples import load_samples
from pipeline.errors import NoImagesError
from pipeline.features.frozen import Frozen, build
from pipeline.features.load import store_for
from pipeline.finetune.cuts import cut_of, frozen_store, pixel_policy, stored_rows
from pipeline.finetune.data import load_pixels
from tests.finetune.conftest import TORCH


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Names of the networks that are built to be run."""
    made = []
    real = cuts_module._frozen_part
    monkeypatch.setattr(
        cuts_module,
        "_frozen_part",
        lambda choice, *a, **k: made.append(choice.name) or real(choice, *a, **k),
    )
    return made


def activations(study, samples, **options):
    """Of a study's only backbone, at the cut unless it is said otherwise."""
    options = {"at_cut": True, "engine": TORCH, **options}
    return stored_rows(study, study.backbones[0], samples, **options)


def store_of(study, **options):
    """Where they are kept."""
    return frozen_store(study, study.backbones[0], **{"at_cut": True, **options})


def row_shape(rows):
    """Of one image's activations."""
    return tuple(rows.batch(np.zeros(1, int)).shape[1:])


def test_the_prefix_runs_once_over_each_image(study, builds, tmp_path):
    """A second run builds nothing and computes nothing; copies of an image share a row."""
    first = sorted((tmp_path / "here" / "a").iterdir())[0]
    first.with_name("p1000_copy.png").write_bytes(first.read_bytes())
    samples, _ = load_samples(study)
    first = activations(study, samples)
    again = activations(study, samples)
    assert len(store_of(study)) == 60
    assert row_shape(first) == row_shape(again) == (6, 8, 8)
    assert builds == ["tiny"]
    everything = np.arange(61)
    assert len(samples) == len(first) == 61
    assert torch.equal(first.batch(everything), again.batch(everything))


def test_stored_activations_are_those_of_the_prefix(study, tmp_path):
    """Row by row, for the image that the sample names."""
    samples, _ = load_samples(study)
    taken = activations(study, samples)
    network, policy = build("tiny", tmp_path / "tiny.pth"), pixel_policy(study.backbones[0], None)
    frozen = Frozen(cut_of("tiny").split(network)[0], policy)
    rows = np.array([7, 3, 41])
    expected = frozen(load_pixels(samples, policy, folder=tmp_path).take(rows).batch(np.arange(3)))
    found = taken.take(rows)
    torch.testing.assert_close(found.batch(np.arange(3)), expected)
    np.testing.assert_array_equal(found.label, samples.label[rows])


def test_cut_and_pooling_are_in_the_recipe(study):
    """Activations and pooled features can never be taken for each other."""
    recipe = store_of(study).recipe
    changes = store_for(study, study.backbones[0]).recipe.changes_to(recipe)
    assert changes == {
        "cut": ("before the classifier", "after the first stage"),
        "pooling": ("global average", "none"),
    }
    samples, _ = load_samples(study)
    activations(study, samples)
    opened = FeatureStore.open(store_of(study).path)
    assert (len(opened), opened.recipe.pooling) == (60, "none")
    # The size is part of the preprocessing, so of the recipe.
    changes = store_of(study).recipe.changes_to(store_of(study, size=16).recipe)
    assert changes == {"preprocessing.size": (32, 16)}
    assert row_shape(activations(study, samples, size=16)) == (6, 4, 4)


def test_pooled_features_are_those_of_stage_1(stored, builds):
    """At the backbone's own size the linear probe reads what is there already."""
    samples, _ = load_samples(stored)
    taken = activations(stored, samples, at_cut=False)
    assert builds == []
    rows = store_for(stored, stored.backbones[0]).read(samples.key)
    np.testing.assert_array_equal(taken.batch(np.arange(60)).numpy(), rows)


def test_more_than_memory_should_hold_is_refused(study, monkeypatch):
    """The limit is said, and what to do."""
    monkeypatch.setattr(cuts_module, "HELD_BYTES", 1000)
    samples, _ = load_samples(study)
    with pytest.raises(NoImagesError, match="activations of 60 images take .*use --limit"):
        activations(study, samples)
