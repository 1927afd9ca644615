"""Made-up results of the stages, small enough to draw in every test."""

from pathlib import Path

import numpy as np

from pipeline.evaluation.predictions import Predictions, predictions_file
from pipeline.results import write_set


def _value(estimate, width=0.03):
    return {"estimate": estimate, "low": estimate - width, "high": estimate + width}


def _compared(estimate):
    return {**_value(estimate), "p": 0.01, "p_adjusted": 0.02}


def _predictions(K, domain, split, patient, proba):
    return Predictions(
        classes=tuple(f"class {k}" for k in range(K)),
        key=np.zeros((len(domain), 32), np.uint8),
        label=np.arange(len(domain)) % K,
        patient=patient,
        domain=domain,
        split=split,
        proba=proba,
    )


def write_heads(folder: Path, *, heads=("mlp", "linear", "prior"), targets=("far",), K=2, n=60):
    """Write ``heads.json`` and ``probabilities.h5``; returns the JSON."""
    rng = np.random.default_rng(0)
    domain = np.repeat(["source", "source", *targets], n)
    split = np.repeat(["fit", "validation", *["target"] * len(targets)], n)
    label, proba = np.arange(len(domain)) % K, {}
    for number, head in enumerate(heads):
        scores = rng.normal(0, 0.5, (len(label), K)) + (2 - 0.1 * number) * np.eye(K)[label]
        values = np.ones_like(scores) if head == "prior" else np.exp(scores)
        proba[head, 0] = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    right = {head: p.argmax(axis=1) == label for (head, _), p in proba.items()}
    order = sorted(heads, key=lambda head: -right[head][split == "validation"].mean())
    domains = [
        _domain(name, role, {h: right[h][(domain == name) & (split == role)] for h in order})
        for name, role in [("source", "validation"), *((name, "target") for name in targets)]
    ]
    results = {
        "backbone": "tiny", "best": order[0], "reused": 0, "fitted": len(heads),
        "domains": domains, "selection_corrected": {}, "seed_spread": [], "algorithms": [],
        "heads": [{"head": h, "curves": _curves(rng) if h == "mlp" else {}} for h in heads],
        "confidence_sets": [],
    }  # fmt: skip
    kept = _predictions(K, domain, split, np.arange(len(label)), proba)
    record = {
        "study": "made up", "classes": list(kept.classes), "baseline": "linear",
        "backbones": [results], "failures": [], "not_saved": [], "unlabelled": {}, "leaks": [],
    }  # fmt: skip
    write_set(folder / "heads.json", record, {"probabilities.h5": predictions_file({"tiny": kept})})
    return record


def _domain(name, role, right):
    linear = float(right["linear"].mean()) if "linear" in right else 0.0
    rows = []
    for head, hits in right.items():
        value = float(hits.mean())
        gain = {} if head == "linear" else {"accuracy": _compared(value - linear)}
        scores = {"accuracy": {**_value(value, 0.05), "method": "Wilson"}}
        rows.append(
            {"head": head, "fit_seconds": 0.1, "scores": scores, "clinical": None}
            | {"differences": gain}
        )
    n = len(next(iter(right.values())))
    return {"domain": name, "role": role, "images": n, "patients": n, "rows": rows}


def _curves(rng):
    return {
        f"{split}_{kind}": (np.exp(-np.arange(20) / 5) + rng.normal(0, 0.01, 20)).tolist()
        for split in ("fit", "validation")
        for kind in ("loss", "accuracy")
    }


