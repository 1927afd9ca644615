"""Support vectors, linear or RBF, with calibrated scores.

All candidates share one matrix of inner products, and every fold is a part of it: on 1,280
rows of 1,280 features a fit on that matrix takes 10 ms, where a fit on features takes 0.1 to
0.4 s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.svm import SVC

from pipeline.data.patients import patient_folds
from pipeline.heads.base import Head
from pipeline.heads.calibration import Calibration, fit_calibration

#: Kernel and C. Of rows in many dimensions a linear kernel separates with little C, and the
#: scores of RBF saturate.
CANDIDATES = (("linear", 1e-3), ("linear", 1e-2), ("rbf", 1.0), ("rbf", 10.0))
#: More rows are not used: their inner products would take 200 MB and more, and minutes.
MOST_ROWS = 5000


class SVMHead(Head):
    """Support vectors; the kernel and ``C`` are chosen by held-out log loss.

    Args:
        candidates: Pairs of a kernel (``linear`` or ``rbf``) and ``C`` to choose between.
        calibration: Of an earlier fit, for one candidate: nothing is held out then.
        random_state: Of the folds, and of the patients that are used where there are more
            than ``MOST_ROWS`` rows.

    Attributes:
        support_vectors_: Rows that the scores are made from, float32 of shape ``(s, d)``.
        gamma_: Of the RBF kernel: one over the features' number and variance.
        calibration_: Scores to probabilities.
        best_params_: The chosen candidate.
        fixed_params_: What the constructor takes to make the same choice again.
    """

    def __init__(
        self,
        *,
        candidates: Sequence[tuple[str, float]] = CANDIDATES,
        calibration: Calibration | None = None,
        random_state: int = 0,
    ) -> None:
        self.candidates = candidates
        self.calibration = calibration
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Fit features ``(n, d)`` to labels ``(n,)``, patients ``(n,)`` held out whole.

        Raises:
            ValueError: A class with fewer than two patients, or see :class:`Head`.
        """
        rows, labels = self._rows_to_fit(X, y)
        patients = np.arange(len(rows)) if groups is None else np.asarray(groups)
        if len(rows) > MOST_ROWS:
            parts = -(-len(rows) // MOST_ROWS)
            keep = patient_folds(labels, patients, folds=parts, seed=self.random_state)[0][1]
            rows, labels, patients = rows[keep], labels[keep], patients[keep]
        self.gamma_ = 1 / (rows.shape[1] * max(float(rows.var(dtype=np.float64)), 1e-12))
        inner = (rows @ rows.T).astype(np.float64)
        squares = inner.diagonal()
        kernels = {"linear": inner}
        if "rbf" in dict(self.candidates):
            distances = np.maximum(squares[:, None] + squares - 2 * inner, 0)
            kernels["rbf"] = np.exp(-self.gamma_ * distances)
        if self.calibration:
            self.calibration_, ((kernel, C),) = self.calibration, self.candidates
        else:
            held_out = self._held_out_scores(kernels, labels, patients)
            calibrations = [fit_calibration(scores, labels) for scores in held_out]
            best = int(np.argmin([calibration.loss for calibration in calibrations]))
            self.calibration_, (kernel, C) = calibrations[best], self.candidates[best]
        self.best_params_ = {"kernel": kernel, "C": C}
        self.fixed_params_ = {
            "candidates": ((kernel, C),),
            "calibration": self.calibration_,
        }
        self.machine_ = SVC(kernel="precomputed", C=C).fit(kernels[kernel], labels)
        self.support_vectors_ = rows[self.machine_.support_]
        return self

    def _held_out_scores(
        self,
        kernels: Mapping[str, NDArray[np.float64]],
        labels: NDArray[np.intp],
        patients: NDArray[Any],
    ) -> NDArray[np.float64]:
        """Scores of each candidate for rows whose patients it has not seen, ``(c, n, K)``."""
        scores = np.empty((len(self.candidates), len(labels), len(self.classes_)))
        for inside, outside in patient_folds(labels, patients, seed=self.random_state):
            parts = {
                name: (kernel[np.ix_(inside, inside)], kernel[np.ix_(outside, inside)])
                for name, kernel in kernels.items()
            }
            for number, (name, C) in enumerate(self.candidates):
                fit, held_out = parts[name]
                machine = SVC(kernel="precomputed", C=C).fit(fit, labels[inside])
                scores[number, outside] = _columns(machine.decision_function(held_out))
        return scores

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, d)``."""
        rows = self._rows(X)
        inner = (rows @ self.support_vectors_.T).astype(np.float64)
        if self.best_params_["kernel"] == "rbf":
            squares, of_support = (
                np.einsum("ij,ij->i", a, a, dtype=np.float64) for a in (rows, self.support_vectors_)
            )
            distances = squares[:, None] + of_support - 2 * inner
            inner = np.exp(-self.gamma_ * np.maximum(distances, 0))
        # The machine reads the columns of its support vectors only.
        kernel = np.zeros((len(rows), self.machine_.shape_fit_[0]))
        kernel[:, self.machine_.support_] = inner
        return self.calibration_.proba(_columns(self.machine_.decision_function(kernel)))


def _columns(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """One column for each class; of two classes the first has zero."""
    return np.column_stack([np.zeros(len(scores)), scores]) if scores.ndim == 1 else scores
