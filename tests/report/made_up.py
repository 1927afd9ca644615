"""Made-up results of the stages, small enough to draw in every test."""

from pathlib import Path

import numpy as np

from pipeline.evaluation.predictions import Predictions, predictions_file
from pipeline.results import write_set

SEEDED = ("mlp", "forest")


def write_heads(folder: Path, *, heads=("mlp", "linear", "prior"), targets=("far",), K=2, n=60):
    """Write ``heads.json`` with curves and a path, and ``probabilities.h5``; returns the JSON."""
    rng = np.random.default_rng(0)
    domain = np.repeat(["source", "source", *targets], n)
    split = np.repeat(["fit", "validation", *["target"] * len(targets)], n)
    label = np.arange(len(domain)) % K
    proba = {}
    for number, head in enumerate(heads):
        scores = rng.normal(0, 0.5, (len(label), K)) + (2 - 0.1 * number) * np.eye(K)[label]
        values = np.exp(scores)
        values /= values.sum(axis=1, keepdims=True)
        if head == "prior":
            values[:] = 1 / K
        proba[head, 0] = values.astype(np.float32)
    right = {head: p.argmax(axis=1) == label for (head, _), p in proba.items()}
    order = sorted(heads, key=lambda head: -right[head][split == "validation"].mean())
    domains = [
        _domain(
            name, role, {head: right[head][(domain == name) & (split == role)] for head in order}
        )
        for name, role in [("source", "validation"), *((name, "target") for name in targets)]
    ]
    report = {
        "schema": 5,
        "study": "made up",
        "classes": [f"class {k}" for k in range(K)],
        "baseline": "linear",
        "backbones": [
            {
                "backbone": "tiny", "best": order[0], "reused": 0, "fitted": len(heads),
                "domains": domains, "selection_corrected": {},
                "heads": [_described(head, rng) for head in heads],
                "seed_spread": [], "algorithms": [], "confidence_sets": [],
            }
        ],
        "failures": [],
        "not_saved": [],
        "unlabelled": {},
        "leaks": [],
    }  # fmt: skip
    kept = Predictions(
        classes=tuple(report["classes"]),
        key=np.zeros((len(label), 32), np.uint8),
        label=label,
        patient=np.arange(len(label)),
        domain=domain,
        split=split,
        proba=proba,
    )
    files = {"probabilities.h5": predictions_file({"tiny": kept})}
    write_set(folder / "heads.json", report, files)
    return report


def _domain(name, role, right):
    rows, linear = [], float(right["linear"].mean()) if "linear" in right else 0.0
    for number, (head, hits) in enumerate(right.items()):
        value = float(hits.mean())
        interval = {
            "estimate": value, "low": max(0.0, value - 0.06), "high": min(1.0, value + 0.05),
            "method": "Wilson",
        }  # fmt: skip
        rows.append(
            {
                "head": head, "fit_seconds": 0.002 * 3 ** (number % 9),
                "scores": {"accuracy": interval}, "clinical": None,
                "differences": {} if head == "linear" else {"accuracy": _gain(value - linear)},
            }
        )  # fmt: skip
    images = len(next(iter(right.values())))
    return {"domain": name, "role": role, "images": images, "patients": images, "rows": rows}


def _gain(value):
    return {"estimate": value, "low": value - 0.03, "high": value + 0.04, "p_adjusted": 0.5}


def _described(head, rng):
    epochs = np.arange(1, 21)
    curves = {
        f"{side}_{kind}": (level + np.exp(-epochs / 5) + rng.normal(0, 0.01, 20)).tolist()
        for side, level in (("fit", 0.1), ("validation", 0.3))
        for kind in ("loss", "accuracy")
    }
    path = [{"C": 10.0**k, "log_loss": 0.2 + 0.05 * abs(k + 1)} for k in range(-5, 3)]
    return {
        "head": head, "about": "", "seeds": 3 if head in SEEDED else 1, "fit_seconds": 0.1,
        "chosen": {}, "curves": curves if head == "mlp" else {},
        "path": path if head == "linear" else [],
    }  # fmt: skip


def write_shift(folder: Path, *, targets=("far",), K=2, n=80):
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
        "schema": 7,
        "study": "made up",
        "classes": list(kept.classes),
        "targets": [_target(name, K) for name in targets],
        "not_compared": [],
        "fine_tuned": [],
    }
    curves = {}
    for name in targets:
        curves[f"{name}/embedding"] = rng.normal(0, 1, (40, 2))
        curves[f"{name}/embedding_target"] = np.arange(40) >= 20
        curves[f"{name}/embedding_label"] = np.arange(40) % K
    files = {"shift.h5": predictions_file({"tiny": kept}, curves={"tiny": curves})}
    write_set(folder / "shift.json", report, files)
    return report


def _value(estimate, width=0.03):
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def _effect(name, division, estimate):
    return {"name": name, "division": division, **_value(estimate), "largest": 0.5}


def _method(name, gain):
    return {
        "method": name, "accuracy": 0.8 + gain, "auroc": 0.9, "target_labels": "labels" in name,
        "difference": {**_value(gain), "p": 0.01, "p_adjusted": 0.02},
    }  # fmt: skip


