"""Heads against independent implementations: scikit-learn, torch, and refits by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize
from torch import nn

from pipeline.heads import base, mlp
from pipeline.heads.closed_form import (
    DiscriminantHead,
    PrototypeHead,
    RidgeHead,
    _held_out_cosines,
    _ridge,
    _ridge_path,
    discriminant_path,
)
from pipeline.heads.logistic import fit_weighted
from pipeline.heads.mlp import MLPHead, _scale
from pipeline.parallel import run_each
from pipeline.randomness import stream
from tests.made_up import made_up_rows

PENALTIES = np.array([0.3, 5.0, 200.0])


@pytest.fixture(params=[(60, 9), (25, 70)], ids=["tall", "wide"])
def targets(request):
    """Features and one-hot labels of three classes."""
    n, d = request.param
    rng = np.random.default_rng(n + d)
    y = rng.integers(0, 3, n)
    return rng.normal(size=(n, d)) + 2 + 0.7 * np.eye(3, d)[y], np.eye(3)[y]


def test_the_path_is_scikit_learns_ridge_one_penalty_at_a_time(targets):
    """To 1e-8, with more rows than columns and with fewer; so is one penalty by itself."""
    X, Y = targets
    coefs, intercepts, _ = _ridge_path(X, Y, PENALTIES, np.arange(len(X)))
    for penalty, *path in zip(PENALTIES, coefs, intercepts, strict=True):
        oracle = Ridge(alpha=penalty).fit(X, Y)
        for coef, intercept in (path, _ridge(X, Y, penalty)):
            np.testing.assert_allclose(coef.T, oracle.coef_, atol=1e-8)
            np.testing.assert_allclose(intercept, oracle.intercept_, atol=1e-8)


@pytest.mark.parametrize("grouped", [False, True])
def test_held_out_scores_are_those_of_a_refit_without_the_group(targets, grouped):
    """Leave one row out, and leave one patient of one to four rows out: exact to 1e-8."""
    X, Y = targets
    n = len(X)
    group = np.random.default_rng(0).integers(0, n // 2, n) if grouped else np.arange(n)
    *_, held_out = _ridge_path(X, Y, PENALTIES, group)
    for p, penalty in enumerate(PENALTIES):
        for one in np.unique(group):
            out = group == one
            refit = Ridge(alpha=penalty).fit(X[~out], Y[~out])
            np.testing.assert_allclose(held_out[p, out], refit.predict(X[out]), atol=1e-8)


def test_the_penalty_is_chosen_with_patients_held_out():
    """Images of a patient that are nearly the same must not vouch for each other."""
    rng = np.random.default_rng(3)
    X = np.repeat(rng.normal(size=(40, 60)), 4, 0) + 0.05 * rng.normal(size=(160, 60))
    y = np.repeat(np.arange(40) % 2, 4)  # nothing to learn but the patients themselves
    heads = RidgeHead().fit(X, y, np.repeat(np.arange(40), 4)), RidgeHead().fit(X, y)
    patients, images = (head.calibration_.loss for head in heads)
    assert patients > 0.6 > images


@pytest.mark.parametrize(("n", "d", "classes"), [(200, 12, 2), (60, 90, 2), (150, 20, 4)])
def test_the_discriminant_equals_scikit_learns(n, d, classes, monkeypatch):
    """Probabilities, with more features than rows too, block by block, several at once.

    The features are correlated and far from zero, and one never varies.
    """
    monkeypatch.setattr(base, "_BLOCK", 7 * d)
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    X = (rng.normal(size=(n, d)) + 0.5 * np.eye(classes, d)[y]) @ rng.normal(size=(d, d))
    X = (X + 9 * rng.normal(size=d)).astype(np.float32)
    X[:, -1] = 2.5
    heads = [DiscriminantHead(shrinkage=shrinkage) for shrinkage in (0.5, 1.0, "auto")]
    found = discriminant_path(heads, X, y, X)
    for ours, shrinkage in zip(found, (0.5, 1.0), strict=False):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        expected = theirs.fit(X.astype(np.float64), y).predict_proba(X.astype(np.float64))
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    means = np.stack([X[y == k].mean(axis=0, dtype=np.float64) for k in range(classes)])
    scale = (X - means[y]).std(axis=0)
    scale[-1] = 1
    correlation, _ = ledoit_wolf((X - means[y]) / scale, assume_centered=True)
    coef = np.linalg.solve(correlation * np.outer(scale, scale), means.T)
    scores = X @ coef + np.log(np.bincount(y) / n) - (means.T * coef).sum(axis=0) / 2
    np.testing.assert_allclose(found[2], softmax(scores, axis=1), atol=1e-6)


def test_rows_without_spread_are_an_error_and_no_answer():
    """A covariance of zeros cannot be solved."""
    y = np.arange(10) % 2
    with pytest.raises(np.linalg.LinAlgError):
        DiscriminantHead().fit(np.repeat(y[:, None], 3, axis=1), y)


def test_prototypes_are_scikit_learns_nearest_centroids_of_unit_rows():
    """And the class is the one whose mean has the highest cosine."""
    rows = made_up_rows(3, n=90, d=7, gap=1.0)
    ours = PrototypeHead().fit(rows.features, rows.label)
    theirs = NearestCentroid().fit(normalize(rows.features.astype(np.float64)), rows.label)
    np.testing.assert_allclose(ours.means_, theirs.centroids_, atol=1e-9)
    cosines = cosine_similarity(rows.features.astype(np.float64), theirs.centroids_)
    np.testing.assert_array_equal(ours.predict(rows.features), cosines.argmax(1))


def test_held_out_cosines_are_those_of_a_refit_without_the_patient():
    """Own rows move no mean that they are compared with; a class of one patient has none."""
    rows = made_up_rows(3, n=90, d=7, gap=1.0)
    X, y = rows.features.astype(np.float64), rows.label
    group = np.where(y == 0, 99, np.random.default_rng(1).integers(0, 40, len(X)))
    unit = normalize(X)
    share = np.eye(3)[y] / np.linalg.norm(X, axis=1)[:, None]
    found = _held_out_cosines(rows.features, share, (X.T @ share).T, group)
    for one in np.unique(group):
        out = group == one
        for k in range(3):
            left = unit[~out & (y == k)]
            expected = cosine_similarity(unit[out], [left.mean(0)])[:, 0] if len(left) else np.nan
            np.testing.assert_allclose(found[out, k], expected, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_fits_are_scikit_learns_one_at_a_time(classes):
    """Weights of a bootstrap, rows without weight among them; a class without rows is refused."""
    rows = made_up_rows(classes, gap=1.0)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=30)
    fits = fit_weighted(rows.features, rows.label, C=0.1, weights=weights)
    found = fits.proba(rows.features)
    assert found.shape == (30, len(rows), classes)
    for v in (0, 7, 29):
        exact = LogisticRegression(C=0.1, tol=1e-9, max_iter=10_000)
        exact.fit(rows.features.astype(np.float64), rows.label, sample_weight=weights[v])
        np.testing.assert_allclose(found[v], exact.predict_proba(rows.features), atol=2e-3)
        (alone,) = fits.proba(rows.features, slice(v, v + 1))
        np.testing.assert_allclose(alone, found[v], atol=1e-6)
    weights[1, rows.label == 0] = 0
    with pytest.raises(ValueError, match="weighting 1 leaves a class without rows"):
        fit_weighted(rows.features, rows.label, C=0.1, weights=weights)


# The perceptron: torch's own training, the exercise's head, and nothing left behind.


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("depth", "classes"), [(1, 2), (2, 2), (1, 3)])
def test_training_equals_torch_with_the_same_draws(depth, classes, library, monkeypatch):
    """With the head's own draws, torch.nn, autograd and AdamW end at the same weights.

    The arrays are numpy's, or torch's as on CUDA. In 15 steps the sums are rescaled three times.
    """
    monkeypatch.setattr(mlp, "_RESCALED", 4)
    if library == "torch":
        monkeypatch.setattr(mlp, "_arrays", lambda: (torch, torch.as_tensor))
    rows = made_up_rows(classes, n=70, d=6, gap=1.0)
    head = MLPHead(
        hidden=8, depth=depth, epochs=3, batch_size=16, learning_rate=1e-2, weight_decay=0.05,
        random_state=7,
    ).fit(rows.features, rows.label)  # fmt: skip
    layers = _torch_training(head, rows.features, rows.label, classes)
    for (weights, bias), layer in zip(head.layers_, layers, strict=True):
        np.testing.assert_allclose(weights, layer.weight.detach().numpy().T, atol=1e-5)
        np.testing.assert_allclose(bias, layer.bias.detach().numpy(), atol=1e-5)


def test_cuda_is_for_this_process_and_not_for_its_workers(monkeypatch):
    """Each worker would hold a context of its own on the device."""
    monkeypatch.setattr(mlp.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # so that it may fork

    def library():
        return mlp._arrays()[0].__name__

    assert library() == "torch"
    assert run_each([library], limit=60) == ["numpy"]


def _torch_training(head, features, label, classes):
    rng = stream("mlp", head.random_state)
    widths = [features.shape[1], *[head.hidden] * head.depth, classes]
    layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
    for layer in layers:
        bound = layer.in_features**-0.5
        for parameter in (layer.weight, layer.bias):
            drawn = rng.uniform(-bound, bound, tuple(parameter.shape))
            parameter.data = torch.tensor(drawn.astype(np.float32))
    optimiser = torch.optim.AdamW(
        [p for layer in layers for p in layer.parameters()],
        lr=head.learning_rate,
        weight_decay=head.weight_decay,
    )
    X, y = torch.tensor(features), torch.tensor(label)
    for _ in range(head.epochs):
        order = rng.permutation(len(X))
        drawn = [rng.integers(0, 256, (len(X), head.hidden), np.uint8) for _ in layers[1:]]
        kept = [torch.tensor((m >= 128) * np.float32(2)) for m in drawn]
        for start in range(0, len(X), head.batch_size):
            at = order[start : start + head.batch_size]
            h = X[at]
            for layer, mask in zip(layers, kept, strict=False):
                h = layer(h).relu() * mask[start : start + head.batch_size]
            optimiser.zero_grad()
            nn.functional.cross_entropy(layers[-1](h), y[at]).backward()
            optimiser.step()
    return layers


def test_the_default_schedule_is_as_good_as_the_exercises():
    """Of 30 epochs in batches of 32: within noise."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    X = (rng.normal(size=(600, 20)) + 0.5 * np.eye(2, 20)[y]).astype(np.float32)
    heads = MLPHead(), MLPHead(epochs=30, batch_size=32, learning_rate=1e-3)
    ours, theirs = (head.fit(X[:400], y[:400]).score(X[400:], y[400:]) for head in heads)
    assert ours == pytest.approx(theirs, abs=0.06)


