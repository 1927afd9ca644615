"""Scores against scikit-learn, a naive loop, and their own promises."""

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.data.patients import draw_patients
from pipeline.evaluation.metrics import METRICS, score

ORACLES = {
    "accuracy": lambda y, p: sk.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.argmax(1)),
    "auroc": lambda y, p: (
        sk.roc_auc_score(y, p[:, 1])
        if p.shape[1] == 2
        else sk.roc_auc_score(y, p, multi_class="ovr", average="macro")
    ),
    "average_precision": lambda y, p: sk.average_precision_score(
        np.eye(p.shape[1])[y][:, 1:] if p.shape[1] == 2 else np.eye(p.shape[1])[y],
        p[:, 1:] if p.shape[1] == 2 else p,
        average="macro",
    ),
    "f1": lambda y, p: sk.f1_score(
        y, p.argmax(1), average="binary" if p.shape[1] == 2 else "macro"
    ),
    "log_loss": sk.log_loss,
    "brier": lambda y, p: np.mean([np.sum((np.eye(p.shape[1])[k] - q) ** 2) / 2
                                   for k, q in zip(y, p, strict=True)]),
    "sensitivity": lambda y, p: sk.recall_score(y, p.argmax(1)) if p.shape[1] == 2 else None,
    "specificity": lambda y, p: (
        sk.recall_score(y, p.argmax(1), pos_label=0) if p.shape[1] == 2 else None
    ),
}  # fmt: skip


def example(classes: int, n: int = 90, decimals: int = 12):
    """Labels, and probabilities; of two decimals many are equal."""
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[y]
    p = np.round(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), decimals) + 0.01
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", METRICS)
def test_a_score_equals_an_independent_one(name, classes):
    """Over the whole table: adding a metric without an oracle fails here."""
    y, p = example(classes, n=200)
    expected = ORACLES[name](y, p)
    assert score(name, y, p) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("name", ["auroc", "average_precision", "sensitivity"])
def test_what_the_labels_do_not_define_is_none(name):
    """A domain with one class has no AUROC; a number would be made up."""
    _, p = example(2, 20)
    assert score(name, np.zeros(20, int), p) is None


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", METRICS)
def test_a_weight_counts_as_so_many_equal_rows(name, classes):
    """In every draw, also in small ones that lack a class: then both are undefined."""
    y, p = example(classes, decimals=2)
    rng = np.random.default_rng(7)
    few = (rng.random((20, len(y))) < 0.04) * rng.integers(1, 4, (20, len(y))) + np.eye(len(y))[0]
    by_patient = draw_patients(rng.integers(0, 30, len(y)), rng, draws=20).weights()
    weights = np.vstack([by_patient, np.eye(len(y))[:3], few])
    for w, value in zip(weights.astype(int), METRICS[name](y, p)(weights), strict=True):
        expected = score(name, np.repeat(y, w), np.repeat(p, w, axis=0))
        if name == "balanced_accuracy" and np.unique(y[w > 0]).size < classes:
            expected = None  # over the classes that are there, which are not those of y
        assert value == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS.values())
def test_no_metric_takes_a_missing_label(metric):
    """It would count as wrong, or as the last class."""
    with pytest.raises(ValueError, match="without a label"):
        metric(np.array([0, 1, -1]), np.full((3, 2), 0.5))
