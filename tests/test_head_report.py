"""The report as JSON: plain values, whatever the heads tell of themselves."""

import json

import numpy as np

from pipeline.compare import CompareReport, HeadDetail, Table, to_json


def test_what_heads_tell_becomes_plain_json():
    """Arrays are lists, numpy's numbers are numbers, and NaN, which JSON lacks, is null."""
    detail = HeadDetail(
        head="mlp",
        seed=0,
        seconds=0.5,
        chosen={"C": np.float64(0.1), "kernel": "rbf"},
        curves={"fit_loss": [0.7, float("nan")]},
        path=[{"C": np.float32(0.5), "log_loss": np.array([0.25, np.inf])}],
    )
    table = Table(
        rows=(), best=None, pairs=(), best_sets=(), seed_spread=(), confusion=(), details=(detail,)
    )
    report = CompareReport(
        study="lung",
        classes=("a", "b", "c"),
        baseline="linear",
        seeds=(0, 1),
        tables={"tiny": table},
        failures=(),
    )
    values = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert values["details"] == [
        {
            "backbone": "tiny",
            "head": "mlp",
            "seed": 0,
            "seconds": 0.5,
            "chosen": {"C": 0.1, "kernel": "rbf"},
            "curves": {"fit_loss": [0.7, None]},
            "path": [{"C": 0.5, "log_loss": [0.25, None]}],
        }
    ]
    assert (values["positive"], values["best_by_validation"]) == (None, {"tiny": None})
