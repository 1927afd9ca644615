"""Ng's table: error by role and domain, and what the steps between the cells mean.

Two columns (source, target) and not one: the error of a head trained on the target
separates "the target is harder" from "the head does not transfer" (A. Ng, Machine
Learning Yearning, ch. 40-43).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, PatientDraws, draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval, percentile_interval, rate_interval
from pipeline.heads.logistic import Path, solve_path
from pipeline.randomness import stream
from pipeline.shift.domains import Cohort, SourceModel, fit_source
from pipeline.shift.effects import (
    Gap,
    dominant,
    family,
    loss_between,
)

#: Step: (to, from). The chain leads from the human error to that on the target.
CHAIN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "avoidable_bias": ("s_fit", "human"),
        "variance": ("s_traindev", "s_fit"),
        "mismatch": ("t_test", "s_traindev"),
    }
)
#: The two parts of error(t_test) - error(s_traindev).
TRANSFER: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"target_hardness": ("t_oracle_cv", "s_traindev"), "transfer_gap": ("t_test", "t_oracle_cv")}
)
_SOURCE = ("s_fit", "s_traindev")
_ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "human": "no human error is given",
        "t_oracle_cv": "no head was trained on the target",
    }
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a head got wrong in one role; row i of each is the same image."""

    wrong: NDArray[np.bool_]
    """Shape (n,), n >= 1."""
    groups: NDArray[Any]
    """Shape (n,), patients."""


@dataclass(frozen=True, kw_only=True)
class NgRoles:
    """The filled cells of the table."""

    s_fit: Outcome
    """Source, rows the head was fitted on."""
    s_traindev: Outcome
    """Source, out of fold by patient; nothing was selected on it."""
    t_test: Outcome
    """Target, read once at the end."""
    t_oracle_cv: Outcome | None = None
    """Target, out of fold of a head trained on the target: a diagnosis, not a result."""
    human: float | None = None
    """Error of a person on the source, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class NgTable:
    """Errors by role, the steps between them, and the steps that cannot be known."""

    errors: Mapping[str, Interval]
    """By role."""
    chain: Mapping[str, Gap]
    """Steps that add up from the first known error to that of ``t_test``."""
    transfer: Mapping[str, Gap]
    """``target_hardness`` and ``transfer_gap``; empty without an oracle."""
    not_identifiable: Mapping[str, str]
    """Step: why there is no number."""
    ends: Mapping[str, tuple[str, str]]
    """Of each step, the role it leads to and the one it starts from."""

    @property
    def steps(self) -> dict[str, Gap]:
        """Those of the chain, then those of the transfer."""
        return {**self.chain, **self.transfer}


def ng_table(roles: NgRoles, seed: int, draws: int = DRAWS) -> NgTable:
    """Fill Ng's table.

    Args:
        roles: The cells.
        seed: Of the draws, which are those of :func:`pipeline.shift.decompose.decompose`.
        draws: Patient-bootstrap draws.

    Raises:
        StudyError: A role has no rows, or the human error is not a rate.
    """
    given = {name: value for name, value in vars(roles).items() if isinstance(value, Outcome)}
    _refuse_nonsense(roles, given)
    drawn = _draws_by_domain(given, seed, draws)
    level = {name: float(one.wrong.mean()) for name, one in given.items()}
    of = {name: np.unique(one.groups).size for name, one in given.items()}
    curves = {name: drawn[name].mean(one.wrong) for name, one in given.items()}
    if roles.human is not None:
        level["human"], curves["human"] = roles.human, np.full(draws, roles.human)
    cells = _Cells(level=level, curves=curves, patients=of)
    missing = {
        step: _ABSENT[end]
        for step, ends in {**CHAIN, **TRANSFER}.items()
        for end in ends
        if end not in level
    }
    known = {step: ends for step, ends in CHAIN.items() if step not in missing}
    parts = {step: ends for step, ends in TRANSFER.items() if step not in missing}
    return NgTable(
        errors={name: _error(one, drawn[name]) for name, one in given.items()},
        chain=_steps(known, cells),
        transfer=_steps(parts, cells) if parts else {},
        not_identifiable=missing,
        ends={**known, **parts},
    )


def _error(one: Outcome, draws: PatientDraws) -> Interval:
    return rate_interval(one.wrong, one.groups, lambda: draws)


def _draws_by_domain(
    given: Mapping[str, Outcome], seed: int, draws: int
) -> dict[str, PatientDraws]:
    """Roles of one domain share its draws: their errors are of the same patients."""
    by_role: dict[str, PatientDraws] = {}
    for side in ("source", "target"):
        roles = [name for name in given if (name in _SOURCE) == (side == "source")]
        everyone = np.concatenate([given[name].groups for name in roles])
        drawn = draw_patients(everyone, stream(side, seed), draws=draws)
        by_role |= {role: drawn.of(given[role].groups) for role in roles}
    return by_role


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """By role, error, the same in each draw (B,), and patients; a person's has none."""

    level: Mapping[str, float]
    curves: Mapping[str, NDArray[np.float64]]
    patients: Mapping[str, int]

    def edge(self, role: str) -> tuple[float, int] | None:
        """Error and patients, of what is drawn at all."""
        return (self.level[role], self.patients[role]) if role in self.patients else None


