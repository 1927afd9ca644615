"""What can be told from what should not tell it: how well, and how sure that is."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.errors import StudyError
from pipeline.shift.probes import _interval, label_probe, source_prediction, weighted_auc

#: Patients, features, classes, whether a patient has one to five images that are alike.
NOISE = [
    pytest.param(60, 8, 2, False, id="60"),
    pytest.param(160, 8, 2, True, id="160 clustered"),
    pytest.param(60, 8, 3, False, id="60, three classes"),
    pytest.param(60, 1280, 2, False, id="60, wide"),
]
#: More of them, for the slow run.
MORE_NOISE = [
    *NOISE,
    pytest.param(160, 8, 2, False, id="160"),
    pytest.param(400, 8, 2, False, id="400"),
    pytest.param(400, 8, 2, True, id="400 clustered"),
    pytest.param(160, 8, 3, True, id="160 clustered, three classes"),
    pytest.param(160, 1280, 2, False, id="160, wide"),
    pytest.param(160, 1280, 2, True, id="160 clustered, wide"),
    pytest.param(400, 1280, 2, False, id="400, wide"),
]


def drawn(rng, patients, width, classes=2, *, clustered=False, effect=0.0):
    """Facts, labels and patients; ``effect`` sd in one fact is all that tells the last class."""
    sizes = rng.integers(1, 6, patients) if clustered else np.ones(patients, int)
    groups = np.repeat(np.arange(patients), sizes)
    labels = rng.integers(0, classes, patients)[groups]
    own, shared = rng.normal(size=(groups.size, width)), rng.normal(size=(patients, width))
    facts = np.sqrt(0.5) * (own + shared[groups]) if clustered else own
    facts[:, 0] += effect * (labels == classes - 1)
    return facts, labels, groups


def covers(probe, truth=0.5):
    """Whether the interval holds the truth."""
    return probe.low <= truth <= probe.high


def noise_probes(repeats, draws, *size, clustered):
    """Probes of samples in which labels say nothing."""
    rng = np.random.default_rng(sum(size))
    return [
        label_probe(*drawn(rng, *size, clustered=clustered), draws=draws) for _ in range(repeats)
    ]


@pytest.mark.parametrize(("patients", "width", "classes", "clustered"), NOISE)
def test_the_interval_of_noise_covers_one_half(patients, width, classes, clustered):
    """E-T3: in 95 % of samples, to within the luck of 200 of them (99.9 % band)."""
    found = noise_probes(200, 199, patients, width, classes, clustered=clustered)
    assert 0.885 <= np.mean([covers(probe) for probe in found]) <= 0.99
    assert abs(np.mean([probe.auc for probe in found]) - 0.5) < 0.025


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "width", "classes", "clustered"), MORE_NOISE)
def test_the_interval_of_noise_covers_one_half_in_many_samples(patients, width, classes, clustered):
    """E-T3: 92 to 98.5 % of 500 samples, and p-values reject at their level."""
    found = noise_probes(500, 399, patients, width, classes, clustered=clustered)
    assert 0.92 <= np.mean([covers(probe) for probe in found]) <= 0.985
    # The 99.9 % band of a binomial, as for every test of level 5 %.
    assert 0.022 <= np.mean([probe.p <= 0.05 for probe in found]) <= 0.084


@pytest.mark.parametrize(
    ("patients", "effect", "widest"),
    [(60, 2.0, 0.21), (160, 0.5, 0.26), (160, 2.0, 0.11), (160, 3.0, 0.05)],
)
@pytest.mark.parametrize(
    ("repeats", "least"), [(60, 0.85), pytest.param(500, 0.9, marks=pytest.mark.slow)]
)
def test_the_interval_of_a_signal_covers_it_and_is_narrow(patients, effect, widest, repeats, least):
    """The mean AUC of all samples is covered, by intervals that say something."""
    rng = np.random.default_rng(11)
    found = [
        label_probe(*drawn(rng, patients, 8, effect=effect), draws=199) for _ in range(repeats)
    ]
    truth = np.mean([probe.auc for probe in found])
    assert np.mean([covers(probe, truth) for probe in found]) >= least
    assert np.mean([probe.high - probe.low for probe in found]) <= widest


def test_a_perfect_probe_has_a_bound_that_grows_with_the_patients():
    """No error seen in 10 patients of a class allows for some; in 200, for hardly any."""
    few, many = (
        label_probe(np.repeat([[0.0], [1.0]], n, axis=0), np.repeat([0, 1], n), np.arange(2 * n))
        for n in (10, 200)
    )
    assert few.auc == few.high == many.auc == 1
    assert 0.5 < few.low < 0.8
    assert 0.95 < many.low < 1
    assert many.p == pytest.approx(1 / 500)


@pytest.mark.parametrize("classes", [6, 10])
def test_a_perfect_probe_of_many_classes_has_a_bound_too(classes):
    """Rounding of a mean over the classes hides it from no count of them."""
    labels = np.repeat(np.arange(classes), 10)
    found = label_probe(np.eye(classes)[labels], labels, np.arange(labels.size))
    assert found.auc == found.high == 1
    assert 0.5 < found.low < 0.8


def test_a_probe_that_is_always_wrong_mirrors_one_that_is_always_right():
    """Of the interval too."""
    rng = np.random.default_rng(12)
    seen = np.full(200, 0.5) + 0.1 * rng.normal(size=200)
    for auc in (0.0, 0.3, 1.0):
        null, resampled = np.r_[auc, seen, 1 - seen], auc + 0.05 * rng.normal(size=50)
        low, high = _interval(null, resampled)
        mirror = np.r_[1 - auc, 1 - seen, seen]
        assert _interval(mirror, 1 - resampled) == pytest.approx((1 - high, 1 - low))


def test_four_patients_prove_nothing():
    """Chance tells two and two patients apart too often: the interval reaches down."""
    found = label_probe(
        np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]), np.arange(4)
    )
    assert found.low < 0.5 < found.high


def test_another_scanner_is_predicted_inside_each_class():
    """Source prediction is high overall and in both classes when the images differ."""
    rng = np.random.default_rng(4)
    target, classes = np.arange(300) >= 200, rng.integers(0, 2, 300)
    features = rng.normal(size=(300, 10)) + 2 * target[:, None]
    found = source_prediction(features, target, np.arange(300), classes)
    assert found.overall.auc > 0.9
    assert min(probe.auc for probe in found.by_class) > 0.9


def test_another_class_mix_is_predicted_overall_only():
    """Inside a class there is nothing to tell, so the AUC stays near one half."""
    rng = np.random.default_rng(5)
    target = np.arange(600) >= 300
    classes = (rng.random(600) < np.where(target, 0.9, 0.2)).astype(int)
    features = rng.normal(size=(600, 4)) + 3 * classes[:, None]
    found = source_prediction(features, target, np.arange(600), classes)
    assert found.overall.auc > 0.75
    assert all(probe.low < 0.5 < probe.high for probe in found.by_class)


def test_a_class_missing_from_a_domain_has_no_source_prediction():
    """None, not a number from one patient."""
    rng = np.random.default_rng(6)
    target = np.arange(80) >= 40
    classes = np.where(target, 0, np.arange(80) % 2)
    found = source_prediction(rng.normal(size=(80, 3)), target, np.arange(80), classes)
    assert found.by_class[0] is not None
    assert found.by_class[1] is None


def test_a_planted_marker_is_found_by_the_probe_and_noise_is_not():
    """E-T2, E-T3: facts that give the label away score high; others cover one half."""
    rng = np.random.default_rng(7)
    labels, groups = rng.integers(0, 2, 240), np.arange(240) // 2
    noise = rng.normal(size=(240, 4))
    marked = noise.copy()
    marked[:, 2] += 4 * labels
    found, nothing = (label_probe(facts, labels, groups) for facts in (marked, noise))
    assert found.auc > 0.95
    assert found.low > 0.9
    assert nothing.low < 0.5 < nothing.high


def test_the_probe_does_not_learn_patients_by_heart():
    """Patients whose images are alike and share a label tell nothing about other patients."""
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(60), 5)
    labels = rng.integers(0, 2, 60)[groups]
    facts = rng.normal(size=(60, 30))[groups] + 0.01 * rng.normal(size=(300, 30))
    found = label_probe(facts, labels, groups)
    assert found.low < 0.5
    assert found.auc < 0.6  # of images it would be 1


def test_probes_of_three_classes_average_one_against_the_rest():
    """A fact that tells one of three classes scores between chance and 1."""
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 3, 300)
    facts = rng.normal(size=(300, 2)) + 5 * (labels == 2)[:, None]
    found = label_probe(facts, labels, np.arange(300))
    assert 0.75 < found.auc < 0.9


def test_probes_refuse_what_they_cannot_judge():
    """NaN and a class of one patient are named."""
    facts, labels = np.ones((6, 1)), np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(StudyError, match="NaN or infinity"):
        label_probe(facts * np.nan, labels, np.arange(6))
    with pytest.raises(StudyError, match="two patients each"):
        label_probe(facts, labels, np.array([0, 1, 2, 3, 3, 3]))
    with pytest.raises(StudyError, match="two patients each"):
        source_prediction(facts, labels == 1, np.zeros(6), labels)


def test_weighted_auc_equals_repeating_the_rows():
    """A row that counts three times is three rows; ties count one half."""
    rng = np.random.default_rng(10)
    scores, positive = rng.normal(size=40).round(1), rng.random(40) < 0.5
    weights = rng.integers(0, 4, (40, 200))
    for column, area in zip(weights.T, weighted_auc(scores, positive, weights), strict=True):
        expected = roc_auc_score(np.repeat(positive, column), np.repeat(scores, column))
        assert area == pytest.approx(expected)
    assert np.isnan(weighted_auc(scores, positive, positive[:, None].astype(int))).all()
