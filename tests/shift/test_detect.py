"""Domain shift is found where it was planted, and nowhere else."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.separability import patient_units, permutation_p, permuted_labels
from pipeline.shift.detect import (
    BANDWIDTHS,
    LEVEL,
    TESTS,
    detect,
    largest_ks,
    median_distance,
    mmd_statistics,
    refuse_hopeless,
    run_tests,
)

REPEATS = [100, pytest.param(500, marks=pytest.mark.slow)]


def probabilities(features):
    """A head that reads the first two features."""
    positive = 1 / (1 + np.exp(-features[:, :2].sum(axis=1)))
    return np.stack([1 - positive, positive], axis=1)


def domain(rng, patients, *, shift=0.0, width=8, clustered=False, first_patient=0, name="source"):
    """Draw one domain; clustered patients have 1 to 5 images and share half the variance."""
    sizes = rng.integers(1, 6, patients) if clustered else np.ones(patients, dtype=int)
    group = np.repeat(np.arange(patients), sizes)
    features = rng.normal(size=(group.size, width))
    if clustered:
        features = np.sqrt(0.5) * (features + rng.normal(size=(patients, width))[group])
    features = features + shift
    return DomainData(
        name=name,
        role=name,
        group=group + first_patient,
        label=(features[:, 0] - shift > 0).astype(np.int64),
        features=features,
        proba=probabilities(features),
    )


def two_domains(rng, n_source=60, n_target=40, *, shift=0.0, **options):
    """Draw a source and a target; the options shape both, the shift only the target."""
    target = domain(
        rng, n_target, shift=shift, first_patient=10_000, name="target", **options
    ).sealed()
    return domain(rng, n_source, **options), target


def found(source, target, **options):
    """Detect with the head above."""
    return detect(source, target, probabilities, **options)


def p_values(source, target, **options):
    """P of each test, in their order."""
    return [row.p for row in run_tests(source, target, **options)]


def same_distribution(repeats, *, by_patient):
    """p-values, shape (repeats, 3), of clustered domains that do not differ."""
    collected = []
    for seed in range(repeats):
        pair = two_domains(np.random.default_rng([11, seed]), 40, 25, clustered=True)
        if not by_patient:
            pair = [
                replace(one, group=np.arange(len(one)) + start)
                for one, start in zip(pair, (0, 10_000), strict=True)
            ]
        collected.append(p_values(*pair, draws=99, seed=seed))
    return np.array(collected)


@pytest.mark.parametrize("repeats", REPEATS)
def test_p_values_are_uniform_when_nothing_shifted(repeats):
    """Patients permuted whole, each test rejects at its level."""
    p = same_distribution(repeats, by_patient=True)
    low, high = np.array(stats.binom.interval(0.999, repeats, LEVEL)) / repeats
    jitter = np.random.default_rng(0).random(p.shape) / 100
    for column, smooth in zip(p.T, (p - jitter).T, strict=True):
        assert low <= np.mean(column <= LEVEL) <= high
        assert stats.kstest(smooth, "uniform").pvalue > 1e-3


def test_permuting_single_images_of_clustered_patients_rejects_too_often():
    """The same data fail when images are permuted as if they were patients."""
    repeats = 150
    p = same_distribution(repeats, by_patient=False)
    high = stats.binom.interval(0.999, repeats, LEVEL)[1] / repeats
    assert (np.mean(p <= LEVEL, axis=0) > high).all()


def test_a_planted_shift_is_found_and_the_controls_behave():
    """All tests reject; two halves of the source do not differ; Holm's factor is three."""
    source, target = two_domains(np.random.default_rng(16), 240, 120, shift=0.6)
    detection = found(source, target, draws=99)
    assert [row.test for row in detection.tests] == list(TESTS)
    for row in detection.tests:
        assert row.p == 0.01
        assert row.p_adjusted == pytest.approx(0.03)
        assert row.p_control > LEVEL
    assert detection.domain_auc.overall.auc.low > 0.7
    assert detection.domain_auc.overall.auc.estimate == detection.tests[1].statistic
    assert len(detection.domain_auc.by_class) == 2


def test_the_planted_control_is_seen_by_the_tests_that_can(monkeypatch):
    """A planted shift of one sd in all features is seen; one of a fortieth of it is not."""
    source, target = two_domains(np.random.default_rng(20), 240, 120)
    for size, seen in ((1.0, True), (0.025, False)):
        monkeypatch.setattr("pipeline.shift.detect._PLANTED_SHIFT", size)
        monkeypatch.setattr("pipeline.shift.detect._PLANTED_SHARE", 1.0)
        rows = found(source, target, draws=99).tests
        assert all((row.p_planted <= LEVEL) == seen for row in rows)


def test_labels_of_the_target_are_not_looked_at():
    """Sealed or turned round, they change nothing."""
    source, target = two_domains(np.random.default_rng(21), 60, 40, shift=0.2)
    turned = target.with_(label=1 - target.predicted())
    assert found(source, target, draws=39) == found(source, turned, draws=39)


def test_a_label_shift_alone_leaves_the_classes_alike():
    """Another class mix is seen overall, and not inside the classes."""
    rng = np.random.default_rng(18)
    parts = []
    for share, name in ((0.3, "source"), (0.8, "target")):
        label = (rng.random(200) < share).astype(np.int64)
        features = rng.normal(size=(200, 5)) + 2 * label[:, None]
        parts.append(
            DomainData(
                name=name,
                role=name,
                group=np.arange(200) + 1000 * (name == "target"),
                label=label,
                features=features,
                proba=np.eye(2)[label],
            )
        )
    detection = found(*parts, draws=99)
    assert detection.tests[1].p == 0.01
    assert all(one.p > LEVEL for one in detection.domain_auc.by_class)


