"""Perceptron heads trained side by side in one loop.

A stack is K heads of one shape that differ in learning rate, weight decay, dropout,
label smoothing and seed. Each has its own initial weights, order of rows and dropout
masks, drawn from its own seed, so a head is the same alone and in any company. The
network is small and known, so its gradient is written out: batched products for all
heads, and no graph to build 1,500 times.

With one hidden layer, for head k and a batch X (B, d):
    h = relu(X W1 + b1) * mask / keep,  z = h W2 + b2,  loss = CE(z, smoothed target)
    dz = (softmax(z) - target) / B,     dW2 = h' dz,    dh = dz W2' * mask / keep * (h > 0)
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.side_by_side import one_thread, side_by_side
from pipeline.heads.trained import Best, MLPSettings, TrainedMLP
from pipeline.randomness import stream

if TYPE_CHECKING:
    from torch import Tensor

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
