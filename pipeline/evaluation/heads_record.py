"""The entry of one backbone in ``heads.json``: how it is made, and how later stages read it.

It has a row for each head in each domain (scores with intervals, differences from the baseline,
measures for clinical use), and the value of the best head, corrected for the selection. With
``--thorough`` it also has the spread over seeds, the comparison of algorithms over folds, and the
sets of heads that may be the best.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.domain import DomainData
from pipeline.data.patients import VALIDATION, Fold, draw_patients
from pipeline.errors import MissingResultsError
from pipeline.evaluation.bootstrap import SET_ALPHA, bbc_cv, bootstrap_interval, confidence_set
from pipeline.evaluation.compare_heads import (
    COMPARED_BY,
    clinical,
    compare_heads,
    rank_heads,
    score_heads,
    strata,
)
from pipeline.evaluation.metrics import METRICS, Proba, on_all_rows, score
from pipeline.evaluation.paired_tests import ROPE, correlated_t
from pipeline.parallel import run_parallel
from pipeline.progress import Progress
from pipeline.randomness import stream
from pipeline.results import ResultSet, read_set

HEADS_REPORT = "heads.json"
#: Version of the layout of ``heads.json``; it rises when a field changes its meaning.
HEADS_SCHEMA = 10
#: Metrics of the printed table; all other scores are computed later.
_SHOWN = ("accuracy", "auroc")
Record = dict[str, Any]
#: Probabilities for each seed, or for each repeat of the folds.
Stack = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the heads of a study are scored.

    Probabilities, by head, are for all images of the study, ``(N, K)`` or by seed ``(S, N, K)``.
    Out-of-fold ones are for the fit rows and each repeat of the folds, ``(R, n, K)``.

    Attributes:
        baseline: The head that the others are compared with.
        seed: Of the study.
        draws: Bootstrap draws of an interval.
    """

    baseline: str
    seed: int
    draws: int

    def shown(
        self, sets: Sequence[DomainData], proba: Mapping[str, Proba], seconds: Mapping[str, float]
    ) -> Record:
        """The part of an entry that the printed table shows; the rest is still empty.

        ``sets`` are those of ``eval_sets``; ``seconds`` the time of the fits of each head.
        """
        import scipy.special  # noqa: F401 - for all intervals, once and not in every fork

        jobs = [partial(self._shown_of, data, proba) for data in sets]
        with Progress("scores", len(jobs), unit="tables") as progress:
            tables = run_parallel(jobs, done=progress.advance)
        ranking = [data for data in sets if data.role == VALIDATION] or sets
        order = rank_heads(ranking[0], _of(ranking[0], proba)) if ranking else list(proba)
        classes = next(iter(proba.values())).shape[1]
        return {
            "best": order[0] if ranking and ranking[0].role == VALIDATION else None,
            "domains": [
                {
                    **data.record(classes),
                    "rows": [{"head": h, "fit_seconds": seconds[h], **by_head[h]} for h in order],
                }
                for data, by_head in zip(sets, tables, strict=True)
            ],
            "selection_corrected": {},
            "seed_spread": [],
            "algorithms": [],
            "confidence_sets": [],
        }

    def add(
        self,
        entry: Record,
        sets: Sequence[DomainData],
        proba: Mapping[str, Proba],
        fit_rows: DomainData,
        out_of_fold: Mapping[str, Stack],
    ) -> None:
        """Add all other scores, and the out-of-fold results."""
        metrics = COMPARED_BY if out_of_fold else ()
        jobs: list[Callable[[], Any]] = [
            *(partial(self.selection_corrected, m, fit_rows, out_of_fold) for m in metrics),
            *(partial(self._more_of, data, proba) for data in sets),
        ]
        done = run_parallel(jobs)
        best, more = done[: len(metrics)], done[len(metrics) :]
        by_metric = zip(metrics, best, strict=True)
        entry["selection_corrected"] = {m: of_best for m, of_best in by_metric if of_best}
        for domain, by_head in zip(entry["domains"], more, strict=True):
            for row in domain["rows"]:
                row["scores"] |= by_head[row["head"]]["scores"]
                row["clinical"] = by_head[row["head"]]["clinical"]

    def _shown_of(self, data: DomainData, proba: Mapping[str, Proba]) -> dict[str, Record]:
        """By head, the scores of the printed table in a domain, with differences from baseline."""
        by_head: dict[str, Record] = {
            name: {"scores": scores, "differences": {}, "clinical": None}
            for name, scores in self._scores(data, proba, _SHOWN).items()
        }
        if self.baseline in proba and len(proba) > 1:
            by_metric = compare_heads(data, _of(data, proba), self.baseline, seed=self.seed)
            for metric, differences in by_metric.items():
                for name, difference in differences.items():
                    by_head[name]["differences"][metric] = _short(difference.record())
        return by_head

    def _more_of(self, data: DomainData, proba: Mapping[str, Proba]) -> dict[str, Record]:
        """By head, the scores in a domain that the printed table lacks, with clinical measures."""
        scores = self._scores(data, proba, [m for m in METRICS if m not in _SHOWN])
        drawn = draw_patients(data.group, self._rng("clinical", data), draws=self.draws)
        return {
            name: {"scores": scores[name], "clinical": clinical(data.with_(proba=p), drawn)}
            for name, p in _of(data, proba).items()
        }

    def _scores(
        self, data: DomainData, proba: Mapping[str, Proba], metrics: Sequence[str]
    ) -> dict[str, Record]:
        """Scores in a domain with intervals, by head and metric."""
        of_domain = _of(data, proba)
        scores = score_heads(data, of_domain, seed=self.seed, draws=self.draws, metrics=metrics)
        return {
            name: {metric: _short(interval.record()) for metric, interval in of_head.items()}
            for name, of_head in scores.items()
        }

    def _rng(self, purpose: str, data: DomainData) -> np.random.Generator:
        return stream(f"{purpose} {data.name} {data.role}", self.seed)

    def selection_corrected(
        self, metric: str, fit_rows: DomainData, out_of_fold: Mapping[str, Stack]
    ) -> Record | None:
        """The value of the best head on new patients, from the first repeat of the folds.

        None if the metric is undefined on the rows that every head has predicted out of fold.
        """
        proba = {name: p[0] for name, p in out_of_fold.items()}
        held_out = np.isfinite(np.stack(list(proba.values()))).all(axis=(0, 2))
        label, group = fit_rows.get_label()[held_out], fit_rows.group[held_out]
        statistics = [METRICS[metric](label, p[held_out]) for p in proba.values()]
        if not np.isfinite([on_all_rows(statistic, len(label)) for statistic in statistics]).all():
            return None
        chosen, apparent, interval = bbc_cv(
            statistics, group, stream("selection", self.seed), *strata(metric, label, group)
        )
        return {
            "head": list(proba)[chosen],
            "candidates": len(proba),
            "apparent": apparent,
            **interval.record(),
        }

    def thorough(
        self,
        sets: Sequence[DomainData],
        proba: Mapping[str, Stack],
        fit_rows: DomainData,
        out_of_fold: Mapping[str, Stack],
        folds: Sequence[Sequence[Fold]],
    ) -> Record:
        """The part of an entry for ``--thorough``; ``folds`` are those of ``out_of_fold``."""
        spread = run_parallel([partial(self.seed_spread, data, proba) for data in sets])
        return {
            "seed_spread": [row for rows in spread for row in rows],
            "algorithms": list(self.algorithms(fit_rows, out_of_fold, folds)),
            "confidence_sets": run_parallel(
                [partial(self._confidence_set, data, proba) for data in sets]
            ),
        }

    def seed_spread(self, data: DomainData, proba: Mapping[str, Stack]) -> list[Record]:
        """Mean and spread of the scores of each head with several seeds."""
        rows = []
        for head, of_seeds in proba.items():
            for metric in COMPARED_BY:
                statistics = [METRICS[metric](data.get_label(), p[data.row]) for p in of_seeds]
                values = np.array([on_all_rows(statistic, len(data)) for statistic in statistics])
                if len(values) < 2 or not np.isfinite(values).all():
                    continue
                rng = self._rng("seeds", data)
                interval = bootstrap_interval(statistics, data.group, rng, draws=self.draws)
                rows.append(
                    {
                        "head": head,
                        "domain": data.name,
                        "role": data.role,
                        "metric": metric,
                        "seeds": len(values),
                        "sd": float(values.std(ddof=1)),
                        **interval.record(),
                    }
                )
        return rows

    def _confidence_set(self, data: DomainData, proba: Mapping[str, Stack]) -> Record:
        """The heads that may have the best accuracy on a domain."""
        label, names = data.get_label(), list(proba)
        members = confidence_set(
            [METRICS["accuracy"](label, p.mean(axis=0)[data.row]) for p in proba.values()],
            data.group,
            self._rng("confidence set", data),
            draws=self.draws,
        )
        record = {"domain": data.name, "role": data.role, "alpha": SET_ALPHA}
        return {**record, "members": [names[k] for k in members]}

    def algorithms(
        self,
        fit_rows: DomainData,
        out_of_fold: Mapping[str, Stack],
        folds: Sequence[Sequence[Fold]],
    ) -> Iterator[Record]:
        """Each kind of head against the baseline, fitted again on each fold of each repeat."""
        splits = [(k, held_out) for k, repeat in enumerate(folds) for _, held_out in repeat]
        label = fit_rows.get_label()
        for metric in COMPARED_BY:
            values = {
                name: np.array(
                    [score(metric, label[out], p[k, out]) for k, out in splits], np.float64
                )
                for name, p in out_of_fold.items()
            }
            baseline = values.pop(self.baseline, None)
            for head, of_head in values.items():
                if baseline is None or len(splits) < 2 or not np.isfinite(of_head - baseline).all():
                    continue
                difference = of_head - baseline
                yield {
                    "head": head,
                    "metric": metric,
                    "difference": float(difference.mean()),
                    "splits": len(difference),
                    "rope": ROPE,
                    **correlated_t(difference, runs=len(folds)),
                }


