"""DISDE parts "other images" from "other answers", and refuses where it cannot."""

from functools import cache

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import binom, norm
from sklearn.linear_model import LogisticRegression

from pipeline.shift import disde as disde_module
from pipeline.shift.disde import Side, disde
from pipeline.shift.effects import draw_patients


def mean_sigmoid_loss(density, add):
    """Expectation of the loss 0.8 sigmoid(x - 1) + add under a density that need not be normed."""
    over = quad(lambda x: density(x) * (0.8 * expit(x - 1) + add), -10, 12)[0]
    return over / quad(density, -10, 12)[0]


@cache
def quadrature_terms():
    """Return the three DISDE terms of N(0, 1) against N(1.5, 1) by numerical integration."""
    p, q = norm(0, 1).pdf, norm(1.5, 1).pdf
    levels = [
        mean_sigmoid_loss(p, 0.0),
        mean_sigmoid_loss(lambda x: p(x) * q(x) / (p(x) + q(x)), 0.0),
        mean_sigmoid_loss(lambda x: p(x) * q(x) / (p(x) + q(x)), 0.1),
        mean_sigmoid_loss(q, 0.1),
    ]
    return np.diff(levels)


def gaussian_side(rng, n, mean, add, draws=2):
    """Draw one domain with losses 0 and 1 of a known mean."""
    x = rng.normal(mean, 1, n)
    loss = (rng.random(n) < 0.8 * expit(x - 1) + add).astype(float)
    groups = np.arange(n)
    return Side(phi=x[:, None], loss=loss, groups=groups, draws=draw_patients(groups, rng, draws))


@pytest.mark.parametrize("repeats", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_disde_finds_the_terms_of_two_gaussians(repeats):
    """A-T2: the mean estimates lie within four standard errors of the quadrature."""
    assert quadrature_terms() == pytest.approx([0.1141, 0.1000, 0.1249], abs=1e-4)
    found = []
    for seed in range(repeats):
        rng = np.random.default_rng([2, seed])
        split = disde(gaussian_side(rng, 400, 0, 0), gaussian_side(rng, 400, 1.5, 0.1), rng)
        found.append([gap.estimate for gap in split.terms.values()])
    spread = np.std(found, axis=0)
    assert spread == pytest.approx([0.018, 0.043, 0.019], rel=0.25)
    assert np.all(
        np.abs(np.mean(found, axis=0) - quadrature_terms()) < 4 * spread / np.sqrt(repeats)
    )


@pytest.mark.parametrize("repeats", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_disde_intervals_cover(repeats):
    """The 95 % intervals hold the true terms about as often as they say, for unequal sizes."""
    hits = np.zeros(3)
    for seed in range(repeats):
        rng = np.random.default_rng([3, seed])
        sides = gaussian_side(rng, 600, 0, 0, 200), gaussian_side(rng, 200, 1.5, 0.1, 200)
        terms = disde(*sides, rng).terms.values()
        hits += [g.low <= true <= g.high for g, true in zip(terms, quadrature_terms(), strict=True)]
    assert np.all(hits >= binom.ppf(0.001, repeats, 0.93))


def test_disde_of_one_distribution_is_silent():
    """A-T3: equal domains share nearly all images, and the terms are noise around 0."""
    scaled = []
    for seed in range(30):
        rng = np.random.default_rng([4, seed])
        sides = gaussian_side(rng, 300, 0, 0, 200), gaussian_side(rng, 200, 0, 0, 200)
        split = disde(*sides, rng)
        assert split.ess_source > 0.9 * 300
        assert split.ess_target > 0.9 * 200
        assert split.overlap > 0.9
        scaled.append([g.estimate / ((g.high - g.low) / 3.92) for g in split.terms.values()])
    assert np.mean(np.abs(scaled) < 2) > 0.85
    assert np.all(np.abs(np.mean(scaled, axis=0)) < 4 / np.sqrt(30))


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_disde_of_separate_domains_is_refused(spread):
    """A-T4: no overlap, no number, also where tight clouds give all rows the same weight."""
    rng = np.random.default_rng(5)

    def side(mean):
        groups = np.arange(400)
        return Side(
            phi=rng.normal(mean, spread, (400, 8)),
            loss=rng.random(400),
            groups=groups,
            draws=draw_patients(groups, rng, 10),
        )

    split = disde(side(0), side(10), rng)
    assert not split.terms
    assert "effective images are shared" in split.refused
    assert split.domain_auc == 1
    assert split.overlap < 0.1


def test_disde_draws_are_those_of_refitted_ratios():
    """One Newton step per draw gives the log ratios that a full refit would give."""
    rng = np.random.default_rng(6)
    source, target = gaussian_side(rng, 1600, 0, 0), gaussian_side(rng, 800, 1.5, 0.1)
    ratios = disde_module._fit(source, target, rng)
    weights = rng.multinomial(2400, np.full(2400, 1 / 2400), size=5).astype(float)
    moved = ratios.redrawn(weights)
    assert ratios.redrawn(np.ones((1, 2400)))[0] == pytest.approx(ratios.fitted(), abs=1e-2)
    for row, found in zip(weights, moved, strict=True):
        full = np.empty(2400)
        for fold in range(5):
            fit = ratios.folds != fold
            model = LogisticRegression(C=10, max_iter=5000)
            model.fit(ratios.design[fit, 1:], ratios.is_target[fit], sample_weight=row[fit])
            share = np.average(ratios.is_target[fit], weights=row[fit])
            full[~fit] = model.decision_function(ratios.design[~fit, 1:]) - logit(share)
        # The bootstrap moves the ratios by far more than the step misses.
        assert np.std(found - full) < 0.2 * np.std(full - ratios.fitted())
