"""Paired tests: against other people's code, and by how often they reject where nothing is there.

The slow ones are the full promise (500 repeats, 2.2 % to 8.4 %); the fast ones see the
same on fewer repeats, inside the binomial band of their number.
"""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student

from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.paired_tests import (
    correlated_t,
    holm,
    mcnemar,
    paired_delong,
    patients_needed,
    sign_flip,
    verdict,
)

ALPHA = 0.05


def band(repeats: int, rate: float = ALPHA) -> tuple[float, float]:
    """Where 99.9 % of the rejection rates of a test of that level lie."""
    low, high = binom.interval(0.999, repeats, rate)
    return low / repeats, high / repeats


def two_equal_heads(rng, patients: int = 80, size: int = 3):
    """Scores of equally good heads on patients whose images resemble each other (ICC 1/2)."""
    group = np.repeat(np.arange(patients), size)
    y = (np.arange(patients) % 2)[group]
    own = rng.normal(size=(2, patients))[:, group]
    return y, own + rng.normal(size=(2, len(y))) + y, group


def right(y, scores):
    return (scores > 0.5) == (y == 1)


def of_mcnemar(rng) -> float:
    return mcnemar(*rng.random((2, 400)) < 0.8)


def of_delong(rng) -> float:
    y = np.arange(150) % 2
    return paired_delong(y, *(rng.normal(size=(2, 150)) + y), group=np.arange(150))


def of_clustered_delong(rng) -> float:
    y, scores, group = two_equal_heads(rng)
    return paired_delong(y, *scores, group=group)


def of_sign_flip(rng) -> float:
    y, scores, group = two_equal_heads(rng)
    a, b = right(y, scores).astype(float)
    return float(sign_flip(a - b, group, rng, draws=199))


def of_mcnemar_blind_to_patients(rng) -> float:
    y, scores, _ = two_equal_heads(rng, size=6)
    return mcnemar(*right(y, scores))


def of_delong_blind_to_patients(rng) -> float:
    y, scores, _ = two_equal_heads(rng, size=6)
    return paired_delong(y, *scores, group=np.arange(len(y)))


def rejected(test, repeats: int, seed: int = 11) -> float:
    rng = np.random.default_rng(seed)
    return np.mean([test(rng) < ALPHA for _ in range(repeats)])


BY_PATIENT = [of_mcnemar, of_delong, of_clustered_delong, of_sign_flip]
BLIND = [of_mcnemar_blind_to_patients, of_delong_blind_to_patients]


@pytest.mark.parametrize("repeats", [100, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("test", BY_PATIENT)
def test_a_test_rejects_as_often_as_it_says(test, repeats):
    """McNemar's is exact on a discrete statistic, and so conservative by nature."""
    low, high = band(repeats)
    assert low * (test is not of_mcnemar) <= rejected(test, repeats) <= high


@pytest.mark.parametrize("test", BLIND)
def test_a_test_blind_to_patients_rejects_too_often(test):
    """What shows that the patients matter: the same null, and every image taken as a patient."""
    assert rejected(test, 120) > band(120)[1]


def test_the_correlated_t_test_equals_its_formula():
    """Corani and Benavoli 2015: a Student posterior with Nadeau and Bengio's variance."""
    d = np.random.default_rng(0).normal(0.01, 0.02, 25)
    scale = np.sqrt(d.var(ddof=1) * (1 / 25 + (1 / 5) / (1 - 1 / 5)))
    found = correlated_t(d, runs=5)
    assert found["worse"] == pytest.approx(student.cdf((-0.01 - d.mean()) / scale, 24))
    assert found["better"] == pytest.approx(student.sf((0.01 - d.mean()) / scale, 24))
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("a", "b"), [(30, 10), (20, 20), (40, 20), (50, 30), (0, 0), (6, 0)])
def test_mcnemar_is_the_sign_test_of_images_that_differ(a, b):
    """Images that both have right say nothing."""
    first, second = (
        np.repeat([True, False, True], [a, b, 300]),
        np.repeat([False, True], [a, b + 300]),
    )
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_holm_rejects_what_stepping_down_rejects():
    """By its definition, at every level; with ties and out of order; of no test, nothing."""
    p = np.array([0.01, 0.04, 0.03, 0.04, 0.9, 0.004])
    for level in np.linspace(0.001, 1, 500):
        rejected = np.zeros(len(p), bool)
        for step, at in enumerate(np.argsort(p)):
            if p[at] > level / (len(p) - step):
                break
            rejected[at] = True
        assert ((holm(p) <= level + 1e-12) == rejected).all()
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.02, 0.05, 0.01, "better"),
        (0.02, 0.05, 0.049, "better"),
        (0.02, 0.05, 0.05, "inconclusive"),
        (-0.05, -0.001, 0.01, "worse"),
        (-0.009, 0.008, 1.0, "equivalent"),
        (0.001, 0.009, 0.01, "equivalent"),
        (-0.03, 0.02, 0.01, "inconclusive"),
        (float("nan"), 0.1, 0.01, "inconclusive"),
    ],
)
def test_a_tie_is_equivalent_or_inconclusive_and_never_no_difference(low, high, p, word):
    """Not finding a difference is not finding that there is none; one of many needs a small p."""
    assert verdict(low, high, p) == word


