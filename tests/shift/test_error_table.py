"""The error table: patients are units, unknown steps say so, heads of few are compared with few."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import agresti_coull
from pipeline.shift.decompose import decompose, dominant
from pipeline.shift.domains import INVERSE_PENALTY, fit_source, standardised
from pipeline.shift.error_table import (
    CHAIN,
    FewPatients,
    error_table,
    fill_table,
    fit_few_patients,
    with_transfer,
)
from tests.shift.worlds import clustered_errors, outcomes

TRANSFER = ("target_hardness", "transfer_gap")

# --- from outcomes alone


def some_wrong(n, errors, role="source"):
    """Rows of which the first are wrong, a patient each."""
    return outcomes(np.arange(n) < errors, role=role)


def table_of(*, training=8, few=None, trained=None, **rest):
    """A table of 400 images a domain: 20 errors on the source, 70 on the target."""
    source, target = some_wrong(400, 20), some_wrong(400, 70, "target")
    table = fill_table(some_wrong(400, training), source, target, draws=300, **rest)
    if few is None:
        return table
    heads = [
        FewPatients(data=data, error=np.where(np.arange(400) < errors, 1.0, 0.0), spread=0.0)
        for data, errors in ((source, few), (target, trained))
    ]
    return with_transfer(table, source, target, few=tuple(heads), draws=300)


def test_every_step_leads_from_one_error_to_the_next():
    """All errors and a human level give the chain and the two parts of the mismatch."""
    table = table_of(few=28, trained=44, human=0.01)
    steps = {name: step.estimate for name, step in table.steps.items()}
    assert steps == pytest.approx(
        {
            "avoidable_bias": 0.01,
            "variance": 0.03,
            "mismatch": 0.125,
            "target_hardness": 0.04,
            "transfer_gap": 0.085,
        }
    )
    assert not table.not_identifiable
    assert list(table.errors)[:1] == ["human"]
    assert list(table.errors)[-1:] == ["target_trained"]
    for division in (CHAIN, TRANSFER):
        assert sum(table.steps[name].largest for name in division) == pytest.approx(1)
    error = table.errors["source_new_patients"]
    assert (error.low, error.high) == pytest.approx(agresti_coull(20, 400))


def test_what_nobody_knows_has_a_reason_and_no_number():
    """Without a person's error that step is not 0 but missing."""
    table = table_of()
    assert set(table.steps) == {"variance", "mismatch"}
    assert table.not_identifiable == {"avoidable_bias": "no human error is given"}
    assert dominant(table.steps.values(), "error table") == "mismatch"


def test_errors_of_one_domain_stay_paired():
    """Two rows with the same errors differ by 0 in every draw."""
    step = table_of(training=20).steps["variance"]
    assert (step.estimate, step.low, step.high) == (0, 0, 0)


def test_the_table_and_the_decomposition_draw_the_same_patients():
    """One number has one interval, wherever it stands."""
    rng = np.random.default_rng(3)
    source = clustered_errors(rng, 90, 0.1)
    target = clustered_errors(rng, 60, 0.3, role="target")
    step = fill_table(source, source, target, seed=4).steps["mismatch"]
    effect = decompose(source, target, seed=4)["accuracy_loss"]
    assert (step.estimate, step.low, step.high) == (effect.estimate, effect.low, effect.high)


def test_an_impossible_human_error_is_refused():
    """It must be a rate."""
    with pytest.raises(StudyError, match="must be a rate"):
        table_of(human=3.0)


def coverage(repeats, *, by_patient):
    """Share of the intervals of ``mismatch`` that hold the truth, 0.15."""
    hits = 0
    for seed in range(repeats):
        rng = np.random.default_rng([8, seed])
        source, target = (
            clustered_errors(rng, patients, rate, role=role)
            for patients, rate, role in ((150, 0.1, "source"), (120, 0.25, "target"))
        )
        if not by_patient:
            source, target = (replace(one, group=np.arange(len(one))) for one in (source, target))
        step = fill_table(source, source, target, draws=10).steps["mismatch"]
        hits += step.low <= 0.15 <= step.high
    return hits / repeats


@pytest.mark.parametrize(
    ("repeats", "band"),
    [(200, (0.89, 0.99)), pytest.param(500, (0.93, 0.97), marks=pytest.mark.slow)],
)
def test_intervals_by_patient_cover_and_those_by_image_do_not(repeats, band):
    """Patients drawn whole cover at 95 %; images drawn singly do not."""
    assert band[0] <= coverage(repeats, by_patient=True) <= band[1]
    assert coverage(repeats, by_patient=False) < binom.ppf(0.001, repeats, 0.95) / repeats


