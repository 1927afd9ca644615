"""The frozen prefix runs once; what it said is read back for every epoch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.finetune.cuts as prefix_module
from cache.store import FeatureStore
from pipeline.data.samples import load_samples
from pipeline.errors import ImageError, NoImagesError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.features.frozen import Frozen, build
from pipeline.features.load import store_for
from pipeline.finetune.cuts import Place, cut_of, store_at, take
from pipeline.finetune.data import limited, pixels_of
from pipeline.study import load_study
from tests.tiny import write_tiny_study
from tests.tiny_trainable import install_trainable_tiny

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=4)


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study whose backbone has a cut."""
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return load_study(write_tiny_study(tmp_path))


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Names of the networks that are built to be run."""
    made = []
    real = prefix_module.frozen_part
    monkeypatch.setattr(
        prefix_module,
        "frozen_part",
        lambda place, store: made.append(place.choice.name) or real(place, store),
    )
    return made


def at_cut(study, **changes):
    return Place(choice=study.backbones[0], **changes)


def test_the_prefix_runs_once_over_each_image(study, builds):
    """A second run builds nothing and computes nothing; rows keep their shape."""
    samples, _ = load_samples(study)
    first = take(study, at_cut(study), samples, TORCH)
    again = take(study, at_cut(study), samples, TORCH)
    assert (first.computed, again.computed, again.seconds) == (60, 0, 0.0)
    assert first.shape == again.shape == (6, 8, 8)
    assert builds == ["tiny"]
    everything = np.arange(60)
    assert torch.equal(first.examples.batch(everything), again.examples.batch(everything))


def test_stored_activations_are_those_of_the_prefix(study, tmp_path):
    """Row by row, for the image that the sample names."""
    samples, _ = load_samples(study)
    taken = take(study, at_cut(study), samples, TORCH)
    network = build("tiny", tmp_path / "tiny.pth")
    frozen = Frozen(cut_of("tiny").split(network)[0], at_cut(study).policy)
    rows = np.array([7, 3, 41])
    expected = frozen(pixels_of(samples, at_cut(study).policy).take(rows).batch(np.arange(3)))
    found = taken.examples.take(rows)
    torch.testing.assert_close(found.batch(np.arange(3)), expected)
    np.testing.assert_array_equal(found.label, samples.label[rows])


def test_cut_and_pooling_are_in_the_recipe(study):
    """Activations and pooled features can never be taken for each other."""
    recipe = store_at(study, at_cut(study)).recipe
    changes = store_for(study, study.backbones[0]).recipe.changes_to(recipe)
    assert changes == {
        "cut": ("before the classifier", "after the first stage"),
        "pooling": ("global average", "none"),
    }
    samples, _ = load_samples(study)
    take(study, at_cut(study), samples, TORCH)
    opened = FeatureStore.open(store_at(study, at_cut(study)).path)
    assert (len(opened), opened.recipe.pooling) == (60, "none")


def test_another_image_size_is_another_store(study):
    """The size is part of the preprocessing, so of the recipe."""
    changes = store_at(study, at_cut(study)).recipe.changes_to(
        store_at(study, at_cut(study, size=16)).recipe
    )
    assert changes == {"preprocessing.size": (32, 16)}
    samples, _ = load_samples(study)
    assert take(study, at_cut(study, size=16), samples, TORCH).shape == (6, 4, 4)


def test_pooled_features_are_those_of_stage_1(study, builds):
    """At the backbone's own size the linear probe reads what is there already."""
    extract(study, ExtractOptions(engine=TORCH))
    samples, _ = load_samples(study)
    taken = take(study, at_cut(study, at_cut=False), samples, TORCH)
    assert (taken.computed, taken.shape) == (0, (8,))
    assert builds == []
    stored = store_for(study, study.backbones[0]).read(samples.key)
    np.testing.assert_array_equal(taken.examples.batch(np.arange(60)).numpy(), stored)


