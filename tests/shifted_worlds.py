"""Two Gaussian hospitals with one declared difference, for the tests of adaptation."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH = 20
#: Distance of the class means in sd: the best possible accuracy is 92.3 % (shortcut: more).
REACH = 2.85
KINDS = ("none", "affine", "mixing", "label", "affine+label", "shortcut")


class World(NamedTuple):
    """Features (n, 20) and labels (n,) of a source (1600 rows) and a target (400)."""

    source: NDArray[np.float64]
    source_labels: NDArray[np.intp]
    target: NDArray[np.float64]
    target_labels: NDArray[np.intp]


def draw(kind: str, seed: int) -> World:
    """Draw one world; ``kind`` names what differs between its hospitals."""
    rng = np.random.default_rng([99, seed])
    ill = 0.85 if "label" in kind else 0.5
    labels_s = (rng.random(1600) < 0.5).astype(np.intp)
    labels_t = (rng.random(400) < ill).astype(np.intp)
    rows_s, rows_t = _rows(rng, labels_s, kind), _rows(rng, labels_t, kind)
    if "affine" in kind:
        rows_t = rows_t * rng.uniform(0.4, 2.5, WIDTH) + 1.5 * rng.normal(size=WIDTH)
    if kind == "mixing":
        factor = rng.normal(size=(WIDTH, WIDTH))
        rows_t = rows_t @ (0.3 * np.eye(WIDTH) + factor @ factor.T / WIDTH)
        rows_t += 0.5 * rng.normal(size=WIDTH)
    if kind == "shortcut":
        _mark(rng, rows_s, labels_s, agreement=0.95)
        _mark(rng, rows_t, labels_t, agreement=0.05)
    return World(rows_s, labels_s, rows_t, labels_t)


def _rows(rng: np.random.Generator, labels: NDArray[np.intp], kind: str) -> NDArray[np.float64]:
    # A strong signal in one direction is what a reversed shortcut drags an alignment away
    # from; spread over ten features it shows what scaling each feature does.
    spread, reach = (1, 4.0) if kind == "shortcut" else (10, REACH)
    rows = rng.normal(size=(len(labels), WIDTH))
    rows[:, :spread] += reach / np.sqrt(spread) * (labels[:, None] - 0.5)
    return rows


def _mark(
    rng: np.random.Generator,
    rows: NDArray[np.float64],
    labels: NDArray[np.intp],
    *,
    agreement: float,
) -> None:
    agrees = rng.random(len(labels)) < agreement
    rows[:, -1] = 2 * (np.where(agrees, labels, 1 - labels) - 0.5) + 0.3 * rng.normal(
        size=len(labels)
    )
