"""The methods: what the store saves changes nothing, lines are straight, names are checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from torch import nn

from pipeline.data.patients import FIT
from pipeline.data.samples import load_samples
from pipeline.errors import UnknownNameError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.finetune.cuts import Place, cut_of, take
from pipeline.finetune.data import pixels_of
from pipeline.finetune.history import convergence
from pipeline.finetune.interpolate import between, folded
from pipeline.finetune.loop import train
from pipeline.finetune.methods import METHODS, QUICK, TrainingOptions, chosen, end_of_line
from pipeline.finetune.networks import Classifier, Material, assemble
from pipeline.finetune.settings import LoopSettings
from pipeline.finetune.training import Workbench, train_method
from pipeline.study import load_study
from tests.tiny import write_tiny_study
from tests.tiny_trainable import install_trainable_tiny

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=4)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch):
    """A workbench on a tiny study whose features are stored."""
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(write_tiny_study(tmp_path))
    extract(study, ExtractOptions(engine=TORCH))
    samples, _ = load_samples(study)
    return Workbench(
        study=study,
        choice=study.backbones[0],
        samples=samples,
        options=TrainingOptions(epochs=4, batch_size=8),
        device="cpu",
        folder=tmp_path / "models",
    )


def test_the_store_changes_nothing_for_a_head(bench):
    """Run in every epoch or read from the store: with one seed, one head (within 1e-4)."""
    stored, online = (
        train_method(bench, name) and bench.model(name).state() for name in ("lp", "frozen_online")
    )
    start = assemble("lp", METHODS["lp"], _material(bench)).state()
    assert stored.keys() == online.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, online[name], rtol=0, atol=1e-4)
        moved = not torch.equal(tensor, start[name])
        assert moved == name.startswith("head."), name


def _material(bench):
    return Material(
        backbone=bench.choice.name,
        file=Path("tiny.pth"),
        policy=bench.place(at_cut=False).policy,
        classes=2,
        seed=bench.seed,
    )


class Doubled(nn.Module):
    """From what the frozen prefix gives, in float32, to the precision of the tail."""

    def forward(self, activations):
        return activations.double()


def _twenty_steps(name, file, study, size):
    """The same partial training from the store and online, in float64; states by name."""
    samples, _ = load_samples(study)
    place = Place(choice=study.backbones[0], size=size)
    taken = take(study, place, samples, TORCH)
    fit = np.flatnonzero(samples.split == FIT)[:16]
    material = Material(backbone=name, file=file, policy=place.policy, classes=2, seed=0)
    settings = LoopSettings(epochs=5, batch_size=4, learning_rate=1e-3, seed=0)
    states = []
    for online in (False, True):
        made = assemble("last_block", METHODS["last_block"], material)
        before = {k: v.clone() for k, v in made.state().items()}
        prefix, tail = cut_of(name).split(made.whole.backbone)
        tail.double()
        made.whole.head.double()
        if online:
            entry = nn.Sequential(made.whole.entry, prefix, Doubled())
            examples = pixels_of(samples, place.policy).take(fit)
        else:
            entry, examples = Doubled(), taken.examples.take(fit)
        train(Classifier(entry, tail, made.whole.head), examples, {}, settings)
        states.append(made.state())
    return before, *states


def _check_equal(before, stored, online, moves):
    moved = {k for k, v in stored.items() if not torch.equal(v, before[k].to(v.dtype))}
    assert {k for k in moved if not k.startswith(("head.", *moves))} == set()
    assert any(k.endswith("running_mean") for k in moved)
    for name in moved:
        torch.testing.assert_close(stored[name], online[name], rtol=0, atol=1e-5)
    for name in stored.keys() - moved:
        assert torch.equal(stored[name], online[name]), name


def test_a_part_trained_from_the_store_is_the_part_trained_online(bench):
    """After 20 steps in float64 all weights agree within 1e-5; the prefix has not moved."""
    states = _twenty_steps("tiny", Path("tiny.pth"), bench.study, None)
    _check_equal(*states, moves=("backbone.3.", "backbone.4."))


def test_densenet_trained_from_the_store_is_densenet_trained_online(tmp_path, monkeypatch):
    """Likewise with a real network: BatchNorm in its prefix stays in eval mode."""
    from torchvision.models import densenet121

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.save(densenet121(weights=None).state_dict(), "weights.pth")
    file = write_tiny_study(tmp_path, source=24, target=4)
    text = file.read_text().replace("[backbone.tiny]", "[backbone.densenet121]")
    file.write_text(text + 'weights = "weights.pth"\n')
    study = load_study(file)
    states = _twenty_steps("densenet121", Path("weights.pth"), study, 32)
    _check_equal(*states, moves=("backbone.features.denseblock4.", "backbone.features.norm5."))


def test_a_fine_tuned_probe_begins_with_the_probe(bench):
    """lp_ft starts as the function that lp ends with: weights, and statistics, which stay."""
    train_method(bench, "lp")
    bench.options = replace(bench.options, learning_rate=1e-12)
    train_method(bench, "lp_ft")
    probe, tuned = (bench.model(name).state() for name in ("lp", "lp_ft"))
    assert any("running_var" in name for name in probe)
    for name in probe:
        torch.testing.assert_close(probe[name], tuned[name], rtol=0, atol=1e-6)


def test_a_model_that_is_there_is_not_trained_again(bench, monkeypatch):
    """Same identity: the record is read; another learning rate: it is trained anew."""
    import pipeline.finetune.training as training_module

    first = train_method(bench, "lp")
    calls = []
    real = training_module.train
    monkeypatch.setattr(training_module, "train", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert train_method(bench, "lp") == first
    assert calls == []
    bench.options = replace(bench.options, learning_rate=1e-4)
    assert train_method(bench, "lp").identity["settings.learning_rate"] == 1e-4
    assert calls == [1]


def test_a_damaged_model_is_trained_again(bench, caplog):
    """A file that is not as it was written counts as not there."""
    first = train_method(bench, "lp")
    file = bench.model("lp").path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert bench.model("lp").record() is None
    again = train_method(bench, "lp")
    assert [row["fit_loss"] for row in again.curves] == [row["fit_loss"] for row in first.curves]
    assert "not as it was written; it will be trained again" in caplog.text


def test_frozen_online_says_what_all_epochs_would_cost(bench):
    """Measured epochs, extrapolated and marked as such; from 30 on there is nothing to add."""
    record = train_method(bench, "frozen_online")
    assert record.extrapolated["epochs"] == METHODS["lp"].epochs == 30
    assert record.extrapolated["seconds"] == pytest.approx(record.seconds / 4 * 30)
    assert train_method(bench, "lp").extrapolated is None


def test_stored_rows_are_never_augmented(bench):
    """Augmentation is for methods that read pixels; the others say so in their identity."""
    bench.options = replace(bench.options, augmentation="light")
    assert bench.identity("lp")["settings.augmentation"] == "none"
    assert bench.identity("full")["settings.augmentation"] == "light"


def normed(seed):
    """A network whose BatchNorm has seen something."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        network[1].running_mean.normal_()
        network[1].running_var.uniform_(1e-4, 2)
        network[1].weight.normal_()
        network[1].bias.normal_()
    return network.eval()


