"""Domain shift is found where it was planted, and nowhere else."""

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import StudyError
from pipeline.shift.detect import (
    FAST,
    PRIMARY,
    DetectionSettings,
    detect,
    detect_with_controls,
)
from pipeline.shift.domains import Cohort, compare, split_by_patient
from pipeline.shift.kernels import place
from pipeline.shift.permute import PermutationPlan, p_value, relabel, standard_score
from pipeline.shift.ridge_test import folds_of, ridge_draws

ALPHA = 0.05
REPEATS = [100, pytest.param(500, marks=pytest.mark.slow)]


def cohort(rng, n_patients, *, shift=0.0, width=8, clustered=False, first_patient=0):
    """Draw one domain; clustered patients have 1 to 5 images and share half the variance."""
    sizes = rng.integers(1, 6, n_patients) if clustered else np.ones(n_patients, dtype=int)
    patients = np.repeat(np.arange(n_patients), sizes)
    own = rng.normal(size=(patients.size, width))
    if clustered:
        own = np.sqrt(0.5) * (own + rng.normal(size=(n_patients, width))[patients])
    features = own + shift
    positive = 1 / (1 + np.exp(-features[:, :2].sum(axis=1)))
    return Cohort(
        features=features,
        probabilities=np.stack([1 - positive, positive], axis=1),
        groups=patients + first_patient,
    )


def two_cohorts(rng, n_source=60, n_target=40, **options):
    """Draw a source and a target; the options shape both, the shift only the target."""
    plain = {key: value for key, value in options.items() if key != "shift"}
    return cohort(rng, n_source, **plain), cohort(rng, n_target, first_patient=10_000, **options)


def primary_p_values(source, target, plan):
    """Return the p-values of the primary family, in its order."""
    pair = compare(source, target, plan)
    draws = {}
    for kind in ("scores", "ridge", "kernels"):
        draws |= FAST[kind](pair)
    return [p_value(draws[name]) for name in PRIMARY]


def same_distribution_p_values(repeats, *, by_patient):
    """Return p-values, shape (repeats, 3), of clustered domains that do not differ."""
    found = []
    for seed in range(repeats):
        pair = two_cohorts(np.random.default_rng([11, seed]), 40, 25, clustered=True)
        if not by_patient:
            n = [len(c.groups) for c in pair]
            pair = (
                replace(pair[0], groups=np.arange(n[0])),
                replace(pair[1], groups=np.arange(n[1]) + n[0]),
            )
        found.append(primary_p_values(*pair, PermutationPlan(draws=99, seed=seed)))
    return np.array(found)


@pytest.mark.parametrize("repeats", REPEATS)
def test_p_values_are_uniform_when_nothing_shifted(repeats):
    """B-T1: patients relabelled whole, each test of the family rejects at its level."""
    p_values = same_distribution_p_values(repeats, by_patient=True)
    low, high = np.array(stats.binom.interval(0.999, repeats, ALPHA)) / repeats
    jitter = np.random.default_rng(0).random(p_values.shape) / 100
    for column, smooth in zip(p_values.T, (p_values - jitter).T, strict=True):
        assert low <= np.mean(column <= ALPHA) <= high
        assert stats.kstest(smooth, "uniform").pvalue > 1e-3


def test_relabelling_single_images_of_clustered_patients_rejects_too_often():
    """B-T1: the same data fail when images are permuted as if they were patients."""
    repeats = 150
    p_values = same_distribution_p_values(repeats, by_patient=False)
    high = stats.binom.interval(0.999, repeats, ALPHA)[1] / repeats
    assert (np.mean(p_values <= ALPHA, axis=0) > high).all()


def test_power_grows_with_the_shift_and_with_the_patients():
    """B-T3: each primary test finds larger shifts, and the same shift in more patients."""

    def mean_effect(n, shift):
        pairs = [
            compare(
                *two_cohorts(np.random.default_rng([s, n]), n, n, shift=shift),
                PermutationPlan(draws=99),
            )
            for s in range(8)
        ]
        draws = [FAST["scores"](p) | FAST["ridge"](p) | FAST["kernels"](p) for p in pairs]
        return np.array([np.mean([standard_score(d[name]) for d in draws]) for name in PRIMARY])

    none, small, large = (mean_effect(80, shift) for shift in (0.0, 0.25, 0.5))
    assert (none < small).all()
    assert (small < large).all()
    assert (mean_effect(30, 0.5) < large).all()


def every_draw(source, target, kinds):
    """Return all statistics of some measures, by name."""
    pair = compare(source, target, PermutationPlan(draws=49))
    return {name: draws for kind in kinds for name, draws in FAST[kind](pair).items()}


def mapped(pair, change):
    """Apply a map to the features of both cohorts."""
    return [replace(c, features=change(c.features)) for c in pair]


def test_rotating_the_features_changes_no_distance_measure():
    """B-T6: kernel, neighbour and Frechet measures see distances only."""
    rng = np.random.default_rng(3)
    pair = two_cohorts(rng, shift=0.3)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    kinds = ("kernels",)
    before = every_draw(*pair, kinds)
    after = every_draw(*mapped(pair, lambda rows: rows @ rotation), kinds)
    for name, draws in before.items():
        np.testing.assert_allclose(after[name], draws, rtol=1e-6, atol=1e-9, err_msg=name)


def test_scaling_each_feature_changes_nothing_for_the_classifier():
    """B-T6: the ridge test standardises, so units do not matter."""
    rng = np.random.default_rng(4)
    pair = two_cohorts(rng, shift=0.3)
    scale = rng.uniform(0.01, 100, 8)
    before = every_draw(*pair, ("ridge",))
    after = every_draw(*mapped(pair, lambda rows: rows * scale + 3), ("ridge",))
    for name, draws in before.items():
        np.testing.assert_allclose(after[name], draws, rtol=1e-6, err_msg=name)


