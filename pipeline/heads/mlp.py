"""The exercise's head as a classifier: Linear(d, 256), ReLU, Dropout(0.5), Linear(256, K)."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head, numbered_classes
from pipeline.heads.folds import patient_folds
from pipeline.heads.stack import Rows, train_mlps
from pipeline.heads.trained import MLPSettings, TrainedMLP
from pipeline.heads.treated import TreatedRows


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
        trained_: See :class:`pipeline.heads.trained.TrainedMLP`.
        curves_: By name (``fit_loss``, ``fit_accuracy``; ``inner_*`` of what early stopping
            looks at, ``validation_*`` of watched rows), a value for each epoch.
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
                in_, out = patient_folds(numbers, patients, seed)[0]
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
