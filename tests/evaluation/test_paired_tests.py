"""Paired tests: against other people's code, and by how often they reject where nothing is there.

The slow ones are the full promise (500 repeats, 2.2 % to 8.4 %); the fast ones see the
same on fewer repeats, inside the binomial band of their number.
"""

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from pipeline.evaluation.auroc import paired_delong
from pipeline.evaluation.paired_tests import correlated_t, holm, mcnemar, sign_flip, verdict

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
    a, b = rng.random((2, 400)) < 0.8
    return mcnemar(a, b)


def of_delong(rng) -> float:
    y = np.arange(150) % 2
    return paired_delong(y, *(rng.normal(size=(2, 150)) + y))


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
    return paired_delong(y, *scores)


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


def test_one_split_gives_no_test():
    """A variance needs two."""
    with pytest.raises(ValueError, match="2 or more splits; got 1"):
        correlated_t(np.array([0.1]), runs=1)


@pytest.mark.parametrize("rope", [0.01, 0.03])
def test_the_correlated_t_test_equals_its_formula(rope):
    """Corani and Benavoli 2015: a Student posterior with Nadeau and Bengio's variance."""
    d = np.random.default_rng(0).normal(0.01, 0.02, 25)
    scale = np.sqrt(d.var(ddof=1) * (1 / 25 + (1 / 5) / (1 - 1 / 5)))
    found = correlated_t(d, runs=5, rope=rope)
    assert found.worse == pytest.approx(student.cdf((-rope - d.mean()) / scale, 24))
    assert found.better == pytest.approx(student.sf((rope - d.mean()) / scale, 24))
    assert found.worse + found.equal + found.better == pytest.approx(1)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(30, 10, 0.002), (20, 20, 1.0), (40, 20, 0.013), (50, 30, 0.033), (0, 0, 1.0), (6, 0, 0.031)],
)
def test_mcnemar_is_the_sign_test_of_images_that_differ(only_first, only_second, p):
    """Images that both have right say nothing."""
    first = np.r_[np.ones(only_first), np.zeros(only_second), np.ones(300)].astype(bool)
    second = np.r_[np.zeros(only_first), np.ones(only_second), np.ones(300)].astype(bool)
    found = mcnemar(first, second)
    assert found == pytest.approx(p, abs=6e-4)
    if only_first + only_second:
        by_scipy = binomtest(only_first, only_first + only_second).pvalue
        assert found == pytest.approx(by_scipy)


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
