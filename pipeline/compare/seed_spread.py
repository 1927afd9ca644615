"""Heads that draw: how much their scores move with the seed, and how often they win.

The interval here is of the *kind* of head, so both its seeds and the patients are drawn
again; that of one seed's head, or of the ensemble, is over patients alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scores.pairing import METRICS
from pipeline.scores.scoring import Place, Proba
from pipeline.stats import WEIGHTED, Interval, probability_better, two_way_interval
from pipeline.stats.bootstrap import on_all_rows
from pipeline.stats.intervals import DRAWS, WeightedStatistic

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """One seeded kind of head on one domain.

    Attributes:
        seeds: How many trainings.
        mean: Over them.
        sd: Standard deviation over them.
        low: Lower bound of the mean, 95 %, over seeds and patients.
        high: Upper bound.
        ci_method: How that interval was made.
        baseline: What it is compared with; None if that is not among the heads.
        wins: P(A > B): share of the trainings that beat the baseline's of the same
            seed (a tie is half); ``wins_low`` and ``wins_high`` its 95 % interval over
            seeds, on these patients.
    """

    head: str
    domain: str
    role: str
    metric: str
    seeds: int
    mean: float
    sd: float
    low: float
    high: float
    ci_method: str
    n: int
    groups: int
    baseline: str | None
    wins: float | None
    wins_low: float | None
    wins_high: float | None


def seed_spread(
    place: Place,
    members: Mapping[str, Sequence[Proba]],
    baseline: str,
    *,
    draws: int = DRAWS,
) -> list[SeedSpread]:
    """The spread of every head that was trained more than once.

    Args:
        place: Where.
        members: For each head, probabilities ``(n, K)`` of each seed; one if it has none.
        baseline: Name among ``members``; a head without seeds has its one score each time.
        draws: Bootstrap draws.
    """
    found = []
    for metric in METRICS:
        statistics = {
            head: [WEIGHTED[metric](place.label, p) for p in each] for head, each in members.items()
        }
        values = {head: _values(place, each) for head, each in statistics.items()}
        for head, each in statistics.items():
            if len(each) > 1 and np.isfinite(values[head]).all():
                rng = place.rng("seeds")
                mean = two_way_interval(each, place.group, rng, draws=draws)
                wins = _wins(values, head, baseline)
                found.append(_row(place, (head, metric, baseline), values[head], mean, wins))
    return found


def _values(place: Place, each: Sequence[WeightedStatistic]) -> Values:
    return np.array([on_all_rows(statistic, len(place.label)) for statistic in each])


def _wins(values: Mapping[str, Values], head: str, baseline: str) -> Interval | None:
    if head == baseline or baseline not in values:
        return None
    against = np.resize(values[baseline], len(values[head]))  # one value serves every seed
    return probability_better(values[head], against)


def _row(
    place: Place,
    names: tuple[str, str, str],
    values: Values,
    mean: Interval,
    wins: Interval | None,
) -> SeedSpread:
    head, metric, baseline = names
    return SeedSpread(
        head=head,
        domain=place.domain,
        role=place.role,
        metric=metric,
        seeds=len(values),
        mean=mean.estimate,
        sd=float(values.std(ddof=1)),
        low=mean.low,
        high=mean.high,
        ci_method=mean.method,
        n=mean.n,
        groups=mean.groups,
        baseline=baseline if wins else None,
        wins=wins.estimate if wins else None,
        wins_low=wins.low if wins else None,
        wins_high=wins.high if wins else None,
    )