def test_folding_a_norm_changes_no_output():
    """Statistics become scale and shift, and the network says what it said."""
    images, network, other = torch.randn(2, 3, 8, 8), normed(0), normed(1)
    expected = network(images)
    other.load_state_dict(folded(network.state_dict(), network))
    torch.testing.assert_close(other(images), expected)


def test_a_norm_between_two_models_is_between_them():
    """Also where variances differ a thousandfold: halfway is the mean of the two outputs."""
    first, second = normed(0), normed(0)
    with torch.no_grad():
        second[1].running_var.mul_(1e-3)
    norms = [nn.Sequential(network[1]) for network in (first, second)]
    states = [folded(norm.state_dict(), norm) for norm in norms]
    x = torch.randn(2, 4, 5, 5)
    expected = sum(norm(x) for norm in norms) / 2
    norms[0].load_state_dict(between(*states, 0.5))
    torch.testing.assert_close(norms[0](x), expected)


def test_the_line_between_two_models_is_straight():
    """Ends are the models themselves; counters are the second's."""
    first = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(5)}
    assert torch.equal(between(first, second, 0.0)["w"], first["w"])
    assert torch.equal(between(first, second, 1.0)["w"], second["w"])
    middle = between(first, second, 0.25)
    torch.testing.assert_close(middle["w"], torch.tensor([0.25, 2.5]))
    assert middle["n"] == 5


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ((), QUICK),
        (("full",), ("full",)),
        (("lp_ft",), ("lp", "lp_ft")),
        (("wise_ft",), ("lp", "lp_ft", "wise_ft")),
        (("wise_ft", "full"), ("lp", "full", "wise_ft")),
        (("all",), tuple(METHODS)),
    ],
)
def test_methods_bring_along_what_they_start_from(asked, runs):
    """In the order of the table, so that what is needed is there."""
    assert chosen(asked) == runs


