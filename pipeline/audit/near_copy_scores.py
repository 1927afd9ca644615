"""What near copies are worth: the scores of stage 2's linear head with and without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import NearPair, near_rows, roles_of
from pipeline.data.samples import Samples
from pipeline.errors import MissingPredictionsError
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.metrics import is_right, score
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, read_predictions
from pipeline.study import Study

#: Whose scores are given.
_HEAD = ("linear", 0)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of a head on ``n`` images of one role.

    Attributes:
        accuracy: With its Wilson interval, ``low`` to ``high``.
        auroc: None where a class is absent.
    """

    role: str
    n: int
    accuracy: float
    low: float
    high: float
    auroc: float | None


@dataclass(frozen=True, kw_only=True)
class WithAndWithout:
    """What near copies are worth on one role."""

    backbone: str
    everything: Score
    without_near_copies: Score


def with_and_without(
    study: Study, samples: Samples, pairs: Sequence[NearPair]
) -> tuple[WithAndWithout, ...]:
    """Scores with and without the images that have a near copy in fit.

    Returns:
        One for each backbone and role; none where nothing is near or stage 2 has not run.
    """
    marked = near_rows(samples, pairs) & samples.labelled
    if not marked.any():
        return ()
    try:
        predictions = read_predictions(study.results / PROBABILITIES)
    except MissingPredictionsError:
        return ()
    return tuple(
        row for name, kept in predictions.items() for row in _rows(name, kept, samples, marked)
    )


def _rows(
    backbone: str, kept: Predictions, samples: Samples, marked: NDArray[np.bool_]
) -> Iterator[WithAndWithout]:
    if _HEAD not in kept.proba:
        return
    row_of = {bytes(key): row for row, key in enumerate(kept.key)}
    known = np.array([key in row_of for key in samples.key])
    proba = kept.proba[_HEAD][[row_of.get(key, 0) for key in samples.key]].astype(np.float64)
    roles = roles_of(samples)
    for role in dict.fromkeys(roles[marked].tolist()):
        here = known & (roles == role)
        if (here & ~marked).any():
            everything, without = (
                _score_of(role, samples.label[rows], proba[rows]) for rows in (here, here & ~marked)
            )
            yield WithAndWithout(
                backbone=backbone, everything=everything, without_near_copies=without
            )


def _score_of(role: str, y: NDArray[np.int64], proba: NDArray[np.float64]) -> Score:
    right = is_right(y, proba)
    low, high = wilson(int(right.sum()), len(right))
    return Score(
        role=role,
        n=len(right),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        auroc=score("auroc", y, proba),
    )
