"""Intervals and paired tests against other people's code and against their own promises."""

import baycomp
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pipeline.evaluation.auroc import auroc_interval, delong, paired_delong
from pipeline.evaluation.intervals import (
    newcombe_paired,
    patient_draws,
    percentile_interval,
    wilson,
)
from pipeline.evaluation.metrics import weighted_auroc, weighted_mean, weighted_ratio
from pipeline.evaluation.paired_tests import (
    correlated_t,
    holm,
    mcnemar,
    nadeau_bengio,
    sign_flip,
    verdict,
)
from pipeline.evaluation.selection import honest_best


def band(repeats: int, rate: float = 0.05) -> tuple[float, float]:
    """Where 99.9 % of the rejection rates of a test of that level lie."""
    return tuple(binom.interval(0.999, repeats, rate) / np.array(repeats))


def clustered(rng, patients: int = 60, size: int = 4, spread: float = 1.0):
    """Images of patients whose own level moves all their images: ICC one half."""
    group = np.repeat(np.arange(patients), size)
    value = rng.normal(size=patients)[group] * spread + rng.normal(size=len(group))
    return value, group


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (340, 400), (320, 400), (1, 3)])
def test_wilson_equals_statsmodels(hits, n):
    """And 340 of 400 gives the interval that the specification prints."""
    assert wilson(hits, n) == pytest.approx(proportion_confint(hits, n, method="wilson"))


def test_wilson_refuses_what_is_no_rate():
    """Never an interval for nothing."""
    with pytest.raises(ValueError, match="3 hits of 2"):
        wilson(3, 2)


def test_newcombes_paired_interval_equals_the_published_example():
    """Newcombe 1998, method 10: the pairs 36, 12, 2, 0 give 0.0569 to 0.3404."""
    low, high = newcombe_paired(36, 12, 2, 0)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=2e-3)
    swapped = newcombe_paired(36, 2, 12, 0)
    assert swapped == pytest.approx((-high, -low))


def test_mcnemar_equals_statsmodels():
    """Exact p; and the specification's three examples of a 20-image gap."""
    for b, c, p in ((30, 10, 0.002), (20, 20, 1.0), (40, 20, 0.013), (50, 30, 0.033)):
        first = np.r_[np.ones(b), np.zeros(c), np.ones(300)].astype(bool)
        second = np.r_[np.zeros(b), np.ones(c), np.ones(300)].astype(bool)
        expected = sm_mcnemar([[300, b], [c, 0]], exact=True).pvalue
        found = mcnemar(first, second)
        assert found.p == pytest.approx(expected)
        assert found.p == pytest.approx(p, abs=6e-4)
        assert found.p_mid <= found.p
    assert mcnemar(first, first).p == 1.0


def test_holm_equals_statsmodels():
    """Also with ties and out of order."""
    p = [0.01, 0.04, 0.03, 0.04, 0.9]
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_the_correlated_t_test_equals_baycomp():
    """Probabilities of worse, equal, better on 5 x 5 cross-validation."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.85, 0.02, 25), rng.normal(0.84, 0.02, 25)
    # 25 folds in 5 runs: baycomp takes the correlation as the test share, 1/5.
    left, rope, right = baycomp.two_on_single(a, b, rope=0.01, runs=5)
    found = correlated_t(b - a, correlation=1 / 5, rope=0.01)
    assert (found.better, found.equal, found.worse) == pytest.approx((right, rope, left), abs=1e-6)


def test_areas_equal_a_double_loop_with_ties():
    """Weighted by images and, with weights of ones, scikit-learn's."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 60)
    s = np.round(rng.normal(size=60) + y, 1)
    w = rng.integers(0, 4, (5, 60)).astype(float)
    found = weighted_auroc(y == 1, s)(w)
    for weights, area in zip(w, found, strict=True):
        up = down = 0.0
        for i in np.flatnonzero(y == 1):
            for j in np.flatnonzero(y == 0):
                pair = weights[i] * weights[j]
                up += pair * ((s[i] > s[j]) + 0.5 * (s[i] == s[j]))
                down += pair
        assert area == pytest.approx(up / down)
    assert weighted_auroc(y == 1, s)(np.ones((1, 60)))[0] == pytest.approx(roc_auc_score(y, s))


def test_delong_equals_its_definition():
    """Structural components by a double loop, ties counted half, for two scores at once."""
    rng = np.random.default_rng(2)
    y = np.r_[np.ones(15, int), np.zeros(25, int)]
    scores = np.round(rng.normal(size=(2, 40)) + y, 1)

    def psi(a, b):
        return (a > b) + 0.5 * (a == b)

    v10 = np.array([[np.mean([psi(s[i], s[j]) for j in range(15, 40)]) for i in range(15)]
                    for s in scores])  # fmt: skip
    v01 = np.array([[np.mean([psi(s[i], s[j]) for i in range(15)]) for j in range(15, 40)]
                    for s in scores])  # fmt: skip
    found = delong(y, scores)
    np.testing.assert_allclose(found.auroc, v10.mean(1))
    np.testing.assert_allclose(found.covariance, np.cov(v10) / 15 + np.cov(v01) / 25)


