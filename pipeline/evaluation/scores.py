"""Every metric of every head on the images of one domain, each with its interval."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import DRAWS, FIT, WeightedStatistic
from pipeline.data.samples import UNLABELLED
from pipeline.evaluation.auroc import auroc_interval
from pipeline.evaluation.bootstrap import bootstrap_values
from pipeline.evaluation.intervals import Interval, percentile_interval, wilson
from pipeline.evaluation.metrics import METRICS, is_right, score
from pipeline.randomness import stream
from pipeline.study import SOURCE
from pipeline.words import counted

Proba = NDArray[np.float64]
Labels = NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)

#: Ends the name of a row that is the mean probability of a head's seeds.
ENSEMBLE = "_ensemble"
#: ``ci_method`` where no interval can be given, or where it would mean nothing.
NO_INTERVAL = "none"
_BINARY = 2
_UNKNOWN = (float("nan"), float("nan"), NO_INTERVAL)


def place_in_words(domain: str, role: str) -> str:
    """A place where something was judged, as tables call it: the role, or the target."""
    return role if domain == SOURCE else domain


def unscored(unlabelled: Mapping[str, int], file: str) -> Iterator[str]:
    """A sentence for each target without labels, which no table of scores can hold.

    Args:
        unlabelled: Images of each.
        file: Has the probabilities.
    """
    for name, count in unlabelled.items():
        yield (
            f"{name}: {counted(count, 'image')} without labels. Their probabilities are in {file}; "
            "no score can be given. headrace shift says what the scores foretell"
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """The images of one domain in one role.

    Attributes:
        domain: ``source`` or the target's name.
        role: ``fit``, ``validation`` or ``target``.
        rows: Which samples, shape ``(n,)``, bool over all samples.
        label: Of these rows.
        group: Patients of these rows.
        seed: Start of all randomness that belongs to this place.
    """

    domain: str
    role: str
    rows: NDArray[np.bool_]
    label: Labels
    group: NDArray[np.str_]
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse images that nothing can be counted of.

        Raises:
            ValueError: An image has no label.
        """
        if (self.label < 0).any():
            raise ValueError(f"{self.domain} has images without labels: they have no scores")

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.group))

    @property
    def independent(self) -> bool:
        """Whether each image is of a patient of its own."""
        return self.patients == len(self.label)

    def rng(self, purpose: str) -> np.random.Generator:
        """Randomness for one purpose: draws for another move none of these."""
        return stream(purpose, *self.seed)


def places_of(
    domain: NDArray[np.str_],
    split: NDArray[np.str_],
    label: Labels,
    group: NDArray[np.str_],
    seed: int,
) -> list[Place]:
    """Each domain in each role, in order of appearance; a domain without labels is none."""
    found = []
    for number, (d, s) in enumerate(dict.fromkeys(zip(domain, split, strict=True))):
        rows = (domain == d) & (split == s)
        if (label[rows] == UNLABELLED).all():
            continue
        found.append(
            Place(
                domain=str(d),
                role=str(s),
                rows=rows,
                label=label[rows],
                group=group[rows],
                seed=(seed, number),
            )
        )
    return found


def scores(
    place: Place, proba: Mapping[Key, Proba], *, draws: int = DRAWS
) -> dict[Key, dict[str, Interval]]:
    """Every metric that the place defines, with its interval.

    Plain rates of independent images have Wilson's interval, the AUROC of two classes has
    DeLong's (by patient where patients have several images), everything else the
    percentiles of draws of whole patients, the same draws for all heads. On the fit split
    no interval is given: what a head says of rows that it was trained on is not a sample
    of what it says of others.

    Args:
        place: Where.
        proba: Of its rows, shape ``(n, K)``, for each head.
        draws: Bootstrap draws of patients.

    Returns:
        For each head, by metric.
    """
    points = {key: dict(_points(place, p)) for key, p in proba.items()}
    closed = {
        (key, metric): _closed_form(place, proba[key], metric, value)
        for key, values in points.items()
        for metric, value in values.items()
    }
    open_ = [at for at, found in closed.items() if found is None]
    statistics = [METRICS[metric](place.label, proba[key]) for key, metric in open_]
    bounds = dict(zip(open_, _percentiles(place, statistics, draws), strict=True))
    return {
        key: {
            metric: _interval(place, value, closed[key, metric] or bounds[key, metric])
            for metric, value in values.items()
        }
        for key, values in points.items()
    }


def _points(place: Place, proba: Proba) -> Iterator[tuple[str, float]]:
    for metric in METRICS:
        value = score(metric, place.label, proba)
        if value is not None:
            yield metric, value


def _closed_form(
    place: Place, proba: Proba, metric: str, value: float
) -> tuple[float, float, str] | None:
    """Bounds and their method where a formula gives them; None asks for the bootstrap."""
    if place.role == FIT:
        return _UNKNOWN
    if metric == "auroc" and proba.shape[1] == _BINARY:
        return _delong(place, proba)
    of = _trials(place, proba, metric)
    if of is None:
        return None
    if place.independent:
        return *wilson(int(is_right(place.label, proba)[of].sum()), int(of.sum())), "Wilson"
    if value in (0.0, 1.0):
        # All draws agree, which is not certainty: as many trials as there are patients.
        patients = len(np.unique(place.group[of]))
        return *wilson(round(value * patients), patients), "Wilson, patients as trials"
    return None


def _trials(place: Place, proba: Proba, metric: str) -> NDArray[np.bool_] | None:
    """The images of which a metric is the share that is right; None if it is no such rate."""
    if metric == "accuracy":
        return np.ones(len(place.label), dtype=bool)
    if proba.shape[1] == _BINARY and metric in ("sensitivity", "specificity"):
        trials: NDArray[np.bool_] = place.label == (metric == "sensitivity")
        return trials
    return None


def _delong(place: Place, proba: Proba) -> tuple[float, float, str]:
    if not has_variance(place):
        return _UNKNOWN
    low, high = auroc_interval(place.label, proba[:, 1], group=place.group)
    return low, high, "DeLong" if place.independent else "DeLong by patient"


def has_variance(place: Place, patients: int = 2) -> bool:
    """Whether two classes are each in so many patients; DeLong's variance needs two."""
    return all(len(np.unique(place.group[place.label == k])) >= patients for k in (0, 1))


def _percentiles(
    place: Place, statistics: Sequence[WeightedStatistic], draws: int
) -> list[tuple[float, float, str]]:
    if not statistics:
        return []
    values = bootstrap_values(statistics, place.group, place.rng("scores"), draws=draws)
    return [(*percentile_interval(row), "patient bootstrap") for row in values]


def _interval(place: Place, value: float, bounds: tuple[float, float, str]) -> Interval:
    low, high, method = bounds
    if not np.isfinite([low, high]).all():
        low, high, method = _UNKNOWN
    return Interval(
        estimate=value,
        low=low,
        high=high,
        images=len(place.label),
        patients=place.patients,
        method=method,
    )


def ensemble(members: Sequence[Proba]) -> Proba:
    """Mean probability of the seeds of a head."""
    mean: Proba = np.mean(members, axis=0)
    return mean
