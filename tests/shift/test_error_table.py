"""The error table: patients are the units, unknown steps say so, heads fitted again are heads."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import agresti_coull
from pipeline.randomness import stream
from pipeline.shift.decompose import decompose, dominant
from pipeline.shift.domains import fit_source
from pipeline.shift.error_table import CHAIN, TRANSFER, error_table, fill_table, refit
from tests.shift.worlds import clustered_errors, outcomes

# --- from outcomes alone


def some_wrong(n, errors, role="source"):
    """Rows of which the first are wrong, a patient each."""
    return outcomes(np.arange(n) < errors, role=role)


def table_of(*, training=8, new=20, target=70, trained=None, **rest):
    """A table of 400 images a domain with so many errors."""
    rows = {
        "source_training": some_wrong(400, training),
        "source_new_patients": some_wrong(400, new),
        "target": some_wrong(400, target, "target"),
    }
    if trained is not None:
        rows["target_trained"] = some_wrong(400, trained, "target")
    return fill_table(rows, draws=300, **rest)


def test_every_step_leads_from_one_error_to_the_next():
    """All errors and a human level give the chain and the two parts of the mismatch."""
    table = table_of(trained=44, human=0.01)
    steps = {name: step.estimate for name, step in table.steps.items()}
    assert steps == pytest.approx(
        {
            "avoidable_bias": 0.01,
            "variance": 0.03,
            "mismatch": 0.125,
            "target_hardness": 0.06,
            "transfer_gap": 0.065,
        }
    )
    assert not table.not_identifiable
    assert next(iter(table.errors)) == "human"
    assert sum(table.steps[name].largest for name in CHAIN) == pytest.approx(1)
    assert sum(table.steps[name].largest for name in TRANSFER) == pytest.approx(1)
    error = table.errors["source_new_patients"]
    assert (error.low, error.high) == pytest.approx(agresti_coull(20, 400))
    assert (error.method, error.images, error.patients) == ("Agresti-Coull", 400, 400)


def test_what_nobody_knows_has_a_reason_and_no_number():
    """Without a person's error and a head of the target, those steps are not 0 but missing."""
    table = table_of()
    assert set(table.steps) == {"variance", "mismatch"}
    assert set(table.not_identifiable) == {"avoidable_bias", *TRANSFER}
    assert table.not_identifiable["avoidable_bias"] == "no human error is given"
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
    step = fill_table({"source_new_patients": source, "target": target}, seed=4).steps["mismatch"]
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
        rows = {"source_new_patients": source, "target": target}
        step = fill_table(rows, seed=int(rng.integers(1 << 30)), draws=10).steps["mismatch"]
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
    for seed in range(300):
        rows = {
            "source_new_patients": outcomes(rng.random(200) < error),
            "target": outcomes(rng.random(10) < error, role="target"),
        }
        step = fill_table(rows, seed=seed, draws=10).steps["mismatch"]
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


@pytest.fixture(scope="module")
def target(model):
    """The same world with the first feature turned round."""
    features = two_classes(np.random.default_rng(6), 160)
    features[:, 0] *= -1
    return model.scored(labelled(features, "target"))


def test_a_batch_of_heads_equals_single_fits(model):
    """A head of the batch is the head fitted alone with the same weights of the rows."""
    refits = refit(model, np.random.default_rng(0), count=5)
    wrong = refits.wrong(model.standard, model.data.label)
    for weights, errs in zip(refits.weights, wrong, strict=True):
        assert weights.reshape(-1, 4).std(axis=1).max() == 0  # whole patients
        alone = model.fit(model.standard, model.data.label, weights).predict(model.standard)
        np.testing.assert_array_equal(errs, alone != model.data.label)


