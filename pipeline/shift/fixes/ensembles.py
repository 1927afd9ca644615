"""F11: heads of the source whose probabilities are averaged; no row of the target is looked at.

They differ by the patients that they were shown, by their seed, or by their kind.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.heads.blocks import predict_in_blocks
from pipeline.heads.logistic import Path
from pipeline.shift.fixes.adaptation import Parts, Predictor, Rows, Source
from pipeline.shift.fixes.patients import drawn_patients

_LOG = logging.getLogger(__name__)


def bagging(source: Source, target: Rows, rng: np.random.Generator) -> Predictor:
    """F11: average heads that were each fitted to a bootstrap of the source's patients.

    Args:
        source: The labelled domain.
        target: Shape (m, d), raw; not looked at.
        rng: Source of the bootstraps.
    """
    return baggings(source, target, [np.arange(len(target))], [rng])[0]


def baggings(
    source: Source, _target: Rows, _parts: Parts, rngs: Sequence[np.random.Generator]
) -> list[Predictor]:
    """Draw all bootstraps of several calls of :func:`bagging`, and fit their heads at once.

    Equal draws, such as those of both halves of a seed, are fitted once; a draw that lacks a
    class is drawn anew.

    Args:
        source: The labelled domain.
        rngs: Source of the bootstraps, one for each predictor.

    Returns:
        One predictor for each generator.
    """
    bags = source.settings.bags
    counts = [drawn_patients(source.labels, source.groups, rng, bags) for rng in rngs]
    drawn, place = np.unique(np.concatenate(counts), axis=0, return_inverse=True)
    heads = source.weighted_heads(drawn)
    return [
        Predictor(transform=source.standardise, score=_mean_of(heads, own))
        for own in place.reshape(len(rngs), bags)
    ]


def _mean_of(heads: Path, which: NDArray[np.intp]) -> Callable[[Rows], NDArray[np.float64]]:
    own = Path(coef=heads.coef[which], intercept=heads.intercept[which], steps=heads.steps)
    return lambda rows: np.mean(own.proba(rows), axis=0)


def seed_ensemble(source: Source, _target: Rows, _rng: np.random.Generator) -> Predictor:
    """F11: average perceptrons that differ in their seed alone (Lakshminarayanan et al. 2017).

    Args:
        source: The labelled domain.
    """
    return _mean_of_heads(source, source.trained("mlp", source.settings.ensemble_seeds))


def head_ensemble(source: Source, _target: Rows, _rng: np.random.Generator) -> Predictor:
    """F11: average the logistic head and heads of other kinds.

    By default one for each way of seeing a class: by likelihood (the logistic head), by least
    squares (``ridge``), by distance to a mean (``prototype``), by thresholds of single features
    (``boosting``), by hidden units (``mlp``). Each is taken with its defaults, and needs no
    folds of patients, which a small source might not give.

    Args:
        source: The labelled domain.

    Returns:
        The predictor; its notes hold the number of heads: a kind that cannot be fitted to the
        source is left out.
    """
    heads = [source.head]
    for name in source.settings.ensemble_heads:
        try:
            heads += source.trained(name)[:1]
        except StudyError as reason:
            _LOG.warning("head_ensemble: without %s, %s", name, reason)
    return replace(_mean_of_heads(source, heads), notes={"heads": float(len(heads))})


def _mean_of_heads(source: Source, heads: Sequence[Any]) -> Predictor:
    def score(rows: Rows) -> NDArray[np.float64]:
        return np.asarray(np.mean([predict_in_blocks(head, rows) for head in heads], axis=0))

    return Predictor(transform=source.standardise, score=score)
