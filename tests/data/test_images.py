"""Bytes to pixels: what is taken, what is refused and why, and whose pixels they are."""

import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision import io as torchvision_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pipeline.data.images import Transform, decode
from pipeline.data.items import NO_RANGE, ReadOptions, scaled, window_of
from pipeline.errors import ImageError, StudyError
from pipeline.study import Domain
from tests.image_files import (
    PNG_MAGIC,
    SIZE,
    bad_files,
    encoded,
    flipped,
    good_files,
    grey16,
    jpeg,
    picture,
    png,
    raw_png,
    rows_of,
    turned,
)

AS_IS = Transform(size=SIZE)  # pictures of this size are not resampled
CROP = Transform(resize="crop")
ANY = Domain(path=Path("x"))


def same(left, right, tolerance=0):
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right.astype(int)).max() <= tolerance


@pytest.mark.parametrize("transform", [Transform(), CROP, AS_IS], ids=["stretch", "crop", "as is"])
@pytest.mark.parametrize("name", good_files())
def test_a_good_file_becomes_a_square_of_three_channels(name, transform):
    """Whatever the mode, the size and the format, the network gets what it expects."""
    pixels = decode(good_files()[name], transform)
    assert pixels.shape == (transform.size, transform.size, 3)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels) > 20


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_is_refused_with_its_reason(name):
    """Each row of the table of bad input gets its own reason, and no other exception."""
    data, reason = bad_files()[name]
    with pytest.raises(ImageError, match=reason):
        decode(data, Transform())


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


def spliced(data, splices):
    """Bytes set, inserted, dropped, and the rest cut away."""
    for where, length, new in splices:
        # Half of the positions fall on the header, where most decisions are made.
        at = where % (max(len(data), 1) if where % 2 else 200)
        data = data[:at] + new + data[at + (length if length > 1 << 15 else length % 5) :]
    return data


SPLICES = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 36_000), st.binary(max_size=4)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(good_files())), SPLICES, st.sampled_from(["error", "ignore"]))
def test_hostile_bytes_give_pixels_or_a_reason(name, splices, filter_action):
    """Whatever the bytes and whatever the user's warning filter: no other exception."""
    data = spliced(good_files()[name], splices)
    data = resealed(data) if data.startswith(PNG_MAGIC) else data
    with warnings.catch_warnings():
        warnings.simplefilter(filter_action)
        outcome = pixels_or_reason(data)
    if isinstance(outcome, str):
        assert re.fullmatch(r"\S.*", outcome)
    else:
        assert outcome.shape == (SIZE, SIZE, 3)


def test_pillow_running_out_of_memory_is_a_reason(monkeypatch):
    """One image too many for the machine does not stop the run."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=MemoryError))
    with pytest.raises(ImageError, match="not enough memory"):
        decode(png(), AS_IS)


@pytest.mark.parametrize("name", ["huge.png", "huge.jpg"])
def test_a_bomb_is_refused_before_it_is_decoded(name, monkeypatch):
    """The header is enough."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="too large"):
        decode(bad_files()[name][0], Transform())
    # The limits themselves are inside.
    monkeypatch.undo()
    assert decode(png(picture(16, 800)), Transform()).shape == (224, 224, 3)


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


# --- the declared transform


def test_each_field_changes_the_declaration():
    """No field that moves a pixel can be forgotten."""
    third = (0.5, 0.5, 0.5)
    changed = [
        *({"size": 192}, {"resize": "crop"}, {"interpolation": "bicubic"}, {"mean": third}),
        *({"std": third}, {"mask": "centre"}, {"mask": "corners"}, {"decode": "gpu"}, {"views": 2}),
        {"resize": "crop", "crop_ratio": 0.9},
    ]
    declared = [Transform(**fields).to_json() for fields in ({}, *changed)]
    assert all(declared.count(one) == 1 for one in declared)


