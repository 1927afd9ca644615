"""From a training under way to what a checkpoint keeps of it, and back, bit for bit."""

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.finetune.batches import Examples
from pipeline.finetune.checkpoints import Checkpoint, Json
from pipeline.finetune.history import Standing
from pipeline.finetune.settings import LoopSettings

_MODEL, _BEST, _OPTIMISER = "model.", "best.", "optimiser."


def run_of(
    model: nn.Module, fit: Examples, watched: Mapping[str, Examples], settings: LoopSettings
) -> dict[str, Json]:
    """What a checkpoint must agree with beside the caller's identity.

    The number of processes is not in it: with another one a training goes on, as near as
    two such trainings are to each other.
    """
    shapes = [[name, list(t.shape), str(t.dtype)] for name, t in model.state_dict().items()]
    named = dict(model.named_parameters())
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    return {
        **{f"settings.{name}": value for name, value in asdict(settings).items()},
        "settings.device": torch.device(settings.device).type,
        "network": _short(repr(shapes).encode()),
        "parameters": sum(p.numel() for p in named.values()),
        "trained parameters": sum(named[name].numel() for name in trained),
        "trained layers": _short(repr(trained).encode()),
        "fit labels": _labels(fit),
        **{f"{name} labels": _labels(one) for name, one in watched.items()},
    }


def _labels(examples: Examples) -> str:
    return f"{len(examples)} labels, SHA-256 {_short(examples.label.tobytes())}"


def _short(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def tensors_of(
    model: nn.Module, best: Mapping[str, Tensor], optimiser: Optimizer | None
) -> dict[str, Tensor]:
    """All that a training goes on from, by name; of a finished one there is no optimiser."""
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_BEST + name: value for name, value in best.items()}
    if optimiser:
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{_OPTIMISER}{number}.{key}": value for key, value in values.items()}
    return tensors


def restore(
    found: Checkpoint | None, model: nn.Module, optimiser: Optimizer
) -> tuple[Standing, dict[str, Tensor]]:
    """Bring model and optimiser to a checkpoint.

    Returns:
        Where the training stands, and the best weights so far, if they are looked for.
    """
    if found is None:
        return Standing(), {}
    device = next(model.parameters()).device
    model.load_state_dict(_under(found.tensors, _MODEL))
    best = {name: value.to(device) for name, value in _under(found.tensors, _BEST).items()}
    state: dict[int, dict[str, Any]] = {}
    for name, value in _under(found.tensors, _OPTIMISER).items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    if state:
        optimiser.load_state_dict(
            {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
        )
        _lay_out(optimiser)
    return Standing.from_json(found.state), best


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _lay_out(optimiser: Optimizer) -> None:
    """Files hold tensors row by row; moments must lie in memory as their parameters do."""
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)
