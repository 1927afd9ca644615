"""Say where the heavy matrix products run: numpy, or torch on a device.

numpy and torch spell alike what the tests need (``@``, ``exp``, ``sqrt``, ``clip``,
``linalg.solve``), so one code serves both. torch is imported only when a device is
named: the tests of a small study need numpy alone.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.spatial.distance import pdist

from pipeline.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Place:
    """An array library and the device its arrays live on."""

    xp: Any
    """The module: numpy or torch."""
    device: str | None = None
    """torch device, None for numpy."""

    def put(self, array: NDArray[Any]) -> Any:
        """Bring an array here as float64: the statistics are small differences of large sums."""
        doubles = np.ascontiguousarray(array, dtype=np.float64)
        return doubles if self.device is None else self.xp.from_numpy(doubles).to(self.device)

    def get(self, array: Any) -> NDArray[np.float64]:
        """Bring an array back to numpy, float64."""
        return np.asarray(array if self.device is None else array.cpu().numpy(), dtype=np.float64)

    def solve_positive(self, matrix: Any, right: Any) -> Any:
        """Solve for a symmetric positive definite matrix: half the work of a general one."""
        if self.device is None:
            return solve(matrix, right, assume_a="pos", check_finite=False)
        return self.xp.cholesky_solve(right, self.xp.linalg.cholesky(matrix))


def place(device: str | None = None) -> Place:
    """Return where products run.

    Args:
        device: None for numpy, or a torch device such as ``"cpu"`` or ``"cuda"``.

    Raises:
        EngineError: torch is not there, or does not have the device in float64.
    """
    if device is None:
        return Place(xp=np)
    try:
        torch = importlib.import_module("torch")
        torch.zeros(1, dtype=torch.float64, device=device)
    except (ImportError, RuntimeError, TypeError, AssertionError) as error:
        raise EngineError(
            f"cannot compute in float64 on device {device!r} ({error}); "
            "leave the device out for numpy, or name a torch device: cpu, cuda"
        ) from error
    return Place(xp=torch, device=device)


# Kernel and distance statistics of two samples, streamed in tiles.


#: Multiples of the median distance that serve as bandwidths of the Gaussian kernels.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Rows and columns of a tile: 512 x 512 float64 stays in a core's cache, and the upper
#: triangle of tiles is close to half the matrix from n = 2000 on.
TILE = 512
#: More rows than this estimate the median distance from a subset.
_MEDIAN_ROWS = 1000

#: (place, inner products / d, squared distances) -> kernel values, all tiles of one shape.
Kernel = Callable[[Place, Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class KernelDraws:
    """Kernel statistics for every column of labels."""

    mmd: NDArray[np.float64]
    """Shape (5, B): unbiased squared MMD, one row per bandwidth of :data:`BANDWIDTHS`."""


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What the statistics need of one kernel matrix K."""

    within: NDArray[np.float64]
    """Shape (B,): t'Kt for each labelling t."""
    row_sums: NDArray[np.float64]
    """Shape (n,): K1."""
    diagonal: NDArray[np.float64]
    """Shape (n,)."""