def write_shift(folder: Path, *, targets=("far",), K=2, n=80):
    """Write ``shift.json`` and ``shift.h5``; returns the JSON."""
    rng = np.random.default_rng(1)
    domain = np.repeat(["source", *targets], n)
    label = np.arange(len(domain)) % K
    off = np.where(domain == "source", 0.0, 1.0)[:, None] * np.eye(K)[0]
    scores = np.exp(rng.normal(0, 1, (len(label), K)) + 2 * np.eye(K)[label] + off)
    values = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    split = np.where(domain == "source", "fit", "target")
    kept = _predictions(K, domain, split, np.arange(len(label)) // 2, {("linear", 0): values})
    record = {
        "study": "made up", "classes": list(kept.classes), "not_compared": [],
        "targets": [_target(name, K) for name in targets],
    }  # fmt: skip
    curves = {}
    for name in targets:
        curves[f"{name}/embedding"] = rng.normal(0, 1, (40, 2))
        curves[f"{name}/embedding_target"] = np.arange(40) >= 20
        curves[f"{name}/embedding_label"] = np.arange(40) % K
    files = {"shift.h5": predictions_file({"tiny": kept}, curves={"tiny": curves})}
    write_set(folder / "shift.json", record, files)
    return record


def _effect(name, division, estimate):
    return {"name": name, "division": division, **_value(estimate), "largest": 0.5}


def _method(name, gain):
    return {
        "method": name, "accuracy": 0.8 + gain, "auroc": 0.9, "target_labels": "labels" in name,
        "difference": None if name == "source_only" else _compared(gain),
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
    calibration = dict.fromkeys(("brier", "miscalibration", "ece", "slope", "intercept"), 0.1)
    return {
        "backbone": "tiny",
        "target": name,
        "labelled": True,
        "source_images": 80, "source_patients": 40, "images": 80, "patients": 40,
        "verdict": [f"Accuracy falls by 10.0 points on {name}."],
        "effects": effects,
        "adaptation": [_method(method, gain) for method, gain in gains.items()],
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
            "estimates": [{"method": m, **_value(0.85)} for m in ("atc", "doc", "label_shift")],
            "prevalence": [
                {"name": f"class {k}", "method": "mlls", **_value(1 / K), "predicted": 0.4}
                for k in range(K)
            ],
            "warning": "These estimates assume that a score means the same in both domains.",
        },
        "detection": [
            {
                "name": test, "statistic": 1.0, "p_adjusted": 0.003, "refused": None,
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
        "difference_high": -0.02, "worst": number == 1,
    }  # fmt: skip
    few = number == 2
    return {
        "attribute": attribute, "group": name, "images": 60 - 25 * number,
        "patients": 40 - 15 * number, "reason": "too few" if few else None,
        "metrics": {} if few else dict.fromkeys(metrics, value),
    }  # fmt: skip


def write_comparison(folder: Path, *, methods=("lp", "full", "wise_ft"), targets=("far",)):
    """Write ``finetune.json``; returns the JSON."""
    rng = np.random.default_rng(2)
    places = [("source", "validation"), *((t, "target") for t in targets)]
    domains = [
        {
            "domain": d,
            "role": r,
            "images": 50,
            "patients": 50,
            "rows": [_row(m, rng) for m in methods],
        }
        for d, r in places
    ]
    results = {
        "backbone": "tiny", "models": [_model(m) for m in methods], "domains": domains,
        "heads_fitted_to_others": False,
    }  # fmt: skip
    record = {
        "study": "made up", "classes": ["a", "b"], "backbones": [results], "unlabelled": {}
    }  # fmt: skip
    write_set(folder / "finetune.json", record, {"finetune.h5": predictions_file({})})
    return record


def _model(method):
    names = ("fit_loss", "fit_accuracy", "validation_loss", "validation_accuracy")
    curves = [dict.fromkeys(names, 0.1 + 0.5**epoch) for epoch in range(12)]
    return {
        "method": method, "seed": 0, "moved": "head", "trainable_parameters": 10, "epochs": 12,
        "seconds": 3.0, "images_per_second": 5.0, "heads_in_the_same_time": None, "trend": None,
        "curves": curves, "interpolated": None,
        "extrapolated": None,
    }  # fmt: skip


def _row(method, rng):
    scores = {"accuracy": _value(float(rng.uniform(0.7, 0.95)))}
    differences = {} if method == "lp" else {"lp": _compared(0.02)}
    return {"method": method, "seed": 0, "scores": scores, "differences": differences}
