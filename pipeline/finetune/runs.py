"""Trained models on disk: weights, what was measured, and what each says of every image.

A model is a folder of three files. The record is written last and names the others by
their SHA-256, so a folder whose record reads is whole, and one that was being replaced
when the process died counts as not there. Nothing here is pickled.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache import disk
from pipeline.finetune.history import Convergence, convergence

_LOG = logging.getLogger(__name__)
_FORMAT = 1
RECORD, WEIGHTS, PROBABILITIES = "model.json", "model.safetensors", "probabilities.safetensors"

Proba = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trained model and what its training cost; JSON types only.

    Attributes:
        method: Entry of ``METHODS``.
        backbone: Its name; ``pixels`` for a network of its own.
        seed: Of new weights, order, augmentation and dropout.
        moved: Which weights moved, in words.
        identity: All that determines the model, beside the libraries.
        samples: Digest of the images, labels and splits that the probabilities are of.
        epochs: That were trained.
        seconds: Of all training steps together.
        validation_seconds: Of the looks at the validation images between them.
        images_per_second: Trained on.
        peak_memory_bytes: See :class:`pipeline.finetune.history.History`.
        trainable_parameters: Numbers that could move, the head's among them.
        parameters: Of the whole network.
        gflop_per_image: Forward, from pixels to logits; a multiply-add is two.
        gflop_per_trained_image: Forward, of what runs when the method trains.
        stored: Images that the frozen part was run on for this method, and the seconds;
            zero where the store had them.
        best_epoch: With the lowest validation loss, from 0.
        kept_epoch: Whose weights these are.
        stopped_early: Whether patience ended the training.
        convergence: See :mod:`pipeline.finetune.history`.
        curves: A row for each epoch.
        extrapolated: Cost of more epochs than were run, where a method exists to be
            timed: ``epochs`` and ``seconds``, from the measured rate.
        mixed: Of a mixture, ``from``, ``to``, ``alpha``, ``rule`` and ``curve``.
    """

    method: str
    backbone: str
    seed: int
    moved: str
    identity: Mapping[str, Any]
    samples: str
    epochs: int
    seconds: float
    validation_seconds: float
    images_per_second: float | None
    peak_memory_bytes: int | None
    trainable_parameters: int
    parameters: int
    gflop_per_image: float
    gflop_per_trained_image: float
    stored: Mapping[str, float]
    best_epoch: int | None
    kept_epoch: int | None
    stopped_early: bool
    convergence: Convergence
    curves: tuple[Mapping[str, Any], ...] = ()
    extrapolated: Mapping[str, float] | None = None
    mixed: Mapping[str, Any] | None = field(default=None)


class ModelFolder:
    """Where one trained model lies.

    Args:
        path: ``results/<study>/finetune/<method>-<backbone>-<seed>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints while it is being trained."""
        return self.path / "checkpoints"

    def record(self) -> Record | None:
        """What was measured; None where there is no whole model."""
        found = self._read()
        return None if found is None else _record(found["record"])

    def weights_sha256(self) -> str:
        """Stands for the weights in the identity of models that start from them."""
        return str((self._read() or {}).get("weights"))

    def state(self) -> dict[str, Tensor]:
        """The tensors of the whole network, by name."""
        from safetensors.torch import load

        return load(disk.read_all(self.path / WEIGHTS))

    def probabilities(self) -> Proba:
        """Shape ``(n, K)``, in the order of the samples that the record names."""
        from safetensors.numpy import load

        return load(disk.read_all(self.path / PROBABILITIES))["probabilities"]

    def save(self, record: Record, state: Mapping[str, Tensor], proba: Proba) -> None:
        """Put a model in place, whole, and remove its checkpoints.

        Raises:
            CacheError: The disk refused.
        """
        from safetensors.numpy import save as save_arrays
        from safetensors.torch import save as save_tensors

        disk.make_dir(self.path)
        weights = save_tensors({name: t.detach().cpu().contiguous() for name, t in state.items()})
        probabilities = save_arrays({"probabilities": np.ascontiguousarray(proba)})
        content = {
            "format": _FORMAT,
            "weights": hashlib.sha256(weights).hexdigest(),
            "probabilities": hashlib.sha256(probabilities).hexdigest(),
            "record": asdict(record),
        }
        disk.publish(self.path / WEIGHTS, weights)
        disk.publish(self.path / PROBABILITIES, probabilities)
        disk.publish(self.path / RECORD, json.dumps(content, indent=1, allow_nan=False).encode())
        self._remove_checkpoints()

    def _read(self) -> dict[str, Any] | None:
        """The record, if it and the files that it names are as they were written."""
        try:
            found: dict[str, Any] = json.loads(disk.read_all(self.path / RECORD))
            whole = found["format"] == _FORMAT and all(
                hashlib.sha256(disk.read_all(self.path / name)).hexdigest() == found[key]
                for key, name in (("weights", WEIGHTS), ("probabilities", PROBABILITIES))
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole:
            _LOG.warning("%s: not as it was written; it will be trained again", self.path)
        return found if whole else None

    def _remove_checkpoints(self) -> None:
        names = disk.listdir(self.checkpoints)
        if names:
            disk.remove(self.checkpoints, names)
            self.checkpoints.rmdir()


def _record(values: Mapping[str, Any]) -> Record:
    curves = tuple(values["curves"])
    # Judged anew, so that one table holds one rule, whenever its models were trained.
    losses = [row["validation_loss"] for row in curves if row["validation_loss"] is not None]
    return Record(**{**values, "convergence": convergence(losses), "curves": curves})


def models_in(folder: Path) -> list[ModelFolder]:
    """All whole models of a results folder."""
    found = [ModelFolder(folder / name) for name in disk.listdir(folder)]
    return [model for model in found if model.record() is not None]