def test_small_domains_are_refused_by_name_and_noted():
    """Below 20 patients the tests of features say why; below 100 silence proves nothing."""
    detection = found(*two_domains(np.random.default_rng(17), 60, 12), draws=39)
    scores, classifier, distances = detection.tests
    assert classifier.refused == "12 patients in a domain, needs 20"
    assert distances.p is distances.p_adjusted is None
    assert scores.p_adjusted == scores.p
    # A control has no more patients than the target: its parts are of 48 and 12.
    assert classifier.p_control is distances.p_planted is None
    assert "absence of evidence" in detection.notes[0]


def test_too_few_patients_to_reject_are_refused():
    """2 against 2 patients can be permuted in 6 ways: no p-value below 1/6, so no test."""
    with pytest.raises(StudyError, match=r"2 source and 2 target patients .* 6 ways"):
        refuse_hopeless(2, 2, 999)
    with pytest.raises(StudyError, match=r"^3 source and 1 target patient can be permuted in 4 "):
        refuse_hopeless(3, 1, 999)
    with pytest.raises(StudyError, match="at least 19"):
        refuse_hopeless(20, 20, 9)


def test_two_backbones_are_not_compared():
    """Other widths are named."""
    source, target = two_domains(np.random.default_rng(19), 30, 30)
    with pytest.raises(StudyError, match=r"features \(8 and 3\): use one backbone"):
        found(source, replace(target, features=target.features[:, :3]))


def test_the_order_of_rows_changes_nothing():
    """The statistics are the same for shuffled images."""
    rng = np.random.default_rng(5)
    pair = two_domains(rng, shift=0.3, clustered=True)
    shuffled = [one.take(rng.permutation(len(one))) for one in pair]
    for row, other in zip(
        found(*pair, draws=39).tests, found(*shuffled, draws=39).tests, strict=True
    ):
        assert row.statistic == pytest.approx(other.statistic, rel=1e-6)
        assert (row.p, row.test) == (other.p, other.test)


def drawn_labels(rng, n, count):
    """Labels of unequal sizes, as permutations of clustered patients give."""
    return rng.random((n, count)) < 0.4


def test_the_score_distance_is_the_largest_over_the_classes_with_ties():
    """It is scipy's KS distance of the worst class."""
    rng = np.random.default_rng(20)
    for classes in (2, 3):
        proba = rng.dirichlet(np.ones(classes), 80).round(1)
        labels = drawn_labels(rng, 80, 4)
        for column, distance in zip(labels.T, largest_ks(proba, labels), strict=True):
            each = [stats.ks_2samp(c[column], c[~column]).statistic for c in proba.T]
            assert distance == pytest.approx(max(each))


def mean_kernel(a, b, width, *, skip_same):
    """Average a Gaussian kernel over all pairs by a double loop."""
    values = [
        np.exp(-((x - y) @ (x - y)) / (2 * width**2))
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if not (skip_same and i == j)
    ]
    return np.mean(values)


@pytest.mark.parametrize("tile", [5, 512])
def test_mmd_equals_a_double_loop(tile):
    """With patients of several images, and whatever the tiles."""
    rng = np.random.default_rng(1)
    unit = rng.permutation(np.repeat(np.arange(8), [1, 2, 3, 4, 2, 1, 3, 3]))
    features = rng.normal(size=(19, 3))
    labels = permuted_labels(unit >= 4, unit, draws=3, seed=0)
    rows = features - features.mean(axis=0)
    rows /= np.sqrt(np.mean(rows**2))
    statistics, median = mmd_statistics(features, labels, unit, tile=tile), median_distance(rows)
    for column, label in enumerate(labels.T):
        a, b = rows[label], rows[~label]
        for row, factor in enumerate(BANDWIDTHS):
            width = factor * median
            within = mean_kernel(a, a, width, skip_same=True)
            within += mean_kernel(b, b, width, skip_same=True)
            expected = within - 2 * mean_kernel(a, b, width, skip_same=False)
            assert statistics[row, column] == pytest.approx(expected, abs=1e-12)


def test_the_mmd_test_takes_the_largest_standard_score_of_the_bandwidths():
    """Observed and permuted labels are scored alike."""
    source, target = two_domains(np.random.default_rng(6), shift=0.3, clustered=True)
    is_target = np.repeat([False, True], [len(source), len(target)])
    unit = patient_units(is_target, np.concatenate([source.group, target.group]))
    labels = permuted_labels(is_target, unit, draws=39, seed=0)
    features = np.concatenate([source.features, target.features])
    scores = stats.zscore(mmd_statistics(features, labels, unit), axis=1).max(axis=0)
    row = run_tests(source, target, draws=39)[2]
    assert row.statistic == pytest.approx(scores[0])
    assert row.p == permutation_p(scores)


@pytest.mark.slow
def test_twenty_thousand_rows_need_no_square_matrix():
    """MMD of 20,000 images stays far below the 1.6 GB of a float32 n x n matrix."""
    rng = np.random.default_rng(21)
    features, is_target = rng.normal(size=(20_000, 64)), np.arange(20_000) >= 16_000
    unit = patient_units(is_target, np.arange(20_000))
    labels = permuted_labels(is_target, unit, draws=49, seed=0)
    tracemalloc.start()
    statistics = mmd_statistics(features + 0.05 * is_target[:, None], labels, unit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6
    assert permutation_p(statistics[0]) == pytest.approx(0.02)
