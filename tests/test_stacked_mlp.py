"""A head in a stack is the head alone, and the step is torch's own AdamW."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import pipeline.heads.mlp as stack_module
from pipeline.heads.mlp import MLPSettings, Rows, train_mlps

SHORT = MLPSettings(hidden=8, epochs=3, batch_size=16)
COMPANY = [
    replace(SHORT, seed=1, learning_rate=1e-2),
    replace(SHORT, seed=2, weight_decay=0.1),
    replace(SHORT, seed=3, dropout=0.2),
    replace(SHORT, seed=4, label_smoothing=0.1),
    replace(SHORT, seed=1),
]


def rows(n: int = 70, d: int = 6, classes: int = 2, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return Rows(X=rng.normal(size=(n, d)) + np.eye(classes, d)[y], y=y)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("position", range(len(COMPANY)))
def test_a_head_is_the_same_in_any_company(position, depth):
    """Same seed, same result within 1e-5 in float64, wherever it stands."""
    company = [replace(one, depth=depth) for one in COMPANY]
    alone = train_mlps(rows(), [company[position]])[0]
    together = train_mlps(rows(), company)[position]
    for (w1, b1), (w2, b2) in zip(alone.layers, together.layers, strict=True):
        np.testing.assert_allclose(w1, w2, atol=1e-5)
        np.testing.assert_allclose(b1, b2, atol=1e-5)
    np.testing.assert_allclose(alone.curves["fit_loss"], together.curves["fit_loss"], atol=1e-5)


def test_heads_that_differ_in_anything_differ_in_the_end():
    """Seed, learning rate, weight decay, dropout and smoothing all reach the weights."""
    trained = train_mlps(rows(), [SHORT, *COMPANY])
    first = [one.layers[0][0] for one in trained]
    for i, a in enumerate(first):
        assert all(np.abs(a - b).max() > 1e-6 for b in first[i + 1 :])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("classes", [2, 3])
def test_training_equals_torch_with_the_same_draws(depth, classes):
    """With the head's own draws, torch.nn, autograd and AdamW end at the same weights."""
    # AdamW divides tiny gradients by their own size, so rounding grows to about 1e-8.
    one = replace(SHORT, depth=depth, weight_decay=0.05, label_smoothing=0.1, seed=7)
    fit = rows(classes=classes)
    found = train_mlps(fit, [one])[0]
    layers = _torch_training(one, fit, classes)
    for (weights, bias), layer in zip(found.layers, layers, strict=True):
        np.testing.assert_allclose(weights, layer.weight.detach().numpy().T, atol=1e-6)
        np.testing.assert_allclose(bias, layer.bias.detach().numpy(), atol=1e-6)


def _torch_training(one: MLPSettings, fit: Rows, classes: int) -> list[nn.Linear]:
    widths = [fit.X.shape[1], *[one.hidden] * one.depth, classes]
    layers = [nn.Linear(i, o).double() for i, o in pairwise(widths)]
    init = stack_module.stream("init", one.seed)
    order = stack_module.stream("order", one.seed)
    masks = stack_module.stream("masks", one.seed)
    for layer in layers:
        bound = layer.in_features**-0.5
        layer.weight.data = torch.tensor(
            init.uniform(-bound, bound, (layer.in_features, layer.out_features)).T
        )
    for layer in layers:
        bound = layer.in_features**-0.5
        layer.bias.data = torch.tensor(init.uniform(-bound, bound, layer.out_features))
    optimiser = torch.optim.AdamW(
        [p for layer in layers for p in layer.parameters()],
        lr=one.learning_rate,
        weight_decay=one.weight_decay,
    )
    X, y = torch.tensor(fit.X), torch.tensor(fit.y)
    for _ in range(one.epochs):
        rank = order.permutation(len(X))
        drawn = [masks.integers(0, 256, (len(X), one.hidden), np.uint8) for _ in layers[1:]]
        kept = [torch.tensor((m >= 128) * 2.0) for m in drawn]
        for start in range(0, len(X), one.batch_size):
            at = rank[start : start + one.batch_size]
            h = X[at]
            for layer, mask in zip(layers, kept, strict=False):
                h = layer(h).relu() * mask[start : start + one.batch_size]
            loss = nn.functional.cross_entropy(
                layers[-1](h), y[at], label_smoothing=one.label_smoothing
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return layers


def test_early_stopping_keeps_the_best_epoch_and_needs_rows_to_look_at():
    """The weights are those of the lowest validation loss; no other rows are touched."""
    one = MLPSettings(hidden=32, epochs=60, learning_rate=2e-2, dropout=0.0, patience=3)
    fit, other = rows(40), rows(200, seed=9)
    found = train_mlps(fit, [one, replace(one, seed=5)], validation=other)
    for head in found:
        losses = head.curves["inner_loss"]
        assert head.best_epoch == int(np.argmin(losses))
        assert len(losses) == head.best_epoch + 1 + 3 < 60
        p = head.proba(other.X)[np.arange(200), other.y]
        assert -np.log(p).mean() == pytest.approx(min(losses))
    alone = train_mlps(fit, [one], validation=other)[0]
    np.testing.assert_allclose(alone.layers[0][0], found[0].layers[0][0], atol=1e-9)
    with pytest.raises(ValueError, match="patience needs validation rows"):
        train_mlps(fit, [one])


def test_curves_have_a_value_for_each_epoch():
    """Loss falls, accuracy rises, on rows that can be learnt."""
    head = train_mlps(rows(200), [replace(SHORT, epochs=20, hidden=64)], validation=rows(50))[0]
    assert set(head.curves) == {
        "fit_loss", "fit_accuracy", "inner_loss", "inner_accuracy"
    }  # fmt: skip
    assert all(len(curve) == 20 for curve in head.curves.values())
    assert head.curves["fit_loss"][-1] < head.curves["fit_loss"][0]


def test_dropout_keeps_the_share_that_it_says():
    """Also a share that is no multiple of 1/256 keeps the expectation exact."""
    stack = stack_module._Stack([replace(SHORT, dropout=0.3, hidden=400)], rows(500), None, "cpu")
    mask = stack._scaled(stack._draw_masks(500)[0])
    assert float((mask > 0).double().mean()) == pytest.approx(0.7, abs=0.005)
    assert float(mask.double().mean()) == pytest.approx(1.0, abs=0.01)


def test_depth_is_one_or_two():
    """What is allowed is in the message."""
    with pytest.raises(ValueError, match="depth 3: allowed are 1 and 2"):
        train_mlps(rows(), [replace(SHORT, depth=3)])
