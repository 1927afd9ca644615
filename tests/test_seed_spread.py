"""Heads that draw: mean and spread over trainings, and how often they win."""

import numpy as np
import pytest

from pipeline.compare import seed_spread
from pipeline.evaluation.intervals import wilson
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.paired_tests import two_way_interval
from tests.score_heads import head, place


def test_the_spread_is_over_trainings_and_the_interval_over_patients_too():
    """Mean and sample standard deviation; a head without seeds has no row."""
    where = place(each=2)
    members = {
        "mlp": [head(where.label, 1.0, s) for s in range(4)],
        "lda": [head(where.label, 0.5)],
    }
    (row, *_) = found = seed_spread(where, members, "lda", draws=300)
    values = [(p.argmax(1) == where.label).mean() for p in members["mlp"]]
    assert {one.head for one in found} == {"mlp"}
    assert (row.metric, row.seeds) == ("accuracy", 4)
    assert (row.mean, row.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    expected = two_way_interval(
        [METRICS["accuracy"](where.label, p) for p in members["mlp"]],
        where.group, where.rng("seeds"), draws=300,
    )  # fmt: skip
    assert (row.low, row.high, row.ci_method) == (
        expected.low, expected.high, "seeds x patients bootstrap"
    )  # fmt: skip


def test_a_training_wins_against_that_of_the_same_seed():
    """A head without seeds stands against each training alike."""
    where = place()
    good, bad = ([head(where.label, gain, s) for s in range(3)] for gain in (4.0, 0.0))
    rows = seed_spread(where, {"good": good, "bad": bad, "one": bad[:1]}, "bad", draws=100)
    wins = {(r.head, r.metric): r.wins for r in rows}
    assert wins["good", "accuracy"] == wins["good", "auroc"] == 1
    assert wins["bad", "accuracy"] is None
    against = seed_spread(where, {"good": good, "one": bad[:1]}, "one", draws=100)
    assert {(r.wins, r.wins_high, r.baseline) for r in against} == {(1, 1, "one")}
    assert [r.wins_low for r in against] == pytest.approx([wilson(3, 3)[0]] * len(against))


def test_without_the_baseline_nothing_is_won():
    """Mean and spread are there all the same."""
    where = place()
    rows = seed_spread(where, {"mlp": [head(where.label, 1.0, s) for s in range(2)]}, "x", draws=50)
    assert {(r.baseline, r.wins, r.wins_low) for r in rows} == {(None, None, None)}


def test_what_one_class_does_not_define_has_no_row():
    """No area: no row with a NaN in it."""
    where = place(classes=1)
    rows = seed_spread(
        where, {"mlp": [head(where.label, 1.0, s, 2) for s in range(2)]}, "x", draws=9
    )
    assert {r.metric for r in rows} == {"accuracy"}
