"""DeLong by patient: against its definition, another's code, and for perfect heads."""

import numpy as np
import pytest
from MLstatkit import Delong_test
from scipy.stats import norm

from pipeline.evaluation.auroc import delong, lower_bound_of_perfect_auroc, paired_delong
from pipeline.evaluation.intervals import share_of
from pipeline.evaluation.metrics import weighted_auroc


def clustered(seed: int = 0, patients: int = 30):
    """Patients of 1 to 4 images, some of both classes, rounded scores that tie."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    y = rng.integers(0, 2, len(group))
    own = rng.normal(size=patients)[group]
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


def test_the_clustered_variance_equals_its_definition():
    """Obuchowski 1997 by loops, for two scores at once."""
    y, scores, group = clustered()
    area, covariance = obuchowski(y, scores, group)
    found = delong(y, scores, group=group)
    np.testing.assert_allclose(found[0], area)
    np.testing.assert_allclose(found[1], covariance)


@pytest.mark.parametrize(
    "call", [lambda y, s: delong(y, s[None]), lambda y, s: paired_delong(y, s, s)]
)
@pytest.mark.parametrize("y", [[0] * 6, [1] * 6, [0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 1]])
def test_delong_refuses_one_class_and_more_than_two_and_a_class_of_one_patient(call, y):
    """For everything built on it."""
    with pytest.raises(ValueError, match="needs labels 0 and 1"):
        call(np.array(y), np.arange(6.0))


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_equals_mlstatkit(seed):
    """On random data with ties; their z is second minus first."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 80)
    a, b = np.round(rng.normal(size=80) + y, 1), np.round(rng.normal(size=80) + 0.5 * y, 1)
    z, p, *_, area_a, area_b, info = Delong_test(y, a, b)
    assert info["method"] == "delong"
    areas, _ = delong(y, np.stack([a, b]))
    assert areas == pytest.approx([area_a, area_b])
    assert paired_delong(y, a, b) == pytest.approx(p)
    assert np.sign(areas[0] - areas[1]) == -np.sign(z)


def test_the_paired_test_by_patient_uses_the_clustered_variance():
    """And p from its z; which head is the first, and the order of images, change nothing."""
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


def test_the_jackknife_by_patient_has_nearly_the_clustered_variance():
    """Two roads to the variance of one area."""
    y, scores, group = clustered(2, patients=150)
    _, covariance = delong(y, scores, group=group)
    share = share_of(weighted_auroc(y == 1, scores[0]), group, group[y == 0], group[y == 1])
    assert share.variance == pytest.approx(covariance[0, 0], rel=0.03)


@pytest.mark.parametrize("n", [2, 10])
def test_heads_without_spread_are_as_sure_as_so_many_pairs(n):
    """Perfect against always wrong: a coin is perfect on n pairs once in 2 to the n."""
    y = np.repeat([0, 1], n)
    assert paired_delong(y, y * 1.0, -1.0 * y) == 2 * 0.5**n
    assert paired_delong(y, y * 1.0, y * 2.0) == 1.0


def test_a_perfect_head_has_an_exact_lower_bound():
    """Matched pairs, k of them, are all ordered rightly with chance A^k: at the bound, 2.5 %."""
    y = np.repeat([0, 1], [30, 20])
    assert lower_bound_of_perfect_auroc(y, np.arange(50)) ** 20 == pytest.approx(0.025)
    # Ten patients of both classes make five pairs of ten different patients.
    both = np.tile([0, 1], 10)
    bound = lower_bound_of_perfect_auroc(both, np.repeat(np.arange(10), 2))
    assert bound**5 == pytest.approx(0.025)
    # One of both classes bounds nothing: its images may be alike for reasons of its own.
    assert lower_bound_of_perfect_auroc(np.array([0, 1]), np.array(["p", "p"])) == 0