def test_an_interrupt_keeps_what_was_computed(study, monkeypatch):
    """The rules of stage 1 hold: what was committed stands, the next run computes the rest."""
    import pipeline.features.extract as filling_module

    samples, _ = load_samples(study)
    real = filling_module.compute_features

    def interrupted(images, engine):
        for number, pair in enumerate(real(images, engine)):
            if number == 24:
                raise KeyboardInterrupt
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(filling_module, "compute_features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(study, at_cut(study), samples, TORCH)
    assert take(study, at_cut(study), samples, TORCH).computed == 36


def test_more_than_memory_should_hold_is_refused(study, monkeypatch):
    """The limit is said, and what to do."""
    monkeypatch.setattr(prefix_module, "HELD_BYTES", 1000)
    samples, _ = load_samples(study)
    with pytest.raises(NoImagesError, match="activations of 60 images take .*use --limit"):
        take(study, at_cut(study), samples, TORCH)


def test_an_image_that_went_bad_is_named(study):
    """A method must not train on fewer images than it says."""
    samples, _ = load_samples(study)
    Path(samples.items[5].file).write_bytes(b"no image any more")
    with pytest.raises(
        NoImagesError, match="cannot be used .changed while.*; run headrace features STUDY"
    ):
        take(study, at_cut(study), samples, TORCH)
    with pytest.raises(
        ImageError, match="cannot be used .changed while.*; run headrace features STUDY"
    ):
        pixels_of(samples, at_cut(study).policy)


def test_pixels_are_the_same_held_or_decoded_anew(study):
    """Memory decides how, never what."""
    samples, _ = load_samples(study)
    policy = at_cut(study).policy
    rows, batch = np.array([9, 2, 30, 59]), np.array([3, 0])
    held, decoding = pixels_of(samples, policy), pixels_of(samples, policy, held_bytes=0)
    assert type(held) is not type(decoding)
    assert torch.equal(held.take(rows).batch(batch), decoding.take(rows).batch(batch))
    assert held.batch(batch).shape == (2, 32, 32, 3)
    assert len(decoding.take(rows)) == len(held.take(rows)) == 4
    np.testing.assert_array_equal(held.take(rows).label, decoding.take(rows).label)


def test_copies_of_an_image_share_a_row(study, tmp_path):
    """Each key once in memory; both samples are there."""
    first = sorted((tmp_path / "here" / "a").iterdir())[0]
    first.with_name("p1000_copy.png").write_bytes(first.read_bytes())
    samples, _ = load_samples(study)
    assert len(samples) == 61
    taken = take(study, at_cut(study), samples, TORCH)
    assert taken.computed == 60
    assert len(taken.examples) == 61
    assert len(pixels_of(samples, at_cut(study).policy)) == 61


def test_a_limit_keeps_every_split_and_class(study):
    """By class in proportion; at least one image of each."""
    samples, _ = load_samples(study)
    few = limited(samples, 6, seed=0)
    for domain, split in (("source", "fit"), ("source", "validation"), ("there", "target")):
        labels = few.label[(few.domain == domain) & (few.split == split)]
        assert np.bincount(labels).tolist() == [3, 3]
    assert np.bincount(limited(samples, 1, seed=0).label).min() == 3
    assert limited(samples, None, seed=0) is samples
    assert len(limited(samples, 10_000, seed=0)) == 60


def test_a_smaller_limit_takes_a_part_of_a_larger(study):
    """The draw hangs on seed and content alone."""
    samples, _ = load_samples(study)
    few, more = (set(limited(samples, n, seed=0).key) for n in (4, 10))
    assert few < more
    assert few != set(limited(samples, 4, seed=1).key)
    turned = replace(
        samples.where(np.ones(60, bool)),
        **{
            name: getattr(samples, name)[::-1]
            for name in ("items", "key", "label", "group", "domain", "split")
        },
    )
    assert set(limited(turned, 4, seed=0).key) == few


def test_canaries_guard_the_activations(study):
    """Shapes are kept there too, so another engine is compared before anything is mixed."""
    samples, _ = load_samples(study)
    take(study, at_cut(study), samples, TORCH)
    meta = json.loads((store_at(study, at_cut(study)).path / "meta.json").read_text())
    assert meta["canaries"]["shape"] == [4, 6, 8, 8]