def test_the_centre_mask_leaves_the_border_alone():
    """15 % on each side stay as they are, the rest is black."""
    pixels = np.full((100, 200), 90, np.uint8)
    masked = decode(png(pixels), Transform(size=100, mask="centre"))[..., 0]
    assert (masked[18:82, 18:82] == 0).all()
    assert (masked[:12] == 90).all()
    assert (masked[:, -12:] == 90).all()


def test_the_corner_mask_shows_the_four_corners_and_nothing_else():
    """Each corner, 20 % of each side, in its own quarter of the picture."""
    pixels = np.full((100, 100), 255, np.uint8)
    pixels[:20, :20], pixels[:20, 80:], pixels[80:, :20], pixels[80:, 80:] = 10, 20, 30, 40
    shown = decode(png(pixels), Transform(size=40, mask="corners"))[..., 0]
    assert np.unique(shown).tolist() == [10, 20, 30, 40]
    assert (shown[5, 5], shown[5, 35], shown[35, 5], shown[35, 35]) == (10, 20, 30, 40)


TURNED = 6


def tiff(*entries: tuple[int, int, int, bytes], order: str = "<", after: bytes = b"") -> bytes:
    """A TIFF structure with one directory of (tag, type, count, value or offset)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + after


ORIENTATION = (0x0112, 3, 1, struct.pack("<HH", TURNED, 0))
RATIONAL = tiff(
    ORIENTATION, (0x829A, 10, 1, struct.pack("<I", 38)), after=struct.pack("<ii", -1, 0)
)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG file with one segment more, first of all."""
    return jpeg()[:2] + segment(marker, body) + jpeg()[2:]


def with_exif(content: bytes) -> bytes:
    return with_segment(0xE1, b"Exif\0\0" + content)


def with_chunk(name: bytes, body: bytes) -> bytes:
    """A PNG file with one chunk more, after its header."""
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png()[:33] + chunk + png()[33:]


