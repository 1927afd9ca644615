"""Gaps between error rates, each with an interval from resampled patients.

Source and target are resampled independently of each other. Within a domain all
statistics share one set of draws, which keeps in-sample and held-out errors of the same
patients paired.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, PatientDraws, draw_patients
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import lengthened, percentile_interval, unseen
from pipeline.shift.domains import Cohort

#: A term is named as the cause only if it is the largest in this share of the draws.
DOMINANT = 0.95


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One term of a decomposition."""

    estimate: float
    """Difference of rates, in [-1, 1]; > 0 is a loss on the target."""
    low: float
    """Lower end of the 95 % interval: of draws of patients, and longer (:func:`loss_between`)
    where a rate that it is made of is 0 or 1."""
    high: float
    """Upper end."""
    p_largest: float | None = None
    """Share of draws in which this term is the largest of its family; None if alone."""


def single_gap(estimate: float, draws: NDArray[np.float64]) -> Gap:
    """A gap that stands alone.

    Args:
        estimate: On the data themselves.
        draws: Shape (B,), the same in each draw; NaN where it is undefined.
    """
    low, high = percentile_interval(draws)
    return Gap(estimate=estimate, low=low, high=high)


def lengthen(gap: Gap, start: tuple[float, float], end: tuple[float, float]) -> Gap:
    """A gap whose interval holds what resampling cannot show; see :func:`lengthened`.

    Args:
        gap: End minus start.
        start: How far below and above itself the start may be, where draws show nothing.
        end: The same of the end.
    """
    low, high = lengthened(
        gap.estimate,
        gap.low,
        gap.high,
        below=float(np.hypot(end[0], start[1])),
        above=float(np.hypot(end[1], start[0])),
    )
    return replace(gap, low=low, high=high)


def loss_between(
    source: tuple[float, int] | None, target: tuple[float, int] | None, gap: Gap
) -> Gap:
    """Lengthen the gap from one rate to another where one is 0 or 1, on which all draws agree.

    Args:
        source: Rate that the gap starts from, and in how many patients it was seen; None for
            one that is given.
        target: Rate that it leads to.
        gap: Target minus source, from draws.
    """
    return lengthen(gap, _room(source), _room(target))


def _room(seen: tuple[float, int] | None) -> tuple[float, float]:
    """How far below and above itself a rate may be; (0, 0) where draws have a spread."""
    if seen is None or seen[0] not in (0, 1):
        return 0.0, 0.0
    rate, patients = seen
    return (unseen(patients), 0.0) if rate else (0.0, unseen(patients))


def family(
    estimates: Mapping[str, float], draws: Mapping[str, NDArray[np.float64]]
) -> dict[str, Gap]:
    """Gaps that add up to one loss, with how surely each is the largest of them.

    Args:
        estimates: By name.
        draws: By the same names, shape (B,) each.
    """
    table = np.stack([draws[name] for name in estimates])
    known = table[:, np.isfinite(table).all(axis=0)]
    largest = known == known.max(axis=0, initial=-np.inf)
    # Terms that are equal share a draw: of nothing but zeros none is the largest.
    wins = (largest / largest.sum(axis=0)).sum(axis=1) / max(1, known.shape[1])
    gaps = {}
    for name, share in zip(estimates, wins, strict=True):
        low, high = percentile_interval(draws[name])
        gaps[name] = Gap(estimate=estimates[name], low=low, high=high, p_largest=float(share))
    return gaps


def dominant(gaps: Mapping[str, Gap]) -> str | None:
    """Name of the term that is surely a loss and surely the largest; None if none is."""
    for name, gap in gaps.items():
        if gap.p_largest is not None and gap.p_largest >= DOMINANT and gap.low > 0:
            return name
    return None


# A domain whose labels are known: its outcome, with draws of its patients.


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
        return self.draws.mean(self.wrong)

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
            "without them use pipeline.shift.label_free"
        )
    if np.unique(cohort.groups).size < 2:
        raise StudyError("all images of a domain are of one patient: no interval can be given")
    return Labelled(
        cohort=cohort,
        labels=cohort.labels,
        wrong=cohort.probabilities.argmax(axis=1) != cohort.labels,
        draws=draw_patients(cohort.groups, rng, draws=draws),
    )


def loss(source: Labelled, target: Labelled) -> Gap:
    """e_T - e_S, with draws of the patients of both."""
    gap = single_gap(target.error() - source.error(), target.drawn_error() - source.drawn_error())
    return loss_between(source.seen, target.seen, gap)


def paired_weights(
    source: Labelled, target: Labelled
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Row weights of both domains for each draw, ``(n_S,)`` and ``(n_T,)``."""
    for which in min(source, target, key=lambda one: next(one.draws.blocks()).stop).draws.blocks():
        yield from zip(source.draws.weights(which), target.draws.weights(which), strict=True)
