"""The loss of fine-tuned networks, from their kept probabilities.

They have no features in the store, so only what needs probabilities alone is said of them.
Their source column is the validation split: patients that they were not fitted to.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import VALIDATION
from pipeline.data.samples import Samples
from pipeline.evaluation.predictions import TRAINED_PROBABILITIES, Predictions, read_predictions
from pipeline.shift.decompose import decompose
from pipeline.shift.domains import digest_of_domain
from pipeline.shift.record import effect_row
from pipeline.study import SOURCE

_LOG = logging.getLogger(__name__)


def fine_tuned_losses(
    results: Path, samples: Samples, targets: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Take the losses of all kept networks apart.

    Args:
        results: Results of the study.
        samples: As the study has them now.
        targets: Names of the targets with labels.
        seed: Of the draws.

    Returns:
        Rows of the record, see the README beside this file. Nothing where no network has been
        trained; no row for a target that a network has not seen, or without a validation
        split, or where images or labels have changed since, which is logged.

    Raises:
        MissingResultsError: The file is there and is not one of ours.
    """
    path = results / TRAINED_PROBABILITIES
    if not path.exists():
        return []
    now = {domain: digest_of_domain(samples, domain) for domain in (SOURCE, *targets)}
    losses: list[dict[str, Any]] = []
    changed: set[str] = set()
    for backbone, kept in read_predictions(path).items():
        present = [domain for domain in now if (kept.domain == domain).any()]
        stale = {domain for domain in present if digest_of_domain(kept, domain) != now[domain]}
        changed |= stale
        if SOURCE not in stale:
            usable = [t for t in targets if t in present and t not in stale]
            losses += _losses(backbone, kept, usable, seed)
    if changed:
        _LOG.warning(
            "%s is of other images or labels than the study has now (%s), so networks trained "
            "on images are left out there: run headrace finetune STUDY again",
            path,
            ", ".join(sorted(changed)),
        )
    return losses


def _losses(
    backbone: str, kept: Predictions, targets: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    validation = (kept.domain == SOURCE) & (kept.split == VALIDATION)
    if not validation.any():
        return
    for target in targets:
        for (method, trained_with), proba in kept.proba.items():
            source = _domain(kept, proba, validation, name=SOURCE, role="source")
            other = _domain(kept, proba, kept.domain == target, name=target, role="target")
            effects = decompose(source, other, seed=seed)
            yield {
                "backbone": backbone,
                "target": target,
                "method": method,
                "seed": trained_with,
                "source_accuracy": float((~source.wrong()).mean()),
                "target_accuracy": float((~other.wrong()).mean()),
                "effects": [effect_row(effect) for effect in effects.values()],
            }


def _domain(
    kept: Predictions, proba: NDArray[np.float64], rows: NDArray[np.bool_], *, name: str, role: str
) -> DomainData:
    return DomainData(
        name=name,
        role=role,
        group=kept.patient[rows],
        label=kept.label[rows],
        proba=proba[rows],
    )
