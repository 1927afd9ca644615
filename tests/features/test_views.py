"""Views of a picture: the same numbers for all, moved as they say, the same on every engine."""

import math

import numpy as np
import torch

from cache.recipe import relative_l2
from pipeline.data.images import PixelPolicy, views_of
from pipeline.features import backbones
from pipeline.features.engines import EngineChoice, start_engine
from pipeline.features.extract import compute_features
from pipeline.features.frozen import Frozen, Views
from tests.tiny import install_tiny_backbone


def test_more_views_have_those_of_fewer_among_them():
    """So does the recipe, which holds the numbers; of one view it is as it always was."""
    assert views_of(8)[:3] == views_of(3)
    assert PixelPolicy(views=3).to_json()["views"] == views_of(3)
    assert "views" not in PixelPolicy().to_json()
    assert len({str(view) for view in views_of(32)}) == 32


def test_each_view_is_moved_and_lit_as_its_numbers_say():
    """Of a plane every resampling is exact, so each place in the middle is known by a formula."""
    size, at = 64, np.arange(64)
    plane = np.repeat((80 + at[:, None] * 0.5 + at * 1.0)[..., None], 3, axis=2)
    views = Views(PixelPolicy(size=size, views=8))(torch.tensor(plane)[None]).numpy()[..., 0]
    middle = np.arange(24, 40)
    x, y = np.meshgrid((2 * middle + 1) / size - 1, (2 * middle + 1) / size - 1)
    for view, numbers in zip(views, views_of(8), strict=True):
        angle = math.radians(numbers["degrees"])
        mirrored = x * (-1 if numbers["mirror"] else 1)
        right = numbers["side"] * (mirrored * math.cos(angle) - y * math.sin(angle))
        down = numbers["side"] * (mirrored * math.sin(angle) + y * math.cos(angle))
        column, row = (
            ((place + numbers[name] + 1) * size - 1) / 2
            for place, name in ((right, "right"), (down, "down"))
        )
        expected = numbers["brightness"] * (80 + 0.5 * row + column)
        np.testing.assert_allclose(view[np.ix_(middle, middle)], expected, atol=1e-3)


def test_views_are_the_same_on_every_engine(tmp_path, monkeypatch):
    """Rows of shape (k, d); the first view is the picture as it is."""
    file = install_tiny_backbone(monkeypatch, tmp_path)
    spec = backbones.spec_of("tiny")
    rng = np.random.default_rng(0)
    images = [(bytes([i]), rng.integers(0, 256, (32, 32, 3), np.uint8)) for i in range(3)]
    found = []
    for engine, views in (("torch", 1), ("torch", 4), ("openvino", 4)):
        policy = PixelPolicy(size=32, mean=spec.policy.mean, std=spec.policy.std, views=views)
        network = Frozen(spec.network(torch.load(file)), policy)
        choice = EngineChoice(engine=engine, device="cpu", batch_size=2)
        started = start_engine(lambda network=network: network, choice, "fp32")
        found.append(np.stack([row for _, row in compute_features(images, started)]))
        started.close()
    plain, on_torch, on_openvino = found
    assert on_torch.shape == (3, 4, 8)
    assert relative_l2(on_torch[:, 0], plain) <= 1e-5
    assert relative_l2(on_openvino, on_torch) <= 1e-5
    assert relative_l2(on_torch[:, 1], plain) > 1e-2
