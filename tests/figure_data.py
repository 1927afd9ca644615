"""Made-up results of the stages, small enough to draw in every test."""

import json
from pathlib import Path

import numpy as np

from pipeline.predictions import Predictions, write_predictions

SEEDED = ("mlp", "forest")


def write_heads(folder: Path, *, heads=("mlp", "linear", "prior"), targets=("far",), K=2, n=60):
    """Write ``heads.json`` with curves and a path, and ``probabilities.h5``; returns the JSON."""
    rng = np.random.default_rng(0)
    domain = np.repeat(["source", "source", *targets], n)
    split = np.repeat(["fit", "validation", *["target"] * len(targets)], n)
    label = np.arange(len(domain)) % K
    proba, rows, details = {}, [], []
    for number, head in enumerate(heads):
        for name, seed in _members(head):
            scores = rng.normal(0, 0.5, (len(label), K)) + (2 - 0.1 * number) * np.eye(K)[label]
            values = np.exp(scores)
            values /= values.sum(axis=1, keepdims=True)
            if head == "prior":
                values[:] = 1 / K
            proba[name, seed] = values.astype(np.float32)
            seconds = 0.002 * 3 ** (number % 9)
            rows += [
                {"head": name, "seed": seed, "seconds": seconds} | row
                for row in _rows(proba[name, seed].argmax(axis=1) == label, domain, split)
            ]
            details.append(_detail(head, name, seed, rng))
    report = {
        "study": "made up",
        "classes": [f"class {k}" for k in range(K)],
        "rows": rows,
        "details": details,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heads.json").write_text(json.dumps(report))
    kept = Predictions(
        classes=tuple(report["classes"]),
        key=np.zeros((len(label), 32), np.uint8),
        label=label,
        patient=np.arange(len(label)),
        domain=domain,
        split=split,
        proba=proba,
    )
    write_predictions(folder / "probabilities.h5", {"tiny": kept})
    return report


def _members(head):
    return [(head, 0), (head, 1), (f"{head}_ensemble", 0)] if head in SEEDED else [(head, 0)]


def _rows(right, domain, split):
    for d, role in dict.fromkeys(zip(domain.tolist(), split.tolist(), strict=True)):
        here = right[(domain == d) & (split == role)]
        value = float(here.mean())
        yield {
            "backbone": "tiny", "domain": d, "role": role, "metric": "accuracy", "value": value,
            "low": max(0.0, value - 0.06), "high": min(1.0, value + 0.05), "n": len(here),
            "groups": len(here), "ci_method": "Wilson",
        }  # fmt: skip


def _detail(head, name, seed, rng):
    epochs = np.arange(1, 21)
    curves = {
        f"{side}_{kind}": (level + np.exp(-epochs / 5) + rng.normal(0, 0.01, 20)).tolist()
        for side, level in (("fit", 0.1), ("validation", 0.3))
        for kind in ("loss", "accuracy")
    }
    path = [{"C": 10.0**k, "log_loss": 0.2 + 0.05 * abs(k + 1)} for k in range(-5, 3)]
    return {
        "backbone": "tiny",
        "head": name,
        "seed": seed,
        "curves": curves if head == "mlp" and name == head else None,
        "path": path if head == "linear" else None,
    }