def test_delong_refuses_what_has_no_area():
    """One class, or more than two."""
    for y in (np.zeros(6, int), np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1])):
        with pytest.raises(ValueError, match="labels 0 and 1, each at least twice"):
            delong(y, np.arange(len(y), dtype=float)[None])


def test_swapping_two_heads_flips_signs_and_order_changes_nothing():
    """H-T5."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 80)
    a, b = rng.normal(size=80) + y, rng.normal(size=80) + 0.5 * y
    one, two = paired_delong(y, a, b), paired_delong(y, b, a)
    assert (one.difference, one.low, one.high) == pytest.approx(
        (-two.difference, -two.high, -two.low)
    )
    order = rng.permutation(80)
    assert paired_delong(y[order], a[order], b[order]).p == pytest.approx(one.p)


def test_an_interval_of_an_area_stays_inside_zero_and_one():
    """Even where the area is nearly one."""
    y = np.r_[np.ones(20, int), np.zeros(20, int)]
    s = np.r_[np.arange(20) + 5.0, np.arange(20) - 14.0]
    low, high = auroc_interval(y, s)
    assert 0 < low < roc_auc_score(y, s) < high < 1


@pytest.mark.parametrize("test", ["mcnemar", "delong", "sign_flip", "nadeau_bengio"])
def test_tests_reject_as_often_as_they_say(test):
    """H-T1: under the null, inside the binomial band of the repeats (exact tests below)."""
    rng = np.random.default_rng(4)
    repeats, rejected = 300, 0
    for _ in range(repeats):
        rejected += _null_p(test, rng) < 0.05
    low, high = band(repeats)
    conservative = test in {"mcnemar", "nadeau_bengio"}
    assert (0 if conservative else low) <= rejected / repeats <= high


def _null_p(test: str, rng) -> float:
    y = np.arange(120) % 2
    if test == "mcnemar":
        return mcnemar(rng.random(120) < 0.8, rng.random(120) < 0.8).p
    if test == "delong":
        return paired_delong(y, rng.normal(size=120) + y, rng.normal(size=120) + y).p
    if test == "sign_flip":
        value, group = clustered(rng, patients=30)
        return sign_flip(value, group, rng, draws=199)
    shared = rng.normal(size=1)  # five folds that overlap in training
    return nadeau_bengio(rng.normal(size=25) + 0.3 * shared, test_share=1 / 4)


@pytest.mark.parametrize("by_patient", [True, False])
def test_only_intervals_by_patient_cover(by_patient):
    """H-T3: with correlated images the patient bootstrap covers, the naive one does not."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(150):
        value, group = clustered(rng)
        units = group if by_patient else np.arange(len(group))
        low, high = percentile_interval(weighted_mean(value)(patient_draws(units, rng, draws=400)))
        hits += low <= 0 <= high
    if by_patient:
        assert hits / 150 > binom.ppf(0.0005, 150, 0.93) / 150
    else:
        assert hits / 150 < 0.85


def test_the_best_of_fifty_equal_heads_is_not_better():
    """H-T4: the largest of many equal scores is too good; the honest value is not."""
    rng = np.random.default_rng(6)
    truth, apparent, honest = 0.8, [], []
    for _ in range(30):
        score = (rng.random((200, 50)) < truth).astype(float)
        best = honest_best(score, np.arange(200), rng, draws=100)
        apparent.append(best.apparent)
        honest.append(best.honest)
        assert best.optimism == pytest.approx(best.apparent - best.honest)
    assert np.mean(apparent) > truth + 0.03
    assert np.mean(honest) == pytest.approx(truth, abs=3 * np.std(honest) / np.sqrt(30) + 0.005)


def test_draws_take_patients_whole():
    """All images of a patient are drawn equally often, and each draw has as many patients."""
    weights = patient_draws(["a", "b", "a", "c", "b"], np.random.default_rng(0), draws=50)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_a_share_that_a_draw_does_not_define_is_left_out():
    """No positive image in a draw: no sensitivity, and not zero."""
    share = weighted_ratio(np.array([True, False]), np.array([True, False]))
    values = share(np.array([[1.0, 1.0], [0.0, 2.0]]))
    assert np.isnan(values[1])
    assert percentile_interval(values) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.02, 0.05, "better"),
        (-0.05, -0.001, "worse"),
        (-0.009, 0.008, "equivalent"),
        (0.001, 0.009, "equivalent"),
        (-0.03, 0.02, "inconclusive"),
        (float("nan"), 0.1, "inconclusive"),
    ],
)
def test_a_tie_is_equivalent_or_inconclusive_and_never_no_difference(low, high, word):
    """Not finding a difference is not finding that there is none."""
    assert verdict(low, high) == word
