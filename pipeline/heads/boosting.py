"""Gradient boosting on principal components.

Of 1,280 features a fit takes 1 s, nearly all of it for histograms of features that say much
the same; of 64 components 0.2 s, at the same log loss on patients held out (0.156 and 0.156
on 1,600 chest X-rays).
"""

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.base import Head


class BoostingHead(Head):
    """Small trees on histograms; see scikit-learn's ``HistGradientBoostingClassifier``.

    Args:
        components: Principal components at most.
        learning_rate: Share of each tree that is added.
        max_iter: Trees, for each class where there are more than two.
        max_leaf_nodes: Leaves of a tree.
        random_state: Seed of the trees.

    Attributes:
        classes_: Class labels, shape ``(K,)``.
        pca_: Features to components.
        trees_: Fitted, of scikit-learn.
    """

    def __init__(
        self,
        *,
        components: int = 64,
        learning_rate: float = 0.2,
        max_iter: int = 50,
        max_leaf_nodes: int = 8,
        random_state: int = 0,
    ) -> None:
        self.components = components
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_leaf_nodes = max_leaf_nodes
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``.

        Raises:
            ValueError: Not finite, or shapes that do not fit.
        """
        rows, y = validate_data(self, X, y, dtype=np.float32)
        # The same components for every seed: only the trees are stochastic.
        self.pca_ = PCA(min(self.components, *rows.shape), random_state=0).fit(rows)
        # Stopping early would hold rows out without regard to patients.
        self.trees_ = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            max_leaf_nodes=self.max_leaf_nodes,
            max_features=0.5,
            max_bins=63,
            early_stopping=False,
            random_state=self.random_state,
        ).fit(self.pca_.transform(rows), y)
        self.classes_ = self.trees_.classes_
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        return np.asarray(self.trees_.predict_proba(self.pca_.transform(rows)))
