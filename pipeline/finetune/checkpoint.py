"""Checkpoints: a training that was interrupted goes on from one, bit for bit.

A checkpoint is one safetensors file. Its name is the SHA-256 of its content, so damage is
detected. All that is not a tensor is JSON in its header. Old checkpoints, except the last, are
removed only when the new one is in place: at any moment there is a whole one.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from cache import disk
from pipeline.errors import CheckpointError
from pipeline.finetune.methods import TrainingSettings

_LOG = logging.getLogger(__name__)
_FORMAT = 4
_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch, from 0.

    Attributes:
        epoch: From 0.
        fit_loss: Mean loss of the epoch's images during training, while weights change, with
            dropout and augmentation; nats.
        fit_accuracy: Measured in the same way; 0 to 1.
        validation_loss: Mean cross-entropy after the epoch, without dropout; nats.
        validation_accuracy: 0 to 1.
        seconds: Wall time of the training steps.
        images_per_second: Images per second of that time.
    """

    epoch: int
    fit_loss: float
    fit_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(kw_only=True)
class TrainingState:
    """The progress of a training; every checkpoint holds all of it, as JSON types.

    Attributes:
        epoch: The current epoch, from 0.
        step: The next step within the epoch.
        totals: Loss, right answers and images so far in the epoch.
        seconds: Training time so far in the epoch.
        rows: The finished epochs.
        finished: Whether the whole training is finished.
    """

    epoch: int = 0
    step: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    rows: list[EpochRow] = field(default_factory=list)
    finished: bool = False


#: JSON values, and tensors on the CPU.
_Checkpoint = tuple[Mapping[str, Any], Mapping[str, Tensor]]


class Checkpoints:
    """The checkpoints of one training, in a folder of their own.

    Args:
        folder: Created when needed.
        identity: What identifies the training: study, method, weights, data.
        seconds: Time between checkpoints within an epoch.

    ``newest`` is the name of the newest whole checkpoint; empty before the first.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, seconds: float = 60.0) -> None:
        self.folder = folder
        self._identity = identity
        self._seconds = seconds
        self._last = time.monotonic()
        self.newest = ""

    def due(self) -> bool:
        """Whether the time between checkpoints has passed."""
        return time.monotonic() - self._last >= self._seconds

    def load(self, run: Mapping[str, Any] | None = None) -> _Checkpoint | None:
        """Load the newest whole checkpoint; damaged ones are skipped with a warning.

        Args:
            run: Settings and data, which become part of the identity.

        Raises:
            CheckpointError: It belongs to another training (the message names the field),
                or all checkpoints are damaged.
        """
        self._identity = {**self._identity, **(run or {})}
        names = [name for name in disk.listdir(self.folder) if _NAME.fullmatch(name)]
        for name in reversed(names):
            try:
                identity, checkpoint = self._read(name)
            except (OSError, ValueError, KeyError) as cause:
                _LOG.warning(
                    "%s is damaged (%s); going on from the checkpoint before it",
                    self.folder / name,
                    cause,
                )
                continue
            self._check(identity)
            self.newest, self._last = name, time.monotonic()
            return checkpoint
        if names:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints in {self.folder} is whole; delete the "
                "folder to train from the start"
            )
        return None

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint and keep the previous one.

        Args:
            state: JSON types; floats keep every bit.
            tensors: Tensors by name, on any device.

        Raises:
            CacheError: The disk refused the write; older checkpoints are unchanged.
        """
        content = {"format": _FORMAT, "identity": self._identity, "state": state}
        # As safetensors takes them: on the CPU, dense, row by row, each with its storage.
        dense = {
            name: t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for name, t in tensors.items()
        }
        data = save(dense, metadata={"json": json.dumps(content)})
        matches = [_NAME.fullmatch(name) for name in disk.listdir(self.folder)]
        number = 1 + max((int(match[1]) for match in matches if match), default=0)
        name = f"checkpoint-{number:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        disk.write_atomic(self.folder / name, data)
        self._remove_all_but(name, self.newest)
        self.newest, self._last = name, time.monotonic()

    def _read(self, name: str) -> tuple[dict[str, Any], _Checkpoint]:
        """Identity and content of one checkpoint, every byte checked."""
        data = disk.read_all(self.folder / name)
        if hashlib.sha256(data).hexdigest() not in name:
            raise ValueError("its bytes are not those that were written")
        header = disk.parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content: dict[str, Any] = disk.parse_json(header["__metadata__"]["json"])
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {_FORMAT}")
        return content["identity"], (content["state"], load(data))

    def _check(self, has: Mapping[str, Any]) -> None:
        identity = json.loads(json.dumps(self._identity))  # tuples are lists in JSON
        for name in {**identity, **has}:
            if has.get(name) != identity.get(name):
                raise CheckpointError(
                    f"an unfinished training has {name} {has.get(name)!r}, asked for is "
                    f"{identity.get(name)!r}; finish it with the settings it has, or delete the "
                    f"folder {self.folder}"
                )

    def _remove_all_but(self, *names: str) -> None:
        """Remove all files except the new checkpoint, the previous one, and temporary files."""
        stale = [
            name
            for name in disk.listdir(self.folder)
            if name not in names
            and (not name.startswith(disk.TEMPORARY) or disk.is_abandoned(self.folder / name))
        ]
        if stale:
            disk.remove(self.folder, stale)


# From a running training to the content of a checkpoint, and back, bit for bit.


def describe_training(
    model: nn.Module, labels: Mapping[str, NDArray[np.int64]], settings: TrainingSettings
) -> dict[str, Any]:
    """What a checkpoint must agree with, in addition to the caller's identity.

    The number of processes is not part of it: a training may go on with another number, up to
    the small differences between such trainings.
    """
    shapes = [[name, list(t.shape), str(t.dtype)] for name, t in model.state_dict().items()]
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return {
        **{f"settings.{name}": value for name, value in asdict(settings).items()},
        "settings.device": torch.device(settings.device).type,
        "network": _digest(repr(shapes).encode()),
        "trained parameters": sum(trained.values()),
        "trained layers": _digest(repr(list(trained)).encode()),
        **{
            f"{name} labels": f"{len(label)} labels, SHA-256 {_digest(label.tobytes())}"
            for name, label in labels.items()
        },
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def pack_tensors(
    model: nn.Module, best: Mapping[str, Tensor], optimiser: Optimizer | None
) -> dict[str, Tensor]:
    """All tensors that a training needs to go on; a finished one needs no optimiser."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    if optimiser:
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in values.items()}
    return tensors


def restore(
    checkpoint: _Checkpoint | None, model: nn.Module, optimiser: Optimizer
) -> tuple[TrainingState, dict[str, Tensor]]:
    """Load a checkpoint into model and optimiser; returns the state and the best weights."""
    if checkpoint is None:
        return TrainingState(), {}
    state, tensors = checkpoint
    device = next(model.parameters()).device
    by_kind: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        by_kind[kind][rest] = value
    model.load_state_dict(by_kind["model"])
    best = {name: value.to(device) for name, value in by_kind["best"].items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in by_kind["optimiser"].items():
        number, key = name.split(".")
        moments.setdefault(int(number), {})[key] = value
    if moments:
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        # Files hold tensors row by row; torch's fast path wants them laid out as parameters.
        for parameter, values in optimiser.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:
                    values[key] = torch.empty_like(parameter).copy_(value)
    rows = [EpochRow(**row) for row in state["rows"]]
    return TrainingState(**{**state, "rows": rows}), best
