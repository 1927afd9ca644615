"""Networks that can be trained: normalisation, backbone and head in one module.

Weights come through ``pipeline.features.backbones``, by the same reading of the same files, so a
network that is about to be trained gives the features that the store holds. Initial
weights of what is new are drawn from the seed and the purpose.
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

from pipeline.data.images import PixelPolicy
from pipeline.errors import EngineError
from pipeline.features.backbones import spec_of
from pipeline.features.frozen import Normalise, build
from pipeline.features.weights import State, read_state
from pipeline.finetune.cuts import cut_of
from pipeline.finetune.methods import (
    ACTIVATIONS,
    ALL,
    BATCH_NORM,
    FEATURES,
    FIRST_BLOCK,
    HEAD,
    METHODS,
    TAIL,
)

_HIDDEN = 256
_DROPOUT = 0.5
#: Share of each auxiliary classifier in GoogLeNet's loss (Szegedy et al. 2015).
_AUXILIARY_WEIGHT = 0.3
#: Side to which the fully connected network averages its pixels: 64 x 64 x 3 inputs.
_MLP_SIDE = 64
#: Channels of the small CNN's four stages; each halves the side.
_CNN_WIDTHS = (16, 32, 64, 128)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Classifier(nn.Module):
    """What is trained: ``entry`` to ``backbone`` to ``head``.

    In train mode a backbone with auxiliary classifiers gives their outputs too; the
    result is then a tuple of logits, the head's first.

    Args:
        entry: From what a batch holds to the backbone's input.
        backbone: To pooled features ``(n, d)``.
        head: To logits ``(n, K)``.
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
    """The exercise's head: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)."""
    with _drawn_from(seed, "head"):
        return nn.Sequential(
            nn.Linear(dim, _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(_HIDDEN, classes)
        )


def _add_auxiliary(name: str, backbone: Any, file: Path, *, classes: int, seed: int) -> None:
    """Give GoogLeNet the auxiliary classifiers that its weights file holds.

    Args:
        name: Of the backbone; any but ``googlenet`` stays as it is.
        backbone: Changed in place.
        file: Its weights; the last layer of each auxiliary classifier is new.
        classes: Number of classes.
        seed: Of the new layers.
    """
    state = read_state(file) if name == "googlenet" else {}
    if not any(key.startswith("aux") for key in state):
        return
    with _drawn_from(seed, "auxiliary"):
        backbone.aux1 = _auxiliary(state, "aux1.", 512, classes)
        backbone.aux2 = _auxiliary(state, "aux2.", 528, classes)
    backbone.aux_logits = True


def _remove_auxiliary(backbone: Any) -> None:
    """Take them away again: they help to train and never predict."""
    if getattr(backbone, "aux_logits", False):
        backbone.aux1 = backbone.aux2 = None
        backbone.aux_logits = False


def _auxiliary(state: State, prefix: str, channels: int, classes: int) -> nn.Module:
    from torchvision.models.googlenet import InceptionAux

    auxiliary = InceptionAux(channels, classes)
    stored = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    new = {k: t for k, t in auxiliary.state_dict().items() if k.startswith("fc2.")}
    auxiliary.load_state_dict(stored | new)
    return auxiliary  # type: ignore[no-any-return]


def _small_cnn(policy: PixelPolicy, classes: int, seed: int) -> Classifier:
    """Four stages of 3 x 3 convolution, BatchNorm, ReLU and pooling; then the head."""
    layers: list[nn.Module] = []
    with _drawn_from(seed, "scratch_cnn"):
        for before, width in zip((3, *_CNN_WIDTHS), _CNN_WIDTHS, strict=False):
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Classifier(Normalise(policy), backbone, _new_head(_CNN_WIDTHS[-1], classes, seed))


def _small_mlp(policy: PixelPolicy, classes: int, seed: int) -> Classifier:
    """The head alone, on pixels averaged to 64 x 64 at most."""
    side = min(_MLP_SIDE, policy.size)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(1))
    return Classifier(Normalise(policy), backbone, _new_head(3 * side * side, classes, seed))


def main_logits(output: Any) -> Tensor:
    """Logits ``(n, K)`` of a network's output: the first of a tuple, else all; float32 or 64."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def training_loss(output: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a network's output, nats; auxiliary logits count 0.3 each."""
    loss = nn.functional.cross_entropy(main_logits(output), labels)
    for logits in output[1:] if isinstance(output, tuple) else ():
        share = nn.functional.cross_entropy(main_logits(logits), labels)
        loss = loss + _AUXILIARY_WEIGHT * share
    return loss


