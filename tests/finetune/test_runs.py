"""Runs: what they read, held once; they train what they should, keep it, and are not done twice."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pipeline.finetune.data as data_module
import pipeline.finetune.runs as runs_module
from pipeline.data.patients import FIT
from pipeline.data.samples import load_samples
from pipeline.errors import ImageError, NoImagesError
from pipeline.features.frozen import FeatureExtractor, build
from pipeline.features.load import store_for
from pipeline.finetune.data import augment_lightly, examples_of, limit_images, load_pixels
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from pipeline.finetune.networks import Classifier, cut_of
from pipeline.finetune.runs import Experiment, fold_norms, interpolate, run_method
from tests.finetune.jobs import Pictures
from tests.tiny import flip


@pytest.fixture
def samples(study):
    """Sixty images: forty of the source, twenty of the target."""
    return load_samples(study)[0]


def run_of(study, samples=None, size=None, folder=Path(), given=None):
    """What its methods share."""
    return Experiment(
        study=study,
        choice=study.backbones[0],
        samples=samples,
        folder=folder,
        image_size=size,
        given=given or {},
    )


@pytest.fixture
def run(stored, tmp_path):
    """An experiment on a study whose features are stored."""
    given = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3}
    return run_of(stored, load_samples(stored)[0], folder=tmp_path / "models", given=given)


@pytest.fixture
def transform(study):
    """From bytes to 32 x 32 pixels."""
    return run_of(study).transform


def activations(study, samples, size=None):
    """At the cut."""
    return run_of(study, samples, size).examples("last_block")


# Pixels


def test_pixels_are_the_same_in_memory_and_in_a_file(samples, transform, tmp_path, monkeypatch):
    """Their size decides where, never what; the file has no name that could stay behind."""
    rows, batch = np.array([9, 2, 30, 59]), np.array([3, 0])
    in_memory = load_pixels(samples, transform, folder=tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(data_module, "PIXEL_BYTES", 0)
    in_file = load_pixels(samples, transform, folder=tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert torch.equal(in_memory.values, in_file.values)
    assert torch.equal(in_memory.take(rows).batch(batch), in_file.values[[59, 9]])
    assert in_memory.batch(batch).shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(in_file.take(rows).label, samples.label[rows])

    def full(*_):  # a write into the mapped file would kill the process
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        load_pixels(samples, transform, folder=tmp_path)


@pytest.mark.parametrize(("free", "moves"), [(100, ["cuda:1"]), (99, [])])
def test_half_of_the_devices_free_memory_holds_rows(monkeypatch, free, moves):
    """Fifty bytes; what takes more stays in memory and is copied batch by batch."""
    values, moved = np.zeros((5, 10), np.uint8), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1000))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device: moved.append(device) or torch.empty(1)
    )
    examples_of(values, np.arange(5), np.zeros(5, np.int64), "cuda:1")
    assert moved == moves


def test_an_image_that_went_bad_is_named(study, samples, transform, tmp_path):
    """A method must not train on fewer images than it says, of pixels or of activations."""
    Path(samples.items[5].file).write_bytes(b"no image any more")
    message = "cannot be used .changed while.*; run headrace features STUDY"
    with pytest.raises(ImageError, match=message):
        load_pixels(samples, transform, folder=tmp_path)
    with pytest.raises(ImageError, match=message):
        activations(study, samples)


# Stored rows


def test_the_prefix_runs_once_over_each_image(study, transform, tmp_path, monkeypatch):
    """Rows are those of the prefix; a second run builds nothing; copies of an image share one."""
    first = sorted((tmp_path / "here" / "a").iterdir())[0]
    first.with_name("p1000_copy.png").write_bytes(first.read_bytes())
    samples, _ = load_samples(study)
    taken = activations(study, samples)
    rows, everything = np.array([7, 3, 41]), np.arange(61)
    frozen = FeatureExtractor(
        cut_of("tiny").split(build("tiny", tmp_path / "tiny.pth"))[0], transform
    )
    expected = frozen(load_pixels(samples, transform, folder=tmp_path).batch(rows))
    torch.testing.assert_close(taken.take(rows).batch(np.arange(3)), expected)
    np.testing.assert_array_equal(taken.take(rows).label, samples.label[rows])
    monkeypatch.setattr(runs_module, "build", None)
    assert torch.equal(activations(study, samples).batch(everything), taken.batch(everything))
    assert len(run_of(study).store(at_cut=True)) == 60
    assert taken.batch(everything).shape == (61, 6, 8, 8)


def test_cut_and_pooling_are_in_the_recipe(study, samples):
    """Activations and pooled features can never be taken for each other."""
    recipe, small = (run_of(study, size=size).store(at_cut=True).recipe for size in (None, 16))
    changes = store_for(study.store_root, study.backbones[0]).recipe.changes_to(recipe)
    assert changes == {
        "cut": ("before the classifier", "after the first stage"),
        "pooling": ("global average", "none"),
    }
    # The size is part of the preprocessing, so of the recipe.
    assert recipe.changes_to(small) == {"preprocessing.size": (32, 16)}
    smaller = activations(study, samples, size=16)
    assert smaller.batch(np.arange(2)).shape == (2, 6, 4, 4)


def test_pooled_features_are_those_of_stage_1(stored, monkeypatch):
    """At the backbone's size the linear probe reads what is there already."""
    samples, _ = load_samples(stored)
    monkeypatch.setattr(runs_module, "build", None)
    taken = run_of(stored, samples).examples("lp")
    rows = store_for(stored.store_root, stored.backbones[0]).read(samples.key)
    np.testing.assert_array_equal(taken.batch(np.arange(60)).numpy(), rows)


