"""Domains with known outcomes."""

import numpy as np
from scipy.special import expit

from pipeline.data.domain import DomainData


def domain(rng, n, *, role="source", prevalence=0.5, reach=1.5, slope=1.0, move=0.0) -> DomainData:
    """Two classes with exact posteriors at prevalence 0.5; slope and move change the logit."""
    label = (rng.random(n) < prevalence).astype(int)
    signal = rng.normal(size=n) + reach * (2 * label - 1)
    return scored(expit(2 * reach * slope * signal + move), label, role=role)


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