def check_image_size(network: nn.Module, size: int, default: int) -> None:
    """Refuse an image size that a network was not made for, before anything is computed.

    Args:
        network: From uint8 pixels to logits.
        size: Side of the images, pixels.
        default: The side that it has without --image-size.

    Raises:
        EngineError: It cannot take them: a transformer takes its own size alone, and of
            tiny images the pooling leaves nothing.
    """
    was_training = network.training
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
    network.train(was_training)


@contextmanager
def _drawn_from(seed: int, purpose: str) -> Iterator[None]:
    """Initial weights made inside depend on seed and purpose alone."""
    digest = hashlib.sha256(f"{seed}|{purpose}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7]))
        yield


# For each method the network that is trained, and the whole network that it is part of.


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Two views of the same parameters.

    Attributes:
        whole: From pixels to logits.
        trained: From what the method reads to logits; only what moves in it requires
            gradients.
    """

    whole: Classifier
    trained: Classifier

    def state(self) -> dict[str, Tensor]:
        """All tensors of the whole network, without what only helps to train."""
        _remove_auxiliary(self.whole.backbone)
        return dict(self.whole.state_dict())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave; auxiliary classifiers stay as they are.

        Raises:
            RuntimeError: It is of another network.
        """
        auxiliary = {
            name: tensor
            for name, tensor in self.whole.state_dict().items()
            if name.startswith("backbone.aux")
        }
        self.whole.load_state_dict({**auxiliary, **state})


def assemble(
    name: str, backbone: str, file: Path, *, policy: PixelPolicy, classes: int, seed: int
) -> Assembly:
    """Build the network of a method; nothing has been trained in it yet.

    Args:
        name: Entry of ``METHODS``.
        backbone: Name of the backbone.
        file: Its weights.
        policy: From bytes to the pixels that it sees.
        classes: Number of classes.
        seed: Of what is new in it.

    Raises:
        NoCutError: The backbone has no cut, and the method trains a part of it.
        EngineError: The method moves BatchNorm and the backbone has none.
        WeightsError: See :func:`pipeline.features.frozen.build`.
    """
    method = METHODS[name]
    if method.pretrained:
        network: Any = build(backbone, file)
        if method.moves == ALL and method.trains:
            _add_auxiliary(backbone, network, file, classes=classes, seed=seed)
        head = _new_head(spec_of(backbone).dim, classes, seed)
        whole = Classifier(Normalise(policy), network, head)
    else:
        whole = _SCRATCH[name](policy, classes, seed)
    whole.requires_grad_(requires_grad=False)
    for parameter in [*whole.head.parameters(), *_MOVES[method.moves](whole.backbone, backbone)]:
        parameter.requires_grad = True
    return Assembly(whole=whole, trained=_view(whole, method.reads, backbone))


def _view(whole: Classifier, reads: str, backbone: str) -> Classifier:
    if reads == FEATURES:
        return Classifier(nn.Identity(), nn.Identity(), whole.head)
    if reads == ACTIVATIONS:
        _, tail = cut_of(backbone).split(whole.backbone)
        return Classifier(nn.Identity(), tail, whole.head)
    return whole


def _batch_norms(network: nn.Module, backbone: str) -> list[nn.Parameter]:
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
    if not norms:
        raise EngineError(f"{backbone} has no BatchNorm: bn_only has nothing to move in it")
    return [parameter for norm in norms for parameter in norm.parameters()]


def _tail(network: nn.Module, backbone: str) -> list[nn.Parameter]:
    return list(cut_of(backbone).split(network)[1].parameters())


def _first_block(network: nn.Module, backbone: str) -> list[nn.Parameter]:
    parts = cut_of(backbone).first_block
    return [p for part in parts for p in network.get_submodule(part).parameters()]


#: Which parameters of the backbone move with the head.
_MOVES: Mapping[str, Callable[[nn.Module, str], list[nn.Parameter]]] = MappingProxyType(
    {
        HEAD: lambda *_: [],
        ALL: lambda network, _: list(network.parameters()),
        TAIL: _tail,
        BATCH_NORM: _batch_norms,
        FIRST_BLOCK: _first_block,
    }
)
#: The networks that start from nothing.
_SCRATCH: Mapping[str, Callable[[PixelPolicy, int, int], Classifier]] = MappingProxyType(
    {"scratch_cnn": _small_cnn, "scratch_mlp": _small_mlp}
)
