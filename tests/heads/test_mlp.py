"""The perceptron: torch's own training, the exercise's head, and nothing left behind."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn

from pipeline.heads import mlp
from pipeline.heads.mlp import MLPHead, _scale
from pipeline.parallel import run_each
from pipeline.randomness import stream
from tests.made_up import made_up_rows


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
