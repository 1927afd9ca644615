"""Real chest X-rays, where they are: the numbers that a separate measurement expects."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.recipe import relative_l2
from pipeline.compare import CompareOptions, compare
from pipeline.data.images import PixelPolicy
from pipeline.data.samples import load_samples
from pipeline.data.sources import read_image
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import extract
from pipeline.features.load import frozen_network, store_for
from pipeline.study import load_study
from tests.image_files import listed

DATA = Path(__file__).parents[2] / "shared" / "data" / "cxr"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real X-rays in {DATA}")
GROUP = r"group = '^(person\d+|(?:NORMAL2-)?IM-\d+|\d{8})'"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return tmp_path


def write_study(folder: Path, source: str, *targets: str, backbone: str = "efficientnet_lite0"):
    file = folder / "study.toml"
    lines = ['name = "cxr"', "[source]", f'path = "{DATA / source}"', GROUP]
    for name in targets:
        lines += [f"[target.{name}]", f'path = "{DATA / name}"', GROUP]
    file.write_text("\n".join([*lines, f"[backbone.{backbone}]"]) + "\n")
    return load_study(file)


@pytest.mark.slow
def test_the_three_stories_of_the_chest_x_rays(in_folder):
    """Inside 95 to 98 %, another set of the same hospital near 82 %, NIH at chance.

    The linear head's numbers; the range for kermany_test is the measured 0.82 to 0.86
    widened by the 1.9 points that are one standard error of 400 images.
    """
    study = write_study(in_folder, "kermany_train", "kermany_test", "nih")
    report = extract(study)
    assert report["backbones"][0]["images_in"] == 2800
    assert not report["skipped"]
    (backbone,) = compare(study, CompareOptions(heads=("linear",)))["backbones"]
    score = {
        (one["domain"], one["role"], metric): value["estimate"]
        for one in backbone["domains"]
        for metric, value in one["rows"][0]["scores"].items()
    }
    assert 0.95 <= score["source", "validation", "accuracy"] <= 0.98
    assert 0.80 <= score["kermany_test", "target", "accuracy"] <= 0.86
    assert score["kermany_test", "target", "auroc"] >= 0.94
    assert 0.42 <= score["nih", "target", "accuracy"] <= 0.56


def test_stacks_give_the_features_of_an_independent_decode(in_folder):
    """The uint8 rows of course_npy, straight through the network, row by row."""
    source = in_folder / "some"
    source.mkdir()
    rows = {}
    for kind in ("normal", "pneumonia"):
        stack = np.load(DATA / "course_npy" / f"test_{kind}.npy")[:12]
        np.save(source / f"test_{kind}.npy", stack)
        rows[kind] = stack
    study = load_study(_stack_study(in_folder))
    report = extract(study, EngineChoice(engine="torch", device="cpu"))
    assert report["backbones"][0]["computed"] == 24
    store = store_for(study, study.backbones[0])
    network = frozen_network(study.backbones[0])
    for stack in rows.values():
        pixels = torch.from_numpy(stack[..., None].repeat(3, -1))
        expected = network(pixels).numpy()
        keys = [_key(row) for row in stack]
        assert relative_l2(store.read(keys), expected) <= 1e-5


def _stack_study(folder: Path) -> Path:
    file = folder / "study.toml"
    file.write_text('name = "npy"\n[source]\npath = "some"\n[backbone.efficientnet_lite0]\n')
    return file


def _key(row: np.ndarray) -> bytes:
    """SHA-256 over dtype, shape and bytes, as the documentation of the store has it."""
    return hashlib.sha256(f"{row.dtype.str}|{row.shape}|".encode() + row.tobytes()).digest()


def test_full_resolution_originals_all_decode():
    """Eighty originals, up to 2000 px, JPEG and PNG: none is refused."""
    policy = PixelPolicy()
    items = [
        item
        for hospital in ("kermany", "nih")
        for item in listed(DATA / "full_resolution" / hospital).items
    ]
    assert len(items) == 80
    assert {read_image(item).pixels(policy).shape for item in items} == {(224, 224, 3)}


def test_five_copies_are_found_and_share_their_rows(in_folder):
    """The set holds five byte-identical files under other names."""
    study = write_study(in_folder, "kermany_train", "kermany_test", "nih")
    samples, skipped = load_samples(study)
    assert not skipped
    assert (len(samples), len(set(samples.key))) == (2800, 2795)
    assert samples.classes == ("normal", "pneumonia")


def test_a_real_stack_has_the_pixels_of_its_jpeg_files():
    """The course's stacks are the decoded test files, in the order of their names."""
    files, rows = listed(DATA / "kermany_test").items, listed(DATA / "course_npy").items
    rows = sorted(rows, key=lambda item: (item.label, item.row))
    for file, row in zip(files, rows, strict=True):
        assert file.label == row.label
        one, other = (read_image(item).pixels(PixelPolicy()) for item in (file, row))
        assert (one == other).all()