def test_a_reversed_feature_does_not_transfer(model, target):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    table = error_table(model, target, refits=refit(model, np.random.default_rng(0)), seed=1)
    assert table.steps["transfer_gap"].low > 0
    assert table.steps["target_hardness"].low < 0
    assert dominant(table.steps.values(), "error table") == "mismatch"
    for step in table.steps.values():
        assert step.refit_low < step.estimate < step.refit_high
    parts = sum(table.steps[name].estimate for name in TRANSFER)
    assert parts == pytest.approx(table.steps["mismatch"].estimate)
    assert table.errors["source_training"].estimate < table.errors["target"].estimate
    assert error_table(model, target).steps["mismatch"].refit_low is None


def one_by_one(domain, refits, rows, label):
    """Whether scikit-learn's head, fitted to each draw's repeated rows, errs on some rows."""
    wrong = []
    for weights in refits.weights:
        drawn = np.repeat(np.arange(len(weights)), weights.astype(int))
        alone = LogisticRegression(C=domain.inverse_penalty, tol=1e-8, max_iter=1000)
        alone.fit(domain.standard[drawn], domain.data.label[drawn])
        wrong.append(alone.predict(rows) != label)
    return np.array(wrong)


def test_refitted_steps_equal_a_loop_over_single_heads(model, target):
    """Heads of both domains, each scored on the patients left out, by the slow way round."""
    refits = refit(model, np.random.default_rng(0), count=25)
    table = error_table(model, target, refits=refits, seed=1)
    own = fit_source(target)
    again = refit(own, stream("heads of the target", 1), count=25)
    assert not np.array_equal(again.weights.sum(axis=1), refits.weights.sum(axis=1))
    left_out = {}
    for name, domain, drawn in (("source", model, refits), ("target", own, again)):
        wrong = one_by_one(domain, drawn, domain.standard, domain.data.label)
        pairs = zip(wrong, drawn.weights, strict=True)
        left_out[name] = np.array([errs[counts == 0].mean() for errs, counts in pairs])
    moved = one_by_one(model, refits, model.standardise(target.features), target.label)
    steps = {
        "target_hardness": left_out["target"] - left_out["source"],
        "transfer_gap": moved.mean(axis=1) - left_out["target"],
    }
    for name, values in steps.items():
        half = 1.959964 * values.std(ddof=1)
        found = table.steps[name]
        expected = (found.estimate - half, found.estimate + half)
        # The solver stops short of the last digit: an image on the boundary may fall either way.
        assert (found.refit_low, found.refit_high) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("pairs", [15, pytest.param(40, marks=pytest.mark.slow)])
def test_refitted_intervals_hold_what_other_patients_give(pairs):
    """Over many pairs of hospitals each holds the mean step, and is no wider than it must be."""
    found = [transfer_of(seed) for seed in range(pairs)]
    for name in TRANSFER:
        steps = [table.steps[name] for table in found]
        estimates = np.array([step.estimate for step in steps])
        low, high = np.array([(step.refit_low, step.refit_high) for step in steps]).T
        mean = estimates.mean()
        assert ((low <= mean) & (mean <= high)).mean() >= 0.85
        assert 0.7 < (high - low).mean() / (2 * 1.96 * estimates.std()) < 2


def transfer_of(seed):
    """The table of one pair of hospitals, of which one has a feature turned round."""
    rng = np.random.default_rng([41, seed])
    first, second = (two_classes(rng, 120, width=8, apart=1.2) for _ in range(2))
    second[:, 0] *= -1
    model = fit_source(labelled(first, "source", images=2))
    target = model.scored(labelled(second, "target", images=2))
    return error_table(model, target, refits=refit(model, rng), seed=seed)


def test_sealed_labels_fill_no_table(model, target):
    """The message names the domain."""
    with pytest.raises(StudyError, match="needs the labels of target"):
        error_table(model, target.sealed())


def test_a_target_of_one_class_has_no_head_of_its_own(model, target):
    """The steps that need one are missing, with their reason."""
    table = error_table(model, target.take(target.label == 0))
    assert set(TRANSFER) <= set(table.not_identifiable)
