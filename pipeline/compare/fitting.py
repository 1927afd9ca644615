"""Fit heads on one backbone's features of the source, and ask them about every sample.

Everything that is fitted or chosen here (treatment, parameters, heads) sees the fit split of
the source only. Seeds of a head are joined in an ensemble, a row of its own.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import make_pipeline

from pipeline.features.joined import JoinedFeatures
from pipeline.heads import HEADS, HeadSpec
from pipeline.heads.blocks import predict_in_blocks
from pipeline.heads.mlp import Watched
from pipeline.heads.training import Problem, train_head
from pipeline.heads.treated import TreatedRows, fit_treatment
from pipeline.heads.treatments import DEFAULT, label_of, make_treatment
from pipeline.samples.splits import FIT, VALIDATION
from pipeline.scores.scoring import ENSEMBLE, ensemble

_LOG = logging.getLogger(__name__)


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
        head: Its name in the table, with the treatment where that is not the default (see
            :func:`pipeline.heads.treatments.label_of`), and ``_ensemble`` where it is one.
        treatment: An entry of ``TREATMENTS``.
        seed: Of an ensemble, the first one.
        seconds: Time to fit, its share of what was fitted together.
        proba: For all samples, shape ``(n, K)``.
        model: From features as the backbone gave them to ``predict_proba``; None for an
            ensemble, whose members are rows of their own.
        chosen: Parameters that inner folds chose, with their values.
        spec: How it was fitted, and how it can be again; None for an ensemble.
    """

    head: str
    seed: int
    seconds: float
    proba: NDArray[np.float64]
    treatment: str = DEFAULT
    model: Any = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    spec: HeadSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is fitted.

    Attributes:
        heads: Names in ``table``.
        seeds: One head of each seeded kind is fitted for each.
        treatments: Every head is fitted on the features under each.
        table: ``HEADS``, or that with the heads of the study.
    """

    heads: Sequence[str]
    seeds: tuple[int, ...]
    treatments: Sequence[str] = (DEFAULT,)
    table: Mapping[str, HeadSpec] = field(default_factory=lambda: HEADS)


def fit_all(joined: JoinedFeatures, plan: Plan) -> tuple[list[Fitted], list[Failure]]:
    """Fit every head that can be fitted; a head that cannot is a failure with its reason.

    Memory that cannot be had is such a reason too.

    Args:
        joined: All samples of a study, with features.
        plan: What is fitted on them.
    """
    done: list[Fitted] = []
    failures = []
    for treatment in plan.treatments:
        try:
            fit = _Fit(joined, plan, treatment)
        except (ValueError, MemoryError) as cause:
            failures += [_failure(joined, label_of(h, treatment), cause) for h in plan.heads]
            continue
        for name in plan.heads:
            try:
                done += fit.head(name)
            except (ValueError, MemoryError) as cause:
                failures.append(_failure(joined, label_of(name, treatment), cause))
    return done, failures


def _failure(joined: JoinedFeatures, head: str, cause: BaseException) -> Failure:
    reason = str(cause) or type(cause).__name__
    _LOG.warning("%s on %s failed: %s", head, joined.backbone, reason)
    return Failure(backbone=joined.backbone, head=head, reason=reason)


class _Fit:
    """Heads on the features of one backbone under one treatment."""

    def __init__(self, joined: JoinedFeatures, plan: Plan, name: str) -> None:
        s, self.plan, self.name = joined.samples, plan, name
        self.raw = joined.X
        fit, seen = (np.flatnonzero(s.split == split) for split in (FIT, VALIDATION))
        self.treatment = fit_treatment(make_treatment(name, joined.widths), joined.X, fit)
        self.problem = Problem(
            X=TreatedRows(joined.X, fit, self.treatment),
            y=s.label[fit],
            group=s.group[fit],
            seeds=plan.seeds,
            watched=Watched(X=TreatedRows(joined.X, seen, self.treatment), y=s.label[seen])
            if len(seen)
            else None,
        )

    def head(self, name: str) -> list[Fitted]:
        """A head for each seed and, where there are several, their ensemble."""
        start = time.perf_counter()
        heads = train_head(name, self.problem, self.plan.table)
        each = (time.perf_counter() - start) / len(heads)
        fitted = [
            self._fitted(name, seed, each, head)
            for seed, head in zip(self.plan.seeds, heads, strict=False)
        ]
        if len(fitted) == 1:
            return fitted
        whole = Fitted(
            head=label_of(name, self.name) + ENSEMBLE,
            seed=self.plan.seeds[0],
            seconds=each * len(heads),
            proba=ensemble([one.proba for one in fitted]),
            treatment=self.name,
        )
        return [*fitted, whole]

    def _fitted(self, name: str, seed: int, seconds: float, head: Any) -> Fitted:
        model = make_pipeline(self.treatment, head)
        of_grid = {key: head.get_params()[key] for key in self.plan.table[name].grid}
        return Fitted(
            head=label_of(name, self.name),
            seed=seed,
            seconds=seconds,
            proba=predict_in_blocks(model, self.raw),
            treatment=self.name,
            model=model,
            chosen=getattr(head, "best_params_", of_grid),
            spec=self.plan.table[name],
        )
