"""Networks that can be trained, whole or in part: normalisation, backbone and head.

Weights come from ``pipeline.features.backbones``, which reads the same files in the same way, so
before training a network gives the features that the store holds. Initial weights of new layers
depend on the seed and the purpose.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.images import Transform
from pipeline.errors import EngineError, StudyError
from pipeline.features.backbones import read_state, spec_of
from pipeline.features.frozen import Normalise, build
from pipeline.finetune.methods import (
    ACTIVATIONS,
    ALL,
    BATCH_NORM,
    FEATURES,
    FIRST_BLOCK,
    METHODS,
    TAIL,
)

_HIDDEN = 256
_DROPOUT = 0.5
#: Share of each auxiliary classifier in GoogLeNet's loss (Szegedy et al. 2015).
_AUXILIARY_WEIGHT = 0.3
#: Side to which the fully connected network averages images: 64 x 64 x 3 inputs.
_MLP_SIDE = 64
#: Channels of the small CNN's four stages; each halves the side.
_CNN_WIDTHS = (16, 32, 64, 128)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Classifier(nn.Module):
    """Batch to images by ``entry``, to features by ``backbone``, to logits by ``head``.

    In train mode a backbone with auxiliary classifiers also gives their outputs; the result is
    then a tuple of logits, the head's first.
    """

    def __init__(self, entry: nn.Module, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of shape ``(n, K)``."""
        features = self.backbone(self.entry(batch))
        if isinstance(features, tuple):
            main, *others = features
            return (self.head(main), *(logits for logits in others if logits is not None))
        logits: Tensor = self.head(features)
        return logits


def _new_head(dim: int, classes: int, seed: int) -> nn.Module:
    """A new head: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)."""
    with _drawn_from(seed, "head"):
        return nn.Sequential(
            nn.Linear(dim, _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, classes)
        )


def _add_auxiliary(backbone: Any, file: Path, classes: int, seed: int) -> None:
    """Add GoogLeNet's auxiliary classifiers from its weights file, with new last layers."""
    from torchvision.models.googlenet import InceptionAux

    state = read_state(file)
    if not any(key.startswith("aux") for key in state):
        return
    with _drawn_from(seed, "auxiliary"):
        for name, channels in (("aux1", 512), ("aux2", 528)):
            auxiliary = InceptionAux(channels, classes)
            prefix = f"{name}."
            stored = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            new = {k: t for k, t in auxiliary.state_dict().items() if k.startswith("fc2.")}
            auxiliary.load_state_dict(stored | new)
            setattr(backbone, name, auxiliary)
    backbone.aux_logits = True


def _from_nothing(name: str, size: int, seed: int) -> tuple[nn.Module, int]:
    """The body of a network that is trained from scratch, and its number of features.

    ``scratch_mlp`` averages pixels to 64 x 64 at most; ``scratch_cnn`` has four stages of 3 x 3
    convolution, BatchNorm, ReLU and pooling.
    """
    if name == "scratch_mlp":
        side = min(_MLP_SIDE, size)
        return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(1)), 3 * side * side
    layers: list[nn.Module] = []
    with _drawn_from(seed, name):
        for before, width in zip((3, *_CNN_WIDTHS), _CNN_WIDTHS, strict=False):
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), _CNN_WIDTHS[-1]


def main_logits(output: Any) -> Tensor:
    """The logits ``(n, K)`` in a network's output, the first of a tuple; float32 or 64."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def training_loss(output: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a network's output, nats; auxiliary logits have a weight of 0.3."""
    loss = nn.functional.cross_entropy(main_logits(output), labels)
    for logits in output[1:] if isinstance(output, tuple) else ():
        share = nn.functional.cross_entropy(main_logits(logits), labels)
        loss = loss + _AUXILIARY_WEIGHT * share
    return loss


