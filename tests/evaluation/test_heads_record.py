"""The entry of a backbone: what the best head is worth, and what ``--thorough`` adds."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data.patients import patient_folds
from pipeline.evaluation.bootstrap import bbc_cv, bootstrap_interval
from pipeline.evaluation.heads_record import Scoring
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.paired_tests import correlated_t
from pipeline.randomness import stream
from tests.made_up import domain, head

SCORING = Scoring(baseline="a", seed=7, draws=300)


def out_of_fold(data, repeats=2):
    """Out-of-fold probabilities of heads of growing skill."""
    rng = np.random.default_rng(5)
    by_head = {}
    for gain, name in enumerate(("a", "b", "c")):
        p = 1 / (1 + np.exp(-(rng.normal(size=(repeats, len(data))) + (data.label - 0.5) * gain)))
        by_head[name] = np.stack([1 - p, p], axis=2)
    return by_head


def test_algorithms_are_compared_over_all_folds_of_all_repeats():
    """Nadeau and Bengio's posterior of the differences; the other way round the signs change."""
    data = domain(n=100, each=2)
    proba = out_of_fold(data)
    repeats = [patient_folds(data.label, data.group, seed=7 + repeat) for repeat in range(2)]
    folds = [(k, out) for k, repeat in enumerate(repeats) for _, out in repeat]
    right = {
        name: np.array([(p[k, out].argmax(1) == data.label[out]).mean() for k, out in folds])
        for name, p in proba.items()
    }
    rows = list(SCORING.algorithms(data, proba, repeats))
    row = next(r for r in rows if (r["head"], r["metric"]) == ("c", "accuracy"))
    expected = correlated_t(right["c"] - right["a"], runs=2)
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["difference"] == pytest.approx((right["c"] - right["a"]).mean())
    back = replace(SCORING, baseline="c").algorithms(data, proba, repeats)
    turned = next(r for r in back if (r["head"], r["metric"]) == ("a", "accuracy"))
    assert (turned["difference"], turned["worse"]) == pytest.approx(
        (-row["difference"], row["better"])
    )
    assert not list(replace(SCORING, baseline="linear").algorithms(data, proba, repeats))


def test_the_selection_corrected_value_is_that_of_the_first_repeat():
    """By accuracy and by AUROC, on rows that every head was asked out of fold."""
    data = domain(n=100)
    proba = out_of_fold(data)
    for p in proba.values():
        p[0, 50:] = np.nan
    for metric in ("accuracy", "auroc"):
        best = SCORING.selection_corrected(metric, data, proba)
        statistics = [METRICS[metric](data.label[:50], p[0, :50]) for p in proba.values()]
        _, *expected = bbc_cv(statistics, data.group[:50], stream("selection", 7))
        assert [best["apparent"], best["estimate"]] == [expected[0], expected[1].estimate]
        counts = [best[key] for key in ("candidates", "images", "patients")]
        assert (best["head"], counts) == ("c", [3, 50, 50])
    of_one_class = replace(data, label=np.zeros(100, np.int64))
    assert SCORING.selection_corrected("auroc", of_one_class, proba) is None


def test_the_spread_is_over_trainings_and_the_interval_over_patients_too():
    """Mean and sample standard deviation; a head without seeds has no row."""
    data = domain(each=2)
    members = np.stack([head(data.label, 1.0, s) for s in range(4)])
    scoring = replace(SCORING, seed=0)
    (row, *_) = found = scoring.seed_spread(data, {"mlp": members, "lda": members[:1]})
    assert {one["head"] for one in found} == {"mlp"}
    values = (members.argmax(2) == data.label).mean(axis=1)
    assert (row["metric"], row["seeds"]) == ("accuracy", 4)
    assert (row["estimate"], row["sd"]) == pytest.approx((values.mean(), values.std(ddof=1)))
    statistics = [METRICS["accuracy"](data.label, p) for p in members]
    rng = stream(f"seeds {data.name} {data.role}", 0)
    expected = bootstrap_interval(statistics, data.group, rng, draws=300)
    assert (row["low"], row["high"]) == (expected.low, expected.high)
