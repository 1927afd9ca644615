"""Each measure of a picture follows its own cause, and hardly another's."""

import numpy as np
import pytest
from scipy import ndimage

from pipeline.data.facts import APPEARANCE, appearance, noise

SIZE = 96


def scene(seed=0, *, grain=0.02, blur=0.0, gain=1.0, mark=False):
    """A smooth picture with one thing changed."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 5)
    grey = 0.45 + 0.12 * soft / soft.std()
    grey = ndimage.gaussian_filter(grey, blur) * gain
    grey = grey + grain * rng.standard_normal(grey.shape)
    if mark:
        grey[5:13, 85:87] = 0.97
    return np.clip(255 * grey, 0, 255).astype(np.uint8)


def moved(name, **changes):
    """How far a measure goes with a change, in standard deviations between pictures."""
    plain = np.array([appearance(scene(i))[name] for i in range(12)])
    other = np.array([appearance(scene(i, **changes))[name] for i in range(12)])
    return (other.mean() - plain.mean()) / (plain.std() + 1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("exposure", {"gain": 1.25}),
        ("contrast", {"gain": 1.5}),
        ("noise", {"grain": 0.04}),
        ("corner_marks", {"mark": True}),
    ],
)
def test_a_measure_follows_its_cause(name, changes):
    """The declared change moves it by far more than pictures differ."""
    assert moved(name, **changes) > 3


def test_blur_lowers_the_sharpness():
    """The grain, which comes after, would hide it: so it is taken away here."""
    plain, soft = (appearance(scene(grain=0.0, blur=blur))["sharpness"] for blur in (0.0, 3.0))
    assert soft < plain - 0.3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("exposure", {"grain": 0.04}),
        ("exposure", {"mark": True}),
        ("noise", {"mark": True}),
        ("noise", {"gain": 1.25}),
        ("corner_marks", {"grain": 0.04}),
        ("corner_marks", {"gain": 1.25}),
    ],
)
def test_a_measure_ignores_the_causes_of_others(name, changes):
    """Within a fifth of how pictures differ, or nothing at all."""
    assert abs(moved(name, **changes)) < 0.2


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_noise_is_the_standard_deviation_of_the_grain(sigma):
    """On a flat mid-grey film, within 5 %."""
    rng = np.random.default_rng(1)
    film = 0.5 + sigma * rng.standard_normal((200, 200))
    assert np.exp(noise(film)) - 1e-3 == pytest.approx(sigma, rel=0.05)


def test_every_picture_has_every_measure():
    """A black picture has no grain to judge, and says so."""
    found = appearance(np.zeros((8, 9), np.uint8))
    assert set(found) == set(APPEARANCE)
    assert np.isnan(found["noise"])
    assert np.isfinite([v for k, v in found.items() if k != "noise"]).all()


def test_a_large_picture_is_averaged_down_first():
    """Doubling every pixel of a picture of 300 changes nothing: 600 is halved again."""
    pixels = np.kron(scene(), np.ones((4, 4), np.uint8))[:300, :300]
    assert appearance(np.kron(pixels, np.ones((2, 2), np.uint8))) == appearance(pixels)