def check_image_size(network: nn.Module, size: int, default: int) -> None:
    """Refuse an image size, in pixels, that a network cannot take, before any work.

    Raises:
        EngineError: A transformer takes only one size; pooling leaves nothing of tiny images.
    """
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros((1, size, size, 3), dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as cause:  # as networks raise it
        reason = str(cause).splitlines()[0].rstrip(".")
        raise EngineError(
            f"the network cannot take images of {size} x {size} pixels ({reason}); try another "
            f"--image-size, or leave it out for {default} x {default}"
        ) from cause


@contextmanager
def _drawn_from(seed: int, purpose: str) -> Iterator[None]:
    """Initial weights that are made inside depend only on the seed and the purpose."""
    digest = hashlib.sha256(f"{seed}|{purpose}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7]))
        yield


# Where a backbone is cut for partial fine-tuning: a frozen prefix, and a trained tail. Both share
# the backbone's modules, so training the tail trains the backbone.


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a backbone is divided.

    Attributes:
        where: The cut in words, as in the recipe of the stored activations.
        split: From the network to prefix and tail; ``tail(prefix(images))`` are its features.
        first_block: Names of the modules of the stem and the first stage.
    """

    where: str
    split: Callable[[Any], tuple[nn.Module, nn.Module]]
    first_block: tuple[str, ...]


def cut_of(backbone: str) -> Cut:
    """The cut of a backbone.

    Raises:
        StudyError: It has none; the message lists the backbones that have one.
    """
    if backbone not in CUTS:
        raise StudyError(
            f"{backbone} has no cut, so no part of it can be trained alone; "
            f"backbones with a cut: {', '.join(CUTS)}; the method full needs none"
        )
    return CUTS[backbone]


def _densenet121(network: Any) -> tuple[nn.Module, nn.Module]:
    """512 x 7 x 7 for 224 x 224 pixels; the final ReLU and pooling as in its ``forward``."""
    features = dict(network.features.named_children())
    at = list(features).index("transition3") + 1
    closing = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    modules = list(features.values())
    return nn.Sequential(*modules[:at]), nn.Sequential(*modules[at:], *closing)


def _googlenet(network: Any) -> tuple[nn.Module, nn.Module]:
    """832 x 7 x 7; the network's own normalisation of the input belongs to the prefix."""
    modules = dict(network.named_children())
    at = list(modules).index("maxpool4") + 1
    prefix = list(modules.values())[:at]
    tail = [network.inception5a, network.inception5b, network.avgpool, nn.Flatten(1)]
    return nn.Sequential(_TransformInput(network), *prefix), nn.Sequential(*tail)


class _TransformInput(nn.Module):
    """GoogLeNet's own step from ImageNet's normalisation to (x - 0.5) / 0.5."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        # torchvision has no other name for it
        self.forward = network._transform_input  # noqa: SLF001


def _resnet50(network: Any) -> tuple[nn.Module, nn.Module]:
    """1024 x 14 x 14."""
    modules = list(network.children())
    at = modules.index(network.layer4)
    tail = nn.Sequential(network.layer4, network.avgpool, nn.Flatten(1))
    return nn.Sequential(*modules[:at]), tail


def _efficientnet_lite0(network: Any) -> tuple[nn.Module, nn.Module]:
    """192 x 7 x 7; the tail is the last stage and the convolution after it."""
    stages = list(network.blocks)
    prefix = nn.Sequential(network.conv_stem, network.bn1, *stages[:-1])
    tail = nn.Sequential(stages[-1], network.conv_head, network.bn2, network.global_pool)
    return prefix, tail


#: To add a backbone: a function above and an entry here.
CUTS: Mapping[str, Cut] = MappingProxyType(
    {
        "densenet121": Cut(
            where="after transition3",
            split=_densenet121,
            first_block=tuple(
                f"features.{name}" for name in ("conv0", "norm0", "denseblock1", "transition1")
            ),
        ),
        "googlenet": Cut(
            where="after maxpool4",
            split=_googlenet,
            first_block=("conv1", "conv2", "conv3", "inception3a", "inception3b"),
        ),
        "resnet50": Cut(
            where="before layer4", split=_resnet50, first_block=("conv1", "bn1", "layer1")
        ),
        "efficientnet_lite0": Cut(
            where="before the last stage",
            split=_efficientnet_lite0,
            first_block=("conv_stem", "bn1", "blocks.0"),
        ),
    }
)


# For each method: the network that is trained, and the whole network that contains it.


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Two views of the same parameters.

    Attributes:
        whole: From pixels to logits.
        trained: From what the method reads to logits; only trained parameters require
            gradients.
    """

    whole: Classifier
    trained: Classifier

    def state(self) -> dict[str, Tensor]:
        """All tensors of the whole network, except auxiliary classifiers, which never predict."""
        backbone: Any = self.whole.backbone
        if getattr(backbone, "aux_logits", False):
            backbone.aux1 = backbone.aux2 = None
            backbone.aux_logits = False
        return dict(self.whole.state_dict())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state` gave; auxiliary classifiers do not change.

        Raises:
            RuntimeError: The tensors are of another network.
        """
        present = self.whole.state_dict()
        auxiliary = {name: t for name, t in present.items() if name.startswith("backbone.aux")}
        self.whole.load_state_dict({**auxiliary, **state})


def assemble(
    name: str, backbone: str, file: Path, *, transform: Transform, classes: int, seed: int
) -> Assembly:
    """Build the untrained network of a method.

    Args:
        name: Entry of ``METHODS``.
        backbone: Name of the backbone; networks from scratch use neither it nor its weights.
        file: The weights.
        transform: Size, mean and standard deviation of its images.
        classes: Number of logits.
        seed: Seed of its new layers.

    Raises:
        StudyError: The backbone has no cut, and the method trains a part of it.
        EngineError: The method trains BatchNorm and the backbone has none.
        WeightsError: See :func:`pipeline.features.frozen.build`.
    """
    method = METHODS[name]
    if method.pretrained:
        network, dim = build(backbone, file), spec_of(backbone).dim
        if backbone == "googlenet" and method.trainable == ALL and method.trains:
            _add_auxiliary(network, file, classes, seed)
    else:
        network, dim = _from_nothing(name, transform.size, seed)
    whole = Classifier(Normalise(transform), network, _new_head(dim, classes, seed))
    whole.requires_grad_(requires_grad=False)
    for module in [whole.head, *_trainable(whole.backbone, method.trainable, backbone)]:
        module.requires_grad_()
    trained = whole
    if method.reads == FEATURES:
        trained = Classifier(nn.Identity(), nn.Identity(), whole.head)
    elif method.reads == ACTIVATIONS:
        _, tail = cut_of(backbone).split(whole.backbone)
        trained = Classifier(nn.Identity(), tail, whole.head)
    return Assembly(whole=whole, trained=trained)


def _trainable(network: nn.Module, trainable: str, backbone: str) -> list[nn.Module]:
    """Modules of the backbone that are trained with the head."""
    if trainable == ALL:
        return [network]
    if trainable == TAIL:
        return [cut_of(backbone).split(network)[1]]
    if trainable == FIRST_BLOCK:
        return [network.get_submodule(part) for part in cut_of(backbone).first_block]
    if trainable == BATCH_NORM:
        norms: list[nn.Module] = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
        if not norms:
            raise EngineError(f"{backbone} has no BatchNorm: bn_only has nothing to move in it")
        return norms
    return []
