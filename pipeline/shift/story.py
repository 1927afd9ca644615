"""Why one target is worse: the decomposition, what could have been foretold, the verdict."""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from pipeline.shift.adapt_eval import AdaptationResult
from pipeline.shift.calibrate import Soundness, soundness
from pipeline.shift.decompose import DecomposeSettings, Decomposition, decompose
from pipeline.shift.domains import Cohort, SourceModel
from pipeline.shift.effects import Gap
from pipeline.shift.error_table import Refits, RoleReport, errors_by_role
from pipeline.shift.label_free import AccuracyEstimate
from pipeline.shift.verdict import Auroc, Called, FixGain, Numbers, Verdict, judge

_BINARY = 2


@dataclass(frozen=True, kw_only=True)
class Story:
    """What may be said of one target.

    Attributes:
        roles: Ng's table; needs target labels.
        decomposition: The loss, taken apart in several ways; needs target labels.
        soundness: Calibration and operating points; needs target labels.
        estimate: Accuracy and prevalence as they look without target labels.
        verdict: Sentences, made from the numbers by stated rules.
    """

    roles: RoleReport
    decomposition: Decomposition
    soundness: Soundness
    estimate: AccuracyEstimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What is known of the source, and what was found before the labels were open.

    Attributes:
        source: The labelled domain.
        refits: Its head, fitted to drawn patients.
        estimate: Of the accuracy, without labels of the target.
        adaptation: The scored methods.
        seed: Of the draws.
        human: Error of a person on the source; None where nobody measured it.
    """

    source: SourceModel
    refits: Refits
    estimate: AccuracyEstimate
    adaptation: AdaptationResult
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
    estimate = known.estimate
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
        foretold=(estimate.low, estimate.high),
        fixes={
            row.method: FixGain(
                gain=Gap(
                    estimate=row.difference.interval.estimate,
                    low=row.difference.interval.low,
                    high=row.difference.interval.high,
                ),
                p_holm=row.difference.p_adjusted,
            )
            for row in known.adaptation.rows
            if row.difference is not None
        },
    )
    verdict = judge(numbers)
    return Story(
        roles=roles,
        decomposition=parts,
        soundness=soundness(
            source,
            target,
            estimate,
            np.random.default_rng([known.seed, 12]),
            score_changed=verdict.labels_needed,
        ),
        estimate=estimate,
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
