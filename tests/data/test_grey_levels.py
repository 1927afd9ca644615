"""Values of more than 8 bits: one rule a domain, declared or guessed, and asked where unclear."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.compare import CompareOptions, compare
from pipeline.data.grey_levels import NO_RANGE, Reading, scaled
from pipeline.data.images import PixelPolicy, decode
from pipeline.data.samples import load_samples, window_of
from pipeline.data.sources import read_image
from pipeline.errors import ImageError, StudyError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.predict import predict
from pipeline.study import Domain, load_study
from tests.image_files import encoded, grey16, picture
from tests.tiny import install_tiny_backbone

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
ANY = Domain(path=Path("x"))


def test_values_are_scaled_and_clipped():
    """Black and white are the two values of the window."""
    values = np.array([-5, 0, 60, 100, 900], np.int16)
    assert scaled(values, (0, 100)).tolist() == [0, 0, 153, 255, 255]
    with pytest.raises(ImageError, match="NaN"):
        scaled(np.array([np.nan]), (0, 1))


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


@pytest.mark.parametrize(
    "depths", [[5000], [200], [2200], [20000], [NO_RANGE], [-1, -112], [-1, 4000]]
)
def test_what_is_unclear_is_asked(depths):
    """With what to write."""
    with pytest.raises(StudyError, match=r"source: .*white\. Write for this domain bits = 12"):
        window_of(ANY, depths)
    assert window_of(Domain(path=Path("x"), window=(0, 9)), depths) == (0, 9)


FILES = {
    "16-bit PNG": grey16(RAMP),
    "16-bit TIFF": encoded(RAMP, "TIFF"),
    "packed 16-bit TIFF": encoded(RAMP, "TIFF", compression="tiff_deflate"),
    "float TIFF": encoded(RAMP.astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_the_window_decides_what_is_white(name):
    """For every format with more than 8 bits."""
    pixels = decode(FILES[name], PixelPolicy(size=64), Reading(window=(0, 4095)))
    assert np.abs(pixels[..., 0] - RAMP / 4095 * 255).max() <= 1


def test_white_is_zero_in_some_tiff_files():
    """Of 8 and of 16 bits."""
    for values in (picture()[..., 0], picture()[..., 0].astype(np.uint16) * 257):
        data = encoded(values, "TIFF", tiffinfo={262: 0})
        plain = encoded(values, "TIFF")
        inverted, upright = (decode(d, PixelPolicy(size=64)).astype(int) for d in (data, plain))
        # Pillow inverts what it writes of 8 bits, so that such a file looks the same.
        assert (inverted == (upright if values.dtype == np.uint8 else 255 - upright)).all()


def test_pages_are_refused_or_one_is_chosen():
    """A TIFF file of several pictures."""
    pages = [Image.fromarray(picture(seed=k)) for k in range(3)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="3 frames"):
        decode(data, PixelPolicy(size=64))
    chosen = decode(data, PixelPolicy(size=64), Reading(frame="middle"))
    assert (chosen == picture(seed=1)).all()


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """Sixty 14-bit X-rays at three exposures, as a detector writes them."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = tmp_path / "here" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        top = (3000, 9000, 16383)[i % 3]
        values = rng.integers(top // 4, top + 1, (32, 32)).astype(np.uint16)
        (folder / f"p{i}.png").write_bytes(grey16(values))
    file = tmp_path / "study.toml"
    file.write_text(
        '[source]\npath = "here"\ngroup = \'p\\d+\'\n[store]\npath = "features"\n[backbone.tiny]\n'
    )
    return file


def test_a_detectors_bits_are_guessed_for_dark_and_bright_pictures(study_file, caplog):
    """None is refused, the three exposures stay apart, and the guess is said once."""
    samples, skipped = load_samples(load_study(study_file))
    assert len(samples) == 60
    assert not skipped
    means = {
        k: np.mean([read_image(item).pixels(PixelPolicy(size=32)).mean() for item in of_one])
        for k, of_one in enumerate(
            [i for i in samples.items if int(i.path[3:-4]) % 3 == k] for k in range(3)
        )
    }
    assert means[0] < 35 < means[1] < 100 < means[2] < 170
    said = "source: 60 images of 16 bits: the largest value is 16383, so 14 bits are taken for all"
    assert said in caplog.text
    declared = study_file.read_text().replace("[source]", "[source]\nbits = 14")
    study_file.write_text(declared)
    caplog.clear()
    assert load_samples(load_study(study_file))[0].key == samples.key
    assert "largest value" not in caplog.text
    study_file.write_text(declared.replace("bits = 14", "bits = 16"))
    assert not set(load_samples(load_study(study_file))[0].key) & set(samples.key)


def test_a_saved_head_reads_new_images_by_the_rule_of_its_source(study_file):
    """Their features are those in the store: none is computed by another rule."""
    study = load_study(study_file)
    engine = EngineChoice(engine="torch", device="cpu", batch_size=16)
    extract(study, engine)
    compare(study, CompareOptions(heads=("linear",), repeats=0, draws=99))
    head = study.results / "heads/tiny/linear"
    found = predict(head, [study.source.path], store=study.store_root, engine=engine)
    assert (found["computed"], len(found["rows"])) == (0, 60)
