"""Hold what is known of one domain's images, and pair two domains for comparison."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.leaks import shared_ids
from pipeline.data.patients import one_patient_hint, patient_folds
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable
from pipeline.heads.logistic import LogisticHead


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


# The head that knows the source alone, and what it says of any domain.


#: C of the logistic head on standardised features. It is fixed, so that no row selects it.
INVERSE_PENALTY = 0.01


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A logistic head of the source, with everything that was fitted on the source.

    Attributes:
        data: The source: raw features, labels, and ``proba`` out of fold by patient, so that
            they are exchangeable with a target's where nothing has shifted.
        mean: Of the raw features, shape (d,).
        scale: Their standard deviations, 1 where a feature does not vary, shape (d,).
        head: Fitted to all rows of the source, standardised.
        inverse_penalty: Its C.
    """

    data: DomainData
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    head: LogisticHead
    inverse_penalty: float = INVERSE_PENALTY

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return int(self.data.scored().shape[1])

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """Share of each class in the source, shape (K,)."""
        label = self.data.labelled()
        return np.asarray(np.bincount(label, minlength=self.classes) / len(label))

    @cached_property
    def standard(self) -> NDArray[np.float64]:
        """The source's own rows, standardised, shape (n, d)."""
        return self.standardise(self.data.embedded())

    def standardise(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scale raw features (m, d) by the source's mean and standard deviation."""
        return np.asarray((features - self.mean) / self.scale, dtype=np.float64)

    def predict_proba(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities, shape (m, K), of raw features (m, d) of any domain."""
        proba: NDArray[np.float64] = self.head.predict_proba(self.standardise(features))
        return proba

    def scored(self, data: DomainData) -> DomainData:
        """A domain with this head's probabilities."""
        return data.with_(proba=self.predict_proba(data.embedded()))

    def fit(
        self,
        rows: NDArray[np.floating],
        label: NDArray[np.integer],
        weights: NDArray[np.floating] | None = None,
    ) -> LogisticHead:
        """A head of the same penalty.

        Args:
            rows: Shape (m, e), scaled to about unit variance.
            label: Shape (m,).
            weights: Shape (m,), weight of each row; 1 where left out.
        """
        return LogisticHead(C=self.inverse_penalty).fit(rows, label, sample_weight=weights)


def fit_source(data: DomainData, *, inverse_penalty: float = INVERSE_PENALTY) -> SourceModel:
    """Fit the head to a labelled domain, and once for each fold of its patients.

    Args:
        data: Features and labels; every class from 0 to K - 1 is there.
        inverse_penalty: C of the head.

    Raises:
        StudyError: A class is missing, or has too few patients for folds.
    """
    features, label = data.embedded(), data.labelled()
    counts = np.bincount(label)
    if counts.size < 2 or not counts.all():
        raise StudyError(
            f"labels of {data.name} must use every number from 0 to K - 1, and there must be two; "
            f"images of each class: {counts.tolist()}"
        )
    deviation = features.std(axis=0, dtype=np.float64)
    mean = np.asarray(features.mean(axis=0, dtype=np.float64))
    scale = np.where(deviation > 0, deviation, 1.0)
    rows = (features - mean) / scale
    proba = np.zeros((len(label), counts.size))
    for fit, held in patient_folds(label, data.group, seed=0):
        head = LogisticHead(C=inverse_penalty).fit(rows[fit], label[fit])
        proba[held] = head.predict_proba(rows[held])
    return SourceModel(
        data=data.with_(proba=proba),
        mean=mean,
        scale=scale,
        head=LogisticHead(C=inverse_penalty).fit(rows, label),
        inverse_penalty=inverse_penalty,
    )


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
        f"better 20 or more. Add images of others; {one_patient_hint(f'target.{target}')}.",
    )


def here_of(model: SourceModel) -> Cohort:
    """The source, its probabilities out of fold."""
    return Cohort(
        features=model.data.embedded(),
        probabilities=model.data.scored(),
        groups=model.data.group,
        labels=model.data.labelled(),
    )


def there_of(model: SourceModel, features: NDArray[np.floating], groups: NDArray[Any]) -> Cohort:
    """A target whose labels are not known, or not yet."""
    return Cohort(features=features, probabilities=model.predict_proba(features), groups=groups)


def shared_patients(samples: Samples, here: Cohort, there: Cohort) -> int:
    """Patient ids that both have; a file's name, of a patient who is not known, is none."""
    files = [item.path for item in samples.items]
    shared = shared_ids({"source": here.groups, "target": there.groups})
    return sum(len(np.setdiff1d(ids, files)) for ids in shared.values())
