"""Heads on the images of one domain: metrics with intervals, and paired comparisons.

A comparison says which *trained* head is better on this population. Which algorithm is
better for data like this is another question: ``pipeline.compare`` asks it over folds.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import DRAWS, FIT, WeightedStatistic, draw_patients
from pipeline.data.samples import UNLABELLED, Samples
from pipeline.evaluation.auroc import auroc_interval, paired_delong
from pipeline.evaluation.bootstrap import bootstrap_values
from pipeline.evaluation.intervals import (
    Interval,
    lengthened,
    percentile_interval,
    rate_interval,
    unseen,
)
from pipeline.evaluation.metrics import METRICS, Proba, is_right, on_all_rows, score
from pipeline.evaluation.paired_tests import Difference, holm, mcnemar, sign_flip, verdict
from pipeline.evaluation.selection import ConfidenceSet, confidence_set
from pipeline.randomness import stream

#: Metrics that heads are compared by.
COMPARED_BY = ("accuracy", "auroc")
#: ``method`` where no interval can be given, or where it would mean nothing.
_NO_INTERVAL = "none"
#: Draws of an interval that decides between two heads: its ends must hardly move.
_PAIRED_DRAWS = 10_000
#: Patients of each class that a comparison by AUROC needs: of fewer the normal law of DeLong's
#: test is not to be believed, and p may be 1e-25 for three patients.
_AUROC_PATIENTS = 10

_Key = TypeVar("_Key", bound=Hashable)


def eval_sets(samples: Samples) -> list[DomainData]:
    """Each domain in each role, in order of appearance, with its rows' numbers in ``row``.

    A domain without labels is left out: nothing can be counted right or wrong in it.
    """
    found = []
    for name, role in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        row = np.flatnonzero((samples.domain == name) & (samples.split == role))
        if (samples.label[row] != UNLABELLED).any():
            found.append(
                DomainData(
                    name=str(name),
                    role=str(role),
                    group=samples.group[row],
                    label=samples.label[row],
                    row=row,
                )
            )
    return found


def score_heads(
    data: DomainData, proba: Mapping[_Key, Proba], *, seed: int, draws: int = DRAWS
) -> dict[_Key, dict[str, Interval]]:
    """Every metric that the labels define, for each head, with its interval.

    Rates of one image per patient have Wilson's interval, the AUROC of two classes has
    DeLong's (by patient where patients have several images), everything else percentiles
    of draws of whole patients, the same draws for all heads. On the fit split no interval
    is given: what a head says of rows that it was trained on is no sample of what it says
    of others.

    Args:
        data: Rows with labels.
        proba: Of its rows, shape ``(n, K)``, for each head.
        seed: Of the study.
        draws: Bootstrap draws of patients.
    """
    label = data.labelled()
    drawn = cache(lambda: draw_patients(data.group, _rng("scores", data, seed), draws=draws))
    found: dict[_Key, dict[str, Interval]] = {key: {} for key in proba}
    waiting: dict[tuple[_Key, str], WeightedStatistic] = {}
    for key, p in proba.items():
        for metric, build in METRICS.items():
            statistic = build(label, p)
            value = on_all_rows(statistic, len(data))
            if not np.isfinite(value):
                continue
            found[key][metric] = _without_interval(data, value)
            if data.role == FIT:
                continue
            rated = _rated(data, p, metric)
            if rated is not None:
                found[key][metric] = rate_interval(
                    is_right(label, p)[rated], data.group[rated], drawn
                )
            elif metric == "auroc" and p.shape[1] == 2:
                if _patients_of_class(data) >= 2:
                    found[key][metric] = auroc_interval(label, p[:, 1], group=data.group)
            else:
                waiting[key, metric] = statistic
    if waiting:
        values = bootstrap_values(list(waiting.values()), drawn())
        for (key, metric), row in zip(waiting, values, strict=True):
            found[key][metric] = _percentiles(data, found[key][metric].estimate, row)
    return found


def _rated(data: DomainData, proba: Proba, metric: str) -> NDArray[np.bool_] | None:
    """The images of which a metric is the share that is right; None if it is no such rate."""
    if metric == "accuracy":
        return np.ones(len(data), dtype=bool)
    if proba.shape[1] == 2 and metric in ("sensitivity", "specificity"):
        return np.asarray(data.labelled() == (metric == "sensitivity"))
    return None


def _without_interval(data: DomainData, value: float) -> Interval:
    nan = float("nan")
    return Interval(
        estimate=value,
        low=nan,
        high=nan,
        images=len(data),
        patients=data.patients,
        method=_NO_INTERVAL,
    )


def _percentiles(data: DomainData, value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = percentile_interval(drawn)
    return Interval(
        estimate=value,
        low=low,
        high=high,
        images=len(data),
        patients=data.patients,
        method="patient bootstrap" if np.isfinite([low, high]).all() else _NO_INTERVAL,
    )


def compare_heads(
    data: DomainData,
    proba: Mapping[str, Proba],
    baseline: str,
    *,
    seed: int,
    draws: int = _PAIRED_DRAWS,
) -> dict[str, dict[str, Difference]]:
    """Every head minus one of them on the same images, by metric and head.

    Accuracy: interval by a paired bootstrap of patients, made longer on a side on which no
    image is seen to differ, for a few images without a difference show no equivalence; p by
    McNemar's exact test where each image is of a patient of its own, else by flipping the
    signs of whole patients. AUROC of two classes: paired DeLong, by patient; left out where
    a class is in fewer than 10 patients. p is adjusted over the heads.

    Args:
        data: Rows with labels.
        proba: Of its rows, shape ``(n, K)``, for each head.
        baseline: The head that the others are compared with.
        seed: Of the study.
        draws: Bootstrap draws of patients.
    """
    others = [head for head in proba if head != baseline]
    found = {}
    for metric in _comparable(data, proba[baseline]):
        heads, base = [proba[head] for head in others], proba[baseline]
        if metric == "accuracy":
            compared = _by_accuracy(data, heads, base, seed, draws)
        else:
            compared = _by_auroc(data, heads, base)
        adjusted = holm([p for _, p, _ in compared]).tolist()
        found[metric] = {
            head: Difference(
                interval=interval,
                p=p,
                p_adjusted=p_adjusted,
                test=test,
                verdict=verdict(interval.low, interval.high, p_adjusted),
            )
            for head, (interval, p, test), p_adjusted in zip(
                others, compared, adjusted, strict=True
            )
        }
    return found


def _comparable(data: DomainData, proba: Proba) -> list[str]:
    area = proba.shape[1] == 2 and _patients_of_class(data) >= _AUROC_PATIENTS
    return [metric for metric in COMPARED_BY if metric != "auroc" or area]


def _patients_of_class(data: DomainData) -> int:
    """Patients of the rarer of two classes."""
    return min(len(np.unique(data.group[data.labelled() == k])) for k in (0, 1))


def _by_accuracy(
    data: DomainData, heads: Sequence[Proba], baseline: Proba, seed: int, draws: int
) -> list[tuple[Interval, float, str]]:
    """Difference with its interval, p and the test's name, for each head."""
    label = data.labelled()
    statistics = [METRICS["accuracy"](label, p) for p in (*heads, baseline)]
    drawn = draw_patients(data.group, _rng("pairs", data, seed), draws=draws)
    *values, of_baseline = bootstrap_values(statistics, drawn)
    return [
        _accuracy_difference(
            data, is_right(label, p), is_right(label, baseline), row - of_baseline, seed
        )
        for p, row in zip(heads, values, strict=True)
    ]