def test_more_than_memory_should_hold_is_refused(study, samples, monkeypatch):
    """The limit is said, and what to do."""
    monkeypatch.setattr(data_module, "ROW_BYTES", 1000)
    with pytest.raises(NoImagesError, match="activations of 60 images take .*use --limit"):
        activations(study, samples)


# Limits and augmentation


def test_a_limit_keeps_every_split_and_class(samples):
    """By class in proportion, at least one image of each, by seed and content alone."""
    few = limit_images(samples, 6, seed=0)
    for domain, split in (("source", "fit"), ("source", "validation"), ("there", "target")):
        labels = few.label[(few.domain == domain) & (few.split == split)]
        assert np.bincount(labels).tolist() == [3, 3]
        odd = limit_images(samples, 7, seed=0)
        assert sum((odd.domain == domain) & (odd.split == split)) <= 7
    assert np.bincount(limit_images(samples, 1, seed=0).label).min() == 3
    assert limit_images(samples, None, seed=0) is samples
    assert len(limit_images(samples, 10_000, seed=0)) == 60
    few, more = (set(limit_images(samples, n, seed=0).key) for n in (4, 10))
    assert few < more
    assert few != set(limit_images(samples, 4, seed=1).key)
    names = ("items", "key", "label", "group", "domain", "split")
    turned = replace(samples, **{name: getattr(samples, name)[::-1] for name in names})
    assert set(limit_images(turned, 4, seed=0).key) == few


def test_augmentation_depends_on_seed_epoch_and_row_alone():
    """Alone, in another batch, in another order: the same change of the same row."""
    pixels = torch.from_numpy(Pictures(12, side=20).pixels)
    rows, before = np.arange(12), pixels.clone()
    together = augment_lightly(pixels, 5, 2, rows)
    turned = augment_lightly(pixels.flip(0), 5, 2, rows[::-1]).flip(0)
    alone = torch.cat([augment_lightly(pixels[[row]], 5, 2, rows[[row]]) for row in rows])
    assert torch.equal(together, turned)
    assert torch.equal(together, alone)
    assert (together.dtype, together.shape) == (torch.uint8, pixels.shape)
    assert torch.equal(pixels, before)
    for other in (augment_lightly(pixels, 6, 2, rows), augment_lightly(pixels, 5, 3, rows)):
        assert all(not torch.equal(a, b) for a, b in zip(together, other, strict=True))


def test_light_is_small():
    """Half are mirrored; what is bright on the left and below stays below, and mostly whole."""
    image = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    image[:, 24:36, 4:16] = 200
    light = augment_lightly(image.expand(400, -1, -1, -1), 0, 0, np.arange(400)).float()
    left, right = light[:, :, :20].sum((1, 2, 3)), light[:, :, 20:].sum((1, 2, 3))
    assert 0.4 < (right > left).float().mean().item() < 0.6
    assert (light[:, 20:].sum((1, 2, 3)) > 4 * light[:, :20].sum((1, 2, 3))).all()
    size = light.sum((1, 2, 3)) / image.float().sum()
    assert 0.75 < size.min() < size.max() < 1.5
    assert light.max() == 200


# Trainings


def trained(run, name):
    """The record of a method that has been run."""
    run_method(run, name)
    return run.model(name).record()


def test_the_store_changes_nothing_for_a_head(run):
    """Run in every epoch or read from the store: with one seed, one head (within 1e-4)."""
    start = run.assemble("lp").state()
    stored, online = (
        trained(run, name) and run.model(name).state() for name in ("lp", "frozen_online")
    )
    assert stored.keys() == online.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, online[name], rtol=0, atol=1e-4)
        moved = not torch.equal(tensor, start[name])
        assert moved == name.startswith("head."), name


