"""Halves of a target by patient: what is adapted to, and what is then predicted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.shift.cohorts import split_by_patient


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One half of the target to adapt to, and the other to predict."""

    index: int
    """Position of the seed in the plan."""
    seed: int
    """The seed."""
    adapt: NDArray[np.intp]
    """Rows to adapt to."""
    score: NDArray[np.intp]
    """Rows to predict: of other patients."""


def first_half(groups: NDArray[Any], seeds: tuple[int, ...]) -> NDArray[np.bool_]:
    """Half A of the first cut, shape (n,): a development set, where labels are open.

    Args:
        groups: Shape (n,), patient ids.
        seeds: Of the plan.

    Raises:
        StudyError: There is one patient only.
    """
    chosen = np.zeros(len(groups), np.bool_)
    chosen[next(halves(groups, seeds)).adapt] = True
    return chosen


def halves(groups: NDArray[Any], seeds: tuple[int, ...]) -> Iterator[Cut]:
    """Yield both halves of every seed; the cut depends on the seed alone.

    Args:
        groups: Shape (n,), patient ids.
        seeds: One cut for each.

    Raises:
        StudyError: There is one patient only.
    """
    if np.unique(groups).size < 2:  # noqa: PLR2004 - two halves
        raise StudyError("a target of one patient cannot be halved by patient")
    for index, seed in enumerate(seeds):
        first = split_by_patient(groups, np.random.default_rng([seed, 4]))
        for half in (first, ~first):
            adapt, rest = np.flatnonzero(half), np.flatnonzero(~half)
            yield Cut(index=index, seed=seed, adapt=adapt, score=rest)
