"""Hold what is known of one domain's images, and pair two domains for comparison."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import shared_ids
from pipeline.data.patients import taken_for_one
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable
from pipeline.shift.adapt import Source
from pipeline.shift.kernels import Place, place
from pipeline.shift.permute import PermutationPlan, Relabelings, relabel
from pipeline.shift.probes import SourcePrediction, source_prediction
from pipeline.shift.ridge_test import folds_of


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Features, scores and patients of one domain; row i of each is the same image."""

    features: NDArray[np.floating]
    """Shape (n, d), finite."""
    probabilities: NDArray[np.floating]
    """Shape (n, K), rows sum to 1. Of the source: out of fold, so that they are
    exchangeable with the target's when nothing has shifted."""
    groups: NDArray[Any]
    """Shape (n,), patient ids, text or integers."""
    labels: NDArray[np.integer] | None = None
    """Shape (n,), 0 to K - 1; None while the labels are sealed, or where there are none."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same images.

        Raises:
            StudyError: Lengths differ, there are no rows, a number is not finite, or a label
                is no class.
        """
        lengths = {name: len(value) for name, value in vars(self).items() if value is not None}
        if not any(lengths.values()):
            raise StudyError("no image to compare")
        if len(set(lengths.values())) != 1:
            raise StudyError(f"a cohort needs one row per image in every array, got {lengths}")
        if self.labels is not None and self.labels.min() < 0:
            raise StudyError("images without labels are a cohort whose labels are None")
        for name in ("features", "probabilities"):
            if not np.isfinite(getattr(self, name)).all():
                raise StudyError(
                    f"the {name} of a cohort hold NaN or infinity: run `headrace cache verify`"
                )

    def take(self, rows: NDArray[Any]) -> "Cohort":
        """Return the chosen rows (indices or a mask)."""
        return Cohort(
            features=self.features[rows],
            probabilities=self.probabilities[rows],
            groups=self.groups[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def classes(self) -> NDArray[np.integer]:
        """Return the labels, or while they are sealed the predicted classes, shape (n,)."""
        return self.probabilities.argmax(axis=1) if self.labels is None else self.labels


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two cohorts stacked, source first, with their relabellings."""

    pooled: Cohort
    """All rows; labels are None."""
    relabelings: Relabelings
    """Domain labels, observed and permuted."""
    folds: NDArray[np.intp]
    """Shape (n,): fold of each row, by patient."""
    where: Place
    """Where heavy products run."""
    seed: int
    """Seed of random directions."""

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Shape (n, B + 1), True for the target, column 0 observed."""
        return self.relabelings.labels


def compare(
    source: Cohort, target: Cohort, plan: PermutationPlan, device: str | None = None
) -> Comparison:
    """Stack two cohorts and draw the relabellings of their patients.

    Args:
        source: The labelled domain.
        target: The other domain, with as many features and classes.
        plan: Number of relabellings, level and seed.
        device: torch device of heavy products; None for numpy.

    Raises:
        StudyError: The cohorts do not fit, or no relabelling could reach the level.
        EngineError: The device is not there.
    """
    for name in ("features", "probabilities"):
        widths = [getattr(cohort, name).shape[1] for cohort in (source, target)]
        if widths[0] != widths[1]:
            raise StudyError(
                f"source and target differ in the width of their {name} ({widths[0]} and "
                f"{widths[1]}): use one backbone and one head for both"
            )
    is_target = np.arange(len(source.groups) + len(target.groups)) >= len(source.groups)
    pooled = Cohort(
        features=np.concatenate([source.features, target.features]),
        probabilities=np.concatenate([source.probabilities, target.probabilities]),
        groups=np.concatenate([source.groups, target.groups]),
    )
    relabelings = relabel(is_target, pooled.groups, plan)
    return Comparison(
        pooled=pooled,
        relabelings=relabelings,
        folds=folds_of(relabelings.units, plan.seed),
        where=place(device),
        seed=plan.seed,
    )


def split_by_patient(
    groups: NDArray[Any], rng: np.random.Generator, share: float = 0.5
) -> NDArray[np.bool_]:
    """Choose a share of the patients at random.

    Args:
        groups: Shape (n,), patient ids.
        rng: Source of the choice.
        share: Share of patients to choose, in [0, 1].

    Returns:
        Shape (n,), True for the rows of chosen patients.
    """
    patients, codes = np.unique(groups, return_inverse=True)
    chosen = np.zeros(patients.size, dtype=np.bool_)
    chosen[rng.permutation(patients.size)[: round(share * patients.size)]] = True
    return np.asarray(chosen[codes])


# The source and a target side by side, as every comparison of the two takes them.


@dataclass(frozen=True, kw_only=True)
class NotCompared:
    """A target that is not compared with the source, though its features are there."""

    backbone: str
    target: str
    images: int
    reason: str
    """What it lacks and what to do, in sentences."""


def not_compared(joined: FeatureTable, target: str) -> NotCompared | None:
    """None where there are two patients or more: without another there are no intervals."""
    group = joined.samples.group[joined.samples.domain == target]
    patients = np.unique(group)
    if patients.size > 1:
        return None
    return NotCompared(
        backbone=joined.backbone,
        target=target,
        images=group.size,
        reason=f"Images: {group.size}, all of one patient; a comparison by patient needs two, "
        f"better 20 or more. Add images of others; {taken_for_one(f'target.{target}')}.",
    )


def ask(source: Source, features: NDArray[np.floating]) -> NDArray[np.float64]:
    """What the source's head says of rows ``(n, d)`` of any domain, shape ``(n, K)``."""
    proba: NDArray[np.float64] = source.head.predict_proba(source.standardise(features))
    return proba


def here_of(source: Source) -> Cohort:
    """The source, its probabilities out of fold."""
    return Cohort(
        features=source.features,
        probabilities=source.out_of_fold,
        groups=source.groups,
        labels=source.labels,
    )


def there_of(source: Source, features: NDArray[np.floating], groups: NDArray[Any]) -> Cohort:
    """A target whose labels are not known, or not yet."""
    return Cohort(features=features, probabilities=ask(source, features), groups=groups)


def told_apart(here: Cohort, there: Cohort) -> SourcePrediction:
    """How well they can be told apart; inside a class, by what is called it in the target."""
    called = there.probabilities.argmax(axis=1)
    return source_prediction(
        np.concatenate([here.features, there.features]),
        np.repeat([False, True], [len(here.groups), len(there.groups)]),
        np.concatenate([here.groups, there.groups]),
        np.concatenate([here.classes(), called]),
    )


def shared_patients(samples: Samples, here: Cohort, there: Cohort) -> int:
    """Patient ids that both have; a file's name, of a patient who is not known, is none."""
    files = [item.path for item in samples.items]
    shared = shared_ids({"source": here.groups, "target": there.groups})
    return sum(len(np.setdiff1d(found.ids, files)) for found in shared)
