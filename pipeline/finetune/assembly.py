"""For each method the network that is trained, and the whole network that it is part of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from pipeline.backbones import build, spec_of
from pipeline.backbones.frozen import Normalise
from pipeline.errors import EngineError
from pipeline.finetune.cuts import cut_of
from pipeline.finetune.methods import (
    ACTIVATIONS,
    ALL,
    BATCH_NORM,
    FEATURES,
    FIRST_BLOCK,
    NOTHING,
    TAIL,
    Method,
)
from pipeline.finetune.networks import (
    Classifier,
    add_auxiliary,
    batch_norm_parameters,
    new_head,
    parameters_of,
    remove_auxiliary,
    small_ann,
    small_cnn,
)
from pipeline.images import PixelPolicy


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a network is made of.

    Attributes:
        backbone: Name of the backbone.
        file: Its weights.
        policy: From bytes to the pixels that it sees.
        classes: Number of classes.
        seed: Of what is new in it.
    """

    backbone: str
    file: Path
    policy: PixelPolicy
    classes: int
    seed: int


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
        remove_auxiliary(self.whole.backbone)
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


def assemble(name: str, method: Method, material: Material) -> Assembly:
    """Build the network of a method; nothing has been trained in it yet.

    Raises:
        NoCutError: The backbone has no cut, and the method trains a part of it.
        EngineError: The method moves BatchNorm and the backbone has none.
        WeightsError: See :func:`pipeline.backbones.build`.
    """
    whole = _whole(name, method, material)
    whole.requires_grad_(requires_grad=False)
    for parameter in [*whole.head.parameters(), *MOVES[method.moves](whole, material.backbone)]:
        parameter.requires_grad = True
    return Assembly(whole=whole, trained=_view(whole, method, material.backbone))


def _whole(name: str, method: Method, m: Material) -> Classifier:
    if not method.pretrained:
        return SCRATCH[name](m.policy, m.classes, m.seed)
    backbone = build(m.backbone, m.file)
    if method.moves == ALL and method.trains:
        add_auxiliary(m.backbone, backbone, m.file, classes=m.classes, seed=m.seed)
    head = new_head(spec_of(m.backbone).dim, m.classes, m.seed)
    return Classifier(Normalise(m.policy), backbone, head)


def _view(whole: Classifier, method: Method, backbone: str) -> Classifier:
    if method.reads == FEATURES:
        return Classifier(nn.Identity(), nn.Identity(), whole.head)
    if method.reads == ACTIVATIONS:
        _, tail = cut_of(backbone).split(whole.backbone)
        return Classifier(nn.Identity(), tail, whole.head)
    return whole


def _batch_norm(whole: Classifier, backbone: str) -> list[nn.Parameter]:
    found = batch_norm_parameters(whole.backbone)
    if not found:
        raise EngineError(f"{backbone} has no BatchNorm: bn_only has nothing to move in it")
    return found


def _tail(whole: Classifier, backbone: str) -> list[nn.Parameter]:
    return list(cut_of(backbone).split(whole.backbone)[1].parameters())


def _first_block(whole: Classifier, backbone: str) -> list[nn.Parameter]:
    return parameters_of(whole.backbone, cut_of(backbone).first_block)


#: Which parameters of the backbone move with the head.
MOVES: Mapping[str, Callable[[Classifier, str], list[nn.Parameter]]] = MappingProxyType(
    {
        NOTHING: lambda *_: [],
        ALL: lambda whole, _: list(whole.backbone.parameters()),
        TAIL: _tail,
        BATCH_NORM: _batch_norm,
        FIRST_BLOCK: _first_block,
    }
)
#: The networks that start from nothing.
SCRATCH: Mapping[str, Callable[[PixelPolicy, int, int], Classifier]] = MappingProxyType(
    {"scratch_cnn": small_cnn, "scratch_ann": small_ann}
)
