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

from pipeline.errors import StudyError
from pipeline.randomness import stream
from pipeline.shift.losses.gaps import (
    Gap,
    PatientDraws,
    draw_patients,
    family,
    loss_between,
    rate,
)
from pipeline.stats import Interval
from pipeline.stats.intervals import DRAWS

#: Step: (to, from). The chain leads from the human error to that on the target.
CHAIN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "avoidable_bias": ("s_fit", "human"),
        "variance": ("s_traindev", "s_fit"),
        "mismatch": ("t_dev", "s_traindev"),
        "dev_overfit": ("t_test", "t_dev"),
    }
)
#: The two parts of error(target) - error(s_traindev); the target is all of it, ``t_all``,
#: where a part of it is ``t_dev``.
TRANSFER: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"target_hardness": ("t_oracle_cv", "s_traindev"), "transfer_gap": ("t_test", "t_oracle_cv")}
)
#: To be read with a table that has ``t_dev``.
FLOOR_FAILS = (
    "The Bayes floor lies above the error that was reached out of fold: of so few images the "
    "nearest neighbours are far away, and it bounds nothing here."
)
DEV_MEANS = (
    "t_dev is half A of the target by patient, whose labels the study calls open; t_test is half "
    "B, t_all both. Nothing here is chosen on t_dev: dev_overfit is what whoever tuned on the "
    "labels of half A overfitted, and it cannot show what was tuned on both halves."
)
_SOURCE = ("s_fit", "s_traindev")
_ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "human": "no human error is given",
        "t_dev": "no labelled part of the target is apart from the test part",
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
    t_dev: Outcome | None = None
    """Target, labelled rows that were looked at on the way; other patients than t_test."""
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

    Without ``t_dev`` the mismatch leads to ``t_test`` and contains whatever overfit to a
    target development set there may be. With it the table gets a cell ``t_all``, of both.

    Args:
        roles: The cells.
        seed: Of the draws, which are those of :func:`pipeline.shift.losses.decompose.decompose`.
        draws: Patient-bootstrap draws.

    Raises:
        StudyError: A role has no rows, or the human error is not a rate.
    """
    given = {name: value for name, value in vars(roles).items() if isinstance(value, Outcome)}
    _refuse_nonsense(roles, given)
    if roles.t_dev is not None:
        oracle = given.pop("t_oracle_cv", None)
        given["t_all"] = _together(roles.t_dev, roles.t_test)
        given |= {} if oracle is None else {"t_oracle_cv": oracle}
    drawn = _draws_by_domain(given, seed, draws)
    level = {name: float(one.wrong.mean()) for name, one in given.items()}
    of = {name: np.unique(one.groups).size for name, one in given.items()}
    curves = {name: drawn[name].mean(one.wrong, one.groups) for name, one in given.items()}
    if roles.human is not None:
        level["human"], curves["human"] = roles.human, np.full(draws, roles.human)
    cells = _Cells(level=level, curves=curves, patients=of)
    chain, transfer = dict(CHAIN), dict(TRANSFER)
    if roles.t_dev is None:
        chain["mismatch"] = ("t_test", "s_traindev")
    else:
        transfer["transfer_gap"] = ("t_all", "t_oracle_cv")
    missing = {
        step: _ABSENT[end]
        for step, ends in {**chain, **transfer}.items()
        for end in ends
        if end not in level
    }
    known = {step: ends for step, ends in chain.items() if step not in missing}
    parts = {step: ends for step, ends in transfer.items() if step not in missing}
    return NgTable(
        errors={name: _error(one, drawn[name]) for name, one in given.items()},
        chain=_steps(known, cells),
        transfer=_steps(parts, cells) if parts else {},
        not_identifiable=missing,
        ends={**known, **parts},
    )


def _together(*parts: Outcome) -> Outcome:
    return Outcome(
        wrong=np.concatenate([one.wrong for one in parts]),
        groups=np.concatenate([one.groups for one in parts]),
    )


def _error(one: Outcome, draws: PatientDraws) -> Interval:
    return rate(one.wrong, one.groups, lambda: draws)


def _draws_by_domain(
    given: Mapping[str, Outcome], seed: int, draws: int
) -> dict[str, PatientDraws]:
    """Roles of one domain share its draws: their errors are of the same patients."""
    by_role: dict[str, PatientDraws] = {}
    for side in ("source", "target"):
        roles = [name for name in given if (name in _SOURCE) == (side == "source")]
        everyone = np.concatenate([given[name].groups for name in roles])
        by_role |= dict.fromkeys(roles, draw_patients(everyone, stream(side, seed), draws))
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
