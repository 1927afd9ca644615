"""Facts of images: right, the same for the same picture, each moved by its own cause."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.data.facts import APPEARANCE, facts_of_picture, jpeg_quality
from tests.image_files import encoded, facts_of_file

SIZE = 96
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 60), np.uint8)


def facts_of_array(pixels):
    """Of a picture that was never a file."""
    return facts_of_picture(Image.fromarray(pixels))


def test_the_facts_are_those_of_the_picture():
    """Against numpy, on a picture whose border is known."""
    pixels = GREY.copy()
    pixels[:2], pixels[-2:], pixels[:, :3], pixels[:, -3:] = 7, 7, 7, 7
    data = encoded(pixels, "PNG")
    facts = facts_of_file(data)
    assert (facts["height"], facts["width"], facts["file_bytes"]) == (40, 60, len(data))
    assert facts["mean"] == pytest.approx(pixels.mean())
    assert facts["std"] == pytest.approx(pixels.std())
    assert facts["border"] == pytest.approx(7)
    assert np.isnan(facts["jpeg_quality"])


@pytest.mark.parametrize("quality", [1, 25, 50, 75, 87, 95, 100])
def test_the_quality_of_a_libjpeg_file_is_read_from_its_tables(quality):
    """Exact, for grey and for colour."""
    for pixels in (GREY, np.stack([GREY] * 3, 2)):
        assert jpeg_quality(encoded(pixels, "JPEG", quality=quality)) == quality


def test_the_same_pixels_have_one_digest_whatever_the_file():
    """Another compression, three equal channels, a row of a stack; one grey level is another."""
    same = [
        facts_of_file(encoded(GREY, "PNG", compress_level=1)),
        facts_of_file(encoded(GREY, "PNG", compress_level=9)),
        facts_of_file(encoded(np.stack([GREY] * 3, 2), "PNG")),
        facts_of_array(GREY),
    ]
    assert len({bytes(facts["pixels"]) for facts in same}) == 1
    other = GREY.copy()
    other[5, 5] ^= 1
    assert bytes(facts_of_array(other)["pixels"]) != bytes(same[0]["pixels"])
    assert bytes(facts_of_array(GREY.reshape(60, 40))["pixels"]) != bytes(same[0]["pixels"])


# --- appearance


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


def appearance(pixels):
    """The measures of one picture."""
    facts = facts_of_array(pixels)
    return {name: float(facts[name]) for name in APPEARANCE}


def moved(name, **changes):
    """How far a measure goes with a change, in standard deviations between pictures."""
    plain = np.array([appearance(scene(i))[name] for i in range(12)])
    other = np.array([appearance(scene(i, **changes))[name] for i in range(12)])
    return (other.mean() - plain.mean()) / (plain.std() + 1e-6)


@pytest.mark.parametrize(
    ("name", "follows", "ignores"),
    [
        ("exposure", {"gain": 1.25}, [{"grain": 0.04}, {"mark": True}]),
        ("contrast", {"gain": 1.5}, []),
        ("noise", {"grain": 0.04}, [{"mark": True}, {"gain": 1.25}]),
        ("corner_marks", {"mark": True}, [{"grain": 0.04}, {"gain": 1.25}]),
    ],
)
def test_a_measure_follows_its_cause_and_ignores_those_of_others(name, follows, ignores):
    """By far more than pictures differ; within a fifth of how they differ, or nothing at all."""
    assert moved(name, **follows) > 3
    assert all(abs(moved(name, **changes)) < 0.2 for changes in ignores)


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.08])
def test_noise_is_the_standard_deviation_of_the_grain(sigma):
    """On a flat mid-grey film, within 5 %."""
    rng = np.random.default_rng(1)
    film = np.rint(255 * (0.5 + sigma * rng.standard_normal((200, 200))))
    noise = appearance(np.clip(film, 0, 255).astype(np.uint8))["noise"]
    assert np.exp(noise) - 1e-3 == pytest.approx(sigma, rel=0.05)
