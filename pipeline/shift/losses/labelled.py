"""A domain whose labels are known: its outcome, with draws of its patients."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.shift.cohorts import Cohort
from pipeline.shift.losses.gaps import (
    Gap,
    PatientDraws,
    draw_blocks,
    draw_patients,
    loss_between,
    single_gap,
)
from pipeline.stats.intervals import DRAWS


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A cohort with its outcome and its draws."""

    cohort: Cohort
    """Its images."""
    labels: NDArray[np.integer]
    """Shape (n,), 0 to K - 1."""
    wrong: NDArray[np.bool_]
    """Shape (n,): another class is the most probable."""
    draws: PatientDraws
    """Draws of its patients."""

    def error(self) -> float:
        """Share of images that are wrong."""
        return float(self.wrong.mean())

    @property
    def seen(self) -> tuple[float, int]:
        """That share, and in how many patients; see :func:`.gaps.loss_between`."""
        return self.error(), self.draws.patients.size

    def drawn_error(self) -> NDArray[np.float64]:
        """The same in each draw, shape (B,)."""
        return self.draws.mean(self.wrong, self.cohort.groups)

    def confidence(self) -> NDArray[np.float64]:
        """Probability of the most probable class, shape (n,)."""
        return np.asarray(self.cohort.probabilities.max(axis=1), dtype=np.float64)


def labelled(cohort: Cohort, rng: np.random.Generator, draws: int = DRAWS) -> Labelled:
    """Attach outcome and draws to a cohort.

    Args:
        cohort: With labels.
        rng: Source of the draws.
        draws: Number of draws, ``B``.

    Raises:
        StudyError: Its labels are sealed or absent, or it has fewer than two patients.
    """
    if cohort.labels is None:
        raise StudyError(
            "taking a loss apart needs the labels of both domains, and one has none; "
            "without them use pipeline.shift.foretell.predict"
        )
    if np.unique(cohort.groups).size < 2:  # noqa: PLR2004 - one patient has no spread
        raise StudyError("all images of a domain are of one patient: no interval can be given")
    return Labelled(
        cohort=cohort,
        labels=cohort.labels,
        wrong=cohort.probabilities.argmax(axis=1) != cohort.labels,
        draws=draw_patients(cohort.groups, rng, draws),
    )


def loss(source: Labelled, target: Labelled) -> Gap:
    """e_T - e_S, with draws of the patients of both."""
    gap = single_gap(target.error() - source.error(), target.drawn_error() - source.drawn_error())
    return loss_between(source.seen, target.seen, gap)


def paired_weights(
    source: Labelled, target: Labelled
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Row weights of both domains for each draw, ``(n_S,)`` and ``(n_T,)``."""
    sides = (source, target)
    rows = sum(len(side.labels) for side in sides)
    for which in draw_blocks(len(source.draws.counts), rows):
        blocks = [side.draws.weights(side.cohort.groups, which) for side in sides]
        yield from zip(*blocks, strict=True)
