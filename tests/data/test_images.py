"""Bytes to pixels: what is taken, what is refused and why, in one thread or in many."""

import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.data.images import PixelPolicy, decode
from pipeline.errors import ImageError
from tests.image_files import PNG_MAGIC, SIZE, bad_files, flipped, good_files, jpeg, picture, png

AS_IS = PixelPolicy(size=SIZE)  # pictures of this size are not resampled
CROP = PixelPolicy(resize="crop")


@pytest.mark.parametrize("policy", [PixelPolicy(), CROP, AS_IS], ids=["stretch", "crop", "as is"])
@pytest.mark.parametrize("name", good_files())
def test_a_good_file_becomes_a_square_of_three_channels(name, policy):
    """Whatever the mode, the size and the format, the network gets what it expects."""
    pixels = decode(good_files()[name], policy)
    assert pixels.shape == (policy.size, policy.size, 3)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels) > 20


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_refused_with_its_reason(name):
    """Each row of the table of bad input gets its own reason, and no other exception."""
    data, reason = bad_files()[name]
    with pytest.raises(ImageError, match=reason):
        decode(data, PixelPolicy())


def test_the_reason_never_quotes_the_file():
    """Text found in place of an image may be a patient's record."""
    with pytest.raises(ImageError) as refused:
        decode(b"SMITH^JOHN 1950-01-01", PixelPolicy())
    assert "SMITH" not in str(refused.value)


@pytest.mark.parametrize(
    "file", [jpeg(), jpeg(progressive=True), png()], ids=["jpeg", "jpeg-p", "png"]
)
def test_a_file_cut_anywhere_is_called_truncated(file):
    """By one byte or by half: never pixels, and never another reason."""
    lengths = {*range(8, len(file), 23), *range(len(file) - 12, len(file))}
    for length in lengths:
        with pytest.raises(ImageError, match=r"^truncated$"):
            decode(file[:length], AS_IS)


def test_any_flipped_bit_in_a_png_is_found():
    """Pillow skips the checksum of the pixel data; this does not."""
    data = png(picture(16, 16))
    for bit in range(0, 8 * len(data), 7):
        with pytest.raises(ImageError):
            decode(flipped(data, bit), AS_IS)


def resealed(data):
    """Correct checksums over whatever a PNG file says now, so that Pillow gets to see it."""
    body, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunk = data[at + 4 : at + 8 + length]
        body += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return body


def pixels_or_reason(data):
    try:
        return decode(data, AS_IS)
    except ImageError as reason:
        return str(reason)


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "drop"]),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data, mutations):
    for what, where, new in mutations:
        # Half of the positions fall on the header, where most decisions are made.
        at = where % (max(len(data), 1) if where % 2 else 200)
        if what == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "drop":
            data = data[:at] + data[at + len(new) :]
        elif where % 5 == 0:
            data = data[:at]
    return data


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(good_files())), MUTATIONS, st.sampled_from(["error", "ignore"]))
def test_hostile_bytes_give_pixels_or_a_reason(name, mutations, filter_action):
    """Whatever the bytes and whatever the user's warning filter: no other exception."""
    data = mutated(good_files()[name], mutations)
    data = resealed(data) if data.startswith(PNG_MAGIC) else data
    with warnings.catch_warnings():
        warnings.simplefilter(filter_action)
        outcome = pixels_or_reason(data)
    if isinstance(outcome, str):
        assert re.fullmatch(r"\S.*", outcome)
    else:
        assert outcome.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", ["huge.png", "huge.jpg"])
def test_a_bomb_is_refused_before_it_is_decoded(name, monkeypatch):
    """The header is enough."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="too large"):
        decode(bad_files()[name][0], PixelPolicy())
    # The limits themselves are inside.
    monkeypatch.undo()
    assert decode(png(picture(16, 800)), PixelPolicy()).shape == (224, 224, 3)


def test_many_threads_share_no_state():
    """Bombs beside good files: no warning, the same pixels, and no setting of Pillow moves."""
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    work = [bad_files()["huge.png"][0], png(), bad_files()["huge.jpg"][0], jpeg()] * 40
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(pixels_or_reason, work))
    for outcome, alone in zip(outcomes, [pixels_or_reason(data) for data in work], strict=True):
        assert np.array_equal(outcome, alone)
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    assert after == before


# --- the declared policy


def test_each_field_changes_the_declaration():
    """No field that moves a pixel can be forgotten."""
    third = (0.5, 0.5, 0.5)
    changed = [
        *({"size": 192}, {"resize": "crop"}, {"interpolation": "bicubic"}, {"mean": third}),
        *({"std": third}, {"mask": "centre"}, {"mask": "corners"}, {"decode": "gpu"}, {"views": 2}),
        {"resize": "crop", "crop_ratio": 0.9},
    ]
    declared = [PixelPolicy(**fields).to_json() for fields in ({}, *changed)]
    assert all(declared.count(one) == 1 for one in declared)


def test_the_centre_mask_leaves_the_border_alone():
    """15 % on each side stay as they are, the rest is black."""
    pixels = np.full((100, 200), 90, np.uint8)
    masked = decode(png(pixels), PixelPolicy(size=100, mask="centre"))[..., 0]
    assert (masked[18:82, 18:82] == 0).all()
    assert (masked[:12] == 90).all()
    assert (masked[:, -12:] == 90).all()


def test_the_corner_mask_shows_the_four_corners_and_nothing_else():
    """Each corner, 20 % of each side, in its own quarter of the picture."""
    pixels = np.full((100, 100), 255, np.uint8)
    pixels[:20, :20], pixels[:20, 80:], pixels[80:, :20], pixels[80:, 80:] = 10, 20, 30, 40
    shown = decode(png(pixels), PixelPolicy(size=40, mask="corners"))[..., 0]
    assert np.unique(shown).tolist() == [10, 20, 30, 40]
    assert (shown[5, 5], shown[5, 35], shown[35, 5], shown[35, 35]) == (10, 20, 30, 40)
