"""Places and probabilities of made-up heads, for the tests of comparisons."""

import numpy as np

from pipeline.evaluation.scores import Place


def place(*, n: int = 60, each: int = 1, role: str = "target", classes: int = 2, seed: int = 0):
    """``n`` images, ``each`` of a patient, both classes in turn by patient."""
    patient = np.arange(n) // each
    return Place(
        domain="there",
        role=role,
        rows=np.ones(n, dtype=bool),
        label=patient % classes,
        group=np.array([f"p{i:03}" for i in patient]),
        seed=(seed, 0),
    )


def head(y, gain: float, seed: int = 0, classes: int = 2):
    """Probabilities of a head that finds the class the better, the larger ``gain`` is."""
    scores = np.random.default_rng(seed).normal(size=(len(y), classes)) + gain * np.eye(classes)[y]
    p = np.exp(scores)
    return p / p.sum(axis=1, keepdims=True)
