"""Hold what is known of one domain's images, and pair two domains for comparison."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.two_samples.permute import PermutationPlan, Relabelings, relabel
from pipeline.two_samples.products import Place, place
from pipeline.two_samples.ridge import folds_of


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
