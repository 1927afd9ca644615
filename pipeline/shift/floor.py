"""How low could the error be? Bounds on the Bayes error from the nearest neighbour."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Interval
from pipeline.shift.effects import draw_patients, rate

_BLOCK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class BayesFloor:
    """Bounds on the error of the best possible head on these features."""

    low: float
    """Lower bound."""
    high: float
    """Upper bound: the nearest neighbour's own error, at most (K - 1) / K."""
    neighbour_error: Interval
    """Leave-one-patient-out error of the nearest neighbour."""


def bayes_floor(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    rng: np.random.Generator,
) -> BayesFloor:
    """Bound the Bayes error by that of the nearest neighbour (Cover and Hart 1967).

    With e the neighbour's error and m = (K - 1) / K the Bayes error lies between
    m (1 - sqrt(1 - e / m)) and e. It holds for many images; with few, e is too high and
    so are both bounds.

    Args:
        features: Shape (n, d); each is scaled to unit variance.
        labels: Shape (n,), 0 to K - 1, at least two classes.
        groups: Shape (n,), patients; a neighbour is always another patient.
        rng: Source of the interval's draws.
    """
    wrong = labels[_nearest(features, groups)] != labels
    classes = int(labels.max()) + 1
    most = (classes - 1) / classes
    high = min(float(wrong.mean()), most)
    return BayesFloor(
        low=float(most * (1 - np.sqrt(1 - high / most))),
        high=high,
        neighbour_error=rate(wrong, groups, partial(draw_patients, groups, rng)),
    )


def _nearest(features: NDArray[np.floating], groups: NDArray[Any]) -> NDArray[np.intp]:
    """Row of the closest image of another patient, shape (n,); never an n x n matrix."""
    rows = np.asarray(features, dtype=np.float64)
    spread = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    squares = np.einsum("nd,nd->n", rows, rows)
    nearest = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        distance = squares - 2 * rows[block] @ rows.T
        distance[groups[block][:, None] == groups] = np.inf
        nearest.append(distance.argmin(axis=1))
    return np.concatenate(nearest)
