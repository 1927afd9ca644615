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
from pipeline.randomness import stream
from pipeline.shift.cohorts import Cohort
from pipeline.shift.fixes.adaptation import Source
from pipeline.shift.fixes.patients import drawn_patients
from pipeline.shift.losses.floor import BayesFloor, bayes_floor
from pipeline.shift.losses.gaps import dominant
from pipeline.shift.losses.ng import DEV_MEANS, FLOOR_FAILS, NgRoles, NgTable, Outcome, ng_table
from pipeline.stats import percentile_interval

#: Heads refitted to drawn patients: the quantiles of 200 settle to about a tenth of their width.
REFITS = 200
#: Problems solved together: 50 columns keep the products wide and the memory small.
_TOGETHER = 50


@dataclass(frozen=True, kw_only=True)
class Refits:
    """Heads of one domain, each fitted to patients drawn with replacement.

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

    def inside(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Error of each head on the rows it was fitted to, shape (B,).

        Args:
            wrong: Shape (B, n), of the rows that the heads were drawn from.
        """
        return np.asarray((wrong * self.weights).sum(axis=1) / self.weights.sum(axis=1))

    def left_out(self, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Error of each head on the patients it was not fitted to, shape (B,).

        Args:
            wrong: Shape (B, n), of the rows that the heads were drawn from.
        """
        unseen = self.weights == 0
        return np.asarray((wrong * unseen).sum(axis=1) / np.maximum(unseen.sum(axis=1), 1))


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the study itself says of the table.

    Attributes:
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.
        dev: Shape (m,), rows of the target that are a development set, whole patients;
            None where the labels were sealed.
    """

    human: float | None = None
    dev: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class RoleReport:
    """Ng's table with what else is needed to read it.

    Attributes:
        table: Errors by role and the steps between them.
        ci_retrain: By step, (low, high) over heads refitted to drawn patients, centred on
            the step's estimate. The source's heads and those of the target itself are
            drawn independently.
        refits: How many of each.
        floor: Bounds of the Bayes error on the source's features: what stands where no
            human error is given. With few images it is too high.
        dominant: Step that is surely the largest; None if none is.
        human: Error of a person on the source, as the study gives it.
        notes: Sentences that must be read with the table.
    """

    table: NgTable
    ci_retrain: Mapping[str, tuple[float, float]]
    refits: int
    floor: BayesFloor
    dominant: str | None
    human: float | None = None
    notes: tuple[str, ...] = ()


def refit(source: Source, rng: np.random.Generator, count: int = REFITS) -> Refits:
    """Fit the head again and again to patients drawn with replacement.

    A draw that lacks a class is drawn anew.

    Args:
        source: The labelled domain.
        rng: Source of the draws.
        count: Number of heads.
    """
    table = drawn_patients(source.labels, source.groups, rng, count)
    heads = [source.weighted_heads(table[i : i + _TOGETHER]) for i in range(0, count, _TOGETHER)]
    return Refits(weights=table, heads=tuple(heads))


def errors_by_role(
    source: Source,
    target: Cohort,
    refits: Refits,
    seed: int,
    given: Given | None = None,
) -> RoleReport:
    """Fill the table for one target whose labels are open.

    Args:
        source: The labelled domain.
        target: Features, probabilities of the source's head, labels.
        refits: From :func:`refit`.
        seed: Of the draws.
        given: What else is known.

    Raises:
        StudyError: The target's labels are absent.
    """
    if target.labels is None:
        raise StudyError("Ng's table needs the target's labels; without them see the forecast")
    given = given or Given()
    fitted = source.head.predict_proba(source.standard)
    own = _oracle(source, target, target.labels)
    roles = NgRoles(
        s_fit=Outcome(wrong=fitted.argmax(axis=1) != source.labels, groups=source.groups),
        s_traindev=Outcome(
            wrong=source.out_of_fold.argmax(axis=1) != source.labels, groups=source.groups
        ),
        **_of_target(target, target.labels, given.dev),
        t_oracle_cv=None if own is None else _out_of_fold(own),
        human=given.human,
    )
    errors = _of_refits(source, target, refits, given)
    if own is not None:
        refitted = refit(own, stream("heads of the target", seed), len(refits.weights))
        errors["t_oracle_cv"] = _left_out(own, refitted)
    table = ng_table(roles, seed)
    floor = bayes_floor(source.features, source.labels, source.groups, stream("floor", seed))
    return RoleReport(
        table=table,
        ci_retrain=_retrained(table, errors),
        refits=len(refits.weights),
        floor=floor,
        dominant=dominant(table.chain),
        human=given.human,
        notes=(
            *(() if given.dev is None else (DEV_MEANS,)),
            *((FLOOR_FAILS,) if floor.low > roles.s_traindev.wrong.mean() else ()),
        ),
    )


def _of_target(
    target: Cohort, labels: NDArray[np.integer], dev: NDArray[np.bool_] | None
) -> dict[str, Outcome]:
    """The cells of the source's head on the target."""
    wrong = target.probabilities.argmax(axis=1) != labels
    rows = {"t_test": np.ones(len(wrong), np.bool_)} if dev is None else _halves(dev)
    return {
        role: Outcome(wrong=wrong[mine], groups=target.groups[mine]) for role, mine in rows.items()
    }


def _halves(dev: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    return {"t_dev": dev, "t_test": ~dev}


def _oracle(source: Source, target: Cohort, labels: NDArray[np.integer]) -> Source | None:
    """The target as a source of heads; None where it, or a fold of it, lacks a class."""
    try:
        own = Source(
            features=target.features, labels=labels, groups=target.groups, settings=source.settings
        )
        proba = own.out_of_fold
    except (StudyError, ValueError):
        return None
    return own if proba.shape[1] == source.prior.size else None


def _out_of_fold(domain: Source) -> Outcome:
    return Outcome(wrong=domain.out_of_fold.argmax(axis=1) != domain.labels, groups=domain.groups)


def _of_refits(
    source: Source, target: Cohort, refits: Refits, given: Given
) -> dict[str, NDArray[np.float64]]:
    """Error of each refitted head of the source by role, shape (B,); a person's stays."""
    here = refits.wrong(source.standard, source.labels)
    there = refits.wrong(source.standardise(target.features), target.classes())
    rows = {"t_test" if given.dev is None else "t_all": np.ones(there.shape[1], np.bool_)}
    if given.dev is not None:
        rows |= _halves(given.dev)
    errors = {role: np.asarray(there[:, mine].mean(axis=1)) for role, mine in rows.items()}
    errors |= {"s_fit": refits.inside(here), "s_traindev": refits.left_out(here)}
    if given.human is not None:
        errors["human"] = np.full(len(refits.weights), given.human)
    return errors


def _left_out(own: Source, refits: Refits) -> NDArray[np.float64]:
    return refits.left_out(refits.wrong(own.standard, own.labels))


def _retrained(
    table: NgTable, errors: Mapping[str, NDArray[np.float64]]
) -> dict[str, tuple[float, float]]:
    """How far a step moves when the heads are fitted to other patients.

    A refitted head has seen fewer patients and so errs a little more; only the spread of
    its steps is taken, not their level.
    """
    found = {}
    for name, gap in table.steps.items():
        to, start = table.ends[name]
        values = errors[to] - errors[start]
        low, high = percentile_interval(values - values.mean())
        found[name] = (gap.estimate + low, gap.estimate + high)
    return found
