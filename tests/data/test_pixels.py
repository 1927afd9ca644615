"""The pixels of a good file are those of an independent reader, in the declared geometry."""

import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import io as torchvision_io
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from pipeline.data.images import PixelPolicy, decode
from pipeline.errors import ImageError
from tests.image_files import SIZE, grey16, jpeg, picture, png, raw_png, rows_of, turned

AS_IS = PixelPolicy(size=SIZE)  # pictures of this size are not resampled
CROP = PixelPolicy(resize="crop")


def same(left, right, tolerance=0):
    assert left.shape == right.shape
    assert np.abs(left.astype(int) - right.astype(int)).max() <= tolerance


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
    data, policy = jpeg_files()[name], PixelPolicy(size=150)

    def outcome():
        try:
            return decode(data, policy).tolist()
        except ImageError as reason:
            return str(reason)

    fast = outcome()

    def refuse(*_):
        raise ValueError

    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    assert fast == outcome()


def test_fast_decodes_a_large_jpeg_at_a_part_of_its_size():
    """Nearly the pixels of stretch; small files, and what is no JPEG, have exactly those."""
    exact, fast = PixelPolicy(size=64), PixelPolicy(size=64, resize="fast")
    large = jpeg(picture(600, 520), quality=90)
    moved = np.abs(decode(large, fast).astype(int) - decode(large, exact))
    assert 0 < moved.mean() < 1
    for data in (jpeg(picture(250, 600)), png(picture(600, 520))):
        same(decode(data, fast), decode(data, exact))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_has_the_pixels_of_another_decoder(mode):
    """Torchvision brings a JPEG library of its own."""
    data = jpeg(Image.fromarray(picture()).convert(mode), quality=90, subsampling=0)
    same(decode(data, AS_IS), by_torchvision(data), tolerance=2)


def by_torchvision(data):
    """Deprecated there since 0.29; the formula of flat inks stays when it is gone."""
    if not hasattr(torchvision_io, "decode_jpeg"):
        pytest.skip("this torchvision decodes no JPEG")
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tensor = torchvision_io.decode_jpeg(encoded, torchvision_io.ImageReadMode.RGB)
    return tensor.permute(1, 2, 0).numpy()


def adobe_transform(data, value):
    """Set the transform byte of the Adobe marker: 0 is CMYK, 2 is YCCK."""
    at = data.index(b"Adobe") + 11
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize("transform", [0, 2], ids=["CMYK", "YCCK"])
def test_an_inverted_cmyk_jpeg_has_the_pixels_of_another_decoder(transform):
    """Adobe stores CMYK inverted; a reader that forgets it gives the negative."""
    inks = np.dstack([picture(), picture(seed=1)[..., 0] // 3])
    data = adobe_transform(jpeg(Image.fromarray(inks, "CMYK"), quality=95), transform)
    same(decode(data, AS_IS), by_torchvision(data), tolerance=3)


@pytest.mark.parametrize("policy", [AS_IS, PixelPolicy(size=32), replace(AS_IS, resize="crop")])
def test_grey_is_replicated_to_three_equal_channels(policy):
    """And has the pixels that the same image has when it is stored as colour."""
    grey = picture()[..., 0]
    pixels = decode(png(grey), policy)
    same(pixels, decode(png(np.dstack([grey] * 3)), policy))
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


@pytest.mark.parametrize(("colour", "key"), [(0, (40,)), (2, (40, 50, 60))], ids=["grey", "colour"])
def test_a_transparent_colour_is_black(colour, key):
    """PNG can name one grey or one colour as clear, without an alpha channel."""
    samples = np.full((SIZE, SIZE, len(key)), 90, np.uint8)
    samples[5] = key
    clear = struct.pack(f">{len(key)}H", *key)
    pixels = decode(raw_png(SIZE, SIZE, 8, colour, tRNS=clear, IDAT=rows_of(samples)), AS_IS)
    assert not pixels[5].any()
    assert (np.delete(pixels, 5, axis=0) == 90).all()


def test_sixteen_bit_grey_is_scaled_and_never_clipped():
    """Every one of the 65,536 values is x / 257, rounded; Pillow alone gives a white image."""
    values = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    pixels = decode(grey16(values), PixelPolicy(size=256))
    same(pixels[..., 0], np.rint(values / 257))
    # Black is black in any number of bits, so it is not mistaken for 12.
    assert not decode(grey16(np.zeros((SIZE, SIZE), np.uint16)), AS_IS).any()


def test_a_clear_value_in_sixteen_bits_is_black():
    """Transparency of the 16-bit form."""
    values = np.full((SIZE, SIZE), 40_000, np.uint16)
    values[5] = 50_000
    pixels = decode(grey16(values, tRNS=struct.pack(">H", 50_000)), AS_IS)
    assert not pixels[5].any()
    assert (np.delete(pixels, 5, axis=0) == 156).all()


def test_sixteen_bit_colour_keeps_the_high_byte():
    """As the policy declares it."""
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
    policy = replace(CROP, interpolation=interpolation)
    same(decode(png(pixels), policy), np.asarray(reference(Image.fromarray(pixels))))


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
    same(decode(png(pixels), PixelPolicy(interpolation=interpolation)), expected, tolerance=2)
