"""The head that is fitted to the source alone, and a map of both domains in its scale."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData, mean_and_scale
from pipeline.data.patients import patient_folds
from pipeline.heads.logistic import make_logistic

#: C of the logistic head on standardised features. It is fixed, so that no row selects it.
INVERSE_PENALTY = 0.01


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A logistic head of the source, with everything that was fitted on the source.

    Attributes:
        data: The source: raw features, labels, and ``proba`` out of fold by patient.
        mean: Of the raw features, shape (d,).
        scale: See :func:`mean_and_scale`.
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

    def predict_all(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities (n, K) of all images of a study (n, d); out of fold on the source."""
        proba = self.predict_proba(features)
        proba[self.data.row] = self.data.scored()
        return proba

    def scored(self, data: DomainData) -> DomainData:
        """A domain with this head's probabilities."""
        return data.with_(proba=self.predict_proba(data.embedded()))

    def fit(self, rows: NDArray[np.floating], label: NDArray[np.integer]) -> LogisticRegression:
        """A head of the same penalty on rows (m, e) of about unit variance.

        It is in float32, which takes a third of the time.
        """
        return make_logistic(INVERSE_PENALTY).fit(rows.astype(np.float32), label)


def fit_source(data: DomainData) -> SourceModel:
    """Fit the head to a labelled domain, and once for each fold of its patients.

    Args:
        data: Features and labels; every class from 0 to K - 1 is there.

    Raises:
        StudyError: A class has too few patients for folds.
    """
    features, label = data.embedded(), data.labelled()
    mean, scale = mean_and_scale(features)
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


#: Images of each domain: more points would hide one another.
_POINTS = 500
#: Standard deviations at most: one odd image would else be a component of its own.
_CLIP = 5.0


def feature_maps(model: SourceModel, targets: Iterable[DomainData]) -> dict[str, NDArray[Any]]:
    """Project a sample of both domains, of equal weight, on two principal components.

    Returns:
        For each labelled target ``TARGET/embedding`` (n, 2), ``TARGET/embedding_target`` (n,)
        bool, ``TARGET/embedding_label`` (n,).
    """
    maps: dict[str, NDArray[Any]] = {}
    for target in targets:
        rng = np.random.default_rng(0)
        parts = [
            data.take(np.sort(rng.permutation(len(data))[:_POINTS]))
            for data in (model.data, target)
        ]
        rows = np.vstack([model.standardise(part.embedded()) for part in parts])
        pca = PCA(2, svd_solver="randomized", random_state=0)
        maps[f"{target.name}/embedding"] = pca.fit_transform(rows.clip(-_CLIP, _CLIP))
        sizes = [len(part) for part in parts]
        maps[f"{target.name}/embedding_target"] = np.repeat([False, True], sizes)
        maps[f"{target.name}/embedding_label"] = np.concatenate([p.labelled() for p in parts])
    return maps