BOMB = zlib.compress(bytes(3_000_000))
HARMLESS = {
    "EXIF that is no TIFF": with_exif(b"garbage that is no TIFF"),
    "EXIF that is cut": with_exif(b"II*\0\x08\0\0\0\x05\0"),
    "EXIF with two orientations": with_exif(tiff((0x0112, 3, 2, struct.pack("<HH", 6, 3)))),
    "a directory of pictures that is none": with_segment(0xE2, b"MPF\0garbage"),
    "an Adobe segment that is cut": with_segment(0xEE, b"Adobe"),
    "a comment that looks like markers": with_segment(0xFE, b"\xff\xfe\x00"),
    "a compressed text that is a bomb": with_chunk(b"zTXt", b"k\0\0" + BOMB),
    "a colour profile that is a bomb": with_chunk(b"iCCP", b"k\0\0" + BOMB),
    "a resolution that is cut": with_chunk(b"pHYs", b"\0"),
    "an animation of one frame": with_chunk(b"acTL", struct.pack(">II", 1, 0)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_metadata_that_is_not_needed_changes_nothing(name):
    """The pixels are those of the file without it, and nobody is warned."""
    data = HARMLESS[name]
    plain = jpeg() if data.startswith(b"\xff") else png()
    same(decode(data, AS_IS), decode(plain, AS_IS))


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILE = b"\nexif\n      58\n" + (b"Exif\0\0" + RATIONAL).hex().encode()
READABLE = {
    "beside a rational of -1/0": with_exif(RATIONAL),
    "in big-endian order": with_exif(
        tiff((0x0112, 3, 1, struct.pack(">HH", TURNED, 0)), order=">")
    ),
    "before the directory is cut": with_exif(
        tiff(ORIENTATION)[:-4].replace(b"\1\0\x12", b"\5\0\x12")
    ),
    "over two segments": jpeg()[:2]
    + segment(0xE1, b"Exif\0\0" + RATIONAL[:20])
    + segment(0xE1, b"Exif\0\0" + RATIONAL[20:])
    + jpeg()[2:],
    "in a chunk of its own": with_chunk(b"eXIf", RATIONAL),
    "in XMP": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
    "in XMP of PNG": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "in packed XMP of PNG": with_chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(XMP)
    ),
    "in a text of PNG": with_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
}


@pytest.mark.parametrize("name", READABLE)
def test_an_orientation_that_can_be_read_is_followed(name):
    """Whatever else is wrong in the metadata around it."""
    data = READABLE[name]
    plain = jpeg() if data.startswith(b"\xff") else png()
    same(decode(data, AS_IS), np.rot90(decode(plain, AS_IS), -1))


def adobe_file(transform, **more):
    """A JPEG file of four inks; its Adobe segment says by 0 CMYK, by 2 YCCK."""
    inks = np.dstack([picture(), picture(seed=1)[..., 0] // 3])
    data = jpeg(Image.fromarray(inks, "CMYK"), **more)
    at = data.index(b"Adobe") + 11
    return data[:at] + bytes([transform]) + data[at + 1 :]


@pytest.mark.parametrize("transform", [0, 2, None], ids=["CMYK", "YCCK", "RGB"])
def test_a_jpeg_has_the_colours_of_two_other_decoders(transform):
    """Adobe stores CMYK inverted, known by a segment; without it one gets the negative."""
    if transform is None:
        data = jpeg(Image.fromarray(picture()), quality=95, subsampling=0)
    else:
        data = adobe_file(transform, quality=95)
    same(decode(data, AS_IS), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    if not hasattr(torchvision_io, "decode_jpeg"):
        pytest.skip("this torchvision decodes no JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 0.29
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        other = torchvision_io.decode_jpeg(encoded, torchvision_io.ImageReadMode.RGB)
    same(decode(data, AS_IS), other.permute(1, 2, 0).numpy(), tolerance=3)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_as_exif_leave_the_picture_usable(content):
    """A picture in one of the eight orientations comes out."""
    flat = [decode(with_exif(content), AS_IS), decode(with_chunk(b"eXIf", content), AS_IS)]
    assert [pixels.shape for pixels in flat] == [(SIZE, SIZE, 3)] * 2


# --- colour and depth


def jpeg_files():
    """Every kind of JPEG file that the fast decoder might decode otherwise than Pillow."""
    image = Image.fromarray(picture(333, 257))
    kinds = {
        f"{mode}-{'progressive' if progressive else 'baseline'}-{sampling}": jpeg(
            image.convert(mode), progressive=progressive, subsampling=sampling, quality=quality
        )
        for mode in ("L", "RGB", "CMYK")
        for progressive in (False, True)
        for sampling, quality in (("4:2:0", 75), ("4:2:2", 30), ("4:4:4", 100))
    }
    kinds |= {f"turned {n}": turned(n, "JPEG") for n in range(2, 9)}
    kinds |= {"restarts": jpeg(image, restart_marker_rows=1), "rgb": jpeg(image, keep_rgb=True)}
    damaged = {
        f"{name} {at} {len(data)}": data
        for name, whole in list(kinds.items())[:10:9]
        for at in range(len(whole) // 7, len(whole), len(whole) // 7)
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    }
    return kinds | damaged


@pytest.mark.parametrize("name", jpeg_files())
def test_a_jpeg_has_pillows_pixels_or_pillows_reason(name, monkeypatch):
    """The fast decoder changes no pixel and no message, so stores keep their recipe."""
    data, transform = jpeg_files()[name], Transform(size=150)

    def outcome():
        try:
            return decode(data, transform).tolist()
        except ImageError as reason:
            return str(reason)

    fast = outcome()
    monkeypatch.setattr("simplejpeg.decode_jpeg", Mock(side_effect=ValueError))
    assert fast == outcome()


def test_fast_decodes_a_large_jpeg_at_a_part_of_its_size():
    """Nearly the pixels of stretch; small files, and what is no JPEG, have exactly those."""
    exact, fast = Transform(size=64), Transform(size=64, resize="fast")
    large = jpeg(picture(600, 520), quality=90)
    moved = np.abs(decode(large, fast).astype(int) - decode(large, exact))
    assert 0 < moved.mean() < 1
    for data in (jpeg(picture(250, 600)), png(picture(600, 520))):
        same(decode(data, fast), decode(data, exact))


@pytest.mark.parametrize("transform", [AS_IS, Transform(size=32), replace(AS_IS, resize="crop")])
def test_grey_is_replicated_to_three_equal_channels(transform):
    """And has the pixels that the same image has when it is stored as colour."""
    grey = picture()[..., 0]
    pixels = decode(png(grey), transform)
    same(pixels, decode(png(np.dstack([grey] * 3)), transform))
    assert (pixels == pixels[..., :1]).all()


def composited(colours, alpha):
    return np.rint(colours * (alpha[..., None] / 255.0)).astype(np.uint8)


def test_transparency_is_composited_on_black():
    """A plain conversion would bring hidden colours to light."""
    alpha = picture(seed=3)[..., 1].copy()
    alpha[:8] = 0
    grey = picture()[..., 0]
    for colours, stored in ((picture(), picture()), (np.dstack([grey] * 3), grey)):
        pixels = decode(png(np.dstack([stored, alpha])), AS_IS)
        same(pixels, composited(colours, alpha), tolerance=1)
        assert not pixels[:8].any()


@pytest.mark.parametrize(
    ("dtype", "colour", "key", "value"),
    [("u1", 0, (40,), 90), ("u1", 2, (40, 50, 60), 90), ("u2", 0, (50_000,), 90 * 257)],
    ids=["grey", "colour", "grey of 16 bits"],
)
def test_a_transparent_colour_is_black(dtype, colour, key, value):
    """PNG can name one grey or one colour as clear, without an alpha channel."""
    samples = np.full((SIZE, SIZE, len(key)), value, dtype)
    samples[5] = key
    clear = struct.pack(f">{len(key)}H", *key)
    depth = 8 * samples.itemsize
    pixels = decode(raw_png(SIZE, SIZE, depth, colour, tRNS=clear, IDAT=rows_of(samples)), AS_IS)
    assert not pixels[5].any()
    assert (np.delete(pixels, 5, axis=0) == 90).all()


def test_sixteen_bit_grey_is_scaled_and_never_clipped():
    """Every one of the 65,536 values is x / 257, rounded; Pillow alone gives a white image."""
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    pixels = decode(grey16(values), Transform(size=256))
    same(pixels[..., 0], np.rint(values / 257))
    # Black is black in any number of bits, so it is not mistaken for 12.
    assert not decode(grey16(np.zeros((SIZE, SIZE), np.uint16)), AS_IS).any()


def test_sixteen_bit_colour_keeps_the_high_byte():
    """As the transform declares it."""
    values = (picture().astype(np.uint16) << 8) + 77
    same(decode(raw_png(SIZE, SIZE, 16, 2, IDAT=rows_of(values)), AS_IS), picture())


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_followed(orientation):
    """All eight, in PNG exactly and in JPEG as the same file without the tag."""
    upright = UPRIGHT[orientation]
    same(decode(turned(orientation, "PNG", picture()), AS_IS), upright(picture()))
    data = turned(orientation, "JPEG", picture())
    same(decode(data, AS_IS), upright(decode(jpeg(), AS_IS)))


# --- geometry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(224, 224), (300, 400), (513, 200), (100, 90)])
def test_crop_is_what_torchvision_does(shape, interpolation):
    """Resize(256) and CenterCrop(224): the pixels that ImageNet weights were trained on."""
    pixels = picture(*shape)
    reference = transforms.Compose(
        [transforms.Resize(256, InterpolationMode(interpolation)), transforms.CenterCrop(224)]
    )
    transform = replace(CROP, interpolation=interpolation)
    same(decode(png(pixels), transform), np.asarray(reference(Image.fromarray(pixels))))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 400), (1000, 230), (90, 100)])
def test_stretch_is_antialiased_interpolation(shape, interpolation):
    """Torch's own implementation of it, within rounding.

    Of middling noise: Pillow clips between its two passes where bicubic overshoots.
    """
    pixels = np.random.default_rng(0).integers(64, 192, (*shape, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    reference = torch.nn.functional.interpolate(
        images, (224, 224), mode=interpolation, antialias=True, align_corners=False
    )
    expected = reference[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    same(decode(png(pixels), Transform(interpolation=interpolation)), expected, tolerance=2)


# --- values of more than 8 bits


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_values_are_scaled_and_clipped():
    """Black and white are the two values of the window."""
    values = np.array([-5, 0, 60, 100, 900], np.int16)
    assert scaled(values, (0, 100)).tolist() == [0, 0, 153, 255, 255]
    with pytest.raises(ImageError, match="NaN"):
        scaled(np.array([np.nan]), (0, 1))


FILES = {
    "16-bit PNG": grey16(RAMP),
    "16-bit TIFF": encoded(RAMP, "TIFF"),
    "packed 16-bit TIFF": encoded(RAMP, "TIFF", compression="tiff_deflate"),
    "big TIFF": encoded(RAMP, "TIFF", big_tiff=True),
    "float TIFF": encoded(RAMP.astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_window_decides_what_is_white(name):
    """For every format with more than 8 bits."""
    pixels = decode(FILES[name], Transform(size=64), ReadOptions(window=(0, 4095)))
    assert np.abs(pixels[..., 0] - RAMP / 4095 * 255).max() <= 1


def test_white_is_zero_in_some_tiff_files():
    """Of 8 and of 16 bits."""
    for values in (picture()[..., 0], picture()[..., 0].astype(np.uint16) * 257):
        data = encoded(values, "TIFF", tiffinfo={262: 0})
        plain = encoded(values, "TIFF")
        inverted, upright = (decode(d, Transform(size=64)).astype(int) for d in (data, plain))
        # Pillow inverts what it writes of 8 bits, so that such a file looks the same.
        assert (inverted == (upright if values.dtype == np.uint8 else 255 - upright)).all()


@pytest.mark.parametrize(
    ("depths", "window"),
    [
        ([None, None], None),
        ([None, 0], None),
        ([4000, 300, None], (0, 4095)),
        ([1000], (0, 1023)),
        ([16383, 900], (0, 16383)),
        ([65535, 900], None),
        ([40000], None),
        ([-112, -112], None),
        ([-1, -1], None),
    ],
)
def test_the_bits_are_guessed_from_all_images(depths, window):
    """The largest value of the domain decides, never that of one picture."""
    assert window_of(ANY, depths) == window


@pytest.mark.parametrize(("top", "is_said"), [(33500, True), (49200, False), (16000, True)])
def test_a_range_that_no_image_fills_is_said(top, is_said, caplog):
    """DeepLesion adds 32768 to its values, so that its images are of one grey in 16 bits."""
    window_of(ANY, [top, 900])
    assert ("If that is too wide, write window = [BLACK, WHITE]" in caplog.text) == is_said


@pytest.mark.parametrize(
    "depths", [[5000], [200], [2200], [20000], [NO_RANGE], [-1, -112], [-1, 4000]]
)
def test_what_is_unclear_is_asked(depths):
    """With what to write; one rule holds for a domain."""
    with pytest.raises(StudyError, match=r"source: .*white\. Write for this domain bits = 12"):
        window_of(ANY, depths)
    assert window_of(replace(ANY, window=(0, 9)), depths) == (0, 9)


def test_pages_are_refused_or_one_is_chosen():
    """A TIFF file of several pictures."""
    pages = [Image.fromarray(picture(seed=k)) for k in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="3 frames"):
        decode(data, Transform(size=64))
    chosen = decode(data, Transform(size=64), ReadOptions(frame="middle"))
    assert (chosen == picture(seed=1)).all()
