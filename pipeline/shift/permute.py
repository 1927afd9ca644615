"""Permute the domain labels of patients.

Two domains are compared by asking how often a random relabelling of the patients
gives a statistic as large as the one seen. Whole patients are relabelled, because
the images of one patient resemble each other: relabelling single images makes
every test of clustered data reject too often.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.words import counted


@dataclass(frozen=True, kw_only=True)
class PermutationPlan:
    """How many relabellings, and at which level they must be able to reject."""

    draws: int = 999
    """Random relabellings B beside the observed one; the p-value's floor is 1 / (B + 1)."""
    alpha: float = 0.05
    """Level of the tests, in (0, 1)."""
    seed: int = 0
    """Seed of the relabellings and of whatever else a test draws."""


@dataclass(frozen=True, kw_only=True)
class Relabelings:
    """Domain labels of every row, as observed and as permuted."""

    labels: NDArray[np.bool_]
    """Shape (n, B + 1), True for the target. Column 0 is what was observed."""
    units: NDArray[np.intp]
    """Shape (n,): which of the ``n_source + n_target`` patients a row belongs to."""
    n_source: int
    """Patients in the source."""
    n_target: int
    """Patients in the target."""


def units_of(labels: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.intp]:
    """Number the patients 0, 1, ... in an order that does not depend on the rows'.

    A patient under two labels (found in both domains) counts once under each: the test then
    still runs, and ``pipeline.data.leaks`` is what reports the overlap of domains.

    Args:
        labels: Shape (n,), what is to be permuted: True for rows of the target, or 0 to K - 1.
        groups: Shape (n,), patient ids, text or integers.

    Returns:
        Shape (n,), the unit of each row.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    return np.unique((int(labels.max()) + 1) * codes + labels, return_inverse=True)[1]


def shuffled(labels: NDArray[Any], units: NDArray[np.intp], draws: int, seed: int) -> NDArray[Any]:
    """Deal the labels of whole units again and again.

    Args:
        labels: Shape (n,), equal within a unit.
        units: Shape (n,), from :func:`units_of`.
        draws: Number B of relabellings.
        seed: Seed of the relabellings.

    Returns:
        Shape (n, B + 1), of the labels' dtype. Column 0 is what was observed.
    """
    of_unit = np.zeros(units.max() + 1, dtype=labels.dtype)
    of_unit[units] = labels
    rng = np.random.default_rng([seed, 0])
    dealt = rng.permuted(np.tile(of_unit, (draws, 1)), axis=1)
    return np.ascontiguousarray(np.vstack([of_unit, dealt])[:, units].T)


def relabel(target: NDArray[np.bool_], groups: NDArray[Any], plan: PermutationPlan) -> Relabelings:
    """Draw the patient-level relabellings of one comparison.

    Args:
        target: Shape (n,), True for rows of the target, False for the source.
        groups: Shape (n,), patient ids.
        plan: Number of relabellings, level and seed.

    Returns:
        The labels of all relabellings, the observed one first.

    Raises:
        StudyError: No relabelling could ever give p <= ``plan.alpha``.
    """
    units = units_of(target, groups)
    n_target = np.unique(units[target]).size
    n_source = int(units.max()) + 1 - n_target
    refuse_hopeless(n_source, n_target, plan)
    return Relabelings(
        labels=shuffled(target, units, plan.draws, plan.seed),
        units=units,
        n_source=n_source,
        n_target=n_target,
    )


def refuse_hopeless(n_source: int, n_target: int, plan: PermutationPlan) -> None:
    """Refuse a test whose smallest possible p-value is above its level.

    Args:
        n_source: Patients in the source.
        n_target: Patients in the target.
        plan: Number of relabellings and level.

    Raises:
        StudyError: Too few distinct relabellings of these patients, or too few draws.
    """
    distinct = math.comb(n_source + n_target, n_target)
    if 1 / distinct > plan.alpha:
        raise StudyError(
            f"{n_source} source and {counted(n_target, 'target patient')} can be relabelled in "
            f"{counted(distinct, 'way')}, so no p-value can fall below {1 / distinct:.3g} "
            f"(level {plan.alpha:g}): add patients, or give patient ids if images were "
            "taken for one patient"
        )
    if 1 / (plan.draws + 1) > plan.alpha:
        raise StudyError(
            f"{plan.draws} permutations cannot give p <= {plan.alpha:g}: "
            f"ask for at least {fewest_draws(plan.alpha)}"
        )


def fewest_draws(alpha: float) -> int:
    """Relabellings below which no p-value, 1 / (B + 1) at least, reaches a level in (0, 1)."""
    return math.ceil(1 / alpha) - 1


def p_value(statistics: NDArray[np.float64]) -> float:
    """Return the permutation p-value (1 + #{T_b >= T_0}) / (B + 1).

    The observed labelling counts as one of the draws; without the 1 the test would
    reject too often (Phipson and Smyth 2010).

    Args:
        statistics: Shape (B + 1,), observed value first; large means "different".

    Returns:
        A value in [1 / (B + 1), 1].
    """
    observed, null = statistics[0], statistics[1:]
    # A relabelling equivalent to the observed one must count as a tie even when
    # its sums were added in another order.
    threshold = observed - 1e-9 * abs(observed)
    return float((1 + np.count_nonzero(null >= threshold)) / statistics.size)


def standard_score(statistics: NDArray[np.float64]) -> float:
    """Return (T_0 - mean(T_b)) / sd(T_b), the effect in units of the null's spread.

    Args:
        statistics: Shape (B + 1,), observed value first.

    Returns:
        The standard score; 0 if the null does not vary.
    """
    spread = statistics[1:].std()
    return float((statistics[0] - statistics[1:].mean()) / spread) if spread > 0 else 0.0
