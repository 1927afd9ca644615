"""Fill Ng's table for one target: who errs where, and how much of it is one fit's luck.

The head on its own training rows, out of fold on the source, on the target, and a head
trained on the target itself. The last uses target labels: it is a diagnosis, made after
the labels are open, and no other number comes from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.heads.logistic import Path
from pipeline.shift.adaptation import Source
from pipeline.shift.cohorts import Cohort
from pipeline.shift.floor import BayesFloor, bayes_floor
from pipeline.shift.gaps import dominant
from pipeline.shift.ng import NgRoles, NgTable, Outcome, ng_table
from pipeline.stats import percentile_interval

#: Heads refitted to drawn patients: the quantiles of 200 settle to about a tenth of their width.
REFITS = 200
#: Problems solved together: 50 columns keep the products wide and the memory small.
_TOGETHER = 50


@dataclass(frozen=True, kw_only=True)
class Refits:
    """Heads of the source, each fitted to patients drawn with replacement.

    Attributes:
        weights: Shape (B, n): how often each row was drawn.
        heads: Parts of the B heads, in order.
    """

    weights: NDArray[np.int64]
    heads: tuple[Path, ...]

    def wrong(self, rows: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether each head errs on each row, shape (B, m).

        Args:
            rows: Shape (m, d), standardised by the source.
            labels: Shape (m,).
        """
        parts = [part.proba(rows).argmax(axis=2) != labels for part in self.heads]
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class RoleReport:
    """Ng's table with what else is needed to read it.

    Attributes:
        table: Errors by role and the steps between them.
        ci_retrain: By step, (low, high) over heads refitted to drawn patients, centred on
            the step's estimate; only steps in which the source's head alone takes part.
        refits: How many.
        floor: Bounds of the Bayes error on the source's features: what stands where no
            human error is given. With few images it is too high.
        dominant: Step that is surely the largest; None if none is.
        human: Error of a person on the source, as the study gives it.
    """

    table: NgTable
    ci_retrain: Mapping[str, tuple[float, float]]
    refits: int
    floor: BayesFloor
    dominant: str | None
    human: float | None = None


def refit(source: Source, rng: np.random.Generator, count: int = REFITS) -> Refits:
    """Fit the head again and again to patients drawn with replacement.

    A draw that lacks a class is drawn anew.

    Args:
        source: The labelled domain.
        rng: Source of the draws.
        count: Number of heads.
    """
    patients = np.unique(source.groups, return_inverse=True)[1]
    n = int(patients.max()) + 1
    classes = np.eye(source.prior.size, dtype=np.int64)[source.labels]
    drawn: list[NDArray[np.int64]] = []
    while len(drawn) < count:
        weights = rng.multinomial(n, np.full(n, 1 / n))[patients]
        if (weights @ classes > 0).all():
            drawn.append(weights)
    table = np.stack(drawn)
    heads = [source.weighted_heads(table[i : i + _TOGETHER]) for i in range(0, count, _TOGETHER)]
    return Refits(weights=table, heads=tuple(heads))


def errors_by_role(
    source: Source,
    target: Cohort,
    refits: Refits,
    rng: np.random.Generator,
    human: float | None = None,
) -> RoleReport:
    """Fill the table for one target whose labels are open.

    Args:
        source: The labelled domain.
        target: Features, probabilities of the source's head, labels.
        refits: From :func:`refit`.
        rng: Source of the draws.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.

    Raises:
        StudyError: The target's labels are absent.
    """
    if target.labels is None:
        raise StudyError("Ng's table needs the target's labels; without them see the forecast")
    fitted = source.head.predict_proba(source.standard)
    roles = NgRoles(
        s_fit=Outcome(wrong=fitted.argmax(axis=1) != source.labels, groups=source.groups),
        s_traindev=Outcome(
            wrong=source.out_of_fold.argmax(axis=1) != source.labels, groups=source.groups
        ),
        t_test=Outcome(
            wrong=target.probabilities.argmax(axis=1) != target.labels, groups=target.groups
        ),
        t_oracle_cv=_oracle(source, target, target.labels),
        human=human,
    )
    table = ng_table(roles, rng)
    return RoleReport(
        table=table,
        ci_retrain=_retrained(source, target, refits, table),
        refits=len(refits.weights),
        floor=bayes_floor(source.features, source.labels, source.groups, rng),
        dominant=dominant(table.chain),
        human=human,
    )


def _oracle(source: Source, target: Cohort, labels: NDArray[np.integer]) -> Outcome | None:
    """A head of the target itself, out of fold by patient; None where a fold lacks a class."""
    try:
        own = Source(
            features=target.features, labels=labels, groups=target.groups, settings=source.settings
        )
        proba = own.out_of_fold
    except (StudyError, ValueError):
        return None
    if proba.shape[1] != source.prior.size:
        return None
    return Outcome(wrong=proba.argmax(axis=1) != labels, groups=target.groups)


def _retrained(
    source: Source, target: Cohort, refits: Refits, table: NgTable
) -> dict[str, tuple[float, float]]:
    """How far a step moves when the head is fitted to other patients of the source.

    A refitted head has seen fewer patients and so errs a little more; only the spread of
    its steps is taken, not their level.
    """
    here = refits.wrong(source.standard, source.labels)
    there = refits.wrong(source.standardise(target.features), target.classes())
    seen = refits.weights
    left_out = (here * (seen == 0)).sum(axis=1) / np.maximum((seen == 0).sum(axis=1), 1)
    inside = (here * seen).sum(axis=1) / seen.sum(axis=1)
    steps = {"variance": left_out - inside, "mismatch": there.mean(axis=1) - left_out}
    found = {}
    for name, values in steps.items():
        low, high = percentile_interval(values - values.mean())
        estimate = table.chain[name].estimate
        found[name] = (estimate + low, estimate + high)
    return found
