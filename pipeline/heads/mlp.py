"""A trained perceptron: what it was asked to be, its weights, and how it came to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Self

from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.data.patients import patient_folds
from pipeline.heads.base import Head, numbered_classes
from pipeline.heads.parallel import one_thread, side_by_side
from pipeline.heads.preprocessing import TreatedRows
from pipeline.randomness import stream


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


# Perceptron heads trained side by side in one loop.


#: Heads trained together: more do not fit the cache of a core, and go slower each.
GROUP = 4


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Features ``(n, d)`` and labels 0 to K - 1 of shape ``(n,)``."""

    X: NDArray[np.floating]
    y: NDArray[np.integer]


def train_mlps(
    fit: Rows,
    settings: Sequence[MLPSettings],
    *,
    validation: Rows | None = None,
    watched: Rows | None = None,
    device: str = "cpu",
) -> list[TrainedMLP]:
    """Train heads on the same rows, those of one shape together.

    Args:
        fit: Rows to learn from; their dtype (float32 or float64) is computed in.
        settings: One for each head.
        validation: Rows that early stopping looks at (curves ``inner_*``); needed when
            ``patience`` is set.
        watched: Rows that only have curves drawn of them (``validation_*``): finished
            heads are asked about them, after each epoch, from copies of the weights.
        device: Where torch computes.

    Returns:
        The heads, in the order of ``settings``.

    Raises:
        ValueError: ``patience`` without validation rows, or a depth that is not 1 or 2.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(settings):
        if one.patience and validation is None:
            raise ValueError("patience needs validation rows to look at; give them, or patience 0")
        if one.depth not in (1, 2):
            raise ValueError(f"depth {one.depth}: allowed are 1 and 2 hidden layers")
        groups.setdefault(one.shape, []).append(number)
    trained: dict[int, TrainedMLP] = {}
    parts = [part for numbers in groups.values() for part in _parts(numbers)]

    def train(part: list[int]) -> list[TrainedMLP]:
        stack = _Stack([settings[i] for i in part], fit, validation, device)
        stack.watched = watched
        return stack.train()

    jobs = [partial(train, part) for part in parts]
    found = side_by_side(jobs) if device == "cpu" else [job() for job in jobs]
    for part, heads in zip(parts, found, strict=True):
        trained |= dict(zip(part, heads, strict=True))
    return [trained[i] for i in range(len(settings))]


def _parts(numbers: list[int]) -> list[list[int]]:
    """Heads of one shape in stacks: an even number of them, which two cores share equally."""
    stacks = -(-len(numbers) // GROUP)
    if stacks > 1:
        stacks += stacks % 2
    return [part.tolist() for part in np.array_split(numbers, stacks)]


class _Stack:
    """K heads of one shape; every tensor has the head as its first axis."""

    def __init__(
        self, settings: Sequence[MLPSettings], fit: Rows, validation: Rows | None, device: str
    ) -> None:
        import torch

        self.settings, self.shape = settings, settings[0]
        self.X = torch.as_tensor(fit.X).to(device)
        self.y = torch.as_tensor(fit.y).long().to(device)
        self.validation = validation
        self.watched: Rows | None = None
        self.classes = int(fit.y.max()) + 1
        widths = [fit.X.shape[1], *[self.shape.hidden] * self.shape.depth, self.classes]
        self.init = [stream("init", s.seed) for s in settings]
        self.order = [stream("order", s.seed) for s in settings]
        self.masks = [stream("masks", s.seed) for s in settings]
        self.weights = [self._uniform((i, o), i) for i, o in pairwise(widths)]
        self.biases = [self._uniform((o,), i) for i, o in pairwise(widths)]
        # Dropout in steps of 1/256: one random byte a unit. What is kept is scaled by the
        # share that is really kept, so the expectation is exact.
        self.threshold = self._column([round(s.dropout * 256) for s in settings])
        self.scale = 256 / (256 - self.threshold)
        self.smoothing = self._column([s.label_smoothing for s in settings])
        self.optimiser = self._adamw()

    def train(self) -> list[TrainedMLP]:
        import torch

        # A thread of its own starts with gradients on, whatever its maker had set.
        with torch.no_grad(), one_thread() if self.X.device.type == "cpu" else nullcontext():
            return self._train()

    def _train(self) -> list[TrainedMLP]:
        keep = Best(self.settings)
        for epoch in range(self.shape.epochs):
            loss, hits = self._epoch()
            values = {"fit_loss": loss, "fit_accuracy": hits}
            for name, rows in (("inner", self.validation), ("validation", self.watched)):
                if rows is not None:
                    values |= self._look(name, rows)
            keep.note(epoch, values, [self._layers(k) for k in range(len(self.settings))])
            if keep.all_stopped:
                break
        return keep.trained()

    def _epoch(self) -> tuple["Tensor", "Tensor"]:
        import torch

        n, size = len(self.X), self.shape.batch_size
        order = torch.as_tensor(np.stack([rng.permutation(n) for rng in self.order]))
        masks = self._draw_masks(n)
        loss = torch.zeros(len(self.settings), dtype=self.X.dtype, device=self.X.device)
        hits = torch.zeros_like(loss)
        for start in range(0, n, size):
            rows = order[:, start : start + size].to(self.X.device)
            step_loss, step_hits = self._step(
                self.X[rows],
                self.y[rows],
                [self._scaled(m[:, start : start + size]) for m in masks],
            )
            loss += step_loss
            hits += step_hits
        return loss / n, hits / n

    def _step(self, X: "Tensor", y: "Tensor", masks: list["Tensor"]) -> tuple["Tensor", "Tensor"]:
        """One AdamW step of each head on its own batch ``(K, B, d)``."""
        import torch

        inputs = [X]
        for weights, bias, mask in zip(self.weights, self.biases, masks, strict=False):
            hidden = torch.baddbmm(bias[:, None], inputs[-1], weights).relu_()
            inputs.append(hidden.mul_(mask))
        z = torch.baddbmm(self.biases[-1][:, None], inputs[-1], self.weights[-1])
        log_p = z.log_softmax(2)
        target = torch.nn.functional.one_hot(y, self.classes).to(z.dtype)
        target = target * (1 - self.smoothing) + self.smoothing / self.classes
        gradient = (log_p.exp() - target) / y.shape[1]
        for layer in reversed(range(len(self.weights))):
            torch.bmm(inputs[layer].mT, gradient, out=self.weight_grads[layer])
            torch.sum(gradient, dim=1, out=self.bias_grads[layer])
            if layer:
                gradient = torch.bmm(gradient, self.weights[layer].mT)
                # A unit that was dropped or not active has input 0 to this layer.
                gradient.mul_(masks[layer - 1]).mul_(inputs[layer] > 0)
        self.optimiser.step()
        return -(target * log_p).sum((1, 2)), (z.argmax(2) == y).sum(1).to(z.dtype)

    def _draw_masks(self, n: int) -> list["Tensor"]:
        """For each hidden layer, a random byte a unit, ``(K, n, hidden)``, in order of use.

        Bytes, because as numbers the masks of 200,000 rows would be larger than the rows.
        """
        import torch

        return [
            torch.as_tensor(
                np.stack([r.integers(0, 256, (n, self.shape.hidden), np.uint8) for r in self.masks])
            )
            for _ in range(self.shape.depth)
        ]

    def _scaled(self, drawn: "Tensor") -> "Tensor":
        """0 for what is dropped and 1 / keep for the rest, of one batch's bytes."""
        kept = drawn.to(self.X.device) >= self.threshold
        return kept * self.scale.to(self.X.dtype)

    def _look(self, name: str, rows: Rows) -> dict[str, "Tensor"]:
        """Loss and accuracy of each head on rows that it does not learn from."""
        import torch

        y = np.asarray(rows.y)
        p = np.stack([_trained(self._layers(k)).proba(rows.X) for k in range(len(self.settings))])
        loss = -np.log(np.maximum(p[:, np.arange(len(y)), y], 1e-15)).mean(1)
        hits = (p.argmax(2) == y).mean(1)
        return {
            f"{name}_loss": torch.as_tensor(loss),
            f"{name}_accuracy": torch.as_tensor(hits),
        }

    def _adamw(self) -> Any:
        """Torch's fused AdamW, a group for each head; gradients lie where we write them."""
        import torch

        self.weight_grads = [torch.zeros_like(w) for w in self.weights]
        self.bias_grads = [torch.zeros_like(b) for b in self.biases]
        groups = []
        for k, one in enumerate(self.settings):
            parameters = []
            for tensors, grads in (
                (self.weights, self.weight_grads),
                (self.biases, self.bias_grads),
            ):
                for tensor, grad in zip(tensors, grads, strict=True):
                    parameter = torch.nn.Parameter(tensor[k])
                    parameter.grad = grad[k]
                    parameters.append(parameter)
            groups.append(
                {"params": parameters, "lr": one.learning_rate, "weight_decay": one.weight_decay}
            )
        return torch.optim.AdamW(groups, fused=True)

    def _uniform(self, shape: tuple[int, ...], fan_in: int) -> "Tensor":
        """As ``torch.nn.Linear`` begins: uniform within 1 / sqrt(fan_in)."""
        import torch

        bound = 1 / np.sqrt(fan_in)
        drawn = np.stack([rng.uniform(-bound, bound, shape) for rng in self.init])
        return torch.as_tensor(drawn).to(self.X.device, self.X.dtype)

    def _column(self, values: list[Any]) -> "Tensor":
        import torch

        return torch.as_tensor(values, device=self.X.device)[:, None, None]

    def _layers(self, k: int) -> tuple[tuple[NDArray[Any], NDArray[Any]], ...]:
        return tuple(
            (w[k].cpu().numpy(), b[k].cpu().numpy())
            for w, b in zip(self.weights, self.biases, strict=True)
        )


