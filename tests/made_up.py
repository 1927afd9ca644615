"""Made-up patients: rows for tests of heads, and probabilities for tests of comparisons."""

import numpy as np

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
    rng, data = (
        np.random.default_rng([classes, n, d, seed]),
        domain(n=n, each=each, classes=classes),
    )
    X = rng.normal(size=(n, d)) + gap * np.eye(classes, d)[data.label]
    return data.with_(features=X.astype(np.float32))


def head(y, gain: float, seed: int = 0, classes: int = 2):
    """Probabilities of a head that finds the class the better, the larger ``gain`` is."""
    scores = np.random.default_rng(seed).normal(size=(len(y), classes)) + gain * np.eye(classes)[y]
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)