def _accuracy_difference(
    data: DomainData,
    head: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    drawn: NDArray[np.float64],
    seed: int,
) -> tuple[Interval, float, str]:
    step = head.astype(np.float64) - baseline
    low, high = lengthened(
        float(step.mean()),
        *percentile_interval(drawn),
        # Images that one alone has right and no draw can show, because none was seen.
        below=0.0 if (step < 0).any() else unseen(data.patients),
        above=0.0 if (step > 0).any() else unseen(data.patients),
    )
    interval = Interval(
        estimate=float(step.mean()),
        low=low,
        high=high,
        images=len(data),
        patients=data.patients,
        method="paired patient bootstrap",
    )
    if data.one_image_per_patient:
        return interval, mcnemar(head, baseline), "McNemar exact"
    # The same flips for each head: dropping one changes no other p.
    p = sign_flip(step, data.group, _rng("flips", data, seed))
    return interval, p, "sign flips by patient"


def _by_auroc(
    data: DomainData, heads: Sequence[Proba], baseline: Proba
) -> list[tuple[Interval, float, str]]:
    label = data.labelled()
    compared = [
        paired_delong(label, head[:, 1], baseline[:, 1], group=data.group) for head in heads
    ]
    return [(interval, p, interval.method) for interval, p in compared]


def confidence_sets(
    data: DomainData, proba: Mapping[str, Proba], *, seed: int, draws: int = DRAWS
) -> dict[str, ConfidenceSet]:
    """The heads that may be the best, by metric; numbers are places in ``proba``.

    Args:
        data: Rows with labels.
        proba: Of its rows, shape ``(n, K)``, for each head.
        seed: Of the study.
        draws: Bootstrap draws of patients.
    """
    label, heads = data.labelled(), list(proba.values())
    return {
        metric: confidence_set(
            [METRICS[metric](label, p) for p in heads],
            data.group,
            _rng("confidence set", data, seed),
            draws=draws,
        )
        for metric in _comparable(data, heads[0])
    }


def best_by_validation(data: DomainData, proba: Mapping[str, Proba]) -> str:
    """The head of the highest accuracy on these rows; of equals, the lowest log loss.

    Nothing is fitted to it: the name says which row of a table to read, and its own value
    on these rows is too good by what the choice among many is worth.
    """
    label = data.labelled()

    def rank(head: str) -> tuple[float, float]:
        accuracy, loss = (score(m, label, proba[head]) for m in ("accuracy", "log_loss"))
        return accuracy or 0.0, -(loss or 0.0)

    return max(proba, key=rank)


def _rng(purpose: str, data: DomainData, seed: int) -> np.random.Generator:
    """Randomness for one purpose on one domain: no other purpose or domain moves it."""
    return stream(f"{purpose} {data.name} {data.role}", seed)
