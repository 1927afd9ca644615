"""Why one target is worse: the decomposition, what could have been foretold, the verdict."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from pipeline.shift.cohorts import Cohort
from pipeline.shift.decompose import DecomposeSettings, Decomposition, decompose
from pipeline.shift.gaps import Gap
from pipeline.shift.leaderboard import BASELINE, Leaderboard
from pipeline.shift.predict import Forecast, SourceScores, TargetScores, forecast
from pipeline.shift.verdict import Auroc, Called, FixGain, Numbers, Verdict, judge

_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Story:
    """What may be said of one target.

    Attributes:
        decomposition: The loss, taken apart in several ways; needs target labels.
        forecast: Accuracy and prevalence as they look without target labels.
        verdict: Sentences, made from the numbers by stated rules.
    """

    decomposition: Decomposition
    forecast: Forecast
    verdict: Verdict


def foretell(source: Cohort, target: Cohort, seed: int) -> Forecast:
    """What the scores say of a target whose labels nobody has looked at."""
    return forecast(
        SourceScores(
            probabilities=source.probabilities, labels=source.classes(), groups=source.groups
        ),
        TargetScores(probabilities=target.probabilities, groups=target.groups),
        np.random.default_rng([seed, 11]),
    )


def tell(name: str, source: Cohort, target: Cohort, before: Forecast, fixes: Leaderboard) -> Story:
    """Put all numbers of one target together.

    Args:
        name: Of the target.
        source: Out-of-fold probabilities and labels.
        target: Probabilities of the same head, and labels.
        before: From :func:`foretell`.
        fixes: Scored leaderboard.
    """
    parts = decompose(source, target, DecomposeSettings())
    numbers = Numbers(
        target=name,
        source_error=_error(source),
        target_error=_error(target),
        total=parts.total,
        kitagawa=parts.kitagawa,
        score=parts.score.terms,
        threshold=parts.threshold.terms if parts.threshold else {},
        auroc=_auroc(source, target, parts),
        called=_called(target),
        foretold=(before.low, before.high),
        fixes={
            row.name: FixGain(
                gain=Gap(
                    estimate=row.difference.estimate,
                    low=row.difference.low,
                    high=row.difference.high,
                ),
                p_holm=row.p_holm,
            )
            for row in fixes.rows
            if row.name != BASELINE
        },
        refused=tuple(
            f"DISDE on the {space} ({view.refused})"
            for space, view in parts.disde.items()
            if view.refused
        ),
    )
    return Story(decomposition=parts, forecast=before, verdict=judge(numbers))


def _error(cohort: Cohort) -> float:
    return float((cohort.probabilities.argmax(axis=1) != cohort.labels).mean())


def _auroc(source: Cohort, target: Cohort, parts: Decomposition) -> Auroc | None:
    if parts.threshold is None:
        return None
    areas = [
        float(roc_auc_score(cohort.labels, cohort.probabilities[:, 1]))
        for cohort in (source, target)
    ]
    return Auroc(source=areas[0], target=areas[1], loss=parts.threshold.auroc_loss)


def _called(target: Cohort) -> Called | None:
    if target.probabilities.shape[1] != _BINARY:
        return None
    return Called(
        called=float((target.probabilities[:, 1] > target.probabilities[:, 0]).mean()),
        positive=float(np.mean(target.classes() == 1)),
    )
