"""The exercise's head as a classifier: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.stack import MLPSettings, Rows, TrainedMLP, train_mlps


class MLPHead(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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
        random_state: Seed of the initial weights, the order of rows and the dropout.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        trained_: See :class:`pipeline.heads.stack.TrainedMLP`; has the curves.
    """

    def __init__(  # noqa: PLR0913 - scikit-learn's contract: one argument per parameter
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
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on features ``(n, d)`` and labels ``(n,)``.

        Raises:
            ValueError: Not finite, shapes that do not fit, or one class only.
        """
        return self.fit_all([self], X, y)[0]

    @classmethod
    def fit_all(cls, heads: "list[Self]", X: ArrayLike, y: ArrayLike) -> "list[Self]":
        """Train several heads on the same rows together; each as :meth:`fit` would."""
        fit = None
        for head in heads:
            rows, labels = validate_data(head, X, y, dtype=np.float32)
            head.classes_, numbers = np.unique(labels, return_inverse=True)
            if len(head.classes_) < 2:  # noqa: PLR2004 - a choice needs two
                raise ValueError(f"one class only ({head.classes_[0]!r}); a head needs two or more")
            fit = Rows(X=rows, y=numbers)
        if fit is not None:
            trained = train_mlps(fit, [head.settings() for head in heads])
            for head, result in zip(heads, trained, strict=True):
                head.trained_ = result
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

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each row, shape ``(n,)``."""
        found: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return found