def _of(data: DomainData, proba: Mapping[str, Proba]) -> dict[str, Proba]:
    """The probabilities of a domain, by head."""
    return {name: p[data.row] for name, p in proba.items()}


def _short(record: Mapping[str, Any]) -> Record:
    """A row without the counts that its domain has."""
    return {k: v for k, v in record.items() if k not in ("images", "patients")}


# Read by later stages.


def compared_heads(results: Path) -> ResultSet:
    """``heads.json`` in the results of a study.

    Raises:
        MissingResultsError: There is none, or it is of another version.
        ResultsError: It is damaged.
    """
    heads = read_set(results / HEADS_REPORT, "heads")
    if heads.record.get("schema") != HEADS_SCHEMA:
        raise MissingResultsError(
            f"{heads.file} was written by another version: run headrace heads STUDY again"
        )
    return heads


def head_of_entry(entry: Mapping[str, Any]) -> str:
    """The head that a backbone's entry in ``heads.json`` reports in detail.

    It is the best on validation; without validation, the first.
    """
    return str(entry["best"] or entry["heads"][0]["head"])


def heads_by_validation(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Backbone and head of entries in ``heads.json``, sorted by accuracy on validation.

    Among equal heads, the one from :func:`head_of_entry` comes first; without validation, that of
    the first entry.
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