@pytest.mark.parametrize("error", [0.02, 0.3])
def test_a_step_to_few_patients_covers(error):
    """Ten patients of the target: most often none errs, and the interval holds the truth."""
    rng, held = np.random.default_rng(21), 0
    for _ in range(300):
        source = outcomes(rng.random(200) < error)
        target = outcomes(rng.random(10) < error, role="target")
        step = fill_table(source, source, target, draws=10).steps["mismatch"]
        held += step.low <= 0 <= step.high
    assert held >= 270


# --- with heads


def labelled(features, role, *, images=1):
    """Classes alternate; ``images`` of a patient follow one another."""
    n = len(features)
    return DomainData(
        name=role, role=role, group=np.arange(n) // images, label=np.arange(n) % 2,
        features=features,
    )  # fmt: skip


def two_classes(rng, n, width=12, apart=1.0):
    """Two classes apart in 2 features."""
    return rng.normal(size=(n, width)) + apart * (np.arange(n) % 2)[:, None] * (
        np.arange(width) < 2
    )


@pytest.fixture(scope="module")
def model():
    """Patients of four images."""
    return fit_source(labelled(two_classes(np.random.default_rng(5), 240), "source", images=4))


def test_heads_of_few_patients_equal_a_loop_over_single_heads(model):
    """Each is fitted to whole patients and tested on the others."""
    found = fit_few_patients(model.data, 20, np.random.default_rng(0), heads=5)
    rng, rows, label = np.random.default_rng(0), standardised(model.data.features), model.data.label
    wrong = np.full((5, 240), np.nan)
    for errs in wrong:
        fitted = np.isin(model.data.group, rng.permutation(60)[:20])
        rng.random(240)  # chooses images, of which all are wanted here
        head = LogisticRegression(C=INVERSE_PENALTY, tol=1e-8).fit(rows[fitted], label[fitted])
        errs[~fitted] = head.predict(rows[~fitted]) != label[~fitted]
    tested = np.isfinite(wrong).any(axis=0)
    assert len(found.data) == tested.sum()
    np.testing.assert_allclose(found.error, np.nanmean(wrong[:, tested], axis=0), atol=0.21)
    assert found.error.mean() == pytest.approx(
        np.nanmean(wrong[:, tested], axis=0).mean(), abs=0.005
    )


def test_a_reversed_feature_does_not_transfer(model):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    features = two_classes(np.random.default_rng(6), 240)
    features[:, 0] *= -1
    target = model.scored(labelled(features, "target", images=4))
    steps = error_table(model, target, seed=1).steps
    assert steps["transfer_gap"].low > 0
    assert steps["target_hardness"].low < 0
    parts = sum(steps[name].estimate for name in TRANSFER)
    assert parts == pytest.approx(steps["mismatch"].estimate)


def of_one_hospital(seed, patients, width=20):
    """The table of a target that differs from the source in nothing but its size."""
    rng = np.random.default_rng([41, seed])
    source, target = (
        labelled(two_classes(rng, 2 * n, width, apart=1.5), role, images=2)
        for n, role in ((200, "source"), (patients, "target"))
    )
    model = fit_source(source)
    return error_table(model, model.scored(target), seed=seed).steps


@pytest.mark.parametrize("repeats", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_a_small_target_is_not_called_harder(repeats):
    """Thirty patients of the same hospital: no hardness on average, and seldom in one run.

    Compared with the source's own head, trained on ten times as many, it would be.
    """
    found = [of_one_hospital(seed, 30) for seed in range(repeats)]
    for name in TRANSFER:
        steps = [steps[name] for steps in found]
        estimates = np.array([step.estimate for step in steps])
        assert abs(estimates.mean()) < 3 * estimates.std() / np.sqrt(repeats)
        shown = np.mean([step.low > 0 for step in steps])
        assert shown <= binom.ppf(0.999, repeats, 0.05) / repeats


def test_sealed_labels_fill_no_table(model):
    """The message names the domain."""
    with pytest.raises(StudyError, match="needs the labels of target"):
        error_table(model, model.scored(labelled(model.data.features, "target").sealed()))


def test_a_target_with_few_patients_of_a_class_has_no_heads_of_its_own(model):
    """The steps that need them are missing, with their reason."""
    target = model.scored(labelled(two_classes(np.random.default_rng(6), 160), "target"))
    found = error_table(model, target.take(np.r_[:8, 8:160:2]))
    assert not set(TRANSFER) & set(found.steps)
    assert found.not_identifiable["target_hardness"] == (
        "a class has 4 patients on the target, and 5 are needed to train a head"
    )
