"""What the figures of a shift need beside its numbers, in a form small enough to keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.evaluation.predictions import Predictions, predictions_of
from pipeline.features.load import FeatureTable
from pipeline.shift.domains import Cohort, SourceModel
from pipeline.study import SOURCE

_BINS = 24
#: Of each domain; more points would hide one another.
_POINTS = 500
_DECIMALS = 3
#: A feature that hardly varies on the source can be hundreds of its standard deviations off
#: on a target: one such image would be a component of its own.
_CLIP = 5.0
#: Name of the stage's own head among kept predictions.
HEAD = ("linear", 0)


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Images of two domains on the first two principal components of both.

    Attributes:
        x: First component, of features in the source's standard deviations, at most
            5 of them; 3 decimals.
        y: Second component.
        target: Whether the point belongs to the target.
        label: Its class.
        explained: Share of the variance that each component has.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    target: tuple[bool, ...]
    label: tuple[int, ...]
    explained: tuple[float, float]


def feature_map(source: SourceModel, target: Cohort) -> FeatureMap:
    """Project a sample of both domains, of equal weight, on two dimensions.

    Args:
        source: The labelled domain.
        target: The other, its labels open.
    """
    rng = np.random.default_rng(0)
    sides = [(source.data.embedded(), source.data.labelled()), (target.features, target.classes())]
    kept = [_sample(len(labels), rng) for _, labels in sides]
    X = np.vstack([source.standardise(X[rows]) for (X, _), rows in zip(sides, kept, strict=True)])
    X = np.clip(X, -_CLIP, _CLIP)
    pca = PCA(n_components=2, svd_solver="randomized", random_state=0)
    places = pca.fit_transform(X).round(_DECIMALS)
    labels = np.concatenate([y[rows] for (_, y), rows in zip(sides, kept, strict=True)])
    first, second = pca.explained_variance_ratio_
    return FeatureMap(
        x=tuple(places[:, 0].tolist()),
        y=tuple(places[:, 1].tolist()),
        target=tuple(np.repeat([False, True], [len(rows) for rows in kept]).tolist()),
        label=tuple(labels.tolist()),
        explained=(float(first), float(second)),
    )


def _sample(n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return np.sort(rng.permutation(n)[:_POINTS])


def head_predictions(joined: FeatureTable, source: SourceModel) -> Predictions:
    """Probabilities of the stage's head: out of fold on the source, as it is elsewhere.

    Args:
        joined: Samples with features.
        source: The labelled domain.
    """
    here = joined.samples.domain == SOURCE
    proba = source.predict_proba(joined.X)
    proba[here] = source.data.scored()
    return predictions_of(joined.samples, {HEAD: proba})