def global_scale(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Centre the rows and divide all by one number, so that a row's mean square is 1.

    No feature is scaled by itself: rotating the features then changes no distance.

    Args:
        features: Shape (n, d).

    Returns:
        Shape (n, d).
    """
    centred = np.asarray(features - features.mean(axis=0, dtype=np.float64), dtype=np.float64)
    scale = np.sqrt(np.mean(centred**2))
    return centred / scale if scale > 0 else centred


def median_distance(rows: NDArray[np.float64]) -> float:
    """Return the median Euclidean distance between two rows.

    Of many rows, those at evenly spaced ranks of the norm stand for all: a choice that
    depends neither on their order nor on a rotation.

    Args:
        rows: Shape (n, d), centred.

    Returns:
        The median; 1 if more than half of the pairs coincide.
    """
    if len(rows) > _MEDIAN_ROWS:
        by_norm = np.argsort(np.einsum("ij,ij->i", rows, rows), kind="stable")
        rows = rows[by_norm[np.linspace(0, len(rows) - 1, _MEDIAN_ROWS).astype(np.intp)]]
    return float(np.median(pdist(rows))) or 1.0


def _gaussian(where: Place, _inner: Any, squared: Any, *, bandwidth: float) -> Any:
    return where.xp.exp(squared / (-2 * bandwidth**2))


def kernels_for(median: float) -> Mapping[str, Kernel]:
    """Return the kernels of all statistics, by name.

    Args:
        median: Median distance between rows, the unit of the Gaussian bandwidths.
    """
    gaussians = {
        f"gaussian{factor:g}": partial(_gaussian, bandwidth=factor * median)
        for factor in BANDWIDTHS
    }
    return MappingProxyType(gaussians)


def quadratic_forms(
    rows: NDArray[np.float64],
    labels: NDArray[np.bool_],
    kernels: Mapping[str, Kernel],
    where: Place,
    tile: int = TILE,
) -> Mapping[str, Forms]:
    """Stream the tiles of each kernel matrix once and keep what the statistics need.

    Args:
        rows: Shape (n, d), centred.
        labels: Shape (n, B), True for the target.
        kernels: Kernels by name.
        where: Where the products run.
        tile: Rows of a tile; changes memory and time, not the result.

    Returns:
        The forms of each kernel, by the same names.
    """
    n, d = rows.shape
    norms = np.einsum("ij,ij->i", rows, rows)
    within = {name: np.zeros(labels.shape[1]) for name in kernels}
    sums = {name: np.zeros(n) for name in kernels}
    spans = [slice(start, min(start + tile, n)) for start in range(0, n, tile)]
    for a, b in combinations_with_replacement(spans, 2):
        inner = where.put(rows[a]) @ where.put(rows[b]).T
        squared = where.put(norms[a])[:, None] + where.put(norms[b])[None, :] - 2 * inner
        squared = where.xp.clip(squared, 0, None)
        if a == b:
            squared.ravel()[:: squared.shape[0] + 1] = 0  # exact, where rounding is not
        labels_a, labels_b = where.put(labels[a]), where.put(labels[b])
        for name, kernel in kernels.items():
            values = kernel(where, inner / d, squared)
            form = where.get((labels_a * (values @ labels_b)).sum(0))
            within[name] += form if a == b else 2 * form
            sums[name][a] += where.get(values.sum(1))
            if a != b:
                sums[name][b] += where.get(values.sum(0))
    itself = Place(xp=np)
    return {
        name: Forms(
            within=within[name],
            row_sums=sums[name],
            diagonal=np.broadcast_to(kernel(itself, norms / d, np.zeros(n)), (n,)),
        )
        for name, kernel in kernels.items()
    }


def unbiased_mmd(forms: Forms, labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the unbiased squared maximum mean discrepancy (Gretton et al. 2012).

    Args:
        forms: Forms of the kernel.
        labels: Shape (n, B), True for the target.

    Returns:
        Shape (B,); may be negative.
    """
    n_t = labels.sum(axis=0).astype(np.float64)
    n_s = len(labels) - n_t
    across, within_s = _across(forms, labels)
    diagonal_t = forms.diagonal @ labels
    pairs_t = (forms.within - diagonal_t) / (n_t * (n_t - 1))
    pairs_s = (within_s - (forms.diagonal.sum() - diagonal_t)) / (n_s * (n_s - 1))
    return np.asarray(pairs_t + pairs_s - 2 * across / (n_t * n_s))


def _across(
    forms: Forms, labels: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of K between the domains and inside the source, from t'Kt and K1."""
    across = forms.row_sums @ labels - forms.within
    return across, forms.row_sums.sum() - 2 * across - forms.within


def kernel_draws(
    rows: NDArray[np.float64], labels: NDArray[np.bool_], where: Place, tile: int = TILE
) -> KernelDraws:
    """Return the MMD of each bandwidth for every labelling, in one pass.

    Args:
        rows: Shape (n, d), from :func:`global_scale`.
        labels: Shape (n, B), True for the target.
        where: Where the products run.
        tile: Rows of a tile.

    Returns:
        The statistics.
    """
    kernels = kernels_for(median_distance(rows))
    forms = quadratic_forms(rows, labels, kernels, where, tile)
    return KernelDraws(
        mmd=np.stack([unbiased_mmd(forms[name], labels) for name in kernels]),
    )


def aggregate(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join several statistics into one: the largest standard score of each labelling.

    Observed and permuted labellings are scored alike, so the test keeps its level
    without splitting the data (the idea of MMDAgg, Schrab et al. 2023).

    Args:
        statistics: Shape (k, B + 1), one row per bandwidth.

    Returns:
        Shape (B + 1,).
    """
    spread = statistics.std(axis=1, keepdims=True)
    spread[spread == 0] = np.inf
    scores = (statistics - statistics.mean(axis=1, keepdims=True)) / spread
    return np.asarray(scores.max(axis=0))
