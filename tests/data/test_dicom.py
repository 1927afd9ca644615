"""DICOM files: what is shown, what is refused, and that a header stays private."""

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate

from pipeline.data.images import Content, Transform, decode
from pipeline.data.items import EIGHT_BITS, FILE_WINDOW, ReadOptions
from pipeline.data.samples import load_samples
from pipeline.errors import ImageError, StudyError
from pipeline.study_file import load_study
from tests.image_files import dicom, picture
from tests.tiny import edited

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def shown(data: bytes, **options) -> np.ndarray:
    """Grey levels at the file's own size."""
    return decode(data, Transform(size=64), ReadOptions(**options))[..., 0].astype(int)


WINDOWED = np.clip((np.arange(4096) - 1500) / 999 * 255, 0, 255).reshape(64, 64)
CASES = {
    "no window: the stored bits": ({}, RAMP / 4095 * 255),
    "its window": ({"WindowCenter": 2000, "WindowWidth": 1000}, WINDOWED),
    "its first window": ({"WindowCenter": [2000, 5], "WindowWidth": [1000, 2]}, WINDOWED),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP / 4095 * 255),
    "rescaled": (
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 2000},
        np.clip((2.0 * RAMP - 1000 - 2000) / 1999 * 255, 0, 255),
    ),
    "exact window": (
        {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"},
        RAMP / 4096 * 255,
    ),
    "sigmoid": (
        {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"},
        255 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)),
    ),
    "run lengths": ({"syntax": uid.RLELossless}, RAMP / 4095 * 255),
}


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_shown_as_its_header_says(name):
    """By the formulas of the standard, within a grey level."""
    tags, expected = CASES[name]
    assert np.abs(shown(dicom(RAMP, **tags)) - expected).max() <= 1


def test_a_declared_window_comes_after_the_rescale_and_before_the_inversion():
    """And in place of the file's."""
    tags = {"RescaleSlope": 2, "RescaleIntercept": 0, "WindowCenter": 9, "WindowWidth": 2}
    data = dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **tags)
    expected = 255 - RAMP / 4095 * 255
    assert np.abs(shown(data, window=(0, 8190)) - expected).max() <= 1


