"""A perceptron on cached features: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K).

Features stay in memory as one tensor, gradients are written where the optimiser reads them,
and one core trains one head: several heads are trained at the same time, one on each core.
The trained weights are numpy arrays, so that only training needs torch.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head, number_classes
from pipeline.heads.parallel import one_torch_thread
from pipeline.randomness import stream

if TYPE_CHECKING:
    from torch import Tensor

#: Rows that are put in the order of their steps at once.
_SHUFFLED = 4096
Layers = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
Rows = tuple[NDArray[np.float32], NDArray[np.integer]]


class MLPHead(Head):
    """A perceptron trained by AdamW on cross-entropy.

    The default schedule has a lower log loss on patients held out than 30 epochs in batches of
    32 at a rate of 1e-4 (0.116 against 0.132 on 1,600 chest X-rays), in a tenth of the time.

    Args:
        hidden: Width of each hidden layer.
        depth: Hidden layers, 1 or more.
        dropout: Share of hidden units dropped while training, in [0, 1).
        epochs: Passes over the rows. None: as many as make about 90 steps, 7 to 30.
        batch_size: Rows per step. None: a power of two that gives 10 to 20 steps an epoch,
            but 32 to 1024.
        learning_rate: AdamW's. None: 4e-4 for up to 128 rows a step, then with their root.
        weight_decay: AdamW's, decoupled.
        random_state: Seed of the initial weights, the order of rows and the dropout.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        layers_: Weights ``(d_in, d_out)`` and bias ``(d_out,)`` of each layer, float32.
        curves_: By name (``fit_loss``, ``fit_accuracy``, and ``validation_*`` where such rows
            were given), a value for each epoch; losses in nats. Those of the fit rows are
            running means with dropout.
    """

    def __init__(
        self,
        *,
        hidden: int = 256,
        depth: int = 1,
        dropout: float = 0.5,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.depth = depth
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, validation: Rows | None = None) -> Self:
        """Train on features ``(n, d)`` and labels ``(n,)``.

        Args:
            X: Features.
            y: Labels.
            validation: Other features, and the numbers of their classes: after each epoch
                their loss and accuracy are noted. They reach no weight.

        Raises:
            ValueError: Not finite, shapes that do not fit, one class only, or a setting that
                is not allowed.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, labels = number_classes(y)
        if self.depth < 1 or self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"hidden {self.hidden}, depth {self.depth}, dropout {self.dropout}: allowed are "
                "1 or more, 1 or more, and 0 to below 1"
            )
        with one_torch_thread():
            self.layers_, self.curves_ = _train(self, rows, labels, validation)
        return self

    def schedule(self, n: int) -> tuple[int, int, float]:
        """Epochs, rows a step and learning rate for ``n`` rows."""
        batch = self.batch_size or min(1024, max(32, 2 ** int(np.log2(max(1, n / 10)))))
        epochs = self.epochs or min(30, max(7, round(90 * batch / n)))
        rate = self.learning_rate or 4e-4 * max(1.0, batch / 128) ** 0.5
        return epochs, batch, rate

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``; nothing is dropped."""
        check_is_fitted(self)
        return _proba(self.layers_, validate_data(self, X, dtype=np.float32, reset=False))


def _proba(layers: Layers, X: NDArray[np.float32]) -> NDArray[np.float64]:
    rows = X
    for number, (weights, bias) in enumerate(layers):
        rows = (np.maximum(rows, 0) if number else rows) @ weights + bias
    return np.asarray(softmax(rows.astype(np.float64), axis=1))


def _train(
    head: MLPHead, X: NDArray[np.float32], y: NDArray[np.integer], validation: Rows | None
) -> tuple[Layers, dict[str, list[float]]]:
    """The whole training: epochs of steps of forward, backward and AdamW."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    epochs, batch, rate = head.schedule(len(X))
    rng = stream("mlp", head.random_state)
    classes = int(y.max()) + 1
    network = _Network(
        [X.shape[1], *[head.hidden] * head.depth, classes], rng, device=device, dropout=head.dropout
    )
    optimiser = torch.optim.AdamW(
        network.parameters, lr=rate, weight_decay=head.weight_decay, fused=True
    )
    rows, labels = torch.as_tensor(X, device=device), torch.as_tensor(y, device=device)
    curves: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(epochs):
            loss, hits = 0.0, 0.0
            order = torch.as_tensor(rng.permutation(len(X)), device=device)
            masks = network.draw_masks(len(X))
            # A step takes slices: the rows of many steps are put in their order at once.
            size = batch * max(1, _SHUFFLED // batch)
            for start in range(0, len(X), size):
                part = slice(start, start + size)
                shuffled, shuffled_labels = rows[order[part]], labels[order[part]]
                scaled = [network.scale(mask[part]) for mask in masks]
                truth = torch.nn.functional.one_hot(shuffled_labels, classes).to(rows.dtype)
                scores = []
                for at in range(0, len(shuffled), batch):
                    step = slice(at, at + batch)
                    scores.append(
                        network.gradients(shuffled[step], truth[step], [m[step] for m in scaled])
                    )
                    optimiser.step()
                z = torch.cat(scores)
                loss -= float((z.log_softmax(1) * truth).sum())
                hits += float((z.argmax(1) == shuffled_labels).sum())
            _note(curves, "fit", loss / len(X), hits / len(X))
            if validation is not None:
                _note(curves, "validation", *_loss_and_accuracy(network.layers(), *validation))
    return network.layers(), curves


def _loss_and_accuracy(
    layers: Layers, X: NDArray[np.float32], y: NDArray[np.integer]
) -> tuple[float, float]:
    proba = _proba(layers, X)
    loss = -np.log(np.maximum(proba[np.arange(len(y)), y], 1e-15)).mean()
    return float(loss), float((proba.argmax(axis=1) == y).mean())


def _note(curves: dict[str, list[float]], rows: str, loss: float, accuracy: float) -> None:
    curves.setdefault(f"{rows}_loss", []).append(loss)
    curves.setdefault(f"{rows}_accuracy", []).append(accuracy)


class _Network:
    """Weights, and gradients written by hand: autograd takes a quarter longer."""

    def __init__(
        self, widths: list[int], rng: np.random.Generator, *, device: str, dropout: float
    ) -> None:
        import torch

        self.rng, self.device, self.dropout = rng, device, dropout
        self.hidden = widths[1:-1]
        self.parameters: list[Any] = []
        for fan_in, fan_out in pairwise(widths):
            bound = 1 / np.sqrt(fan_in)  # as torch.nn.Linear begins
            for shape in ((fan_out, fan_in), (fan_out,)):
                drawn = rng.uniform(-bound, bound, shape).astype(np.float32)
                parameter = torch.nn.Parameter(torch.as_tensor(drawn, device=device))
                parameter.grad = torch.zeros_like(parameter)
                self.parameters.append(parameter)
        self.weights, self.biases = self.parameters[::2], self.parameters[1::2]

    def draw_masks(self, n: int) -> list["Tensor"]:
        """For each hidden layer a random byte a unit, ``(n, width)``, in order of use.

        Bytes, because as numbers the masks of 200,000 rows would be as large as the rows.
        """
        import torch

        return [
            torch.as_tensor(self.rng.integers(0, 256, (n, width), np.uint8), device=self.device)
            for width in self.hidden
        ]

    def scale(self, drawn: "Tensor") -> "Tensor":
        """0 for what is dropped and 1 / (share that is kept) for the rest, of random bytes.

        Dropout in steps of 1/256: the share is the real one, so the expectation is exact.
        """
        threshold = round(self.dropout * 256)
        return (drawn >= threshold) * (256 / (256 - threshold))

    def gradients(self, X: "Tensor", truth: "Tensor", masks: list["Tensor"]) -> "Tensor":
        """Put the gradients of one batch in place; its scores ``(batch, K)``.

        Args:
            X: Features of the batch.
            truth: One-hot labels.
            masks: For each hidden layer, what the units are multiplied with.
        """
        import torch

        inputs = [X]
        for W, b, mask in zip(self.weights, self.biases, masks, strict=False):
            inputs.append(torch.addmm(b, inputs[-1], W.T).relu_().mul_(mask))
        z = torch.addmm(self.biases[-1], inputs[-1], self.weights[-1].T)
        gradient = z.softmax(1).sub_(truth).div_(len(truth))
        for layer in reversed(range(len(self.weights))):
            torch.mm(gradient.T, inputs[layer], out=self.weights[layer].grad)
            torch.sum(gradient, dim=0, out=self.biases[layer].grad)
            if layer:
                # A unit that was dropped or not active has input 0 to this layer.
                gradient = gradient @ self.weights[layer]
                gradient.mul_(masks[layer - 1]).mul_(inputs[layer] > 0)
        return z

    def layers(self) -> Layers:
        """Copies of the weights ``(d_in, d_out)`` and biases."""
        return [
            (np.ascontiguousarray(W.detach().cpu().numpy().T), b.detach().cpu().numpy().copy())
            for W, b in zip(self.weights, self.biases, strict=True)
        ]