def _steps(ends: Mapping[str, tuple[str, str]], cells: _Cells) -> dict[str, Gap]:
    level, curves = cells.level, cells.curves
    gaps = family(
        {step: level[to] - level[start] for step, (to, start) in ends.items()},
        {step: curves[to] - curves[start] for step, (to, start) in ends.items()},
    )
    return {
        step: loss_between(cells.edge(ends[step][1]), cells.edge(ends[step][0]), gap)
        for step, gap in gaps.items()
    }


def _refuse_nonsense(roles: NgRoles, given: Mapping[str, Outcome]) -> None:
    if roles.human is not None and not 0 <= roles.human <= 1:
        raise StudyError(f"the human error is {roles.human}; it must be a rate from 0 to 1")
    for name, one in given.items():
        if len(one.wrong) != len(one.groups) or not len(one.wrong):
            raise StudyError(
                f"role {name} has {len(one.wrong)} outcomes and {len(one.groups)} patients: "
                "both are needed for each image; leave an empty role out"
            )


# Fill Ng's table for one target: who errs where, and how much of it is one fit's luck.


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

    weights: NDArray[np.float64]
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
class RoleReport:
    """Ng's table with what else is needed to read it.

    Attributes:
        table: Errors by role and the steps between them.
        ci_retrain: By step, (low, high) over heads refitted to drawn patients, centred on
            the step's estimate. The source's heads and those of the target itself are
            drawn independently.
        refits: How many of each.
        dominant: Step that is surely the largest; None if none is.
        human: Error of a person on the source, as the study gives it.
    """

    table: NgTable
    ci_retrain: Mapping[str, tuple[float, float]]
    refits: int
    dominant: str | None
    human: float | None = None


def refit(source: SourceModel, rng: np.random.Generator, count: int = REFITS) -> Refits:
    """Fit the head again and again to patients drawn with replacement.

    A draw that lacks a class is drawn anew.

    Args:
        source: The labelled domain.
        rng: Source of the draws.
        count: Number of heads.
    """
    data = source.data
    table = draw_patients(data.group, rng, draws=count, label=data.label).weights()
    rows = source.standard.astype(np.float32)
    heads = [
        solve_path(
            rows, data.labelled(), C=np.full(len(some), source.inverse_penalty), weights=some
        )
        for some in np.split(table, range(_TOGETHER, count, _TOGETHER))
    ]
    return Refits(weights=table, heads=tuple(heads))


def errors_by_role(
    source: SourceModel,
    target: Cohort,
    refits: Refits,
    seed: int,
    human: float | None = None,
) -> RoleReport:
    """Fill the table for one target whose labels are open.

    Args:
        source: The labelled domain.
        target: Features, probabilities of the source's head, labels.
        refits: From :func:`refit`.
        seed: Of the draws.
        human: Error of a person on the source, in [0, 1]; None where nobody measured it.

    Raises:
        StudyError: The target's labels are absent.
    """
    if target.labels is None:
        raise StudyError("Ng's table needs the target's labels; without them see the forecast")
    data, fitted = source.data, source.head.predict_proba(source.standard)
    own = _oracle(source, target, target.labels)
    roles = NgRoles(
        s_fit=Outcome(wrong=fitted.argmax(axis=1) != data.labelled(), groups=data.group),
        s_traindev=_out_of_fold(source),
        t_test=Outcome(
            wrong=target.probabilities.argmax(axis=1) != target.labels, groups=target.groups
        ),
        t_oracle_cv=None if own is None else _out_of_fold(own),
        human=human,
    )
    errors = _of_refits(source, target, refits, human)
    if own is not None:
        refitted = refit(own, stream("heads of the target", seed), len(refits.weights))
        errors["t_oracle_cv"] = _left_out(own, refitted)
    table = ng_table(roles, seed)
    return RoleReport(
        table=table,
        ci_retrain=_retrained(table, errors),
        refits=len(refits.weights),
        dominant=dominant(table.chain),
        human=human,
    )


def _oracle(source: SourceModel, target: Cohort, labels: NDArray[np.integer]) -> SourceModel | None:
    """The target as a source of heads; None where it, or a fold of it, lacks a class."""
    try:
        own = fit_source(
            DomainData(
                name="target",
                role="target",
                group=target.groups,
                label=labels.astype(np.int64),
                features=target.features,
            ),
            inverse_penalty=source.inverse_penalty,
        )
    except (StudyError, ValueError):
        return None
    return own if own.classes == source.classes else None


def _out_of_fold(domain: SourceModel) -> Outcome:
    return Outcome(wrong=domain.data.wrong(), groups=domain.data.group)


def _of_refits(
    source: SourceModel, target: Cohort, refits: Refits, human: float | None
) -> dict[str, NDArray[np.float64]]:
    """Error of each refitted head of the source by role, shape (B,); a person's stays."""
    here = refits.wrong(source.standard, source.data.labelled())
    there = refits.wrong(source.standardise(target.features), target.classes())
    errors = {
        "t_test": np.asarray(there.mean(axis=1)),
        "s_fit": refits.inside(here),
        "s_traindev": refits.left_out(here),
    }
    if human is not None:
        errors["human"] = np.full(len(refits.weights), human)
    return errors


def _left_out(own: SourceModel, refits: Refits) -> NDArray[np.float64]:
    return refits.left_out(refits.wrong(own.standard, own.data.labelled()))


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
