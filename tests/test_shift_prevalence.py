"""The class mix of a target is found without its labels where label shift is all there is."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pipeline.shift.label_free import SourceScores, TargetScores, forecast
from pipeline.shift.prevalence import PRIORS, Evidence
from tests.score_worlds import draw_scores


def exact_evidence(source, labels, target):
    """Pair two domains whose probabilities are honest already."""
    return Evidence(
        source_given=source, target_given=target, source=source, target=target, labels=labels
    )


@pytest.mark.parametrize("repeats", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_prevalence_is_found_under_label_shift(repeats):
    """C-T4: exact posteriors, 0.5 to 0.8 at n = 400: every method finds the drawn prevalence."""
    off = {name: [] for name in PRIORS}
    for seed in range(repeats):
        rng = np.random.default_rng([5, seed])
        source, labels = draw_scores(rng, 1600)
        target, truth = draw_scores(rng, 400, 0.8)
        evidence = exact_evidence(source, labels, target)
        for name, prior in PRIORS.items():
            off[name].append(prior(evidence)[1] - truth.mean())
    for errors in off.values():
        assert abs(np.mean(errors)) < 0.004 + 4 * np.std(errors) / np.sqrt(repeats)
        assert np.std(errors) < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_em_finds_the_most_likely_prevalence(seed):
    """C-T8: MLLS equals a direct search of the likelihood's maximum, to 1e-6."""
    rng = np.random.default_rng([9, seed])
    source, labels = draw_scores(rng, 600)
    evidence = exact_evidence(source, labels, draw_scores(rng, 300, 0.75)[0])
    p = evidence.prior()

    def loss(q):
        mixture = evidence.target @ (np.array([1 - q, q]) / p)
        return -np.log(mixture).sum()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).x
    assert PRIORS["mlls_em"](evidence)[1] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("repeats", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_prevalence_interval_covers(repeats):
    """C11: the bootstrap interval of MLLS holds the population's prevalence."""
    hits = 0
    for seed in range(repeats):
        rng = np.random.default_rng([16, seed])
        source, labels = draw_scores(rng, 400)
        target, _ = draw_scores(rng, 150, 0.8)
        known = SourceScores(probabilities=source, labels=labels, groups=np.arange(400))
        found = forecast(known, TargetScores(probabilities=target, groups=np.arange(150)), rng, 60)
        ill = found.prevalence["mlls_em"][1]
        hits += ill.low <= 0.8 <= ill.high
    assert hits / repeats >= 0.8
