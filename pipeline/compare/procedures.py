"""Which kind of head is better for data like this, and what "the best of them" is worth.

Both are asked of the fit split alone, out of fold, so that training varies and no
validation or target row has a say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.out_of_fold import OutOfFold
from pipeline.randomness import stream
from pipeline.scores.pairing import METRICS
from pipeline.scores.scoring import Labels, Proba
from pipeline.stats import (
    ROPE,
    WEIGHTED,
    correlated_t,
    holm,
    honest_best_by,
    nadeau_bengio,
)
from pipeline.stats.metrics import METRICS as SCORES


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """One kind of head against the baseline over splits: training varies.

    Attributes:
        difference: Mean over the splits, head minus baseline.
        splits: Repeats times folds.
        worse: Probability that it is worse by more than ``rope`` (correlated t-test).
        equal: That both are practically equal.
        better: That it is better by more than ``rope``.
        p: Nadeau and Bengio's corrected resampled t-test, two-sided.
        p_holm: Adjusted over the heads.
    """

    head: str
    baseline: str
    metric: str
    difference: float
    splits: int
    rope: float
    worse: float
    equal: float
    better: float
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Honest:
    """What the best of several heads is worth on new patients (BBC-CV).

    Attributes:
        head: The one that looks best out of fold.
        among: How many it was chosen from.
        apparent: Its score on the rows that chose it: too good.
        honest: What the choice is worth where it was not made.
        low: Lower bound of ``honest``, 95 %.
        high: Upper bound.
        optimism: ``apparent`` minus ``honest``.
        n: Images of the fit split.
        groups: Their patients.
    """

    head: str
    among: int
    metric: str
    apparent: float
    honest: float
    low: float
    high: float
    optimism: float
    n: int
    groups: int


def honest_bests(
    found: OutOfFold, y: Labels, group: NDArray[np.generic], seed: int
) -> list[Honest]:
    """The honest best by each metric of comparison that the rows define.

    Args:
        found: Its first repeat is used.
        y: Labels of the fit split.
        group: Its patients.
        seed: Of the study.
    """
    proba = {head: values[0] for head, values in found.proba.items()}
    bests = []
    for metric in _defined(y, proba):
        best = honest_best_by(
            [WEIGHTED[metric](y, p) for p in proba.values()],
            group,
            stream("honest best", seed),
        )
        bests.append(
            Honest(
                head=list(proba)[best.chosen],
                among=len(proba),
                metric=metric,
                apparent=best.apparent,
                honest=best.honest,
                low=best.low,
                high=best.high,
                optimism=best.optimism,
                n=len(y),
                groups=len(np.unique(group)),
            )
        )
    return bests


def procedures(found: OutOfFold, y: Labels, baseline: str) -> list[Procedure]:
    """Every head against the baseline over all splits, Holm over the heads.

    Args:
        found: All repeats are used.
        y: Labels of the fit split.
        baseline: The head that the others are compared with; none of them if it is not
            among the heads.
    """
    if baseline not in found.proba:
        return []
    rows: list[Procedure] = []
    for metric in _defined(y, {head: values[0] for head, values in found.proba.items()}):
        scores = {head: _by_split(found, y, head, metric) for head in found.proba}
        rows += _against(scores, baseline, metric, found.folds)
    return rows


def _against(
    scores: Mapping[str, NDArray[np.float64]], baseline: str, metric: str, folds: int
) -> list[Procedure]:
    differences = {h: values - scores[baseline] for h, values in scores.items() if h != baseline}
    known = {h: d[np.isfinite(d)] for h, d in differences.items()}
    known = {h: d for h, d in known.items() if len(d) > 1}
    p = [nadeau_bengio(d, test_share=1 / (folds - 1)) for d in known.values()]
    rows = []
    for (head, d), one, adjusted in zip(known.items(), p, holm(p).tolist(), strict=True):
        posterior = correlated_t(d, correlation=1 / folds)
        rows.append(
            Procedure(
                head=head,
                baseline=baseline,
                metric=metric,
                difference=float(d.mean()),
                splits=len(d),
                rope=ROPE,
                worse=posterior.worse,
                equal=posterior.equal,
                better=posterior.better,
                p=one,
                p_holm=adjusted,
            )
        )
    return rows


def _by_split(found: OutOfFold, y: Labels, head: str, metric: str) -> NDArray[np.float64]:
    """Score on the outside rows of each fold of each repeat; NaN where undefined."""
    values = []
    for fold, proba in zip(found.fold, found.proba[head], strict=True):
        for number in range(found.folds):
            score = SCORES[metric](y[fold == number], proba[fold == number])
            values.append(np.nan if score is None else score)
    return np.array(values, np.float64)


def _defined(y: Labels, proba: Mapping[str, Proba]) -> list[str]:
    """Metrics of comparison that these rows define; none without heads."""
    one = next(iter(proba.values()), None)
    return [] if one is None else [m for m in METRICS if SCORES[m](y, one) is not None]
