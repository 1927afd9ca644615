"""Fit heads on one backbone's features of the source, and ask them about every sample.

Everything that is fitted or chosen here (scaler, parameters, heads) sees the fit split of
the source only. Seeds of a head are joined in an ensemble, a row of its own.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.heads.training import Problem, train_head
from pipeline.joined import JoinedFeatures
from pipeline.scoring import ensemble
from pipeline.splits import FIT

_LOG = logging.getLogger(__name__)
#: Row of the mean probability of a head's seeds.
ENSEMBLE = "_ensemble"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A head that could not be fitted, and why."""

    backbone: str
    head: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One fitted head on one backbone.

    Attributes:
        head: Its name in ``HEADS``, or that with ``_ensemble``.
        seed: Of an ensemble, the first one.
        seconds: Time to fit, its share of what was fitted together.
        proba: For all samples, shape ``(n, K)``.
        model: From features as the backbone gave them to ``predict_proba``; None for an
            ensemble, whose members are rows of their own.
    """

    head: str
    seed: int
    seconds: float
    proba: NDArray[np.float64]
    model: Any = None


def fit_all(
    joined: JoinedFeatures, names: Sequence[str], seeds: tuple[int, ...]
) -> tuple[list[Fitted], list[Failure]]:
    """Fit every head that can be fitted; a head that cannot is a failure with its reason.

    Args:
        joined: All samples of a study, with features.
        names: Entries of ``HEADS``.
        seeds: One head of each seeded kind is fitted for each.
    """
    fit = joined.samples.split == FIT
    scaler = StandardScaler().fit(joined.X[fit])
    X = scaler.transform(joined.X)
    s = joined.samples
    problem = Problem(X=X[fit], y=s.label[fit], group=s.group[fit], seeds=seeds)
    done: list[Fitted] = []
    failures = []
    for name in names:
        try:
            done += _fit(name, problem, X, scaler)
        except (ValueError, np.linalg.LinAlgError) as cause:
            _LOG.warning("%s on %s failed: %s", name, joined.backbone, cause)
            failures.append(Failure(backbone=joined.backbone, head=name, reason=str(cause)))
    return done, failures


def _fit(
    name: str, problem: Problem, X: NDArray[np.float32], scaler: StandardScaler
) -> list[Fitted]:
    """A head for each seed and, where there are several, their ensemble."""
    start = time.perf_counter()
    heads = train_head(name, problem)
    each = (time.perf_counter() - start) / len(heads)
    fitted = [
        Fitted(
            head=name,
            seed=seed,
            seconds=each,
            proba=head.predict_proba(X),
            model=make_pipeline(scaler, head),
        )
        for seed, head in zip(problem.seeds, heads, strict=False)
    ]
    if len(fitted) == 1:
        return fitted
    mean = ensemble([one.proba for one in fitted])
    whole = Fitted(
        head=name + ENSEMBLE, seed=problem.seeds[0], seconds=each * len(heads), proba=mean
    )
    return [*fitted, whole]
