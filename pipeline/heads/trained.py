"""A trained perceptron: what it was asked to be, its weights, and how it came to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """One head.

    Attributes:
        hidden: Width of each hidden layer.
        depth: Hidden layers, 1 or 2.
        dropout: Share of hidden units dropped while training, in [0, 1).
        epochs: Passes over the rows, at most.
        batch_size: Rows a step.
        learning_rate: AdamW's.
        weight_decay: AdamW's, decoupled.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        patience: Epochs without a better validation loss before it stops; 0: never.
        seed: Of initial weights, order and masks.
    """

    hidden: int = 256
    depth: int = 1
    dropout: float = 0.5
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    patience: int = 0
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Heads with equal shapes can be trained in one stack."""
        return self.hidden, self.depth, self.epochs, self.batch_size, self.patience


@dataclass(frozen=True, kw_only=True)
class TrainedMLP:
    """A trained head.

    Attributes:
        layers: Weights ``(d_in, d_out)`` and bias ``(d_out,)`` of each layer.
        curves: By name (``fit_loss``, ``fit_accuracy``; ``inner_*`` and ``validation_*``
            where there were such rows), a value for each epoch; losses in nats. Those of
            the fit rows are running means with dropout.
        best_epoch: Epoch, from 0, whose weights these are.
    """

    layers: tuple[tuple[NDArray[Any], NDArray[Any]], ...]
    curves: dict[str, list[float]]
    best_epoch: int

    def proba(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``; nothing is dropped."""
        rows = np.asarray(X)
        for number, (weights, bias) in enumerate(self.layers):
            rows = (np.maximum(rows, 0) if number else rows) @ weights + bias
        scores = rows.astype(np.float64)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return probabilities


class Best:
    """Curves of each head, and the weights that it ends with."""

    def __init__(self, settings: Sequence[MLPSettings]) -> None:
        self.settings = settings
        self.curves: list[dict[str, list[float]]] = [{} for _ in settings]
        self.layers: list[Any] = [None] * len(settings)
        self.best = [float("inf")] * len(settings)
        self.epoch = [0] * len(settings)
        self.stopped = [False] * len(settings)

    @property
    def all_stopped(self) -> bool:
        """Whether no head goes on."""
        return all(self.stopped)

    def note(self, epoch: int, values: dict[str, "Tensor"], layers: list[Any]) -> None:
        """Take an epoch's values ``(K,)`` by name, and the layers of each head after it."""
        for k, one in enumerate(self.settings):
            if self.stopped[k]:
                continue
            for name, column in values.items():
                self.curves[k].setdefault(name, []).append(float(column[k]))
            loss = float(values["inner_loss"][k]) if one.patience else -epoch
            if loss < self.best[k] or not one.patience:
                self.best[k], self.epoch[k] = loss, epoch
                last = epoch == one.epochs - 1
                # Without early stopping only the last weights count, and need no copies.
                if one.patience or last:
                    self.layers[k] = tuple((w.copy(), b.copy()) for w, b in layers[k])
            self.stopped[k] = bool(one.patience) and epoch - self.epoch[k] >= one.patience

    def trained(self) -> list[TrainedMLP]:
        """The heads as they ended."""
        return [
            TrainedMLP(layers=layers, curves=curves, best_epoch=epoch)
            for layers, curves, epoch in zip(self.layers, self.curves, self.epoch, strict=True)
        ]