def test_the_line_ends_at_the_probe_that_was_tuned_or_else_at_full():
    """Both ends must have been trained in the run."""
    assert end_of_line(("lp", "full", "lp_ft", "wise_ft")) == "lp_ft"
    assert end_of_line(("lp", "full", "wise_ft")) == "full"


def test_an_unknown_method_lists_the_table():
    """Every name that is allowed, and all."""
    with pytest.raises(UnknownNameError, match=r"unknown method 'ful'; known: lp, .*, all"):
        chosen(("ful",))


@pytest.mark.parametrize(
    ("losses", "converged", "trend"),
    [
        ([1.0, 0.9, 0.8], None, None),
        ([1.0, 0.9, 0.8, 0.7], None, None),
        ([1.0, 0.9, 0.8, 0.7, 0.6], False, "falling"),
        ([1.0, 0.9, 0.7, 0.8, 0.6], False, "falling"),
        ([9.0, 8.0, 0.5, 0.5, 0.501, 0.499, 0.5], True, "flat"),
        ([0.3, 0.35, 0.42, 0.45, 0.5], True, "rising"),
        ([0.5, 0.9, 0.5, 0.9, 0.5], None, "noisy"),  # no slope, but which one is not known
        ([0.9, 0.5, 0.8, 0.6, 0.7], None, "noisy"),
    ],
)
def test_convergence_is_judged_by_the_last_epochs(losses, converged, trend):
    """By a rule that is written beside the answer."""
    found = convergence(losses)
    assert (found.converged, found.trend) == (converged, trend)
    assert "last 5 epochs" in found.rule


def test_the_slope_and_its_error_are_those_of_least_squares():
    """Against scipy on the last five."""
    losses = [5.0, 0.9, 0.7, 0.75, 0.6, 0.5]
    found, line = convergence(losses), linregress(range(5), losses[1:])
    assert found.slope == pytest.approx(line.slope)
    assert found.slope_error == pytest.approx(line.stderr)


def test_a_kept_model_is_judged_by_the_rule_of_today(bench):
    """Of a rule that was another when it was trained nothing is left in a table."""
    train_method(bench, "lp")
    file = bench.model("lp").path / "model.json"
    content = json.loads(file.read_text())
    content["record"]["convergence"] = {"converged": True, "trend": "flat", "slope": 0.0}
    file.write_text(json.dumps(content))
    record = bench.model("lp").record()
    assert record.convergence == convergence([row["validation_loss"] for row in record.curves])
