"""Each metric as a statistic of weights, against the metric itself on repeated rows."""

import time
from inspect import ismodule

import numpy as np
import pytest

import pipeline.evaluation
from pipeline.evaluation.intervals import patient_draws
from pipeline.evaluation.metrics import METRICS, WEIGHTED


def predictions(classes: int, n: int = 90):
    """Labels, and probabilities with many ties."""
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[y]
    p = np.round(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), 2) + 0.01
    return y, p / p.sum(1, keepdims=True)


def test_every_metric_has_its_weighted_form():
    """A metric added to one table only fails here."""
    assert set(WEIGHTED) == set(METRICS)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_counts_as_so_many_equal_rows(name, classes):
    """In every draw, also in small ones that lack a class: then both are undefined."""
    y, p = predictions(classes)
    rng = np.random.default_rng(7)
    weights = np.vstack(
        [
            patient_draws(rng.integers(0, 30, len(y)), rng, draws=20),
            np.eye(len(y))[:3],  # one row: one class
            (rng.random((20, len(y))) < 0.04) * rng.integers(1, 4, (20, len(y)))
            + np.eye(len(y))[0],
        ]
    )
    found = WEIGHTED[name](y, p)(weights)
    for w, value in zip(weights.astype(int), found, strict=True):
        expected = METRICS[name](np.repeat(y, w), np.repeat(p, w, axis=0))
        if name == "balanced_accuracy" and np.unique(y[w > 0]).size < classes:
            expected = None  # over the classes that are there, which are not those of y
        assert value == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


@pytest.mark.parametrize("name", WEIGHTED)
def test_two_thousand_draws_of_four_hundred_images_take_less_than_a_second(name):
    """Processor time, so that a busy machine does not decide."""
    y, p = predictions(2, 400)
    weights = patient_draws(np.arange(400) // 2, np.random.default_rng(0), draws=2000)
    start = time.process_time()
    WEIGHTED[name](y, p)(weights)
    assert time.process_time() - start < 1


def test_the_public_list_is_what_there_is():
    """Each name once, sorted as the linter wants it, and importable."""
    names = pipeline.evaluation.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(pipeline.evaluation, name) for name in names)
    here = vars(pipeline.evaluation).items()
    public = {n for n, value in here if not n.startswith("_") and not ismodule(value)}
    assert public == set(names)
