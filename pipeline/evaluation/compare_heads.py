"""Heads on the images of one domain: metrics with intervals, and paired comparisons.

A comparison says which *trained* head is better on this population. Which algorithm is
better for data like this is another question: ``pipeline.compare`` asks it over folds.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import (
    DRAWS,
    FIT,
    VALIDATION,
    WeightedStatistic,
    draw_patients,
)
from pipeline.data.samples import UNLABELLED, Samples
from pipeline.errors import MissingResultsError
from pipeline.evaluation.bootstrap import bootstrap_values, interval_of_draws
from pipeline.evaluation.intervals import (
    Interval,
    Patients,
    Share,
    difference_bounds,
    mean_interval,
    shares_of,
)
from pipeline.evaluation.metrics import (
    METRICS,
    Labels,
    Proba,
    is_right,
    on_all_rows,
    score,
    weighted_ratio,
)
from pipeline.evaluation.paired_tests import (
    Difference,
    holm,
    mcnemar,
    paired_delong,
    sign_flip,
    verdict,
)
from pipeline.randomness import stream
from pipeline.results import ResultSet, read_set

#: Version of the layout of ``heads.json``; it rises when a field changes its meaning.
HEADS_SCHEMA = 7
#: Metrics that heads are compared by.
COMPARED_BY = ("accuracy", "auroc")
#: Metrics of the images of one class.
_OF_CLASS = {"sensitivity": 1, "specificity": 0, "average_precision": 1}
#: Metrics that are no share of images.
_NO_SHARES = ("brier", "log_loss", "ece")
#: Patients of each class that a test by AUROC needs: of fewer the normal law of DeLong's
#: test is not to be believed, and p may be 1e-25 for three patients.
AUROC_PATIENTS = 10

_Key = TypeVar("_Key", bound=Hashable)
#: A statistic and the patients that it rests on.
_Part = tuple[WeightedStatistic, Patients]


def eval_sets(samples: Samples) -> list[DomainData]:
    """Each domain in each role, in order of appearance, with its rows' numbers in ``row``.

    Without the fit split, whose rows heads were trained on, and domains without labels.
    """
    sets = []
    for name, role in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        row = np.flatnonzero((samples.domain == name) & (samples.split == role))
        if role != FIT and (samples.label[row] != UNLABELLED).any():
            sets.append(
                DomainData(
                    name=str(name),
                    role=str(role),
                    group=samples.group[row],
                    label=samples.label[row],
                    row=row,
                )
            )
    return sets


def bases(metric: str, label: Labels, group: NDArray[Any]) -> Patients:
    """Patients that a metric rests on: of all images, of one class, or of each class by itself.

    An average precision is a mean over the positive images, so it rests on their patients.
    """
    if metric == "accuracy":
        return (group,)
    if metric in _OF_CLASS:
        return (group[label == _OF_CLASS[metric]],)
    return tuple(group[label == k] for k in np.unique(label))


def _parts(metric: str, label: Labels, proba: Proba, group: NDArray[Any]) -> list[_Part]:
    """The shares whose mean is a metric, each with the patients that it rests on."""
    called, classes = proba.argmax(axis=1), range(proba.shape[1])
    if metric in ("balanced_accuracy", "f1"):
        among = {k: label == k for k in classes}
        if metric == "f1":  # 2 J / (1 + J), J of the images that are or are called so
            among = {k: rows | (called == k) for k, rows in among.items() if len(classes) > 2 or k}
        return [
            (weighted_ratio((label == k) & (called == k), rows), (group[rows],))
            for k, rows in among.items()
            if rows.any()
        ]
    if len(classes) == 2 or metric not in ("auroc", "average_precision"):
        return [(METRICS[metric](label, proba), bases(metric, label, group))]
    against_rest = [
        ((label == k).astype(np.int64), np.column_stack([1 - proba[:, k], proba[:, k]]))
        for k in classes
    ]
    return [(METRICS[metric](is_k, p), bases(metric, is_k, group)) for is_k, p in against_rest]


def score_heads(
    data: DomainData,
    proba: Mapping[_Key, Proba],
    *,
    seed: int,
    draws: int = DRAWS,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[_Key, dict[str, Interval]]:
    """Every metric that the labels define, for each head, with its interval.

    Shares have the interval of :class:`Share`, and means of them that of
    :func:`mean_interval`. Brier score, log loss and calibration error, which are no shares,
    have percentiles of draws of patients, the same draws for all heads, and no interval where
    all draws are equal.

    Args:
        data: Rows with labels.
        proba: Of its rows, shape ``(n, K)``, for each head.
        seed: Of the study.
        draws: Bootstrap draws of patients.
        metrics: Entries of ``METRICS``.
    """
    label = data.labelled()
    statistics = {(key, m): METRICS[m](label, p) for key, p in proba.items() for m in metrics}
    values = {at: on_all_rows(statistic, len(data)) for at, statistic in statistics.items()}
    intervals: dict[tuple[_Key, str], Interval] = {}
    parts = {
        (key, metric, number): part
        for key, metric in statistics
        if metric not in _NO_SHARES
        for number, part in enumerate(_parts(metric, label, proba[key], data.group))
    }
    by_metric: dict[tuple[_Key, str], list[Share]] = {}
    for (key, metric, _), share in shares_of(data.group, parts).items():
        reported = replace(share, reported=_f1) if metric == "f1" else share
        by_metric.setdefault((key, metric), []).append(reported)
    for at, shares in by_metric.items():
        several = len(shares) > 1
        interval = mean_interval(shares, images=len(data)) if several else shares[0].interval()
        intervals[at] = replace(interval, estimate=values[at])
    if others := [at for at in statistics if at[1] in _NO_SHARES]:
        drawn = draw_patients(data.group, _rng("scores", data, seed), draws=draws)
        rows = bootstrap_values([statistics[at] for at in others], drawn)
        for at, row in zip(others, rows, strict=True):
            # Where no image differs draws say nothing of others.
            intervals[at] = interval_of_draws(values[at], data, row if np.ptp(row) else row[:0])
    return {
        key: {m: intervals[key, m] for m in metrics if np.isfinite(values[key, m])} for key in proba
    }


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def compare_heads(
    data: DomainData, proba: Mapping[str, Proba], baseline: str, *, seed: int
) -> dict[str, dict[str, Difference]]:
    """Every head minus one of them on the same images, by metric and head.

    The interval is that of a difference of shares (:func:`difference_bounds`). p of an
    accuracy is McNemar's exact where each image is of a patient of its own, else by flipping
    the signs of whole patients. p of an AUROC is DeLong's, by patient; of more classes, whose
    areas are averaged, by the jackknife. It is left out where a class is in fewer than 10
    patients. p is adjusted over the heads.

    Args:
        data: Rows with labels.
        proba: Of its rows, shape ``(n, K)``, for each head.
        baseline: The head that the others are compared with.
        seed: Of the study.
    """
    label, others = data.labelled(), [head for head in proba if head != baseline]
    metrics = _comparable(data, proba[baseline])
    if not others:
        return {metric: {} for metric in metrics}
    shares = shares_of(
        data.group,
        {
            (head, m): (METRICS[m](label, p), bases(m, label, data.group))
            for head, p in proba.items()
            for m in metrics
        },
    )
    differences, heads = {}, [*others, baseline]
    for metric in metrics:
        of_metric = [shares[head, metric] for head in heads]
        test, p = _p_values(data, of_metric, [proba[head] for head in heads], metric, seed)
        adjusted = zip(p, holm(p).tolist(), strict=True)
        differences[metric] = {
            head: _difference(data, share, of_metric[-1], test, both)
            for head, share, both in zip(others, of_metric[:-1], adjusted, strict=True)
        }
    return differences


def _difference(
    data: DomainData, head: Share, baseline: Share, test: str, p: tuple[float, float]
) -> Difference:
    low, high = difference_bounds(head, baseline)
    interval = Interval(
        estimate=head.estimate - baseline.estimate,
        low=low,
        high=high,
        images=len(data),
        patients=data.patients,
        method="MOVER by patient" if len(data) > data.patients else "MOVER",
    )
    return Difference(
        interval=interval, p=p[0], p_adjusted=p[1], test=test, verdict=verdict(low, high, p[1])
    )


def _p_values(
    data: DomainData, shares: Sequence[Share], proba: Sequence[Proba], metric: str, seed: int
) -> tuple[str, list[float]]:
    """How equality with the last head is tested, and p of each of the others."""
    label, several = data.labelled(), not data.has_single_images
    by_patient = " by patient" if several else ""
    *heads, baseline = proba
    if metric == "auroc" and baseline.shape[1] > 2:
        p = [_p_of_moves(share, shares[-1]) for share in shares[:-1]]
        return f"paired jackknife{by_patient}", p
    if metric == "auroc":
        scores = [head[:, 1] for head in heads]
        p = [paired_delong(label, score, baseline[:, 1], group=data.group) for score in scores]
        return f"paired DeLong{by_patient}", p
    right, *others = (is_right(label, head) for head in (baseline, *heads))
    if several:
        step = np.array(others, np.float64) - right
        p = sign_flip(step, data.group, _rng("flips", data, seed)).tolist()
        return "sign flips by patient", p
    return "McNemar exact", [mcnemar(other, right) for other in others]


def _p_of_moves(head: Share, baseline: Share) -> float:
    """P of equal means over classes of one-against-rest AUROCs (Arvesen 1969).

    Their covariance would take every pair of classes; leaving out patients gives it at once.
    """
    moves, gap = head.moves - baseline.moves, abs(head.estimate - baseline.estimate)
    variance = replace(head, moves=moves).variance
    freedom = min(len(moves), head.patients) - 1
    return (
        float(2 * scipy.special.stdtr(freedom, -gap / np.sqrt(variance))) if variance > 0 else 1.0
    )


def _comparable(data: DomainData, proba: Proba) -> list[str]:
    """Metrics to compare by; no area where the rarest class is in too few patients."""
    label = data.labelled()
    rarest = min(len(np.unique(data.group[label == k])) for k in range(proba.shape[1]))
    return [metric for metric in COMPARED_BY if metric != "auroc" or rarest >= AUROC_PATIENTS]


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


def compared_heads(results: Path) -> ResultSet:
    """``heads.json`` in the results of a study.

    Raises:
        MissingResultsError: There is none, or it is of another version.
        ResultsError: It is damaged.
    """
    heads = read_set(results / "heads.json", "heads")
    if heads.record.get("schema") != HEADS_SCHEMA:
        raise MissingResultsError(
            f"{heads.file} is of another version: run headrace heads STUDY again"
        )
    return heads


def head_of_entry(entry: Mapping[str, Any]) -> str:
    """The head that a backbone's entry in ``heads.json`` is about.

    It is the best by validation; without validation, the first.
    """
    return str(entry["best"] or entry["heads"][0]["head"])


def heads_by_validation(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Backbone and head of entries in ``heads.json``, by accuracy on validation.

    Of equal ones the head that an entry is about comes first; so does that of the first entry
    where there is no validation.
    """
    about = {(entry["backbone"], head_of_entry(entry)) for entry in entries}
    accuracy = {(e["backbone"], head["head"]): 0.0 for e in entries for head in e["heads"]}
    accuracy |= {
        (entry["backbone"], row["head"]): row["scores"]["accuracy"]["estimate"]
        for entry in entries
        for domain in entry["domains"]
        if domain["role"] == VALIDATION
        for row in domain["rows"]
    }
    return sorted(accuracy, key=lambda head: (-accuracy[head], head not in about))


def _rng(purpose: str, data: DomainData, seed: int) -> np.random.Generator:
    """Randomness for one purpose on one domain: no other purpose or domain moves it."""
    return stream(f"{purpose} {data.name} {data.role}", seed)
