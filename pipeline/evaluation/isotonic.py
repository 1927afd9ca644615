"""Monotone curves through noisy rates, by pooling adjacent violators (PAV)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A monotone curve: straight between its knots, level outside them."""

    x: NDArray[np.float64]
    """Shape (u,), increasing."""
    y: NDArray[np.float64]
    """Shape (u,), monotone."""

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return the heights at ``x``, same shape."""
        return np.asarray(np.interp(x, self.x, self.y), dtype=np.float64)


def fit_monotone(
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    increasing: bool = True,
    weights: NDArray[np.floating] | None = None,
) -> Curve:
    """Least-squares monotone fit; its weighted mean over ``x`` is that of ``y``.

    Args:
        x: Shape (n,); equal values share one height.
        y: Shape (n,).
        increasing: Direction of the curve.
        weights: Shape (n,), >= 0, not all 0; rows of weight 0 are left out.
    """
    mass = np.ones(len(x)) if weights is None else weights
    used = mass > 0
    knots, place = np.unique(x[used], return_inverse=True)
    total = np.bincount(place, weights=mass[used])
    height = np.bincount(place, weights=mass[used] * y[used]) / total
    fitted = isotonic_regression(height, weights=total, increasing=increasing).x
    return Curve(x=knots.astype(np.float64), y=np.asarray(fitted, dtype=np.float64))
