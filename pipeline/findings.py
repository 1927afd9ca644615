"""One table over all findings of a study, from the results of a stage for each finding.

A study with several findings is run as one study for each finding. Among many p values some are
small by chance, so they are adjusted over all rows of the table (Holm).
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.compare_heads import AUROC_PATIENTS
from pipeline.evaluation.intervals import difference_p, rate_of
from pipeline.evaluation.metrics import weighted_auroc
from pipeline.evaluation.paired_tests import holm, paired_delong
from pipeline.evaluation.predictions import PROBABILITIES, Predictions, read_predictions
from pipeline.shift.stage import SHIFT_PROBABILITIES
from pipeline.study import SOURCE, Study

#: Version of the layout of ``findings_<stage>.json``; it rises when a field changes its meaning.
_SCHEMA = 1
Record = dict[str, Any]


def compare_findings(stage: str, study: Study, records: Mapping[str, Record]) -> Record:
    """The table over the findings, from the records of one run of a stage by finding.

    It has ``rows``, each with ``p`` and ``p_adjusted``; None if there can be no test.
    """
    rows = [
        {"finding": finding, **row}
        for finding, record in records.items()
        for row in _ROWS[stage](study.of_finding(finding), record)
    ]
    tested = [row for row in rows if row["p"] is not None]
    adjusted = iter(holm([row["p"] for row in tested]).tolist())
    for row in rows:  # p may be 0
        row["p_adjusted"] = None if row["p"] is None else next(adjusted)
    return {"schema": _SCHEMA, "study": study.name, "stage": stage, "rows": rows}


def _of_heads(study: Study, record: Record) -> Iterator[Record]:
    """The best head on validation, in each domain; its AUROC is tested against 0.5."""
    predictions = read_predictions(study.results / PROBABILITIES)
    for entry in record["backbones"]:
        stored = predictions[entry["backbone"]]
        proba = {name: values for (name, _), values in stored.proba.items()}
        for domain in entry["domains"]:
            best = domain["rows"][0]
            rows = (stored.domain == domain["domain"]) & (stored.split == domain["role"])
            label, score = stored.label[rows], proba[best["head"]][rows, 1]
            patient, chance = stored.patient[rows], np.full(len(score), 1 / 2)
            tested = _is_tested(label, patient)
            yield {
                "backbone": entry["backbone"],
                **{key: domain[key] for key in ("domain", "role", "images")},
                "positive": int(label.sum()),
                "head": best["head"],
                **{metric: best["scores"].get(metric) for metric in ("accuracy", "auroc")},
                "p": paired_delong(label, score, chance, group=patient) if tested else None,
            }


def _of_shift(study: Study, record: Record) -> Iterator[Record]:
    """The loss of AUROC from the source to each labelled target, tested against 0."""
    predictions = read_predictions(study.results / SHIFT_PROBABILITIES)
    for entry in record["targets"]:
        if entry["labelled"]:
            yield {
                **{key: entry[key] for key in ("backbone", "target", "head")},
                "source_auroc": entry["auroc"]["source"],
                "target_auroc": entry["auroc"]["target"],
                "loss": next((e for e in entry["effects"] if e["name"] == "auroc_loss"), None),
                "p": _p_of_loss(predictions[entry["backbone"]], entry["target"]),
            }


def _of_audit(_: Study, record: Record) -> Iterator[Record]:
    """One row for each shortcut test."""
    for result in record["results"]:
        values = result["values"]
        if "p_adjusted" in values:
            tested = {"auc": values["auc"], "p": values["p"]}
            yield {"where": result["where"], "check": result["check"], **tested}


#: By stage, the function that makes the rows of one finding from its record.
_ROWS: Mapping[str, Callable[[Study, Record], Iterator[Record]]] = MappingProxyType(
    {"heads": _of_heads, "shift": _of_shift, "audit": _of_audit}
)


def _p_of_loss(stored: Predictions, target: str) -> float | None:
    """Two-sided p of "source and target have the same AUROC"; their patients differ."""
    rates = []
    ((_, proba),) = stored.proba.items()  # of the analysed head
    for name in (SOURCE, target):
        rows = (stored.domain == name) & np.isfinite(proba[:, 1])
        label, group = stored.label[rows], stored.patient[rows]
        if not _is_tested(label, group):
            return None
        area = weighted_auroc(label == 1, proba[rows, 1])
        rates.append(rate_of(area, group, group[label == 0], group[label == 1]))
    return difference_p(*rates)


def _is_tested(label: NDArray[np.int64], patient: NDArray[np.int64]) -> bool:
    """Whether both classes have enough patients for a test of an AUROC."""
    return min(np.unique(patient[label == k]).size for k in (0, 1)) >= AUROC_PATIENTS
