"""The error table: patients are units, unknown steps say so, heads of few are compared with few."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from pipeline.errors import StudyError
from pipeline.shift.decompose import decompose, dominant
from pipeline.shift.domains import INVERSE_PENALTY, fit_source
from pipeline.shift.error_table import error_table, fit_few_patients
from tests.shift.worlds import embedded

TRANSFER = ("target_hardness", "transfer_gap")


def two_classes(rng, n, *, width=12, apart=1.0, images=4):
    """Two classes apart in 2 features."""
    label = np.arange(n) // images % 2
    return rng.normal(size=(n, width)) + apart * label[:, None] * (np.arange(width) < 2)


@pytest.fixture(scope="module")
def model():
    """Patients of four images."""
    return fit_source(embedded(two_classes(np.random.default_rng(5), 240), images=4))


@pytest.fixture(scope="module")
def reversed_target(model):
    """The source's hospital with one feature turned round."""
    features = two_classes(np.random.default_rng(6), 240)
    features[:, 0] *= -1
    return model.scored(embedded(features, role="target", images=4))


def table_of(model, target, **options):
    """With the model's head of the whole source."""
    training = model.scored(model.data)
    return error_table(model.data, target, source=model.data, training=training, **options)


def test_every_step_leads_from_one_error_to_the_next(model, reversed_target):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    table = table_of(model, reversed_target, human=0.01, seed=1)
    level = {name: error.estimate for name, error in table.errors.items()}
    steps = table.steps
    assert list(level) == [
        "human", "source_training", "source_new_patients", "source_few_patients", "target",
        "target_trained",
    ]  # fmt: skip
    for step, start, end in (
        ("avoidable_bias", "human", "source_training"),
        ("variance", "source_training", "source_new_patients"),
        ("mismatch", "source_new_patients", "target"),
        ("target_hardness", "source_few_patients", "target_trained"),
    ):
        assert steps[step].estimate == pytest.approx(level[end] - level[start])
    parts = sum(steps[name].estimate for name in TRANSFER)
    assert parts == pytest.approx(steps["mismatch"].estimate)
    assert sum(steps[name].largest for name in TRANSFER) == pytest.approx(1)
    assert dominant(steps.values(), "transfer") == "transfer_gap"
    assert steps["target_hardness"].low < 0
    assert not table.not_identifiable
    # One number has one interval, wherever it stands.
    loss = decompose(model.data, reversed_target, seed=1)["accuracy_loss"]
    assert (steps["mismatch"].low, steps["mismatch"].high) == (loss.low, loss.high)


def test_heads_of_few_patients_equal_a_loop_over_single_heads(model):
    """Each is fitted to whole patients and tested on the others."""
    tested, error, _ = fit_few_patients(model.data, 20, np.random.default_rng(0), heads=5)
    features, label = model.data.features, model.data.label
    rng, rows = np.random.default_rng(0), (features - features.mean(0)) / features.std(0)
    wrong = np.full((5, 240), np.nan)
    for errs in wrong:
        fitted = np.isin(model.data.group, rng.permutation(60)[:20])
        rng.random(240)  # chooses images, of which all are wanted here
        head = LogisticRegression(C=INVERSE_PENALTY, tol=1e-8).fit(rows[fitted], label[fitted])
        errs[~fitted] = head.predict(rows[~fitted]) != label[~fitted]
    assert np.array_equal(tested, np.isfinite(wrong).any(axis=0))
    expected = np.nanmean(wrong[:, tested], axis=0)
    np.testing.assert_allclose(error, expected, atol=0.21)
    assert error.mean() == pytest.approx(expected.mean(), abs=0.005)


def of_one_hospital(seed, patients):
    """The steps of a target that differs from the source in nothing but its size."""
    rng = np.random.default_rng([41, seed])
    source, target = (
        embedded(two_classes(rng, 2 * n, width=20, apart=1.5, images=2), role=role, images=2)
        for n, role in ((200, "source"), (patients, "target"))
    )
    model = fit_source(source)
    return table_of(model, model.scored(target), seed=seed).steps


@pytest.mark.parametrize("repeats", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_small_target_is_not_called_harder(repeats):
    """Thirty patients of the same hospital: no hardness on average, and seldom in one run.

    Compared with the source's own head, trained on ten times as many, it would be.
    """
    tables = [of_one_hospital(seed, 30) for seed in range(repeats)]
    for name in TRANSFER:
        estimates = np.array([steps[name].estimate for steps in tables])
        assert abs(estimates.mean()) < 3 * estimates.std() / np.sqrt(repeats)
        shown = np.mean([steps[name].low > 0 for steps in tables])
        assert shown <= binom.ppf(0.999, repeats, 0.05) / repeats


def test_what_cannot_be_filled_in_has_a_reason(model):
    """Few patients of a class, sealed labels."""
    target = model.scored(
        embedded(two_classes(np.random.default_rng(6), 160, images=1), role="target")
    )
    table = table_of(model, target.take(np.r_[:8, 8:160:2]))
    assert not set(TRANSFER) & set(table.steps)
    assert table.not_identifiable == {
        "avoidable_bias": "no human error is given",
        "target_hardness": "a class has 4 patients on the target, and 5 are needed to train a head",
    }
    with pytest.raises(StudyError, match="needs the labels of target"):
        table_of(model, target.sealed())
