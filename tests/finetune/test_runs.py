"""A run trains what it should, keeps it whole, and is not done twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.data.patients import FIT
from pipeline.data.samples import load_samples
from pipeline.finetune.data import load_pixels
from pipeline.finetune.loop import train
from pipeline.finetune.methods import TrainingSettings
from pipeline.finetune.networks import Classifier, cut_of
from pipeline.finetune.runs import Experiment, fold_norms, interpolate, run_method


@pytest.fixture
def run(stored, tmp_path):
    """An experiment on a tiny study whose features are stored."""
    return Experiment(
        study=stored,
        choice=stored.backbones[0],
        samples=load_samples(stored)[0],
        folder=tmp_path / "models",
        given={"epochs": 4, "batch_size": 8, "learning_rate": 1e-3},
    )


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
    file = run.model("lp").path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
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
