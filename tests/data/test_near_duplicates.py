"""Near duplicates are found however they were made; strangers are not."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data import near_duplicates
from pipeline.data.index import SMALL
from pipeline.data.near_duplicates import find_duplicates, stored_duplicates
from tests.data.copies import COPIES, small, smooth_picture


@pytest.fixture(scope="module")
def pictures():
    """Of 300 patients."""
    rng = np.random.default_rng(0)
    return [smooth_picture(rng) for _ in range(300)]


def gallery_of(pictures, n_fit):
    """Small picture, role and patient; the first are for fitting, the rest are the target."""
    role = np.where(np.arange(len(pictures)) < n_fit, "fit", "target")
    return small(pictures), role, np.array([str(i) for i in range(len(pictures))])


def found(of_all, role, group):
    """Rows of the pairs."""
    return [pair.rows for pair in find_duplicates(of_all, role, group)]


def test_copies_are_found_and_strangers_are_not(pictures):
    """All eight of each kind; nothing else."""
    kinds = [how for how in COPIES for _ in range(8)]
    copies = [COPIES[how](one) for how, one in zip(kinds, pictures, strict=False)]
    pairs = find_duplicates(*gallery_of([*pictures[:200], *copies, *pictures[272:]], 200))
    assert {pair.rows for pair in pairs} == {(k, 200 + k) for k in range(len(kinds))}
    views = {kinds[pair.rows[0]]: pair.how for pair in pairs}
    assert [how for how in kinds[::8] if views[how] == "mirrored"] == ["mirrored"]


def test_burnt_out_copies_are_found_by_their_tones(pictures, monkeypatch):
    """A third of each copy is white; the rest agrees, which textures alone would not show."""
    bright = [one.point([min(255, 85 + round(k * 1.35)) for k in range(256)]) for one in pictures]
    gallery = gallery_of([*pictures[:200], *bright[:40], *pictures[240:]], 200)
    planted = {(k, 200 + k) for k in range(40)}
    assert set(found(*gallery)) == planted
    monkeypatch.setattr(near_duplicates, "_tones", lambda a, _b: np.zeros(len(a)))
    assert len(set(found(*gallery)) & planted) < 35


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
    of_all, _, group = gallery_of(copied, 200)
    role = np.repeat(["fit", "validation", "far"], [200, 14, 60])
    assert [(k, 200 + k) for k in range(14)] == sorted(
        pair for pair in found(of_all, role, group) if pair[1] < 214
    )


def test_pictures_without_any_detail_are_no_copies():
    """Black pictures are equal, not alike."""
    role = np.array(["fit", "target"])
    assert found(np.zeros((2, SMALL, SMALL), np.uint8), role, np.array(["a", "b"])) == []


def test_near_duplicates_are_looked_for_once(tmp_path, monkeypatch):
    """Of the same images in the same roles; what is damaged is not believed."""
    small = np.random.default_rng(0).integers(0, 255, (40, SMALL, SMALL), np.uint8)
    small[21] = small[3]
    roles, group = np.repeat(["fit", "far"], 20), np.arange(40).astype(str)
    (pair,) = stored_duplicates(tmp_path, small, roles, group)
    assert pair.rows == (3, 21)
    (file,) = (tmp_path / "index").glob("near-*/*")
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "find_duplicates", None)
        assert stored_duplicates(tmp_path, small, roles, group) == (pair,)
        with pytest.raises(TypeError):
            stored_duplicates(tmp_path, small, roles[::-1], group)
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    assert stored_duplicates(tmp_path, small, roles, group) == (pair,)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")  # what cannot be kept is only found again
    assert stored_duplicates(tmp_path, small, roles, group) == (pair,)