def _target(name, K):
    effects = [
        _effect("accuracy_loss", "all", 0.1),
        _effect("class_mix", "class", -0.02),
        _effect("within_class", "class", 0.12),
        _effect("sex_mix", "by sex", 0.05),
        _effect("within_sex", "by sex", 0.05),
        _effect("confidence_shift", "score", 0.04),
        _effect("y_given_score", "score", 0.06),
        _effect("target_hardness", "transfer", 0.03),
        _effect("transfer_gap", "transfer", 0.07),
    ]
    if K == 2:
        effects += [
            _effect("threshold", "threshold", 0.06),
            _effect("discrimination", "threshold", 0.04),
        ]
    gains = {
        "source_only": 0.0,
        "standardisation": 0.05,
        "coral": -0.02,
        "50 labels per class": 0.09,
    }
    calibration = {
        "brier": 0.1, "miscalibration": 0.01, "ece": 0.02, "slope": 1.1, "intercept": 0.1,
        "event": "positive",
    }  # fmt: skip
    return {
        "backbone": "tiny",
        "target": name,
        "labelled": True,
        "verdict": [f"Accuracy falls by 10.0 points on {name}."],
        "effects": effects,
        "adaptation": [_method(method, gain) for method, gain in gains.items()],
        "label_curve": [
            _method(f"{k} labels per class", gain) for k, gain in ((5, -0.01), (50, 0.09))
        ],
        "error_table": {
            "errors": [
                {"name": "source_training", **_value(0.01, 0.005)},
                {"name": "source_new_patients", **_value(0.05, 0.01)},
                {"name": "target", **_value(0.2)},
                {"name": "target_trained", **_value(0.15)},
            ],
            "steps": [
                {"name": step, **_value(size)}
                for step, size in (
                    ("variance", 0.04), ("mismatch", 0.15),
                    ("target_hardness", 0.1), ("transfer_gap", 0.05),
                )
            ],
            "not_identifiable": {"avoidable_bias": "no human error is given"},
        },
        "accuracy_range": {
            "estimates": [{"method": m, **_value(0.85)} for m in ("doc", "label_shift")],
            "prevalence": [
                {"name": f"class {k}", "method": "bbse", **_value(1 / K), "predicted": 0.4}
                for k in range(K)
            ],
            "warning": "These estimates assume that a score means the same in both domains.",
        },
        "detection": [
            {
                "name": test, "statistic": 1.0, "p_adjusted": 0.003, "p_null_control": 0.4,
                "p_positive_control": 0.001, "refused": None,
            }
            for test in ("bbsd_ks", "ridge_c2st", "mmd_aggregated")
        ],
        "domain_auc": [{"among": "all images", **_value(0.9), "p": 0.01}],
        "covariates": [{"name": "width", **_value(0.5), "named": True}],
        "covariates_summary": "Images of the target are wider.",
        "calibration": [{"domain": d, **calibration} for d in ("source", "target")],
        "thresholds": [
            {
                "rule": "youden", "domain": d, "moved_by": how, "threshold": 0.4,
                "sensitivity": _value(0.9 - k / 10), "specificity": _value(0.8 - k / 10),
                "ppv": 0.8, "npv": 0.9, "reliable": True,
            }
            for k, (d, how) in enumerate((("source", "none"), ("target", "none")))
        ]
        if K == 2 else [],
        "subgroups": [
            _group("sex", group, number, K)
            for number, group in enumerate(("$F$", "M", "unknown"))
        ],
        "caveats": ["52 patient ids are in both domains."],
    }  # fmt: skip


def _group(attribute, name, number, K):
    """The third group has too few images; the second is shown to be below the rest."""
    metrics = ("accuracy", "auroc", "sensitivity", "specificity")[: 4 if K == 2 else 2]
    value = {
        **_value(0.85 - 0.1 * number), "source": 0.9, "difference": -0.1, "difference_low": -0.18,
        "difference_high": -0.02, "worst": number == 1, "below": number == 1,
    }  # fmt: skip
    few = number == 2
    return {
        "attribute": attribute, "group": name, "images": 60 - 25 * number,
        "patients": 40 - 15 * number, "prevalence": None, "reason": "too few" if few else None,
        "metrics": {} if few else dict.fromkeys(metrics, value),
    }  # fmt: skip


def write_comparison(folder: Path, *, methods=("lp", "full", "wise_ft"), targets=("far",)):
    """Write ``finetune.json``; returns the JSON."""
    rng = np.random.default_rng(2)
    places = [("source", "fit"), ("source", "validation"), *((t, "target") for t in targets)]
    report = {
        "schema": 4,
        "study": "made up",
        "classes": ["a", "b"],
        "backbones": [
            {
                "backbone": "tiny",
                "models": [_model(m, i, places) for i, m in enumerate(methods)],
                "domains": [
                    {
                        "domain": domain,
                        "role": role,
                        "images": 50,
                        "patients": 50,
                        "rows": [_row(m, rng) for m in methods],
                    }
                    for domain, role in places[1:]
                ],
                "heads_fitted_to_others": False,
            }
        ],
        "unlabelled": {},
    }
    write_set(folder / "finetune.json", report, {"finetune.h5": predictions_file({})})
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
        "moved": "head",
        "trainable_parameters": 10,
        "epochs": 12,
        "images_per_second": 5.0,
        "heads_in_the_same_time": None,
        "trend": None,
        "extrapolated": None,
    }


def _row(method, rng):
    accuracy = float(rng.uniform(0.7, 0.95))
    interval = {"estimate": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.03}
    differences = {} if method == "lp" else {"lp": _gain(0.02)}
    return {
        "method": method, "seed": 0, "scores": {"accuracy": interval}, "differences": differences,
    }  # fmt: skip