def _trained(layers: tuple[tuple[NDArray[Any], NDArray[Any]], ...]) -> TrainedMLP:
    return TrainedMLP(layers=layers, curves={}, best_epoch=0)


# The exercise's head as a classifier: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K).


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Rows that curves are drawn of and nothing is learned from.

    After each epoch they are shown to a copy of the weights, whose answers go to the curves
    and nowhere else.

    Attributes:
        X: Features ``(n, d)``, treated as those that are learned from, as they are taken.
        y: Labels 0 to K - 1, shape ``(n,)``.
    """

    X: TreatedRows
    y: NDArray[np.integer]


class MLPHead(Head):
    """A perceptron trained by AdamW on cross-entropy; one head of a stack of one.

    Args:
        hidden: Width of each hidden layer.
        depth: Hidden layers, 1 or 2.
        dropout: Share of hidden units dropped while training, in [0, 1).
        epochs: Passes over the rows.
        batch_size: Rows per step.
        learning_rate: AdamW's.
        weight_decay: AdamW's, decoupled.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        patience: Epochs without a better loss on a fifth of the patients, held out of the
            rows given, before it stops with the best weights; 0: all epochs on all rows.
        random_state: Seed of the initial weights, the order of rows and the dropout.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        trained_: See :class:`pipeline.heads.mlp.TrainedMLP`.
        curves_: By name (``fit_loss``, ``fit_accuracy``; ``inner_*`` of what early stopping
            looks at, ``validation_*`` of watched rows), a value for each epoch.
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's contract: a setting is an argument
        self,
        *,
        hidden: int = 256,
        depth: int = 1,
        dropout: float = 0.5,
        epochs: int = 30,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        patience: int = 0,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.depth = depth
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.patience = patience
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Train on features ``(n, d)``, labels ``(n,)`` and, to stop early, patients ``(n,)``.

        Raises:
            ValueError: Not finite, shapes that do not fit, or one class only.
        """
        return self.fit_all([self], X, y, groups)[0]

    @classmethod
    def fit_all(
        cls,
        heads: "list[Self]",
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        watched: Watched | None = None,
    ) -> "list[Self]":
        """Train several heads on the same rows together; each as :meth:`fit` would."""
        for head in heads:
            rows, labels = validate_data(head, X, y, dtype=np.float32)
            head.classes_, numbers = numbered_classes(labels)
        patients = np.arange(len(rows)) if groups is None else np.asarray(groups)
        seen = None if watched is None else Rows(X=watched.X[:], y=watched.y)
        # Each seed holds out patients of its own; heads that never stop share all rows.
        together: dict[int, list[Self]] = {}
        for head in heads:
            together.setdefault(head.random_state if head.patience else -1, []).append(head)
        for seed, some in together.items():
            fit, inner = Rows(X=rows, y=numbers), None
            if seed >= 0:
                in_, out = patient_folds(numbers, patients, seed=seed)[0]
                fit = Rows(X=rows[in_], y=numbers[in_])
                inner = Rows(X=rows[out], y=numbers[out])
            settings = [head.settings() for head in some]
            trained = train_mlps(fit, settings, validation=inner, watched=seen)
            for head, result in zip(some, trained, strict=True):
                head.trained_, head.curves_ = result, result.curves
        return heads

    def settings(self) -> MLPSettings:
        """The parameters as the stack takes them."""
        parameters = self.get_params()
        seed = parameters.pop("random_state")
        return MLPSettings(seed=seed, **parameters)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities of shape ``(n, K)`` for features ``(n, d)``."""
        check_is_fitted(self)
        trained: TrainedMLP = self.trained_
        return trained.proba(validate_data(self, X, dtype=np.float32, reset=False))
