"""Probabilities under another class mix."""

import numpy as np
from numpy.typing import NDArray


def posterior(
    probabilities: NDArray[np.floating], class_weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Reweight the classes of each row and renormalise, shape (m, K).

    A row that is surely of classes without weight stays as it is: 0 / 0 says nothing.

    Args:
        probabilities: Shape (m, K).
        class_weights: Shape (K,), target prior over source prior.
    """
    weighted = np.asarray(probabilities * class_weights, dtype=np.float64)
    total = weighted.sum(axis=1, keepdims=True)
    unweighted = np.array(probabilities, dtype=np.float64)
    return np.asarray(np.divide(weighted, total, out=unweighted, where=total > 0))
