"""Stochastic heads: mean and spread over trainings."""

import numpy as np
import pytest

from pipeline.compare import seed_spread
from pipeline.evaluation.bootstrap import two_way_interval
from pipeline.evaluation.metrics import METRICS
from pipeline.randomness import stream
from tests.made_up_heads import domain, head


def test_the_spread_is_over_trainings_and_the_interval_over_patients_too():
    """Mean and sample standard deviation; a head without seeds has no row."""
    data = domain(each=2)
    members = {
        "mlp": [head(data.label, 1.0, s) for s in range(4)],
        "lda": [head(data.label, 0.5)],
    }
    (row, *_) = found = seed_spread(data, members, seed=0, draws=300)
    values = [(p.argmax(1) == data.label).mean() for p in members["mlp"]]
    assert {one.head for one in found} == {"mlp"}
    assert (row.metric, row.seeds) == ("accuracy", 4)
    assert (row.mean, row.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    statistics = [METRICS["accuracy"](data.label, p) for p in members["mlp"]]
    rng = stream("seeds B target", 0)
    expected = two_way_interval(statistics, data.group, rng, draws=300)
    assert (row.low, row.high) == (expected.low, expected.high)


def test_what_one_class_does_not_define_has_no_row():
    """No area: no row with a NaN in it."""
    data = domain(classes=1)
    members = {"mlp": [head(data.label, 1.0, s, 2) for s in range(2)]}
    assert {r.metric for r in seed_spread(data, members, seed=0, draws=9)} == {"accuracy"}
