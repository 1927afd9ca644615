"""AUROC of patients with several images, of perfect heads, and against another's code."""

import numpy as np
import pytest
from MLstatkit import Delong_test
from scipy.stats import norm

from pipeline.evaluation.auroc import auroc_interval, bound_of_one, delong, paired_delong
from pipeline.evaluation.bootstrap import bootstrap_interval
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


def test_one_image_for_each_patient_is_the_plain_variance():
    """And patients may have any name."""
    y, scores, _ = clustered()
    names = np.array([f"patient {i}" for i in np.random.default_rng(1).permutation(len(y))])
    plain, named = delong(y, scores), delong(y, scores, group=names)
    np.testing.assert_allclose(named[1], plain[1])
    assert paired_delong(y, *scores, group=names)[1] == pytest.approx(paired_delong(y, *scores)[1])


def test_intervals_and_tests_by_patient_use_the_clustered_variance():
    """On the logit scale for one area, plain for the difference, and p from its z."""
    y, scores, group = clustered()
    area, c = obuchowski(y, scores, group)
    logit = np.log(area[0] / (1 - area[0]))
    half = 1.959964 * np.sqrt(c[0, 0]) / (area[0] * (1 - area[0]))
    expected = [1 / (1 + np.exp(-(logit + sign * half))) for sign in (-1, 1)]
    one = auroc_interval(y, scores[0], group=group)
    assert (one.low, one.high) == pytest.approx(expected)
    assert (one.images, one.patients) == (len(y), 30)
    spread = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    found, p = paired_delong(y, *scores, group=group)
    assert p == pytest.approx(2 * norm.cdf(-abs(area[0] - area[1]) / spread))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * spread)


def test_the_clustered_interval_is_near_the_bootstrap_of_patients():
    """Two roads to one interval."""
    y, scores, group = clustered(2, patients=150)
    one = auroc_interval(y, scores[0], group=group)
    drawn = bootstrap_interval(
        weighted_auroc(y == 1, scores[0]), group, np.random.default_rng(0), draws=2000
    )
    assert (one.low, one.high) == pytest.approx((drawn.low, drawn.high), abs=0.01)


def test_delong_refuses_a_class_of_one_patient():
    """Two images of one patient are one look at the class."""
    y, group = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3])
    with pytest.raises(ValueError, match=r"in two patients; got .* patients of 0 and 1 \[3, 1\]"):
        delong(y, np.arange(5.0)[None], group=group)


@pytest.mark.parametrize("call", [auroc_interval, lambda y, s: paired_delong(y, s, s)])
@pytest.mark.parametrize("y", [[0] * 6, [1] * 6, [0, 1, 2, 0, 1, 2]])
def test_delong_refuses_one_class_and_more_than_two(call, y):
    """For everything built on it."""
    with pytest.raises(ValueError, match="needs labels 0 and 1"):
        call(np.array(y), np.arange(6.0))


def test_a_perfect_head_has_an_exact_lower_bound():
    """Matched pairs, k of them, are all ordered rightly with chance A^k: at the bound, 2.5 %."""
    y = np.repeat([0, 1], [30, 20])
    one, wrong = auroc_interval(y, y * 1.0), auroc_interval(y, -1.0 * y)
    assert one.high == 1
    assert one.low**20 == pytest.approx(0.025)
    assert (wrong.low, wrong.high) == pytest.approx((0, 1 - one.low))
    # Ten patients of both classes make five pairs of ten different patients.
    both = np.tile([0, 1], 10)
    by_patient = auroc_interval(both, both * 1.0, group=np.repeat(np.arange(10), 2))
    assert by_patient.low**5 == pytest.approx(0.025)


def test_the_bound_of_a_perfect_head_is_seldom_too_high():
    """Of heads whose true area is below the bound, under 2.5 % look perfect."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 8)
    bound = auroc_interval(y, y * 1.0).low
    shift = norm.ppf(bound) * np.sqrt(2)  # two unit Gaussians with this area
    s = rng.normal(size=(4000, 16)) + shift * y
    perfect = (s[:, 8:].min(axis=1) > s[:, :8].max(axis=1)).mean()
    assert perfect <= 0.025


@pytest.mark.parametrize("n", [2, 10])
def test_heads_without_spread_are_as_sure_as_so_many_pairs(n):
    """Perfect against always wrong: a coin is perfect on n pairs once in 2 to the n."""
    y = np.repeat([0, 1], n)
    found, p = paired_delong(y, y * 1.0, -1.0 * y)
    assert (found.estimate, found.high, p) == (1.0, 1.0, 2 * 0.5**n)
    least = bound_of_one(y, np.arange(2 * n))
    assert found.low == pytest.approx(least)  # beside the perfect one nothing was seen to lack
    alike, p = paired_delong(y, y * 1.0, y * 2.0)
    assert (p, alike.estimate) == (1.0, 0.0)
    assert (alike.low, alike.high) == pytest.approx((least - 1, 1 - least))


def test_one_patient_of_both_classes_bounds_nothing():
    """Its images may be alike for reasons of its own."""
    assert bound_of_one(np.array([0, 1]), np.array(["p", "p"])) == 0


def test_a_side_on_which_no_image_is_ordered_better_is_not_closed():
    """One head errs on a pair, the other nowhere: DeLong's variance, and what was not seen."""
    y = np.repeat([0, 1], 20)
    perfect = y + np.linspace(0, 0.5, 40)
    other = np.where(np.arange(40) == 20, 0.1, perfect)
    found, p = paired_delong(y, perfect, other)
    half = norm.isf(0.025) * found.estimate / norm.isf(p / 2)
    assert found.high == pytest.approx(found.estimate + half)
    room = 1 - bound_of_one(y, np.arange(40))
    assert found.low == pytest.approx(found.estimate - np.hypot(half, room))


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_equals_mlstatkit(seed):
    """On random data with ties; their z is second minus first."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 80)
    a, b = np.round(rng.normal(size=80) + y, 1), np.round(rng.normal(size=80) + 0.5 * y, 1)
    z, p, *_, area_a, area_b, info = Delong_test(y, a, b)
    found, own_p = paired_delong(y, a, b)
    assert info["method"] == "delong"
    assert found.estimate == pytest.approx(area_a - area_b)
    assert own_p == pytest.approx(p)
    assert np.sign(found.estimate) == -np.sign(z)


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
    np.testing.assert_allclose(found[0], v10.mean(1))
    np.testing.assert_allclose(found[1], np.cov(v10) / 15 + np.cov(v01) / 25)


def test_swapping_two_heads_flips_signs_and_order_changes_nothing():
    """Which head is called the first decides the sign alone."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 80)
    a, b = rng.normal(size=80) + y, rng.normal(size=80) + 0.5 * y
    (one, p), (two, _) = paired_delong(y, a, b), paired_delong(y, b, a)
    assert (one.estimate, one.low, one.high) == pytest.approx((-two.estimate, -two.high, -two.low))
    order = rng.permutation(80)
    assert paired_delong(y[order], a[order], b[order])[1] == pytest.approx(p)


def test_an_interval_of_an_area_stays_inside_zero_and_one():
    """Even where the area is nearly one."""
    y = np.r_[np.ones(20, int), np.zeros(20, int)]
    found = auroc_interval(y, np.r_[np.arange(20) + 5.0, np.arange(20) - 14.0])
    assert 0 < found.low < found.estimate < found.high < 1
