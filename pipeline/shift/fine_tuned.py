"""The loss of networks that were trained on the images, from their kept probabilities.

They have no features in the store, so only what needs probabilities alone is said of
them. Their source column is the validation split: patients that they were not fitted to.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import VALIDATION
from pipeline.data.samples import Samples
from pipeline.evaluation.predictions import TRAINED_PROBABILITIES, Predictions, read_predictions
from pipeline.shift.decompose import DecomposeSettings, kitagawa, threshold_terms
from pipeline.shift.domains import Cohort
from pipeline.shift.effects import Gap, labelled, loss
from pipeline.shift.provenance import digest_of_domain
from pipeline.shift.threshold import ThresholdSplit
from pipeline.study import SOURCE

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedLoss:
    """One trained network on one target.

    Attributes:
        backbone: Group of the file it is kept in.
        method: How it was trained.
        seed: It was trained with.
        source_accuracy: On the validation split of the source.
        target_accuracy: On the target.
        total: Loss of accuracy.
        kitagawa: ``mix`` and ``rate``.
        threshold: None unless there are two classes and both domains show both.
    """

    backbone: str
    target: str
    method: str
    seed: int
    source_accuracy: float
    target_accuracy: float
    total: Gap
    kitagawa: Mapping[str, Gap]
    threshold: ThresholdSplit | None


def trained_losses(
    results: Path, samples: Samples, targets: Sequence[str], seed: int
) -> tuple[TrainedLoss, ...]:
    """Take the losses of all kept networks apart.

    Args:
        results: Results of the study.
        samples: As the study has them now.
        targets: Names of the targets.
        seed: Of the draws.

    Returns:
        Nothing where no network has been trained; a target that a network has not seen, or a
        source without a validation split, gives no row. Nor does a domain whose images or
        labels are others than the network was trained and asked with, which is logged.

    Raises:
        MissingPredictionsError: The file is there and is not one of ours.
    """
    path = results / TRAINED_PROBABILITIES
    if not path.exists():
        return ()
    now = {domain: digest_of_domain(samples, domain) for domain in (SOURCE, *targets)}
    losses: list[TrainedLoss] = []
    changed: set[str] = set()
    for backbone, kept in read_predictions(path).items():
        there = [domain for domain in now if (kept.domain == domain).any()]
        others = {domain for domain in there if digest_of_domain(kept, domain) != now[domain]}
        changed |= others
        losses += [
            _loss(kept, (backbone, target, *trained), seed)
            for target in targets
            for trained in kept.proba
            if not others & {SOURCE, target}
            and _validation(kept).any()
            and (kept.domain == target).any()
        ]
    if changed:
        _LOG.warning(
            "%s is of other images or labels than the study has now (%s), so networks trained "
            "on images are left out there: run headrace finetune STUDY again",
            path,
            ", ".join(sorted(changed)),
        )
    return tuple(losses)


def _validation(kept: Predictions) -> NDArray[np.bool_]:
    return np.asarray((kept.domain == SOURCE) & (kept.split == VALIDATION))


def _loss(kept: Predictions, name: tuple[str, str, str, int], seed: int) -> TrainedLoss:
    backbone, target, method, trained_with = name
    how = DecomposeSettings(seed=seed)
    proba = kept.proba[method, trained_with]
    s, t = (
        labelled(_cohort(kept, proba, rows), np.random.default_rng([seed, 15, side]), how.draws)
        for side, rows in enumerate((_validation(kept), kept.domain == target))
    )
    return TrainedLoss(
        backbone=backbone,
        target=target,
        method=method,
        seed=trained_with,
        source_accuracy=1 - s.error(),
        target_accuracy=1 - t.error(),
        total=loss(s, t),
        kitagawa=kitagawa(s, t),
        threshold=threshold_terms(s, t, how),
    )


def _cohort(kept: Predictions, proba: NDArray[np.float64], rows: NDArray[Any]) -> Cohort:
    # No measure of features is taken of it: the probabilities stand in their place.
    return Cohort(
        features=proba[rows],
        probabilities=proba[rows],
        groups=kept.patient[rows],
        labels=kept.label[rows],
    )
