"""Domains and probabilities of made-up heads, for the tests of comparisons."""

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


def head(y, gain: float, seed: int = 0, classes: int = 2):
    """Probabilities of a head that finds the class the better, the larger ``gain`` is."""
    scores = np.random.default_rng(seed).normal(size=(len(y), classes)) + gain * np.eye(classes)[y]
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)
