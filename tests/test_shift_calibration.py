"""Probabilities are judged as the formulas say, and simple repairs undo simple faults."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from pipeline.errors import StudyError
from pipeline.shift.calibrate import (
    SCORES,
    calibration_error,
    calibration_line,
    calibration_report,
    corp,
)


def foretold(rng, n, *, slope=1.0, intercept=0.0):
    """Draw probabilities and events with a known calibration line."""
    z = 2 * rng.normal(size=n)
    return rng.random(n) < expit(intercept + slope * z), expit(z)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40))
def test_corp_adds_up_and_no_part_is_negative(rows):
    """Score = miscalibration - discrimination + uncertainty, for any events and probabilities."""
    event, p = map(np.array, zip(*rows, strict=True))
    for score in SCORES.values():
        parts = corp(event, p, score)
        total = parts.miscalibration - parts.discrimination + parts.uncertainty
        assert parts.score == pytest.approx(total, abs=1e-9)
        assert min(parts.miscalibration, parts.discrimination, parts.uncertainty) >= -1e-9


def test_corp_is_that_of_an_isotonic_recalibration():
    """The parts equal scikit-learn's scores of the three forecasts."""
    rng = np.random.default_rng(1)
    event, p = foretold(rng, 500, slope=0.5)
    p = np.round(p, 2).clip(0.01, 0.99)
    better = IsotonicRegression(out_of_bounds="clip").fit(p, event).predict(p)
    constant = np.full(500, event.mean())
    for name, oracle in (("brier", brier_score_loss), ("log_loss", log_loss)):
        parts = corp(event, p, SCORES[name])
        assert parts.score == pytest.approx(oracle(event, p))
        assert parts.miscalibration == pytest.approx(oracle(event, p) - oracle(event, better))
        assert parts.uncertainty == pytest.approx(oracle(event, constant))


def test_recalibrated_probabilities_have_no_miscalibration():
    """The isotonic fit itself cannot be improved."""
    rng = np.random.default_rng(2)
    event, p = foretold(rng, 300, slope=0.5)
    better = IsotonicRegression(out_of_bounds="clip").fit(p, event).predict(p)
    parts = corp(event, better, SCORES["brier"])
    assert parts.miscalibration == pytest.approx(0, abs=1e-12)
    assert parts.discrimination > 0


def test_plug_in_calibration_error_is_the_formula():
    """Bins of equal mass, written out with a plain loop."""
    rng = np.random.default_rng(3)
    event, p = foretold(rng, 307)
    total = 0.0
    for rows in np.array_split(np.argsort(p, kind="stable"), 15):
        total += len(rows) * abs(event[rows].mean() - p[rows].mean())
    found = calibration_error(event, p, rng, draws=10)
    assert found.plug_in == pytest.approx(total / 307)


def test_calibration_error_does_not_depend_on_the_order_of_rows():
    """Rows of one probability share their rate, so none of them is the first of a bin."""
    event, p = np.repeat([0, 1], 50), np.full(100, 0.5)
    found = calibration_error(event, p, np.random.default_rng(0), draws=99)
    assert found.plug_in == pytest.approx(0)
    assert found.p == 1
    rng = np.random.default_rng(1)
    event, p = foretold(rng, 300)
    p, order = np.round(p, 1), rng.permutation(300)
    one, other = (
        calibration_error(e, q, rng, 9) for e, q in ((event, p), (event[order], p[order]))
    )
    assert one.plug_in == pytest.approx(other.plug_in)


def test_calibrated_probabilities_show_no_calibration_error():
    """Debiasing takes off what the plug-in value shows of perfect probabilities, mostly."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng([4, seed])
        found.append(calibration_error(*foretold(rng, 600), rng, draws=99))
    plug_in, if_calibrated = (
        np.mean([getattr(one, name) for one in found]) for name in ("plug_in", "if_calibrated")
    )
    assert plug_in == pytest.approx(if_calibrated, rel=0.1)
    assert np.mean([one.debiased for one in found]) < 0.6 * plug_in
    assert np.mean([one.p <= 0.05 for one in found]) <= 0.15


def test_debiased_calibration_error_finds_the_true_one():
    """Where probabilities are off by far, the debiased value is the true error."""
    rng = np.random.default_rng(5)
    z = 2 * rng.normal(size=200_000)
    true = np.abs(expit(0.3 * z) - expit(z)).mean()
    found = [
        calibration_error(*foretold(np.random.default_rng([5, s]), 600, slope=0.3), rng, draws=19)
        for s in range(60)
    ]
    assert np.mean([one.debiased for one in found]) == pytest.approx(true, abs=0.006)
    assert all(one.p == 0.05 for one in found)


def test_calibration_line_is_the_logistic_refit():
    """Intercept and slope equal an unpenalised logistic regression, and the truth."""
    rng = np.random.default_rng(6)
    event, p = foretold(rng, 4000, slope=0.6, intercept=0.5)
    line = calibration_line(event, p)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], event)
    assert line.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
    assert line.intercept == pytest.approx(oracle.intercept_[0], abs=1e-4)
    assert (line.slope, line.intercept) == pytest.approx((0.6, 0.5), abs=0.1)


@pytest.mark.parametrize("p", [np.array([0.0, 0.2, 0.8, 1.0]), np.array([1.0, 0.8, 0.2, 0.0])])
def test_calibration_line_of_separable_rows_is_finite(p):
    """Rows that a threshold parts without error have a steep line, not an overflow."""
    line = calibration_line(np.array([False, False, True, True]), p)
    assert np.isfinite([line.slope, line.intercept]).all()
    assert np.sign(line.slope) == np.sign(p[-1] - p[0])


def test_report_refuses_what_is_no_probability():
    """A logit in place of a probability is named."""
    with pytest.raises(StudyError, match="one probability from 0 to 1"):
        calibration_report(np.array([True, False]), np.array([2.0, 0.1]), np.random.default_rng(0))


def test_report_has_every_part():
    """One call gives scores, calibration error and line."""
    rng = np.random.default_rng(9)
    event, p = foretold(rng, 300)
    report = calibration_report(event, p, rng)
    assert report.brier.score == pytest.approx(brier_score_loss(event, p))
    assert report.line == calibration_line(event, p)
