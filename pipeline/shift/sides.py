"""The source and a target side by side, as every comparison of the two takes them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checks.leaks import shared_ids
from pipeline.features.joined import JoinedFeatures
from pipeline.samples import Samples
from pipeline.samples.splits import taken_for_one
from pipeline.shift.cohorts import Cohort
from pipeline.shift.fixes.adaptation import Source
from pipeline.two_samples.probes import SourcePrediction, source_prediction


@dataclass(frozen=True, kw_only=True)
class NotCompared:
    """A target that is not compared with the source, though its features are there."""

    backbone: str
    target: str
    images: int
    reason: str
    """What it lacks and what to do, in sentences."""


def not_compared(joined: JoinedFeatures, target: str) -> NotCompared | None:
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
