"""Methods: what they start from, how they are set, and what they train of which network."""

import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import EngineError, PipelineError, UnknownNameError
from pipeline.features import backbones
from pipeline.features.backbones import spec_of
from pipeline.features.frozen import FeatureExtractor, build
from pipeline.finetune.methods import (
    FEWEST_STEPS,
    METHODS,
    QUICK,
    TrainingSettings,
    resolve_settings,
    select_methods,
)
from pipeline.finetune.networks import CUTS, assemble, cut_of, main_logits, training_loss
from tests.tiny import install_trainable_tiny


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ((), QUICK),
        (("full",), ("full",)),
        (("lp_ft",), ("lp", "lp_ft")),
        (("wise_ft",), ("lp", "lp_ft", "wise_ft")),
        (("all",), tuple(METHODS)),
    ],
)
def test_methods_bring_along_what_they_start_from(names, runs):
    """In the order of the table, so that what is needed is there."""
    assert select_methods(names)[0] == runs
    with pytest.raises(UnknownNameError, match=r"unknown method 'ful'; allowed: lp, .*, all"):
        select_methods(("ful", *names))


@pytest.mark.parametrize(
    ("name", "given", "more", "wanted"),
    [
        # The user's word stands above the method's above the default; None is not given.
        ("lp_ft", {"epochs": 3, "patience": 2}, {}, {"epochs": 3, "patience": 2}),
        ("lp_ft", {"patience": None}, {}, {"patience": TrainingSettings.patience}),
        ("lp_ft", {}, {"seed": 7}, {"seed": 7, "keep_statistics": True}),
        ("lp_ft", {"seed": 0}, {"seed": 7}, {"seed": 0}),
        # A method that was not named keeps its epochs and its rate.
        (
            "lp", {"epochs": 3, "learning_rate": 0.5, "patience": 2}, {"named": False},
            {"epochs": 30, "learning_rate": 1e-3, "patience": 2},
        ),
        # Stored rows cannot be augmented.
        ("lp", {"augmentation": "light"}, {}, {"augmentation": "none"}),
        ("full", {"augmentation": "light"}, {}, {"augmentation": "light"}),
        # The rate is for 32 images: it follows the root of the batch, of SGD the batch itself.
        ("full", {}, {}, {"learning_rate": 1e-4, "batch_size": 32}),
        ("full", {"batch_size": 128}, {}, {"learning_rate": pytest.approx(2e-4)}),
        ("lp", {"batch_size": 8}, {}, {"learning_rate": pytest.approx(1e-3 / 2)}),
        (
            "full", {"batch_size": 64, "optimiser": "sgd"}, {},
            {"learning_rate": pytest.approx(2e-4)},
        ),
        ("full", {"batch_size": 128, "learning_rate": 3e-4}, {}, {"learning_rate": 3e-4}),
        # Batches are large on CUDA where steps are many; the user's number stands above it.
        ("full", {}, {"images": 10**6}, {"batch_size": 32}),
        ("full", {}, {"device": "cuda", "images": 128 * FEWEST_STEPS}, {"batch_size": 128}),
        ("full", {}, {"device": "cuda:1", "images": 128 * FEWEST_STEPS - 1}, {"batch_size": 64}),
        ("full", {}, {"device": "cuda", "images": 64 * FEWEST_STEPS - 1}, {"batch_size": 32}),
        ("full", {"batch_size": 5}, {"device": "cuda", "images": 10**6}, {"batch_size": 5}),
        # The study's precision is for CUDA, which is repeatable where it is asked to be.
        ("full", {}, {"precision": "bf16"}, {"precision": "fp32", "deterministic": False}),
        ("full", {"precision": "bf16"}, {}, {"precision": "bf16"}),
        ("full", {}, {"device": "cuda", "precision": "bf16"}, {"precision": "bf16"}),
        (
            "full", {"precision": "tf32", "deterministic": True}, {"device": "cuda"},
            {"precision": "tf32", "deterministic": True},
        ),
    ],
)  # fmt: skip
def test_a_training_is_set_as_the_user_then_the_method_then_the_table_says(
    name, given, more, wanted
):
    """One function puts the three together."""
    settings = asdict(resolve_settings(name, given, **more))
    assert {key: settings[key] for key in wanted} == wanted


def test_a_value_that_is_not_allowed_is_named():
    """Field, value, and its range or table."""
    wrong = {"optimiser": "lion", "augmentation": "heavy", "precision": "fp8", "patience": -1}
    wrong |= {"epochs": 0, "batch_size": 0, "learning_rate": float("nan"), "seed": -1}
    for name, value in wrong.items():
        with pytest.raises(PipelineError, match=rf"{name} .*(: allowed is|; allowed: )"):
            TrainingSettings(**{name: value})


# Networks: the same features as the frozen ones, and parts that fit together.

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
        frozen = FeatureExtractor(network, replace(spec_of(name).transform, size=SIZE))(images(2))
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
