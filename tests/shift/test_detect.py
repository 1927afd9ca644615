"""Domain shift is found where it was planted, and nowhere else."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist

import pipeline.shift.detect as detect_module
from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.separability import permuted_labels
from pipeline.shift.detect import (
    BANDWIDTHS,
    LEVEL,
    TESTS,
    ShiftTest,
    detect,
    images_differ,
    largest_ks,
    mmd_statistics,
)


def probabilities(features):
    """A head that reads the first two features."""
    positive = 1 / (1 + np.exp(-features[:, :2].sum(axis=1)))
    return np.stack([1 - positive, positive], axis=1)


def domain(rng, patients, *, shift=0.0, clustered=False, first_patient=0):
    """Eight features; clustered patients have 1 to 5 images and share half the variance."""
    sizes = rng.integers(1, 6, patients) if clustered else np.ones(patients, dtype=int)
    group = np.repeat(np.arange(patients), sizes)
    features = rng.normal(size=(group.size, 8))
    if clustered:
        features = np.sqrt(0.5) * (features + rng.normal(size=(patients, 8))[group])
    return DomainData(
        name="x",
        role="source",
        group=group + first_patient,
        features=features + shift,
        proba=probabilities(features + shift),
    )


def two_domains(rng, n_source=60, n_target=40, *, shift=0.0, **options):
    """Draw a source and a target; the options shape both, the shift only the target."""
    target = domain(rng, n_target, shift=shift, first_patient=10_000, **options)
    return domain(rng, n_source, **options), target


@pytest.mark.parametrize("repeats", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_p_values_are_uniform_when_nothing_shifted(repeats):
    """Patients permuted whole, each test rejects at its level; of clustered images too."""
    collected = []
    for seed in range(repeats):
        pair = two_domains(np.random.default_rng([11, seed]), 40, 25, clustered=True)
        collected.append([test.p for test in detect(*pair, draws=99, seed=seed)[0]])
    p = np.array(collected)
    low, high = np.array(stats.binom.interval(0.999, repeats, LEVEL)) / repeats
    jitter = np.random.default_rng(0).random(p.shape) / 100
    for column, smooth in zip(p.T, (p - jitter).T, strict=True):
        assert low <= np.mean(column <= LEVEL) <= high
        assert stats.kstest(smooth, "uniform").pvalue > 1e-3


def test_a_shift_is_found_without_the_labels_of_the_target():
    """All tests reject, and the AUC of the domain classifier is that of its test."""
    source, target = two_domains(np.random.default_rng(16), 240, 120, shift=0.6)
    tests, auc = detect(source, target, draws=99)
    assert [test.name for test in tests] == list(TESTS)
    for test in tests:
        assert test.p == 0.01
        assert test.p_adjusted == pytest.approx(0.03)  # Holm's factor is three
    assert images_differ(tests) is None
    assert auc.low > 0.7
    assert auc.estimate == tests[1].statistic
    turned = target.with_(label=1 - target.predicted())  # labels are not looked at
    assert detect(source, turned, draws=99) == (tests, auc)


@pytest.mark.parametrize(
    ("p", "differ"),
    [((0.01, 0.9), True), ((0.03, 0.9), None), ((0.3, 0.9), False), ((0.3, None), None)],
)
def test_images_differ_where_a_test_is_sure_and_do_not_where_none_has_a_hint(p, differ):
    """Between the two nothing is said; neither where a test was refused."""
    assert images_differ([ShiftTest(name="x", p_adjusted=value) for value in p]) is differ


def test_small_domains_are_refused():
    """Below 20 patients the tests of features say why; 4 patients have too few permutations."""
    with pytest.raises(StudyError, match="2 source and 2 target patients .* 6 ways"):
        detect(*two_domains(np.random.default_rng(17), 2, 2))
    (scores, *others), _ = detect(*two_domains(np.random.default_rng(17), 60, 12), draws=39)
    assert scores.p_adjusted == scores.p
    for test in others:
        assert test.refused == "a domain has 12 patients, and 20 are needed"
        assert test.p is test.p_adjusted is None


@pytest.mark.parametrize("classes", [2, 3])
def test_the_score_distance_is_the_largest_over_the_classes_with_ties(classes):
    """It is scipy's KS distance of the worst class."""
    rng = np.random.default_rng(20)
    proba, labels = rng.dirichlet(np.ones(classes), 80).round(1), rng.random((80, 4)) < 0.4
    for column, distance in zip(labels.T, largest_ks(proba, labels), strict=True):
        each = [stats.ks_2samp(c[column], c[~column]).statistic for c in proba.T]
        assert distance == pytest.approx(max(each))


def mean_kernel(a, b, width):
    """Average a Gaussian kernel over all pairs of different images by a double loop."""
    return np.mean(
        [np.exp(-((x - y) @ (x - y)) / (2 * width**2)) for x in a for y in b if x is not y]
    )


@pytest.mark.parametrize("tile", [5, 512])
def test_mmd_equals_a_double_loop(monkeypatch, tile):
    """With patients of several images, and whatever the tiles."""
    rng = np.random.default_rng(1)
    unit = rng.permutation(np.repeat(np.arange(8), [1, 2, 3, 4, 2, 1, 3, 3]))
    features = rng.normal(size=(19, 3))
    labels = permuted_labels(unit >= 4, unit, draws=3, seed=0)
    rows = features - features.mean(axis=0)
    rows /= np.sqrt(np.mean(rows**2))
    monkeypatch.setattr(detect_module, "_TILE", tile)
    statistics, median = mmd_statistics(features, labels, unit), np.median(pdist(rows))
    for column, label in enumerate(labels.T):
        a, b = list(rows[label]), list(rows[~label])
        for row, factor in enumerate(BANDWIDTHS):
            width = factor * median
            expected = sum(mean_kernel(x, x, width) for x in (a, b)) - 2 * mean_kernel(a, b, width)
            assert statistics[row, column] == pytest.approx(expected, abs=1e-12)