def test_so_many_patients_settle_a_comparison():
    """A known spread: the sample size of the textbook, and none for a difference of one point."""

    def of(gap, half, patients=100):
        return Interval(
            estimate=gap, low=gap - half, high=gap + half, images=patients, patients=patients,
            method="made up",
        )  # fmt: skip

    sd = 0.4  # of one patient's difference
    needed = (1.95996 + 0.84162) ** 2 * sd**2 / 0.05**2
    assert patients_needed(of(0.05, 1.95996 * sd / 10)) == pytest.approx(needed, abs=1)
    assert patients_needed(of(0.0, 0.02)) == pytest.approx(
        100 * (2.80158 / 1.95996 * 2) ** 2, abs=1
    )
    assert patients_needed(of(0.05, float("nan"))) is None


# DeLong by patient: against its definition, and other code.


def clustered():
    """30 patients of 1 to 4 images, some of both classes, rounded scores that tie."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    y = rng.integers(0, 2, len(group))
    own = rng.normal(size=30)[group]
    scores = np.stack([np.round(own + rng.normal(size=len(y)) + k * y, 1) for k in (0.8, 1.6)])
    return y, scores, group


def obuchowski(y, scores, group):
    """The paper's formulas, image by image."""
    pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    psi = [[[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in neg] for i in pos] for s in scores]
    v10, v01 = np.mean(psi, axis=2), np.mean(psi, axis=1)
    area = v10.mean(axis=1)
    m, n = len(pos), len(neg)
    s10 = s01 = s11 = np.zeros((len(scores), len(scores)))
    for g in np.unique(group):
        x = np.array([np.sum(v[group[pos] == g] - a) for v, a in zip(v10, area, strict=True)])
        z = np.array([np.sum(v[group[neg] == g] - a) for v, a in zip(v01, area, strict=True)])
        s10, s01 = s10 + np.outer(x, x), s01 + np.outer(z, z)
        s11 = s11 + np.outer(x, z) + np.outer(z, x)
    i10, i01, i = (len(np.unique(group[rows])) for rows in (pos, neg, range(len(y))))
    covariance = s10 * i10 / (i10 - 1) / m**2 + s01 * i01 / (i01 - 1) / n**2
    return area, covariance + s11 * i / (i - 1) / (m * n)


@pytest.mark.parametrize("y", [[0] * 6, [1] * 6, [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 1]])
def test_delong_refuses_one_class_and_more_than_two_and_a_class_of_one_patient(y):
    """It has no variance there."""
    with pytest.raises(ValueError, match="needs labels 0 and 1"):
        paired_delong(np.array(y), np.arange(6.0), np.arange(6.0), group=np.arange(6))


def test_the_paired_test_by_patient_uses_the_clustered_variance():
    """Obuchowski 1997 by loops; which head is first, and the order of images, change nothing."""
    y, scores, group = clustered()
    area, c = obuchowski(y, scores, group)
    spread = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    expected = 2 * norm.cdf(-abs(area[0] - area[1]) / spread)
    order = np.random.default_rng(3).permutation(len(y))
    for found in (
        paired_delong(y, *scores, group=group),
        paired_delong(y, *scores[::-1], group=group),
        paired_delong(y[order], *scores[:, order], group=group[order]),
    ):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 10])
def test_heads_without_spread_are_as_sure_as_so_many_pairs(n):
    """Perfect against always wrong: a coin is perfect on n pairs once in 2 to the n."""
    y = np.repeat([0, 1], n)
    patients = np.arange(2 * n)
    assert paired_delong(y, y * 1.0, -1.0 * y, group=patients) == 2 * 0.5**n
    assert paired_delong(y, y * 1.0, y * 2.0, group=patients) == 1.0
