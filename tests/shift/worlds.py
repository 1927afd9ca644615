"""Domains with known outcomes, and hospitals with one declared difference."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.data.domain import DomainData


def domain(rng, n, *, role="source", prevalence=0.5, reach=1.5, move=0.0) -> DomainData:
    """Two classes with exact posteriors at prevalence 0.5; ``move`` adds to the logit."""
    label = (rng.random(n) < prevalence).astype(int)
    signal = rng.normal(size=n) + reach * (2 * label - 1)
    return scored(expit(2 * reach * signal + move), label, role=role)


def scored(p, label, *, group=None, role="source") -> DomainData:
    """Rows; ``p`` has a column for each class, or is the probability of the second of two."""
    p = np.asarray(p, float)
    return DomainData(
        name=role,
        role=role,
        group=np.arange(len(p)) if group is None else np.asarray(group),
        label=None if label is None else np.asarray(label, np.int64),
        proba=np.column_stack([1 - p, p]) if p.ndim == 1 else p,
    )


def outcomes(wrong, *, label=None, group=None, role="source") -> DomainData:
    """Rows that the head got wrong or right, of three classes where labels are given."""
    label = np.zeros(len(wrong), int) if label is None else np.asarray(label)
    called = np.where(np.asarray(wrong, bool), (label + 1) % 3, label)
    return scored(np.eye(3)[called], label, group=group, role=role)


def embedded(features, *, role="source", images=1, label=None) -> DomainData:
    """Rows with features; classes alternate, ``images`` of a patient follow one another."""
    n = len(features)
    label = np.arange(n) // images % 2 if label is None else np.asarray(label)
    return DomainData(
        name=role,
        role=role,
        group=np.arange(n) // images,
        label=label.astype(np.int64),
        features=features,
    )


# Two-class scores with a known meaning, for estimates without labels.

#: Class means lie at +- this many sd: the best accuracy is 92.3 %.
SCORE_REACH = 1.425


def draw_scores(
    rng: np.random.Generator, n: int, prevalence: float = 0.5, slope: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Draw probabilities (n, 2) and labels (n,); exact posteriors at prevalence 0.5 and slope 1."""
    labels = (rng.random(n) < prevalence).astype(np.intp)
    signal = rng.normal(size=n) + SCORE_REACH * (2 * labels - 1)
    positive = expit(2 * SCORE_REACH * slope * signal)
    return np.column_stack([1 - positive, positive]), labels


# Two Gaussian hospitals with one declared difference, for adaptation.

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
