"""Networks that can be trained: the same features as the frozen ones, parts that fit together."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import EngineError
from pipeline.features import backbones
from pipeline.features.backbones import spec_of
from pipeline.features.frozen import Frozen, build
from pipeline.finetune.networks import CUTS, assemble, cut_of, main_logits, training_loss
from tests.tiny import install_trainable_tiny

#: Of one image of 224 x 224 at the cut.
SHAPES = {
    "densenet121": (512, 7, 7),
    "googlenet": (832, 7, 7),
    "resnet50": (1024, 14, 14),
    "efficientnet_lite0": (192, 7, 7),
}
#: Small enough to be quick, large enough for every stage to have pixels.
SIZE = 64


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """Random weights of a backbone in a file, with what only its training form has."""
    folder = tmp_path_factory.mktemp("weights")

    def save(name):
        file = folder / f"{name}.pth"
        if not file.exists():
            torch.save(_random_state(name), file)
        return file

    return save


def _random_state(name):
    import timm
    from torchvision import models

    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(1)
        if name == "efficientnet_lite0":
            network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        elif name == "googlenet":
            network = models.googlenet(weights=None, aux_logits=True, init_weights=False)
        else:
            network = getattr(models, name)(weights=None)
    return network.state_dict()


def images(count, size=SIZE, seed=0):
    """Uint8 pixels."""
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    )


def assembly(method, backbone, file, seed=0):
    """The network of a method for two classes, and images as small as these."""
    transform = replace(spec_of(backbone).transform, size=SIZE)
    return assemble(method, backbone, file, transform=transform, classes=2, seed=seed)


@pytest.mark.parametrize("name", list(CUTS))
def test_the_parts_are_the_network_and_the_network_is_the_frozen_one(name, weights_of):
    """Nothing is lost or done twice at the cut; before training, features are the store's."""
    network = build(name, weights_of(name))
    prefix, tail = cut_of(name).split(network)
    whole = assembly("full", name, weights_of(name)).whole.eval()
    normalised = whole.entry(images(2))
    with torch.no_grad():
        frozen = Frozen(network, replace(spec_of(name).transform, size=SIZE))(images(2))
        for features in (whole.backbone(normalised), tail(prefix.eval()(normalised))):
            torch.testing.assert_close(features, frozen, rtol=0, atol=0)
        assert tuple(prefix(torch.zeros(1, 3, 224, 224)).shape[1:]) == SHAPES[name]
    parameters = {id(p) for p in network.parameters()}
    assert {id(p) for p in tail.parameters()} < parameters
    for part in cut_of(name).first_block:
        assert list(network.get_submodule(part).parameters())


def test_googlenet_trains_with_its_auxiliary_classifiers(weights_of, tmp_path):
    """0.3 of each is added to the loss while it trains; they never predict."""
    network = assembly("full", "googlenet", weights_of("googlenet"))
    network.trained.train()
    output = network.trained(images(2))
    assert [tuple(logits.shape) for logits in output] == [(2, 2)] * 3
    assert main_logits(output) is output[0]
    labels = torch.tensor([0, 1])
    each = [nn.functional.cross_entropy(logits, labels) for logits in output]
    expected = each[0] + 0.3 * (each[1] + each[2])
    torch.testing.assert_close(training_loss(output, labels), expected)
    assert network.trained.eval()(images(2)).shape == (2, 2)
    state = torch.load(weights_of("googlenet"), weights_only=True)
    auxiliary = network.whole.backbone.aux1
    torch.testing.assert_close(auxiliary.fc1.weight.data, state["aux1.fc1.weight"])
    assert auxiliary.fc2.out_features == 2
    assert not [name for name in network.state() if "aux" in name]
    # Where the file has none, there is one output and one loss.
    file = tmp_path / "plain.pth"
    torch.save({k: t for k, t in state.items() if not k.startswith("aux")}, file)
    network = assembly("full", "googlenet", file)
    network.trained.train()
    assert network.trained(images(2)).shape == (2, 2)


def test_a_model_is_loaded_back_whole(weights_of):
    """What state gave, load takes, also where auxiliary classifiers help to train."""
    file = weights_of("googlenet")
    first = assembly("full", "googlenet", file)
    state = {k: t + 1 if t.is_floating_point() else t for k, t in first.state().items()}
    second = assembly("lp_ft", "googlenet", file)
    second.load(state)
    assert second.whole.backbone.aux_logits
    torch.testing.assert_close(second.state(), state)
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load({k: t for k, t in state.items() if k != "head.0.weight"})


MOVED = {
    "lp": {"head"},
    "frozen_online": {"head"},
    "last_block": {"3", "4", "head"},
    "bn_only": {"1", "4", "head"},
    "first_block": {"0", "1", "head"},
    "full": {"0", "1", "3", "4", "head"},
    "lp_ft": {"0", "1", "3", "4", "head"},
    "wise_ft": {"0", "1", "3", "4", "head"},
}


@pytest.mark.parametrize("name", list(MOVED))
def test_each_method_moves_what_its_row_says(name, tmp_path, monkeypatch):
    """By name of the module, of a backbone with two convolutions and two BatchNorms."""
    file = install_trainable_tiny(monkeypatch, tmp_path)
    network = assembly(name, "tiny", file)
    moving = {n for n, p in network.whole.named_parameters() if p.requires_grad}
    assert {n.removeprefix("backbone.").split(".")[0] for n in moving} == MOVED[name]
    in_view = {id(p) for p in network.trained.parameters() if p.requires_grad}
    assert in_view == {id(p) for p in network.whole.parameters() if p.requires_grad}


def test_batch_norm_alone_needs_batch_norm(tmp_path, monkeypatch):
    """A network without any has nothing to move."""
    file = install_trainable_tiny(monkeypatch, tmp_path)
    bare = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    spec = replace(backbones.BACKBONES["tiny"], network=lambda _: bare, dim=3)
    monkeypatch.setattr(backbones, "BACKBONES", {"tiny": spec})
    with pytest.raises(EngineError, match="tiny has no BatchNorm"):
        assembly("bn_only", "tiny", file)


@pytest.mark.parametrize("name", ["scratch_cnn", "scratch_mlp"])
def test_networks_of_their_own_start_from_the_seed_alone(name, tmp_path, monkeypatch):
    """Same seed, same weights, whatever was drawn before; another seed, others."""
    file = install_trainable_tiny(monkeypatch, tmp_path)

    def weights(seed):
        torch.rand(3)
        before = torch.get_rng_state()
        network = assembly(name, "tiny", file, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        assert network.whole.eval()(images(2)).shape == (2, 2)
        return network.state()["head.0.weight"]

    torch.testing.assert_close(weights(0), weights(0), rtol=0, atol=0)
    assert not torch.equal(weights(0), weights(1))
