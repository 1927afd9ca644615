"""Near copies are found however they were made; strangers are not."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.facts import facts_of_picture
from pipeline.data.near_copies import find_near_copies
from tests.audit_worlds import COPIES, smooth_picture

#: What is promised, and what is measured (``python -m tests.data.copies``).
SURE = [how for how in COPIES if not how.startswith("cropped")]


def textures_of(pictures):
    """Their textures, ``(n, 32, 32)``."""
    return np.stack([facts_of_picture(picture)["texture"] for picture in pictures])


@pytest.fixture(scope="module")
def pictures():
    """Of 300 patients."""
    rng = np.random.default_rng(0)
    return [smooth_picture(rng) for _ in range(300)]


def gallery_of(pictures, n_fit):
    """Texture, role and patient; the first are for fitting, the rest are the target."""
    role = np.where(np.arange(len(pictures)) < n_fit, "fit", "target")
    return textures_of(pictures), role, np.array([str(i) for i in range(len(pictures))])


def found(texture, role, group):
    """Rows of the pairs."""
    return [pair.rows for pair in find_near_copies(texture, role, group)]


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_strangers_are_not(pictures, how):
    """All forty of each kind, three quarters of those that were cropped; nothing else."""
    planted = {(k, 200 + k) for k in range(40)}
    copied = [*pictures[:200], *(COPIES[how](one) for one in pictures[:40]), *pictures[240:]]
    pairs = find_near_copies(*gallery_of(copied, 200))
    assert {pair.rows for pair in pairs} <= planted
    assert len(pairs) == 40 if how in SURE else len(pairs) >= 30
    if how == "mirrored":
        assert {pair.how for pair in pairs} == {"mirrored"}


def test_copies_inside_one_role_are_not_across_roles(pictures):
    """Two views of one patient in one role are no leak, nor do they hide one."""
    copied = list(pictures)
    copied[100:150] = copied[:50]
    copied[250] = copied[160]
    assert found(*gallery_of(copied, 200)) == [(160, 250)]


def test_a_far_role_hides_no_copies(pictures):
    """Images of a third role that all look alike raise that role's limit and no other's."""
    rng = np.random.default_rng(1)
    alike = np.asarray(pictures[0], np.float64)
    far = [
        Image.fromarray(np.uint8(np.clip(alike + rng.normal(0, 12, alike.shape), 0, 255)))
        for _ in range(60)
    ]
    copied = [*pictures[:200], *(COPIES["recompressed"](one) for one in pictures[:14]), *far]
    texture, _, group = gallery_of(copied, 200)
    role = np.repeat(["fit", "validation", "far"], [200, 14, 60])
    assert [(k, 200 + k) for k in range(14)] == sorted(
        pair for pair in found(texture, role, group) if pair[1] < 214
    )


def test_pictures_without_any_detail_are_no_copies():
    """Black pictures are equal, not alike."""
    role = np.array(["fit", "target"])
    assert found(np.zeros((2, 32, 32), np.int8), role, np.array(["a", "b"])) == []
