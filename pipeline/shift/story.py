"""Why one target is worse: the decomposition, what could have been foretold, the verdict."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from pipeline.shift.adapt import Source
from pipeline.shift.adapt_eval import BASELINE, Leaderboard
from pipeline.shift.calibrate import Soundness, soundness
from pipeline.shift.decompose import DecomposeSettings, Decomposition, decompose
from pipeline.shift.domains import Cohort
from pipeline.shift.effects import Gap
from pipeline.shift.error_table import Refits, RoleReport, errors_by_role
from pipeline.shift.label_free import Forecast, SourceScores, TargetScores, forecast
from pipeline.shift.verdict import Auroc, Called, FixGain, Numbers, Verdict, judge

_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Story:
    """What may be said of one target.

    Attributes:
        roles: Ng's table; needs target labels.
        decomposition: The loss, taken apart in several ways; needs target labels.
        soundness: Calibration and operating points; needs target labels.
        forecast: Accuracy and prevalence as they look without target labels.
        verdict: Sentences, made from the numbers by stated rules.
    """

    roles: RoleReport
    decomposition: Decomposition
    soundness: Soundness
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


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What is known of the source, and what was found before the labels were open.

    Attributes:
        source: The labelled domain.
        refits: Its head, fitted to drawn patients.
        before: From :func:`foretell`.
        fixes: Scored leaderboard.
        seed: Of the draws.
        human: Error of a person on the source; None where nobody measured it.
    """

    source: Source
    refits: Refits
    before: Forecast
    fixes: Leaderboard
    seed: int
    human: float | None


def tell(name: str, source: Cohort, target: Cohort, known: Telling) -> Story:
    """Put all numbers of one target together.

    Args:
        name: Of the target.
        source: Out-of-fold probabilities and labels.
        target: Probabilities of the same head, and labels.
        known: All else.
    """
    before, fixes = known.before, known.fixes
    roles = errors_by_role(known.source, target, known.refits, known.seed, known.human)
    parts = decompose(source, target, DecomposeSettings(seed=known.seed))
    numbers = Numbers(
        target=name,
        source_error=_error(source),
        target_error=_error(target),
        total=parts.total,
        kitagawa=parts.kitagawa,
        score=parts.score.terms,
        threshold=parts.threshold.terms if parts.threshold else {},
        transfer=roles.table.transfer,
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
    )
    verdict = judge(numbers)
    return Story(
        roles=roles,
        decomposition=parts,
        soundness=soundness(
            source,
            target,
            before,
            np.random.default_rng([known.seed, 12]),
            score_changed=verdict.labels_needed,
        ),
        forecast=before,
        verdict=verdict,
    )


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
