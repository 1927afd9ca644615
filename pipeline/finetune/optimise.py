"""How weights move: the optimisers, their parameter groups, and the rate at each step."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

_MOMENTUM = 0.9


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate at a step: a straight rise, then a half cosine.

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Share of ``steps`` in which it rises, rounded up to whole steps.

    Returns:
        More than 0 and at most 1; 1 at the last step of the rise, or the first of all.
        The cosine would reach 0 at step ``steps``, the first that is not taken (Loshchilov
        and Hutter 2017, without restarts).
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay and without.

    A parameter with one axis is a bias or belongs to a norm; pulling either to zero
    shrinks no function that could overfit, it moves the network's scale.
    """
    moved = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in moved if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in moved if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _adamw(groups: list[dict[str, Any]], learning_rate: float) -> "Optimizer":
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate)


def _sgd(groups: list[dict[str, Any]], learning_rate: float) -> "Optimizer":
    import torch

    return torch.optim.SGD(groups, lr=learning_rate, momentum=_MOMENTUM, nesterov=True)


#: To add an optimiser: a factory above and a line here. SGD has Nesterov momentum of 0.9.
OPTIMISERS: Mapping[str, Callable[[list[dict[str, Any]], float], "Optimizer"]] = MappingProxyType(
    {"adamw": _adamw, "sgd": _sgd}
)
