"""Rows of separable classes, several images a patient, for tests of heads."""

import numpy as np

from pipeline.data.domain import DomainData


def made_up_rows(classes=2, n=120, d=8, *, each=3, gap=3.0, seed=0) -> DomainData:
    """``each`` images of a patient; a patient has one class."""
    rng = np.random.default_rng([classes, n, d, seed])
    patient = np.arange(n) // each
    y = patient % classes
    X = rng.normal(size=(n, d)) + gap * np.eye(classes, d)[y]
    return DomainData(
        name="source",
        role="fit",
        group=patient.astype(str),
        label=y,
        features=X.astype(np.float32),
    )
