"""The exercise's head: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K), 30 epochs."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A perceptron with one hidden layer, trained by Adam on cross-entropy.

    Args:
        hidden: Width of the hidden layer.
        dropout: Share of hidden units dropped while training, in [0, 1).
        epochs: Passes over the rows.
        batch_size: Rows per step.
        learning_rate: Adam's.
        random_state: Seed of the initial weights, the order of rows and the dropout.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        loss_curve_: Mean training loss of each epoch, nats.
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's contract: one argument per parameter
        self,
        *,
        hidden: int = 256,
        dropout: float = 0.5,
        epochs: int = 30,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        random_state: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on features ``(n, d)`` and labels ``(n,)``.

        Raises:
            ValueError: Not finite, shapes that do not fit, or one class only.
        """
        import torch

        X, y = validate_data(self, X, y, dtype=np.float32)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:  # noqa: PLR2004 - a choice needs two
            raise ValueError(f"one class only ({self.classes_[0]!r}); a head needs two or more")
        threads = torch.get_num_threads()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            # Two threads on products this small cost more than they give.
            torch.set_num_threads(1)
            try:
                self._train(torch.from_numpy(X), torch.from_numpy(labels))
            finally:
                torch.set_num_threads(threads)
        return self

    def _train(self, X: Any, labels: Any) -> None:
        import torch
        from torch import nn

        network = nn.Sequential(
            nn.Linear(X.shape[1], self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, len(self.classes_)),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        self.loss_curve_ = []
        for _ in range(self.epochs):
            total = 0.0
            for rows in torch.split(torch.randperm(len(X)), self.batch_size):
                loss = nn.functional.cross_entropy(network(X[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += loss.item() * len(rows)
            self.loss_curve_.append(total / len(X))
        self.weights_ = [p.detach().numpy() for p in network.parameters()]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities of shape ``(n, K)`` for features ``(n, d)``."""
        check_is_fitted(self)
        rows: NDArray[np.float32] = validate_data(self, X, dtype=np.float32, reset=False)
        w1, b1, w2, b2 = (w.astype(np.float64) for w in self.weights_)
        scores = np.maximum(rows @ w1.T + b1, 0) @ w2.T + b2
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        found: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return found