class Doubled(nn.Module):
    """From what the frozen prefix gives, in float32, to the precision of the tail."""

    def forward(self, activations):
        return activations.double()


def test_a_part_trained_from_the_store_is_the_part_trained_online(run):
    """After 20 steps in float64 all weights agree within 1e-5; the prefix has not moved."""
    samples, states = run.samples, []
    fit = np.flatnonzero(samples.split == FIT)[:16]
    settings = TrainingSettings(epochs=5, batch_size=4, learning_rate=1e-3, seed=0)
    for online in (False, True):
        made = run.assemble("last_block")
        before = {k: v.clone() for k, v in made.state().items()}
        prefix, tail = cut_of("tiny").split(made.whole.backbone)
        tail.double()
        made.whole.head.double()
        if online:
            entry = nn.Sequential(made.whole.entry, prefix, Doubled())
            examples = load_pixels(samples, run.transform, folder=Path()).take(fit)
        else:
            entry, examples = Doubled(), run.examples("last_block").take(fit)
        train(Classifier(entry, tail, made.whole.head), examples, examples, settings)
        states.append(made.state())
    stored, online = states
    moved = {k for k, v in stored.items() if not torch.equal(v, before[k].to(v.dtype))}
    moves = ("head.", "backbone.3.", "backbone.4.")
    assert {k for k in moved if not k.startswith(moves)} == set()
    assert any(k.endswith("running_mean") for k in moved)
    for name in moved:
        torch.testing.assert_close(stored[name], online[name], rtol=0, atol=1e-5)
    for name in stored.keys() - moved:
        assert torch.equal(stored[name], online[name]), name


def test_a_fine_tuned_probe_begins_with_the_probe(run):
    """lp_ft starts as the function that lp ends with: weights, and statistics, which stay."""
    trained(run, "lp")
    run.given = {**run.given, "learning_rate": 1e-12}
    trained(run, "lp_ft")
    probe, tuned = (run.model(name).state() for name in ("lp", "lp_ft"))
    assert any("running_var" in name for name in probe)
    for name in probe:
        torch.testing.assert_close(probe[name], tuned[name], rtol=0, atol=1e-6)


def test_a_damaged_model_is_trained_again(run, caplog):
    """A file that is not as it was written counts as not there."""
    first = trained(run, "lp")
    flip(run.model("lp").path / "model.safetensors", -1)
    assert run.model("lp").record() is None
    again = trained(run, "lp")
    assert [row["fit_loss"] for row in again.curves] == [row["fit_loss"] for row in first.curves]
    assert "model.safetensors is not the file that model.json was written with" in caplog.text
    assert "It is trained again when its method runs" in caplog.text


def test_the_weights_are_kept_with_what_made_them(run):
    """Safetensors and JSON: the network without what only helps to train, and its identity."""
    record = trained(run, "full")
    assert not [key for key in record.identity if "device" in key]
    folder = run.folder / "full-tiny-0"
    weights = load_file(folder / "model.safetensors")
    assert {"backbone.0.weight", "backbone.1.running_mean", "head.3.bias"} <= set(weights)
    assert run.model("full").record() == record
    assert record.identity["method"] == "full"
    assert record.identity["settings.learning_rate"] == 1e-3
    assert not (folder / "checkpoints").exists()


# WiSE-FT


def _normed(seed):
    """A network whose BatchNorm has seen something."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        network[1].running_mean.normal_()
        network[1].running_var.uniform_(1e-4, 2)
        network[1].weight.normal_()
        network[1].bias.normal_()
    return network.eval()


def test_the_line_between_two_models_is_straight_also_through_batch_norm():
    """Folding changes no output; halfway is the mean of two norms; counters are the second's."""
    images, network, other = torch.randn(2, 3, 8, 8), _normed(0), _normed(1)
    other.load_state_dict(fold_norms(network.state_dict(), network))
    torch.testing.assert_close(other(images), network(images))
    second = _normed(0)
    with torch.no_grad():
        second[1].running_var.mul_(1e-3)
    norms = [nn.Sequential(n[1]) for n in (network, second)]
    states = [fold_norms(norm.state_dict(), norm) for norm in norms]
    x = torch.randn(2, 4, 5, 5)
    expected = sum(norm(x) for norm in norms) / 2
    norms[0].load_state_dict(interpolate(*states, 0.5))
    torch.testing.assert_close(norms[0](x), expected)
    first = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    last = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(5)}
    for alpha, between in ((0.0, [0.0, 2.0]), (0.25, [0.25, 2.5]), (1.0, [1.0, 4.0])):
        point = interpolate(first, last, alpha)
        torch.testing.assert_close(point["w"], torch.tensor(between))
        assert point["n"] == 5
