"""Made-up results of the stages, small enough to draw in every test."""

import json
from pathlib import Path

import numpy as np

from pipeline.evaluation.predictions import Predictions, write_predictions

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
            "backbone": "tiny", "domain": d, "role": role, "metric": "accuracy", "estimate": value,
            "low": max(0.0, value - 0.06), "high": min(1.0, value + 0.05), "images": len(here),
            "patients": len(here), "method": "Wilson",
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


def write_shift(folder: Path, *, targets=("far",), K=2, n=80, ng=True):
    """Write ``shift.json`` and ``shift.h5``; returns the JSON."""
    rng = np.random.default_rng(1)
    domain = np.repeat(["source", *targets], n)
    label = np.arange(len(domain)) % K
    off = np.where(domain == "source", 0.0, 1.0)[:, None] * np.eye(K)[0]
    scores = np.exp(rng.normal(0, 1, (len(label), K)) + 2 * np.eye(K)[label] + off)
    kept = Predictions(
        classes=tuple(f"class {k}" for k in range(K)),
        key=np.zeros((len(label), 32), np.uint8),
        label=label,
        patient=np.arange(len(label)) // 2,
        domain=domain,
        split=np.where(domain == "source", "fit", "target"),
        proba={("linear", 0): (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)},
    )
    report = {
        "schema": 1,
        "study": "made up",
        "classes": list(kept.classes),
        "targets": [_target(name, K, rng, ng=ng) for name in targets],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shift.json").write_text(json.dumps(report))
    write_predictions(folder / "shift.h5", {"tiny": kept})
    return report


def _gap(estimate, width=0.03):
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def _target(name, K, rng, *, ng):
    tests = ("bbsd_ks", "ridge_c2st", "mmd_aggregated", "bbsd_hard", "energy", "neighbours", "kid")
    counts, edges = np.histogram(rng.normal(0, 1, 99), bins=12)
    return {
        "backbone": "tiny",
        "target": name,
        "detect": [
            {
                "name": test, "primary": number < 3, "statistic": 1.0 + number, "p": 0.01,
                "null": {"counts": counts.tolist(), "edges": edges.tolist()},
            }
            for number, test in enumerate(tests)
        ],
        "fixes": [
            {
                "name": fix, "accuracy": 0.8 + gain, "difference": _gap(gain),
                "uses_target_labels": fix.startswith("k_shot"),
            }
            for fix, gain in (
                ("source_only", 0.0), ("standardisation", 0.05), ("coral", -0.02),
                ("k_shot(5)", -0.01), ("k_shot(50)", 0.09),
            )
        ],
        "decomposition": {
            "total": _gap(0.1),
            "kitagawa": {"mix": _gap(-0.02), "rate": _gap(0.12)},
            "score": {"terms": {"confidence_shift": _gap(0.04), "y_given_score": _gap(0.06)}},
            "threshold": {"terms": {"transfer": _gap(0.06), "discrimination": _gap(0.04)}}
            if K == 2 else None,
        },
        "forecast": {
            "accuracy": {one: _gap(0.85 + 0.01 * i) for i, one in enumerate(("ac", "doc", "cbpe"))},
            "low": 0.85,
            "high": 0.87,
        },
        "subgroups": some_subgroups(K, np.random.default_rng(2)),
        "map": {
            "x": rng.normal(0, 1, 40).round(3).tolist(),
            "y": rng.normal(0, 1, 40).round(3).tolist(),
            "target": [i >= 20 for i in range(40)],
            "label": [i % K for i in range(40)],
            "explained": [0.3, 0.1],
        },
    } | (_NG if ng else {})  # fmt: skip


def _step(estimate, width=0.03, retrain=None):
    return {
        "est": estimate,
        "ci_sampling": [estimate - width, estimate + width],
        "ci_retrain": retrain,
    }


_NG = {
    "ng": {
        "human": None,
        "s_fit": _gap(0.01, 0.005),
        "s_traindev": _gap(0.05, 0.01),
        "t_test": _gap(0.2),
        "t_oracle_cv": _gap(0.15),
    },
    "gaps": {
        "variance": _step(0.04, 0.01),
        "mismatch": _step(0.15, retrain=[0.1, 0.19]),
        "target_hardness": _step(0.1),
        "transfer_gap": _step(0.05),
    },
    "not_identifiable": {"avoidable_bias": "no human error is given"},
}


def write_comparison(folder: Path, *, methods=("lp", "full", "wise_ft"), targets=("far",)):
    """Write ``finetune.json``; returns the JSON."""
    rng = np.random.default_rng(2)
    places = [("source", "fit"), ("source", "validation"), *((t, "target") for t in targets)]
    report = {
        "schema": 3,
        "study": "made up",
        "classes": ["a", "b"],
        "models": [_model(m, i, places) for i, m in enumerate(methods)],
        "rows": [_row(m, place, rng) for m in methods for place in places[1:]],
        "differences": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "finetune.json").write_text(json.dumps(report))
    return report


def _model(method, number, places):
    epochs = range(12)
    curves = [
        {
            "epoch": e, "fit_loss": 0.1 + 0.5**e, "fit_accuracy": 1 - 0.5 ** (e + 1),
            "validation_loss": 0.2 + 0.5**e, "validation_accuracy": 0.95 - 0.5 ** (e + 1),
        }
        for e in epochs
    ]  # fmt: skip
    line = {
        "from": "lp", "to": "full", "alpha": 0.3, "rule": "lowest validation log loss",
        "curve": [
            {
                "alpha": a / 10,
                "domains": [
                    {"domain": d, "role": r, "accuracy": float(0.9 - 0.1 * k - (a / 10 - 0.4) ** 2)}
                    for k, (d, r) in enumerate(places[1:])
                ],
            }
            for a in range(11)
        ],
    }  # fmt: skip
    return {
        "method": method,
        "backbone": "pixels" if method.startswith("scratch") else "tiny",
        "seed": 0,
        "seconds": 3.0 * 4**number,
        "curves": [] if method == "wise_ft" else curves,
        "interpolated": line if method == "wise_ft" else None,
    }


def _row(method, place, rng):
    accuracy = float(rng.uniform(0.7, 0.95))
    return {
        "method": method,
        "backbone": "pixels" if method.startswith("scratch") else "tiny",
        "seed": 0, "domain": place[0], "role": place[1], "images": 50, "patients": 50,
        "accuracy": {"estimate": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.03},
    }  # fmt: skip


def some_subgroups(K, rng):
    """Two attributes in both domains; one group is too few, one is below the rest."""
    metrics = ("accuracy", "auroc", "sensitivity", "specificity")[: 4 if K == 2 else 2]
    return [
        {
            "domain": domain, "attribute": attribute, "threshold": 0.4 if K == 2 else None,
            "groups": [
                {
                    "name": name, "images": 60 - 25 * k, "patients": 40 - 15 * k, "few": few,
                    "prevalence": None,
                    "metrics": {} if few else {m: _subgroup_value(rng, k) for m in metrics},
                    "missing": {},
                }
                for k, (name, few) in enumerate((("$F$", None), ("M", None), ("unknown", "few")))
            ],
            "worst": dict.fromkeys(metrics, "M"),
        }
        for domain in ("source", "target")
        for attribute in ("sex", "view")
    ]  # fmt: skip


def _subgroup_value(rng, k):
    value = float(0.85 - 0.1 * k + 0.05 * rng.random())
    rest = {"estimate": -0.1, "low": -0.18, "high": -0.02, "below": k == 1}
    return {
        "estimate": value, "low": value - 0.05, "high": value + 0.04, "n": 50,
        "simultaneous": [value - 0.07, value + 0.05], "rest": rest,
    }  # fmt: skip
