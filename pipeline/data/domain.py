"""The rows of one domain, or of one split of it: patients, labels, features, probabilities.

All stages use this one class. Row ``i`` of each array is the same image. A field is None if a
stage does not have it or must not see it (the labels of a sealed target).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError


@dataclass(frozen=True, kw_only=True)
class DomainData:
    """Images of one domain; row ``i`` of each array is the same image.

    Attributes:
        name: ``source`` or the target's name.
        role: ``fit``, ``validation``, ``source`` (fit and validation) or ``target``.
        group: Patient ids, shape ``(n,)``.
        label: Shape ``(n,)``, 0 to K - 1; None if labels are sealed or absent.
        features: Shape ``(n, d)``, finite.
        proba: Class probabilities by the current head, ``(n, K)``; rows sum to 1.
        key: Content keys, uint8 of shape ``(n, 32)``.
        row: Number of each image among the samples of the study, shape ``(n,)``.
    """

    name: str
    role: str
    group: NDArray[Any]
    label: NDArray[np.int64] | None = None
    features: NDArray[np.floating] | None = None
    proba: NDArray[np.float64] | None = None
    key: NDArray[np.uint8] | None = None
    row: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        """Check that all arrays describe the same images; a StudyError if not."""
        lengths = {name: len(array) for name, array in self._arrays()}
        if set(lengths.values()) != {len(self.group)}:
            raise StudyError(f"{self.name}: every array needs one row per image, got {lengths}")
        if not len(self.group):
            raise StudyError(f"{self.name} ({self.role}) has no images")
        if self.label is not None and self.label.min() < 0:
            raise StudyError(
                f"{self.name}: some images have no label; leave them out, or all labels"
            )
        for name, array in self._arrays():
            if name in ("features", "proba") and not np.isfinite(array).all():
                raise StudyError(
                    f"{self.name}: {name} hold NaN or infinity; run `headrace cache verify`"
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.group)

    @cached_property
    def patients(self) -> int:
        """Number of patients."""
        return len(np.unique(self.group))

    def class_patients(self, classes: int) -> list[int]:
        """Number of patients of each class, from 0 to ``classes`` - 1."""
        label = self.get_label()
        return [len(np.unique(self.group[label == k])) for k in range(classes)]

    def record(self, classes: int) -> dict[str, Any]:
        """Name, role and counts of these rows, for the record of a stage."""
        counts = {"images": len(self), "patients": self.patients}
        by_class = {"class_patients": self.class_patients(classes)}
        return {"domain": self.name, "role": self.role, **counts, **by_class}

    def take(self, rows: NDArray[Any]) -> "DomainData":
        """The chosen rows, by number or by a mask."""
        return replace(self, **{name: array[rows] for name, array in self._arrays()})

    def with_(self, **arrays: Any) -> "DomainData":
        """The same images with other labels, features or probabilities."""
        return replace(self, **arrays)

    def sealed(self) -> "DomainData":
        """The same images without their labels."""
        return replace(self, label=None)

    def get_label(self) -> NDArray[np.int64]:
        """The labels, shape ``(n,)``; a StudyError if they are sealed or absent."""
        if self.label is None:
            raise StudyError(f"this step needs the labels of {self.name}, which has none")
        return self.label

    def get_proba(self) -> NDArray[np.float64]:
        """The probabilities, shape ``(n, K)``; a ValueError before a head is applied."""
        if self.proba is None:
            raise ValueError(f"no head has been applied to {self.name} yet")
        return self.proba

    def get_features(self) -> NDArray[np.floating]:
        """The features, shape ``(n, d)``; a ValueError for rows that were made without."""
        if self.features is None:
            raise ValueError(f"the rows of {self.name} were made without features")
        return self.features

    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image, shape ``(n,)``."""
        return np.asarray(self.get_proba().argmax(axis=1), np.int64)

    def wrong(self) -> NDArray[np.bool_]:
        """Whether another class than the label is the most probable, shape ``(n,)``."""
        return np.asarray(self.predicted() != self.get_label())

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for field in fields(self):
            if field.name not in ("name", "role") and getattr(self, field.name) is not None:
                yield field.name, getattr(self, field.name)


def mean_and_scale(
    features: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature (n, d); 1 for a constant feature."""
    deviation = features.std(axis=0, dtype=np.float64)
    mean = np.asarray(features.mean(axis=0, dtype=np.float64))
    return mean, np.where(deviation > 0, deviation, 1.0)