def test_the_order_of_rows_changes_nothing():
    """B-T6: every measure gives the same draws for shuffled images."""
    rng = np.random.default_rng(5)
    pair = two_cohorts(rng, shift=0.3, clustered=True)
    shuffled = [c.take(rng.permutation(len(c.groups))) for c in pair]
    kinds = tuple(FAST)
    before, after = every_draw(*pair, kinds), every_draw(*shuffled, kinds)
    for name, draws in before.items():
        np.testing.assert_allclose(after[name], draws, rtol=1e-6, atol=1e-9, err_msg=name)


def test_too_few_patients_to_reject_are_refused():
    """2 against 2 patients can be relabelled in 6 ways: no p-value below 1/6, so no test."""
    with pytest.raises(StudyError, match=r"2 source and 2 target patients .* 6 ways"):
        relabel(np.array([0, 0, 1, 1], bool), np.arange(4), PermutationPlan())
    with pytest.raises(StudyError, match="at least 19"):
        relabel(np.arange(40) < 20, np.arange(40), PermutationPlan(draws=9))


def test_a_patient_in_both_domains_counts_once_in_each():
    """The test still runs on a leaky split, with the observed labels as they are."""
    target = np.arange(40) >= 20
    made = relabel(target, np.r_[np.arange(20), np.arange(20)], PermutationPlan(draws=20))
    assert (made.n_source, made.n_target) == (20, 20)
    assert np.array_equal(made.labels[:, 0], target)


def test_relabelling_keeps_patients_whole_and_their_number():
    """All images of a patient change sides together; as many patients stay on each side."""
    groups = np.repeat(np.arange(20), np.arange(20) % 4 + 1)
    made = relabel(groups >= 12, groups, PermutationPlan(draws=50))
    for patient in range(20):
        rows = made.labels[groups == patient]
        assert (rows == rows[0]).all()
    one_row_each = np.unique(groups, return_index=True)[1]
    assert (made.labels[one_row_each].sum(axis=0) == 8).all()
    assert (made.n_source, made.n_target) == (12, 8)


def test_detection_finds_a_planted_shift_and_its_controls_behave():
    """All primary tests reject the shift; their null twins do not, their positive twins do."""
    rng = np.random.default_rng(16)
    source, target = two_cohorts(rng, 240, 120, shift=0.6)
    labels = (source.features[:, 0] > 0).astype(int)
    found = detect_with_controls(
        replace(source, labels=labels),
        target,
        lambda rows: np.stack([rows[:, 0] < 0, rows[:, 0] >= 0], axis=1).astype(float),
        DetectionSettings(plan=PermutationPlan(draws=99), control_shift=1.0, control_share=1.0),
    )
    rows = {finding.name: (finding, null, positive) for finding, null, positive in found.rows()}
    for name in PRIMARY:
        finding, null, positive = rows[name]
        assert finding.p == 0.01
        assert finding.p_holm == pytest.approx(0.03)
        assert null.p > ALPHA
        assert positive.p == 0.01
        assert len(finding.null) == 99


def test_small_domains_are_refused_by_name_and_noted():
    """Below 20 patients classifier and kernel say why; below 100 silence proves nothing."""
    source, target = two_cohorts(np.random.default_rng(17), 30, 12)
    found = detect(source, target, DetectionSettings(plan=PermutationPlan(draws=39)))
    assert found.findings["ridge_c2st"].refused == "12 patients in a domain, needs 20"
    assert found.findings["mmd_aggregated"].p is None
    assert found.findings["bbsd_ks"].p_holm == found.findings["bbsd_ks"].p
    assert "absence of evidence" in found.notes[0]


def test_cohorts_refuse_what_cannot_be_compared():
    """Ragged arrays, NaN and two backbones are named when they enter."""
    good = cohort(np.random.default_rng(19), 30)
    with pytest.raises(StudyError, match="'groups': 29"):
        replace(good, groups=np.arange(29))
    with pytest.raises(StudyError, match="hold NaN"):
        replace(good, features=np.full_like(good.features, np.nan))
    narrow = replace(good, features=good.features[:, :3])
    with pytest.raises(StudyError, match=r"\(8 and 3\): use one backbone"):
        compare(good, narrow, PermutationPlan())


def test_splitting_keeps_patients_whole():
    """A share of patients is chosen with all their images."""
    groups = np.repeat(np.arange(10), 3)
    chosen = split_by_patient(groups, np.random.default_rng(0), 0.3)
    assert chosen.sum() == 9
    assert np.intersect1d(groups[chosen], groups[~chosen]).size == 0


@pytest.mark.slow
def test_twenty_thousand_rows_need_no_square_matrix():
    """B3, B4 and B8 of 20,000 images stay far below the 1.6 GB of a float32 n x n matrix."""
    rng = np.random.default_rng(21)
    pair = two_cohorts(rng, 16_000, 4_000, shift=0.05, width=64)
    tracemalloc.start()
    found = every_draw(*pair, ("ridge", "kernels"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6
    assert p_value(found["ridge_c2st"]) == pytest.approx(0.02)


@pytest.mark.slow
def test_the_ridge_test_is_fast():
    """2000 x 1280 features and 999 exact refits take at most 4 s on two quiet cores."""
    rng = np.random.default_rng(22)
    features = rng.normal(size=(2000, 1280)).astype(np.float32)
    made = relabel(np.arange(2000) >= 1600, np.arange(2000), PermutationPlan())
    start = time.perf_counter()
    ridge_draws(features, made.labels, folds_of(made.units, 0), place())
    assert time.perf_counter() - start <= 4
