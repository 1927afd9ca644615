"""Made-up patients: their labels, features of heads, probabilities, and what heads got wrong."""

import numpy as np
from scipy.special import expit

from pipeline.data.domain import DomainData


def domain(*, n: int = 60, each: int = 1, classes: int = 2) -> DomainData:
    """``n`` images, ``each`` of a patient, the classes in turn by patient."""
    patient = np.arange(n) // each
    return DomainData(
        name="B",
        role="target",
        label=patient % classes,
        group=np.array([f"p{i:03}" for i in patient]),
        row=np.arange(n),
    )


def made_up_rows(classes=2, n=120, d=8, *, each=3, gap=3.0, seed=0) -> DomainData:
    """The same with features in which the classes lie ``gap`` sd apart."""
    data = domain(n=n, each=each, classes=classes)
    noise = np.random.default_rng([classes, n, d, seed]).normal(size=(n, d))
    X = noise + gap * np.eye(classes, d)[data.label]
    return data.with_(features=X.astype(np.float32))


def head(y, gain: float, seed: int = 0, classes: int = 2):
    """Probabilities of a head that finds the class the better, the larger ``gain`` is."""
    scores = np.random.default_rng(seed).normal(size=(len(y), classes)) + gain * np.eye(classes)[y]
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)


def calibrated(
    rng, n, *, role="source", prevalence=0.5, reach=1.5, slope=1.0, move=0.0
) -> DomainData:
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
    label, group = label.astype(np.int64), np.arange(n) // images
    return DomainData(name=role, role=role, group=group, label=label, features=features)
