"""Maps lie where the label is, and say as much as the score does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torch import nn

from pipeline.cli import main
from pipeline.compare import CompareOptions, compare
from pipeline.errors import ExportError, StudyError
from pipeline.explain import _Maps, explain, mass_shares
from pipeline.export import load_trained
from pipeline.features import backbones
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.features.load import load_features
from pipeline.finetune.data import load_pixels
from pipeline.finetune.stage import FinetuneOptions, finetune
from pipeline.study_file import load_study
from tests.finetune.tiny_trainable import install_trainable_tiny
from tests.tiny import install_tiny_backbone, write_tiny_study

TORCH = EngineChoice(engine="torch", device="cpu", batch_size=4)
#: Rows and columns of the marker that images of class b have, of 32.
MARKERS = {"corner": (slice(0, 8), slice(0, 8)), "spot": (slice(8, 24), slice(8, 24))}


def _mark(folder, marker):
    """Make all images alike but for a marker that says the class."""
    rng = np.random.default_rng(0)
    for file in sorted(folder.rglob("*.png")):
        pixels = rng.normal(100, 12, (32, 32))
        if file.parent.name == "b":
            pixels[MARKERS[marker]] = 255
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def _made(folder, marker, backbone=install_tiny_backbone):
    """A study of such images with heads; undo what is installed."""
    install = pytest.MonkeyPatch()
    backbone(install, folder)
    install.chdir(folder)
    file = write_tiny_study(folder)
    if marker:
        _mark(folder, marker)
    study = load_study(file)
    extract(study, ExtractOptions(engine=TORCH))
    compare(study, CompareOptions(heads=("linear", "mlp", "knn"), seeds=2))
    return study, install


@pytest.mark.parametrize("marker", MARKERS)
def test_the_map_lies_where_the_label_is(tmp_path, marker):
    """In the corner where the marker is in one, and in the middle where it is a spot.

    The marker fills a quarter of each side, the corner of the measure a fifth: 64 % of it.
    """
    study, install = _made(tmp_path, marker)
    records = [explain(study, head) for head in ("linear", "mlp")]
    install.undo()
    for domain in (domain for record in records for domain in record["domains"]):
        marked, found = sorted(domain["rows"], key=lambda row: row["class"] == "a")
        assert marked["images"] > 0
        expected = {"corner": (0.64, 0.84), "spot": (0.0, 0.0)}[marker]
        for region, share in zip(("corners", "border"), expected, strict=True):
            assert marked[region]["estimate"] == pytest.approx(share, abs=0.03)
            assert marked[region]["low"] <= marked[region]["estimate"] <= marked[region]["high"]
            # Neither those without a marker nor a head of shuffled labels looks there alone.
            assert abs(found[region]["estimate"] - share) > 0.1
            assert abs(marked[f"shuffled_{region}"]["estimate"] - share) > 0.05


def test_a_fine_tuned_network_is_explained_too(tmp_path):
    """It has no head of shuffled labels beside it; sheets of pictures are there."""
    study, install = _made(tmp_path, "corner", install_trainable_tiny)
    given = {"epochs": 6, "batch_size": 8, "learning_rate": 0.01}
    finetune(study, FinetuneOptions(methods=("full",), settings=given, device="cpu"))
    record = explain(study, "full", images=5)
    (found,) = (row for row in record["domains"][1]["rows"] if row["class"] == "b")
    assert found["corners"]["estimate"] > record["even"]["corners"]
    assert "shuffled_corners" not in found
    assert sum(row["images"] for row in record["domains"][1]["rows"]) == 10
    folder = Path(record["folder"])
    on_disk = json.loads((folder / "explain.json").read_text())
    assert on_disk["domains"] == record["domains"]
    assert "there-target-sample.png" in on_disk["files"]
    with Image.open(folder / "there-target-sample.png") as sheet:
        assert sheet.size[0] > 300
    assert (folder / "there-target-sample.png").stat().st_mode & 0o077 == 0
    install.undo()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A study without markers, in the current folder."""
    study, install = _made(tmp_path_factory.mktemp("plain"), "")
    yield study
    install.undo()


def test_the_map_of_a_linear_head_adds_up_to_its_score(plain, tmp_path):
    """Its mean is the difference of the score from that of the mean features, exactly."""
    samples = load_features(plain, plain.backbones[0]).samples
    model = load_trained(plain, plain.backbones[0], "linear", samples)
    maps = _Maps(model, "cpu")
    pixels = load_pixels(samples, model.policy, folder=tmp_path).values
    maps.centre = maps.features(pixels)
    ((proba, found),) = maps.of(pixels, model.heads)
    (head,) = model.heads
    centre = head(maps.centre.double()[None]).detach().numpy()[0]
    best = proba.argmax(1)
    logit = np.log(proba[:, 1] / proba[:, 0]) - np.log(centre[1] / centre[0])
    expected = np.where(best == 1, logit, -logit)
    np.testing.assert_allclose(found.mean((1, 2)), expected, atol=1e-4)


def test_shares_are_of_area_and_of_the_positive_part():
    """An even map has the share of the area; what is negative counts nothing."""
    even = np.ones((1, 7, 7), np.float32)
    assert mass_shares(even)["border"] == pytest.approx(0.51)
    assert mass_shares(even)["corners"] == pytest.approx(0.16)
    one = np.full((3, 10, 10), -5, np.float32)
    one[0, 0, 0] = one[1, 5, 5] = 2
    assert mass_shares(one)["corners"][:2] == pytest.approx([1, 0])
    assert mass_shares(one)["border"][:2] == pytest.approx([1, 0])
    assert np.isnan(mass_shares(one)["border"][2])


def test_what_cannot_be_explained_says_why(plain, monkeypatch):
    """A head without layers, features that are no mean over places, no images."""
    with pytest.raises(ExportError, match="the head knn has no layers: it compares with"):
        explain(plain, "knn")
    with pytest.raises(StudyError, match="images 0: allowed is 1 or more"):
        explain(plain, "linear", images=0)
    spec = backbones.BACKBONES["tiny"]

    def with_largest(state):
        network = spec.network(state)
        network[2] = nn.AdaptiveMaxPool2d(1)
        return network

    table = {**backbones.BACKBONES, "tiny": replace(spec, network=with_largest)}
    monkeypatch.setattr(backbones, "BACKBONES", table)
    with pytest.raises(ExportError, match="networks that end in global average pooling"):
        explain(plain, "linear")


@pytest.mark.usefixtures("plain")
def test_the_command_prints_a_table_for_each_domain():
    """And the record with --json."""
    command = ["explain", "study.toml", "--head", "linear", "--images", "4", "--device", "cpu"]
    text = CliRunner().invoke(main, command)
    found = CliRunner().invoke(main, [*command, "--json"])
    assert text.exit_code == found.exit_code == 0, text.output
    assert "tiny: what linear on tiny looks at" in text.output
    assert "An even map has 0.51 and 0.16." in text.output
    assert [d["domain"] for d in json.loads(found.stdout)["domains"]] == ["source", "there"]
