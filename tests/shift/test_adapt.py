"""Adaptation methods repair what they claim to repair, and make worse what they cannot."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipeline.heads.logistic import make_logistic
from pipeline.shift.adapt import (
    ADAPTERS,
    SETTINGS,
    coral_map,
    transport_map,
)
from pipeline.shift.head import INVERSE_PENALTY, fit_source
from tests.shift import worlds
from tests.shift.worlds import embedded

FEW_LABELS = "50 labels a class"


def model_of(world, rows=1600):
    """The model of a world's source, four rows a patient."""
    source, label = world.source[:rows], world.source_labels[:rows]
    return fit_source(embedded(source, label=label, images=4))


def adapted(name, model, target):
    """Probabilities of the target by a method that was adapted to all of it."""
    (predictor,) = ADAPTERS[name](model, target, [np.arange(len(target))])
    return predictor(target)


def accuracies(kind, n_seeds, models):
    """Return the accuracy of every method in percent, by name, averaged over worlds."""
    collected = {name: [] for name in (*ADAPTERS, FEW_LABELS)}
    for seed in range(n_seeds):
        world = worlds.draw(kind, seed)
        truth = world.target_labels
        # Most kinds share the source of a seed, and so what was fitted to it.
        key = world.source.tobytes()
        model = models[key] = models.get(key) or model_of(world)
        for name in ADAPTERS:
            called = adapted(name, model, world.target).argmax(axis=1)
            collected[name].append(np.mean(called == truth))
        shown = np.concatenate([np.flatnonzero(truth == k)[:50] for k in (0, 1)])
        rest = np.setdiff1d(np.arange(len(truth)), shown)
        rows = model.standardise(world.target)
        called = model.fit(rows[shown], truth[shown]).predict(rows[rest])
        collected[FEW_LABELS].append(np.mean(called == truth[rest]))
    return {name: 100 * np.mean(values) for name, values in collected.items()}


@pytest.fixture(scope="module", params=[6, pytest.param(30, marks=pytest.mark.slow)])
def matrix(request):
    """Accuracy in percent by shift and method: the sign matrix of the specification."""
    models = {}
    # 20 features: threads only wait for each other, 17 s against 2 s on a shared machine.
    with threadpool_limits(1):
        return {kind: accuracies(kind, request.param, models) for kind in worlds.KINDS}


def test_nothing_is_lost_where_nothing_shifted(matrix):
    """Without a shift every method stays within 1.5 points of the source-only head."""
    for name in ADAPTERS:
        assert matrix["none"][name] > matrix["none"]["source_only"] - 1.5, name


def test_alignments_repair_an_affine_change_of_each_feature(matrix):
    """Standardising restores what exposure broke; a prior correction makes it worse."""
    row = matrix["affine"]
    for name in ("standardisation", "balanced_standardisation", "coral", "linear_transport"):
        assert row[name] > max(row["source_only"] + 5, row[FEW_LABELS]), name
    assert row["standardisation"] > matrix["none"]["source_only"] - 1
    assert row["prior_shift"] < row["source_only"]


def test_only_whole_covariances_repair_a_mixing_of_features(matrix):
    """CORAL and linear transport beat scaling feature by feature, which beats nothing."""
    row = matrix["mixing"]
    scaling = max(row["standardisation"], row["balanced_standardisation"])
    assert min(row["coral"], row["linear_transport"]) > scaling + 0.5
    assert scaling > row["source_only"] + 0.5 > row["prior_shift"]


@pytest.mark.parametrize("kind", ["label", "affine+label"])
def test_plain_alignment_breaks_under_another_class_mix(matrix, kind):
    """With .50 -> .85 ill patients plain alignments lose 5 to 20 points; the balanced gains."""
    row = matrix[kind]
    for name in ("standardisation", "coral", "linear_transport"):
        assert row[name] < row["source_only"] - 5, name
    assert row["balanced_standardisation"] > row["source_only"] + 1
    if kind == "label":
        assert row["prior_shift"] > row["balanced_standardisation"]
        assert row["standardisation"] < row["source_only"] - 15
    else:
        assert row["balanced_standardisation"] > max(row["prior_shift"], row[FEW_LABELS]) + 3


def test_alignment_makes_a_reversed_shortcut_worse_and_only_labels_help(matrix):
    """Where the shortcut turns round, alignment drags the task along; few labels do not."""
    row = matrix["shortcut"]
    for name in ("balanced_standardisation", "coral", "linear_transport"):
        assert row[name] < row["source_only"] - 2, name
    for name in ("standardisation", "prior_shift"):
        assert abs(row[name] - row["source_only"]) < 2
    assert row[FEW_LABELS] > max(row[name] for name in ADAPTERS) + 8


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_parts_are_adapted_to_as_if_each_were_alone(name):
    """Probabilities of three classes, of more features than rows; a batch changes nothing."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, 60)
    features, target = rng.normal(size=(60, 70)) + label[:, None], rng.normal(size=(25, 70)) + 1
    features[:, 5] = target[:, 5] = 2.0  # a feature that never varies
    model = fit_source(embedded(features.astype(np.float32), label=label, images=2))
    parts = [np.arange(12), np.arange(12, 25), np.arange(0, 25, 2)]
    for part, predictor in zip(parts, ADAPTERS[name](model, target, parts), strict=True):
        proba = predictor(target)
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        assert (proba >= 0).all()
        (alone,) = ADAPTERS[name](model, target[part], [np.arange(len(part))])
        np.testing.assert_allclose(proba, alone(target), atol=2e-3)


def test_importance_weighting_is_a_head_fitted_to_the_flattened_and_clipped_odds():
    """Step by step, with one head fitted after the other."""
    world = worlds.draw("affine", 4)
    model, target = model_of(world, 300), world.target[:100]
    rows, label = model.standardise(target), model.data.label
    domain = np.repeat([0, 1], [300, 100])
    balance = 400 / (2 * np.bincount(domain))
    head = make_logistic(INVERSE_PENALTY)
    classifier = head.fit(np.vstack([model.standard, rows]), domain, balance[domain])
    ratio = np.exp(classifier.decision_function(model.standard)) ** SETTINGS["ratio_exponent"]
    ratio = np.minimum(ratio, np.quantile(ratio, SETTINGS["ratio_clip"]))
    head = make_logistic(INVERSE_PENALTY)
    expected = head.fit(model.standard, label, ratio / ratio.mean()).predict_proba(rows)
    proba = adapted("importance_weighting", model, target)
    np.testing.assert_allclose(proba, expected, atol=2e-3)


def test_both_maps_carry_one_covariance_to_the_other_and_transport_is_that_of_pot():
    """A' Cs A = Ct; the transport is that of an independent library."""
    gaussian = pytest.importorskip("ot.gaussian")
    rng = np.random.default_rng(4)
    Cs, Ct = (np.cov(rng.normal(size=(6, 40))) for _ in range(2))
    for between in (transport_map, coral_map):
        A = between(Cs, Ct)
        np.testing.assert_allclose(A.T @ Cs @ A, Ct, atol=1e-12)
    A, _ = gaussian.bures_wasserstein_mapping(np.zeros(6), np.zeros(6), Cs, Ct)
    np.testing.assert_allclose(transport_map(Cs, Ct), A, atol=1e-12)
