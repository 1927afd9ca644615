"""Domains with known outcomes, for the tests of what a loss is made of."""

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
    """Rows of two classes; ``p`` is the probability of the second."""
    p = np.asarray(p, float)
    return DomainData(
        name=role,
        role=role,
        group=np.arange(len(p)) if group is None else np.asarray(group),
        label=np.asarray(label, np.int64),
        proba=np.column_stack([1 - p, p]),
    )


def outcomes(wrong, *, label=None, group=None, role="source") -> DomainData:
    """Rows that the head got wrong or right, of three classes where labels are given."""
    wrong = np.asarray(wrong, bool)
    label = np.zeros(len(wrong), int) if label is None else np.asarray(label)
    predicted = np.where(wrong, (label + 1) % 3, label)
    return DomainData(
        name=role,
        role=role,
        group=np.arange(len(wrong)) if group is None else np.asarray(group),
        label=label.astype(np.int64),
        proba=np.eye(3)[predicted],
    )


def clustered_errors(rng, patients, rate, *, role="source") -> DomainData:
    """Errors of patients with 1 to 5 images, intra-class correlation 0.5."""
    group = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    # An image copies its patient's own coin with probability sqrt(0.5), else tosses anew.
    copied = rng.random(group.size) < np.sqrt(0.5)
    own: NDArray[np.bool_] = (rng.random(patients) < rate)[group]
    return outcomes(np.where(copied, own, rng.random(group.size) < rate), group=group, role=role)
