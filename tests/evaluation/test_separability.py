"""How well a label can be predicted from other patients' rows, and how sure that is."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge

from pipeline.data.domain import DomainData
from pipeline.data.patients import patient_folds
from pipeline.errors import StudyError
from pipeline.evaluation.separability import domain_auc, ridge_scorer, separability

#: Patients, features, classes, whether a patient has one to five images that are alike.
NOISE = [(60, 8, 2, False), (60, 8, 2, True), (60, 400, 2, False)]
#: More of them, for the slow run.
MORE_NOISE = [
    *NOISE,
    *((60, 8, 3, False), (400, 8, 2, True), (160, 8, 3, True)),
    *((160, 1280, 2, True), (400, 1280, 2, False)),
]


def drawn(rng, patients, width, classes=2, *, clustered=False, effect=0.0):
    """Features, labels, patients; ``effect`` sd in one feature is all that shows the last class."""
    sizes = rng.integers(1, 6, patients) if clustered else np.ones(patients, int)
    group = np.repeat(np.arange(patients), sizes)
    label = rng.integers(0, classes, patients)[group]
    own, shared = rng.normal(size=(group.size, width)), rng.normal(size=(patients, width))
    features = np.sqrt(0.5) * (own + shared[group]) if clustered else own
    features[:, 0] += effect * (label == classes - 1)
    return features, label, group


def covers(result, truth=0.5):
    """Whether the interval holds the truth."""
    return result.auc.low <= truth <= result.auc.high


def domains(features, is_target, label, group=None):
    """Source and target."""
    group = np.arange(len(label)) if group is None else group
    return (
        DomainData(
            name=name, role=name, group=group[rows], label=label[rows], features=features[rows]
        )
        for name, rows in (("source", ~is_target), ("target", is_target))
    )


@pytest.mark.parametrize(
    ("size", "repeats", "draws", "least", "most"),
    [
        *((size, 200, 199, 0.885, 0.99) for size in NOISE),
        *(pytest.param(size, 500, 399, 0.92, 0.985, marks=pytest.mark.slow) for size in MORE_NOISE),
    ],
)
def test_the_interval_of_noise_covers_one_half(size, repeats, draws, least, most):
    """In 95 % of samples, to within their luck (99.9 % band), and p rejects at its level."""
    *shape, clustered = size
    rng = np.random.default_rng(sum(size))
    results = [
        separability(*drawn(rng, *shape, clustered=clustered), draws=draws) for _ in range(repeats)
    ]
    assert least <= np.mean([covers(result) for result in results]) <= most
    assert abs(np.mean([result.auc.estimate for result in results]) - 0.5) < 0.025
    low, high = np.array(binom.interval(0.999, repeats, 0.05)) / repeats
    assert low <= np.mean([result.p <= 0.05 for result in results]) <= high


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
    results = [
        separability(*drawn(rng, patients, 8, effect=effect), draws=199) for _ in range(repeats)
    ]
    truth = np.mean([result.auc.estimate for result in results])
    assert np.mean([covers(result, truth) for result in results]) >= least
    assert np.mean([result.auc.high - result.auc.low for result in results]) <= widest


@pytest.mark.parametrize(
    ("label", "group", "pairs"),
    [
        (np.repeat([0, 1], 10), np.arange(20), 10),
        (np.repeat([0, 1], 200), np.arange(400), 200),
        (np.repeat([0, 1], [30, 20]), np.arange(50), 20),
        # Ten patients of both classes make five pairs of ten different patients.
        (np.tile([0, 1], 10), np.repeat(np.arange(10), 2), 5),
        # Six times a sixth is not 1.
        (np.repeat(np.arange(6), 10), np.arange(60), 10),
    ],
)
def test_a_perfect_auc_has_an_exact_bound_that_grows_with_the_patients(label, group, pairs):
    """So many pairs are all ordered rightly with chance A^pairs: at the bound, 2.5 %."""
    result = separability(np.eye(label.max() + 1)[label], label, group)
    assert result.auc.estimate == result.auc.high == 1
    assert result.auc.low**pairs == pytest.approx(0.025)
    assert result.p <= 2 / 500


def test_four_patients_prove_nothing():
    """Chance separates two and two patients too often: the interval reaches down."""
    rows = np.array([[0.0], [0.0], [1.0], [1.0]])
    auc = separability(rows, np.array([0, 0, 1, 1]), np.arange(4)).auc
    assert auc.low < 0.5 < auc.high


def test_another_scanner_shows_inside_each_class_and_another_class_mix_does_not():
    """Overall alone would confuse the two."""
    rng = np.random.default_rng(4)
    is_target, label = np.arange(300) >= 200, rng.integers(0, 2, 300)
    features = rng.normal(size=(300, 10)) + 2 * is_target[:, None]
    overall, by_class = domain_auc(*domains(features, is_target, label))
    assert min(result.auc.estimate for result in (overall, *by_class)) > 0.9
    is_target = np.arange(600) >= 300
    label = (rng.random(600) < np.where(is_target, 0.9, 0.2)).astype(int)
    features = rng.normal(size=(600, 4)) + 3 * label[:, None]
    overall, by_class = domain_auc(*domains(features, is_target, label))
    assert overall.auc.estimate > 0.75
    assert all(covers(inside) for inside in by_class)


def test_a_class_missing_from_a_domain_has_no_auc():
    """None, not a number from one patient."""
    rng = np.random.default_rng(6)
    is_target = np.arange(80) >= 40
    label = np.where(is_target, 0, np.arange(80) % 2)
    _, by_class = domain_auc(*domains(rng.normal(size=(80, 3)), is_target, label))
    assert by_class[0] is not None
    assert by_class[1] is None


def test_patients_are_not_learned_by_heart():
    """Patients whose images are alike and share a label say nothing about other patients."""
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(60), 5)
    label = rng.integers(0, 2, 60)[group]
    features = rng.normal(size=(60, 30))[group] + 0.01 * rng.normal(size=(300, 30))
    auc = separability(features, label, group).auc
    assert auc.low < 0.5
    assert auc.estimate < 0.6  # of images it would be 1


def test_what_cannot_be_predicted_is_refused():
    """NaN and a class of one patient are named."""
    features, label = np.ones((6, 1)), np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(StudyError, match="NaN or infinity"):
        separability(features * np.nan, label, np.arange(6))
    with pytest.raises(StudyError, match="two patients each"):
        separability(features, label, np.array([0, 1, 2, 3, 3, 3]))
    with pytest.raises(StudyError, match="two patients each"):
        domain_auc(*domains(features, label == 1, label, group=np.zeros(6)))


@pytest.mark.parametrize("width", [7, 120], ids=["n>d", "n<d"])
def test_ridge_scores_equal_refitting_every_fold_of_every_labelling(width):
    """The closed form is the ridge fitted anew without the fold, to 1e-10."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, width)) * rng.uniform(0.1, 10, width) + 5
    labels = rng.random((60, 4)) < 0.4
    folds = patient_folds(None, np.arange(60) // 2, seed=3)
    X = (features - features.mean(0)) / features.std(0) / np.sqrt(width)
    refitted = np.empty(labels.shape)
    for fit, out in folds:
        refitted[out] = X[out] @ Ridge(alpha=1).fit(X[fit], labels[fit]).coef_.T
    np.testing.assert_allclose(ridge_scorer(features, folds)(labels), refitted, atol=1e-10)