def test_validation_rows_are_noted_and_reach_no_weight():
    """A value for each epoch; loss falls, accuracy rises on rows that can be learnt."""
    rows, other = made_up_rows(gap=1.0), made_up_rows(gap=1.0, seed=9)
    head = MLPHead(epochs=20)
    blind = MLPHead(epochs=20).fit(rows.features, rows.label)
    head.fit(rows.features, rows.label, (other.features, other.label))
    assert {len(curve) for curve in head.curves_.values()} == {20}
    assert head.curves_["fit_loss"][-1] < head.curves_["fit_loss"][0]
    p = head.predict_proba(other.features)[np.arange(len(other)), other.label]
    assert head.curves_["validation_loss"][-1] == pytest.approx(-np.log(p).mean())
    assert set(head.curves_) - set(blind.curves_) == {"validation_loss", "validation_accuracy"}
    np.testing.assert_array_equal(head.layers_[0][0], blind.layers_[0][0])


def test_the_schedule_grows_with_the_rows():
    """About 90 steps in all as long as a step is no more than 1024 rows; what is given is kept."""
    assert MLPHead().schedule(100) == (29, 32, 4e-4)
    assert MLPHead().schedule(1600) == (7, 128, 4e-4)
    assert MLPHead().schedule(50_000) == pytest.approx((7, 1024, 4e-4 * 8**0.5))
    assert MLPHead().schedule(1600, classes=4) == (14, 128, 8e-4)
    assert MLPHead(epochs=7, batch_size=5, learning_rate=0.1).schedule(100) == (7, 5, 0.1)


def test_several_classes_are_learnt_as_well_as_two():
    """Ten digits: without a rate that grows with the classes it is right in .92."""
    X, y = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    assert MLPHead().fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.94


def test_dropout_keeps_the_share_that_it_says():
    """Also a share that is no multiple of 1/256 keeps the expectation exact."""
    drawn = np.random.default_rng(0).integers(0, 256, (500, 400), np.uint8)
    mask = _scale(drawn, 0.3)
    assert (mask > 0).mean() == pytest.approx(0.7, abs=0.005)
    assert mask.mean() == pytest.approx(1.0, abs=0.01)
