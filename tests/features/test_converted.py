"""The converted network is kept beside the stores, never trusted damaged, and needs no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.features import engines
from pipeline.features.converted import ConvertedNetwork
from pipeline.features.engines import EngineChoice, start_engine
from pipeline.features.extract import ExtractOptions, extract
from pipeline.features.load import frozen_network, store_for
from pipeline.features.weights import file_digest
from pipeline.study import load_study
from tests.tiny import install_tiny_backbone, write_images, write_tiny_study

OPENVINO = ExtractOptions(engine=EngineChoice(engine="openvino", device="cpu", batch_size=4))


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch) -> Path:
    """A tiny study whose features are stored; the current folder is its folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    file = write_tiny_study(tmp_path, source=24, target=12)
    extract(load_study(file), OPENVINO)
    return file


@pytest.fixture
def conversions(monkeypatch) -> list[int]:
    """Batch sizes of the networks that are converted from here on."""
    made = []
    real = engines._convert
    monkeypatch.setattr(
        engines, "_convert", lambda network, size: made.append(size) or real(network, size)
    )
    return made


def kept(study_file: Path) -> Path:
    """The one converted network."""
    (file,) = (study_file.parent / "features" / "index" / "networks").iterdir()
    return file


def with_new_images(study_file: Path, seed: int):
    """The study after ten images were added and extracted."""
    write_images(study_file.parent / "there", 10, seed=seed)
    study = load_study(study_file)
    assert extract(study, OPENVINO).backbones[0].computed == 10
    return study


def test_a_kept_network_gives_the_features_of_a_converted_one(study_file, conversions):
    """Bit for bit, and without building the network."""
    study = load_study(study_file)
    recipe, weights = store_for(study, study.backbones[0]).recipe, file_digest(Path("tiny.pth"))
    converted = ConvertedNetwork(Path("features"), fingerprint=recipe.fingerprint, weights=weights)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    rows = []
    for build, where in ((None, converted), (lambda: frozen_network(study.backbones[0]), None)):
        engine = start_engine(build, OPENVINO.engine, "fp32", converted=where)
        rows.append(engine.submit(pixels)())
        engine.close()
    assert conversions == [4]
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "head"])
def test_a_damaged_network_is_made_again(study_file, conversions, damage):
    """No byte of it is believed; the file is whole afterwards."""
    file = kept(study_file)
    whole = file.read_bytes()
    data = bytearray(whole)
    data[-9] ^= 1
    file.write_bytes(
        {
            "flip": data,
            "cut": whole[:-5],
            "empty": b"",
            "other": b"no network",
            "head": whole.replace(b'"graph": ', b'"graph": 1', 1),
        }[damage]
    )
    with_new_images(study_file, seed=7)
    assert conversions == [4]
    with_new_images(study_file, seed=8)
    assert conversions == [4]


@pytest.mark.parametrize("field", ["openvino", "torch", "batch", "fingerprint", "weights"])
def test_a_network_of_another_version_or_recipe_is_made_again(study_file, conversions, field):
    """All that it depends on is in its key."""
    file = kept(study_file)
    head, _, body = file.read_bytes().partition(b"\n")
    values = json.loads(head)
    assert values["key"][field]
    values["key"][field] = "another"
    file.write_bytes(json.dumps(values).encode() + b"\n" + body)
    with_new_images(study_file, seed=7)
    assert conversions == [4]


def test_other_weights_have_a_network_of_their_own(study_file, conversions):
    """The kept network of the old weights is never run for the new ones."""
    state = torch.load("tiny.pth", weights_only=True)
    torch.save(state | {"0.bias": state["0.bias"] + 1}, "tiny.pth")
    study = load_study(study_file)
    assert extract(study, OPENVINO).backbones[0].computed == 36
    assert conversions == [4]
    assert len(list(Path("features/index/networks").iterdir())) == 2


def test_a_network_that_cannot_be_kept_costs_only_time(study_file, conversions, monkeypatch):
    """A full disk ends no run for it."""
    kept(study_file).unlink()
    from cache import disk

    publish = disk.publish

    def full(path, *given, **named):
        if path.suffix == ".openvino":
            raise OSError(28, "No space left on device")
        return publish(path, *given, **named)

    monkeypatch.setattr(disk, "publish", full)
    with_new_images(study_file, seed=7)
    with_new_images(study_file, seed=8)
    assert conversions == [4, 4]


def test_a_second_run_does_not_import_torch(study_file):
    """Importing it takes longer than ten images."""
    write_images(study_file.parent / "there", 10, seed=7)
    code = (
        "import sys, types; from pathlib import Path; import pytest;"
        "import pipeline.features.backbones as b; from tests.tiny import FileWeights, tiny_network;"
        "from pipeline.data.images import PixelPolicy;"
        "half = (0.5, 0.5, 0.5);"
        "spec = b.Spec(dim=8, policy=PixelPolicy(size=32, mean=half, std=half),"
        " network=tiny_network, pretrained=FileWeights(Path('tiny.pth')));"
        "b.BACKBONES = types.MappingProxyType({**b.BACKBONES, 'tiny': spec});"
        "from pipeline.features.extract import ExtractOptions, extract;"
        "from pipeline.features.engines import EngineChoice;"
        "from pipeline.study import load_study;"
        "options = ExtractOptions(engine=EngineChoice(device='cpu', batch_size=4));"
        "report = extract(load_study(Path('study.toml')), options);"
        "assert report.backbones[0].computed == 10, report;"
        "assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=study_file.parent, env=environment, check=True)
