"""The head that knows the source alone, and what is asked of domains before they are compared."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.data.patients import one_patient_hint, patient_folds
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable
from pipeline.heads.logistic import make_logistic
from pipeline.study import SOURCE
from pipeline.words import counted, printable

#: In a fold and out of it.
_PATIENTS_OF_A_CLASS = 2
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
    """

    data: DomainData
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    head: LogisticRegression

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
    def standard(self) -> NDArray[np.float32]:
        """The source's own rows, standardised, shape (n, d): for fits of many heads."""
        return self.standardise(self.data.embedded()).astype(np.float32)

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
    ) -> LogisticRegression:
        """A head of the same penalty, in float32: it takes a third of the time.

        Args:
            rows: Shape (m, e), scaled to about unit variance.
            label: Shape (m,).
            weights: Shape (m,), weight of each row; 1 where left out.
        """
        head = make_logistic(INVERSE_PENALTY)
        return head.fit(rows.astype(np.float32), label, sample_weight=weights)


def fit_source(data: DomainData) -> SourceModel:
    """Fit the head to a labelled domain, and once for each fold of its patients.

    Args:
        data: Features and labels; every class from 0 to K - 1 is there.

    Raises:
        StudyError: A class has too few patients for folds.
    """
    features, label = data.embedded(), data.labelled()
    mean, scale = _mean_and_scale(features)
    rows = (features - mean) / scale
    proba = np.zeros((len(label), label.max() + 1))
    for fit, held in patient_folds(label, data.group, seed=0):
        head = make_logistic(INVERSE_PENALTY, tol=1e-6).fit(rows[fit], label[fit])
        proba[held] = head.predict_proba(rows[held])
    return SourceModel(
        data=data.with_(proba=proba),
        mean=mean,
        scale=scale,
        head=make_logistic(INVERSE_PENALTY, tol=1e-6).fit(rows, label),
    )


def standardised(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Features (n, d) scaled by their own mean and standard deviation."""
    mean, scale = _mean_and_scale(features)
    return np.asarray((features - mean) / scale, np.float32)


def _mean_and_scale(
    features: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    deviation = features.std(axis=0, dtype=np.float64)
    mean = np.asarray(features.mean(axis=0, dtype=np.float64))
    return mean, np.where(deviation > 0, deviation, 1.0)


def source_domain(table: FeatureTable) -> DomainData:
    """The rows of the source.

    Raises:
        StudyError: A class has images of too few patients; said before any head is fitted.
    """
    source, classes = table.domain(SOURCE), table.samples.classes
    for k, name in enumerate(classes):
        patients = np.unique(source.group[source.labelled() == k]).size
        if patients < _PATIENTS_OF_A_CLASS:
            raise StudyError(
                f"class {printable(name)!r} of [source] has images of "
                f"{counted(patients, 'patient')}, and {_PATIENTS_OF_A_CLASS} are needed: a head "
                "is tested on patients that it was not fitted to. Add images of others, or leave "
                f"out fewer; {one_patient_hint(SOURCE)}"
            )
    return source


def too_few_patients(target: DomainData) -> str | None:
    """Why a target cannot be compared; None where it has two patients or more."""
    if target.patients > 1:
        return None
    return (
        f"Images: {len(target)}, all of one patient; a comparison by patient needs two, better 20 "
        f"or more. Add images of others; {one_patient_hint(f'target.{target.name}')}."
    )


def shared_patients(samples: Samples, source: DomainData, target: DomainData) -> int:
    """Patient ids that both have; a file's name, of a patient who is not known, is none."""
    files = [item.path for item in samples.items]
    return len(np.setdiff1d(np.intersect1d(source.group, target.group), files))


def digest_of(data: DomainData) -> str:
    """SHA-256 of the images of a domain with their labels, in any order, 64 hex digits."""
    label = np.full(len(data), -1) if data.label is None else data.label
    keys = () if data.key is None else map(bytes, data.key)
    lines = sorted(f"{key.hex()} {k}" for key, k in zip(keys, label, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Both domains on a map.


#: Images of each domain: more points would hide one another.
_POINTS = 500
#: Standard deviations at most: one odd image would else be a component of its own.
_CLIP = 5.0


def feature_map(model: SourceModel, target: DomainData) -> dict[str, NDArray[Any]]:
    """Project a sample of both domains, of equal weight, on two dimensions.

    Args:
        model: With the source's rows and scale.
        target: Features and labels.

    Returns:
        ``embedding`` (n, 2), ``embedding_target`` (n,) bool, ``embedding_label`` (n,).
    """
    rng = np.random.default_rng(0)
    parts = [
        data.take(np.sort(rng.permutation(len(data))[:_POINTS])) for data in (model.data, target)
    ]
    rows = np.vstack([model.standardise(part.embedded()) for part in parts]).clip(-_CLIP, _CLIP)
    return {
        "embedding": PCA(2, svd_solver="randomized", random_state=0).fit_transform(rows),
        "embedding_target": np.repeat([False, True], [len(part) for part in parts]),
        "embedding_label": np.concatenate([part.labelled() for part in parts]),
    }
