"""Refitted heads and the cells of Ng's table, against the single fits they stand for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pipeline.data.domain import DomainData
from pipeline.data.items import Item
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.evaluation.predictions import TRAINED_PROBABILITIES, Predictions, write_predictions
from pipeline.randomness import stream
from pipeline.shift.domains import Cohort, fit_source
from pipeline.shift.error_table import errors_by_role, refit
from pipeline.shift.fine_tuned import trained_losses


def model_of(features, labels, groups):
    """The model of a labelled domain."""
    return fit_source(
        DomainData(name="source", role="source", group=groups, label=labels, features=features)
    )


@pytest.fixture(scope="module")
def source():
    """Two classes apart in 2 of 12 features; patients of two images."""
    rng = np.random.default_rng(5)
    labels = np.arange(240) % 2
    features = rng.normal(size=(240, 12)) + labels[:, None] * (np.arange(12) < 2)
    return model_of(features, labels, np.arange(240) // 4)


@pytest.fixture(scope="module")
def target(source):
    """The same world with the first feature turned round."""
    rng = np.random.default_rng(6)
    labels = np.arange(160) % 2
    features = rng.normal(size=(160, 12)) + labels[:, None] * (np.arange(12) < 2)
    features[:, 0] *= -1
    proba = source.head.predict_proba(source.standardise(features))
    return Cohort(features=features, probabilities=proba, groups=np.arange(160), labels=labels)


def test_refitted_heads_equal_single_fits(source):
    """A head of the batch is the head fitted alone with the same weights of the rows."""
    refits = refit(source, np.random.default_rng(0), 5)
    wrong = refits.wrong(source.standard, source.data.label)
    for weights, errs in zip(refits.weights, wrong, strict=True):
        assert weights.reshape(-1, 4).std(axis=1).max() == 0  # whole patients
        alone = source.fit(source.standard, source.data.label, weights).predict(source.standard)
        np.testing.assert_array_equal(errs, alone != source.data.label)


def test_a_reversed_feature_is_a_gap_of_transfer(source, target):
    """A head of the target does as well as ever: the loss is transfer, not hardness."""
    found = errors_by_role(source, target, refit(source, np.random.default_rng(0), 60), 1)
    assert found.table.transfer["transfer_gap"].low > 0
    assert found.table.transfer["target_hardness"].low < 0
    assert found.dominant == "mismatch"
    low, high = found.ci_retrain["mismatch"]
    sampling = found.table.chain["mismatch"]
    assert low < sampling.estimate < high
    assert set(found.ci_retrain) == {"variance", "mismatch", "target_hardness", "transfer_gap"}


def one_by_one(domain, refits, rows, labels):
    """Whether scikit-learn's head, fitted to each draw's repeated rows, errs on some rows."""
    wrong = []
    for weights in refits.weights:
        drawn = np.repeat(np.arange(len(weights)), weights.astype(int))
        alone = LogisticRegression(C=domain.inverse_penalty, tol=1e-8, max_iter=1000)
        alone.fit(domain.standard[drawn], domain.data.label[drawn])
        wrong.append(alone.predict(rows) != labels)
    return np.array(wrong)


def test_refitted_steps_of_transfer_equal_a_loop_over_single_heads(source, target):
    """Heads of both domains, each scored on the patients left out, by the slow way round."""
    refits = refit(source, np.random.default_rng(0), 25)
    found = errors_by_role(source, target, refits, 1)
    own = model_of(target.features, target.labels, target.groups)
    again = refit(own, stream("heads of the target", 1), 25)
    assert not np.array_equal(again.weights.sum(axis=1), refits.weights.sum(axis=1))
    left_out = {}
    for name, domain, drawn in (("here", source, refits), ("there", own, again)):
        wrong = one_by_one(domain, drawn, domain.standard, domain.data.label)
        pairs = zip(wrong, drawn.weights, strict=True)
        left_out[name] = np.array([errs[counts == 0].mean() for errs, counts in pairs])
    carried = one_by_one(source, refits, source.standardise(target.features), target.labels)
    steps = {
        "target_hardness": left_out["there"] - left_out["here"],
        "transfer_gap": carried.mean(axis=1) - left_out["there"],
    }
    for name, values in steps.items():
        ends = np.percentile(values - values.mean(), [2.5, 97.5])
        expected = found.table.transfer[name].estimate + ends
        np.testing.assert_allclose(found.ci_retrain[name], expected, atol=1e-12)


def test_heads_of_the_target_move_no_other_number(source, target):
    """The draws of its patients are apart from those of the table."""
    few, more = (
        errors_by_role(source, target, refit(source, np.random.default_rng(0), count), 1)
        for count in (5, 9)
    )
    assert few.table == more.table
    assert few.ci_retrain != more.ci_retrain


def test_refitted_intervals_of_the_transfer_hold_what_other_patients_give():
    """Over many pairs of hospitals each holds the mean step, and is no wider than it must be."""
    found = [transfer_of(seed) for seed in range(40)]
    for name in ("target_hardness", "transfer_gap"):
        estimates = np.array([steps[name].estimate for steps, _ in found])
        low, high = np.array([again[name] for _, again in found]).T
        mean = estimates.mean()
        assert ((low <= mean) & (mean <= high)).mean() >= 0.85
        assert 0.7 < (high - low).mean() / (2 * 1.96 * estimates.std()) < 2


def transfer_of(seed):
    """Steps of one pair of hospitals, and their refitted intervals: a feature is turned round."""
    rng = np.random.default_rng([41, seed])
    labels, groups = np.arange(120) % 2, np.arange(120) // 2
    here, there = rng.normal(size=(2, 120, 8)) + 1.2 * labels[:, None] * (np.arange(8) < 2)
    there[:, 0] *= -1
    source = model_of(here, labels, groups)
    proba = source.head.predict_proba(source.standardise(there))
    target = Cohort(features=there, probabilities=proba, groups=groups, labels=labels)
    found = errors_by_role(source, target, refit(source, rng, 60), seed)
    return found.table.transfer, found.ci_retrain


def test_sealed_labels_fill_no_table(source, target):
    """The message points at what can be said without labels."""
    refits = refit(source, np.random.default_rng(0), 2)
    with pytest.raises(StudyError, match="forecast"):
        errors_by_role(source, replace(target, labels=None), refits, 1)


@pytest.fixture
def kept():
    """A network right on all rows of fit, on 90 % of validation, on 60 % of the target."""
    rng = np.random.default_rng(2)
    n = 300
    label = rng.permutation(np.arange(n) % 2)
    right = rng.random(n) < np.repeat([1.0, 0.9, 0.6], 100)
    called = np.where(right, label, 1 - label)
    proba = np.where(np.arange(2) == called[:, None], 0.8, 0.2).astype(np.float32)
    return Predictions(
        classes=("a", "b"),
        key=rng.integers(0, 256, (n, 32), np.uint8),
        label=label,
        patient=np.arange(n),
        domain=np.repeat(["source", "there"], [200, 100]),
        split=np.repeat(["fit", "validation", "target"], 100),
        proba={("full", 3): proba},
    )


def samples_of(kept):
    """The images that the kept probabilities are of."""
    n = len(kept.label)
    return Samples(
        items=tuple(Item(f"p{i}.png", "x", Path("no.png"), None, (0, 0)) for i in range(n)),
        key=tuple(bytes(key) for key in kept.key),
        label=kept.label,
        group=kept.patient.astype(str),
        domain=kept.domain,
        split=kept.split,
        classes=kept.classes,
    )


def test_trained_networks_are_judged_by_their_kept_probabilities(tmp_path, kept, caplog):
    """Validation against target: the terms add up, and rows that were fitted do not count."""
    samples = samples_of(kept)
    assert trained_losses(tmp_path, samples, ["there"], 0) == ()
    write_predictions(tmp_path / TRAINED_PROBABILITIES, {"tiny": kept})
    (found,) = trained_losses(tmp_path, samples, ["there", "elsewhere"], 0)
    right = kept.proba["full", 3].argmax(axis=1) == kept.label
    assert (found.backbone, found.method, found.seed) == ("tiny", "full", 3)
    assert found.source_accuracy == pytest.approx(right[100:200].mean())
    assert found.target_accuracy == pytest.approx(right[200:].mean())
    assert found.total.low > 0
    terms = sum(term.estimate for term in found.kitagawa.values())
    assert terms == pytest.approx(found.total.estimate)
    assert found.threshold is not None
    assert not caplog.text


@pytest.mark.parametrize("was", ["without labels", "labelled otherwise", "with one more", "source"])
def test_networks_of_other_images_or_labels_are_left_out_and_said(tmp_path, kept, caplog, was):
    """A target that had no labels then, was relabelled, or lost an image; or the source was."""
    there, stays = kept.domain == "there", np.ones(300, bool)
    samples = samples_of(kept)
    if was == "without labels":
        kept = replace(kept, label=np.where(there, -1, kept.label))
    elif was == "labelled otherwise":
        kept = replace(kept, label=np.where(np.arange(300) == 299, 1 - kept.label, kept.label))
    else:
        stays[0 if was == "source" else 299] = False
    write_predictions(tmp_path / TRAINED_PROBABILITIES, {"tiny": kept, "too": kept})
    assert trained_losses(tmp_path, samples.where(stays), ["there"], 0) == ()
    (said,) = caplog.messages
    assert "finetune.h5" in said
    assert "headrace finetune STUDY" in said
    assert ("(source)" if was == "source" else "(there)") in said