def test_a_lookup_table_of_values_is_followed():
    """VOI LUT sequence, as mammography has it."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], (4095 - RAMP).tobytes()
    data = dicom(RAMP, VOILUTSequence=[table])
    assert np.abs(shown(data) - (255 - RAMP / 4095 * 255)).max() <= 1
    assert Content(data).remembered().depth == FILE_WINDOW


def compressed(codec: str, syntax: str, values: np.ndarray, **tags) -> bytes:
    """Pixels that a codec has compressed."""
    options = {
        uid.JPEGLosslessSV1: {"lossless": True, "bitspersample": 12},
        uid.JPEG2000Lossless: {"codecformat": "j2k", "reversible": True, "level": 0},
    }.get(syntax, {})
    stream = getattr(imagecodecs, f"{codec}_encode")(values, **options)
    bits = 12 if values.itemsize == 2 else 8
    header = pydicom.dcmread(io.BytesIO(dicom(values, bits=bits, **tags)))
    header.PixelData = encapsulate([stream])
    header.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("codec", "syntax"),
    [
        ("jpeg8", uid.JPEGLosslessSV1),
        ("jpegls", uid.JPEGLSLossless),
        ("jpeg2k", uid.JPEG2000Lossless),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_values_are_decoded_to_the_last_bit(codec, syntax, signed):
    """Those of X-rays and CT, with and without a sign."""
    data = compressed(codec, syntax, RAMP, PixelRepresentation=int(signed))
    values = np.where(RAMP > 2047, RAMP.astype(int) - 4096, RAMP) if signed else RAMP
    window = (-2048, 2047) if signed else (0, 4095)
    expected = (values - float(window[0])) / 4095 * 255
    assert np.abs(shown(data, window=window) - expected).max() <= 0.51


def test_signed_values_need_a_window():
    """As CT has them: no header says which value is black; ``predict`` meets them unprepared."""
    with pytest.raises(ImageError, match="values are signed; write window"):
        shown(dicom(RAMP, PixelRepresentation=1))


@pytest.mark.parametrize(
    ("codec", "syntax", "kind"),
    [
        ("jpeg8", uid.JPEGBaseline8Bit, "YBR_FULL_422"),
        ("jpeg2k", uid.JPEG2000Lossless, "YBR_RCT"),
        ("jpegls", uid.JPEGLSLossless, "RGB"),
    ],
)
def test_compressed_colours_are_decoded(codec, syntax, kind):
    """To red, green and blue."""
    data = compressed(codec, syntax, picture(), PhotometricInterpretation=kind)
    found = decode(data, Transform(size=64)).astype(int)
    assert np.abs(found - picture()).mean() < 3


def test_a_compressed_picture_of_another_size_is_refused():
    """Before it is decoded: it could be of any size."""
    data = compressed("jpegls", uid.JPEGLSLossless, RAMP)
    with pytest.raises(ImageError, match="another size than its header says"):
        shown(data.replace(b"\x10\x00\x40\x00\x40", b"\x10\x70\x40\x70\x40"))


def test_colour_is_taken_as_it_is():
    """Ultrasound and dermatoscopes: 8 bits each of red, green, blue."""
    data = dicom(picture(), bits=8)
    assert (decode(data, Transform(size=64)) == picture()).all()
    assert Content(data).remembered().depth == EIGHT_BITS


def test_several_frames_are_refused_or_one_is_chosen():
    """The first, or the one in the middle."""
    frames = np.stack([np.full((32, 32), 1000 * k, np.uint16) + RAMP[:32, :32] for k in range(4)])
    data = dicom(frames)
    with pytest.raises(ImageError, match='4 frames; choose with frame = "first" or "middle"'):
        shown(data)
    first, middle = (shown(data, frame=frame) for frame in ("first", "middle"))
    assert middle.mean() - first.mean() == pytest.approx(2000 / 4095 * 255, abs=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dicom(RAMP, Rows=20_000, Columns=20_000), r"too large \(20000 x 20000, limit 50 Mpx"),
        (dicom(RAMP, PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR with 16 bits"),
        (dicom(RAMP, WindowCenter=5, WindowWidth=0), "^damaged .*Window Width must be greater"),
        (dicom(RAMP)[:-3000], "^damaged"),
        (dicom(RAMP)[:300], "^(damaged DICOM|DICOM without pixels)"),
    ],
)
def test_what_cannot_be_shown_has_a_reason(data, reason):
    """And no word of the header in it."""
    with pytest.raises(ImageError, match=reason) as error:
        shown(data)
    assert "Doe" not in str(error.value)


@pytest.fixture
def study_file(tiny_folder):
    """Twenty files of ten patients in two classes; the current folder is its folder."""
    for i in range(20):
        folder = tiny_folder / "here" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        data = dicom(RAMP + np.uint16(i), bits=16, PatientID=f"J-{i // 2} ")
        (folder / f"{i}.dcm").write_bytes(data)
    file = tiny_folder / "study.toml"
    file.write_text(
        '[source]\npath = "here"\ngroup = {header = "PatientID"}\n'
        '[store]\npath = "features"\n[backbone.tiny]\n'
    )
    return file


def test_patients_are_hashes_that_stay(study_file, monkeypatch):
    """With a secret of the store; the index remembers hashes, and another secret's are others."""
    first, _ = load_samples(load_study(study_file))
    again, _ = load_samples(load_study(study_file))
    assert len(set(first.group)) == 10
    assert (first.group == again.group).all()
    assert not any("J-" in patient for patient in first.group)
    salt = Path("features/patients.salt")
    assert salt.stat().st_mode & 0o077 == 0
    salt.unlink()
    other, _ = load_samples(load_study(study_file))
    assert len(set(other.group)) == 10
    assert not set(other.group) & set(first.group)
    Path("here/a/0.dcm").write_bytes(dicom(RAMP, bits=16, PatientID=""))
    assert "a/0.dcm" in load_samples(load_study(study_file))[0].group
    for file in Path("here").glob("*/*.dcm"):
        file.write_bytes(dicom(RAMP, bits=16, PatientID=""))
    with pytest.raises(StudyError, match=r"finds no patient in 20 of 20.*header of DICOM"):
        load_samples(load_study(study_file))
    salt.write_text("no hex")
    with pytest.raises(
        StudyError, match=r"patients\.salt cannot be read .*another split of validation patients"
    ):
        load_samples(load_study(study_file))


def test_one_rule_holds_for_all_files_of_a_domain(study_file):
    """Some with a window and some without: the study must say."""
    data = dicom(RAMP, WindowCenter=9, WindowWidth=9, PatientID="J-0")
    Path("here/a/0.dcm").write_bytes(data)
    with pytest.raises(StudyError, match=r"source: 20 images of real .* bits = 12"):
        load_samples(load_study(study_file))
    study = edited(study_file, {"[source]": "[source]\nwindow = [0, 4095]"})
    samples, _ = load_samples(study)
    assert samples.items[0].options.window == (0, 4095)
