"""Maps lie where the label is, and say as much as the score does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.compare import CompareOptions, compare
from pipeline.errors import ExportError, PipelineError
from pipeline.explain import ActivationMaps, explain, mass_shares
from pipeline.features.backbones import BACKBONES, spec_of
from pipeline.features.extract import extract
from pipeline.features.frozen import FeatureExtractor, build
from pipeline.finetune.methods import METHODS
from pipeline.finetune.networks import assemble
from pipeline.finetune.stage import finetune
from pipeline.report import show
from pipeline.results import write_set
from pipeline.study_file import load_study
from tests.test_cli import run
from tests.tiny import (
    TORCH,
    install_tiny_backbone,
    install_trainable_tiny,
    record_of,
    rewrite,
    stored_tiny_study,
    write_tiny_study,
)

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


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """A function from a marker, a backbone and a line of it to a study with features."""

    def study_of(marker, backbone=install_tiny_backbone, setting=""):
        backbone(monkeypatch, tmp_path)
        monkeypatch.setattr("pipeline.explain._ON_SHEET", 2)
        monkeypatch.chdir(tmp_path)
        file = write_tiny_study(tmp_path)
        file.write_text(f"{file.read_text()}{setting}\n")
        _mark(tmp_path, marker)
        (tmp_path / "there/b/p2000_1.png").rename(tmp_path / "there/a/p2000_1.png")  # an error
        study = load_study(file)
        extract(study, TORCH)
        return study

    return study_of


@pytest.mark.parametrize(
    ("marker", "setting"),
    [("corner", ""), ("spot", ""), ("corner", "views = 2"), ("spot", 'layers = ["1"]')],
)
def test_the_map_lies_where_the_label_is(marked, marker, setting):
    """In the corner where the marker is in one, and in the middle where it is a spot.

    The marker fills a quarter of each side, the corner of the measure a fifth: 64 % of it.
    """
    study = marked(marker, setting=setting)
    compare(study, CompareOptions(heads=("linear", "mlp"), repeats=0, draws=20))
    records = [explain(study, head) for head in ("linear", "mlp")]
    for domain in (domain for record in records for domain in record["domains"]):
        with_marker, without = sorted(domain["rows"], key=lambda row: row["class"] == "a")
        assert with_marker["images"] > 0
        expected = {"corner": (0.64, 0.84), "spot": (0.0, 0.0)}[marker]
        for region, share in zip(("corners", "border"), expected, strict=True):
            assert with_marker[region]["estimate"] == pytest.approx(share, abs=0.03)
            low, high = with_marker[region]["low"], with_marker[region]["high"]
            assert low - 1e-9 <= with_marker[region]["estimate"] <= high + 1e-9
            # Neither those without a marker nor a head of shuffled labels looks there alone.
            assert abs(without[region]["estimate"] - share) > 0.1
            assert abs(with_marker[f"shuffled_{region}"]["estimate"] - share) > 0.05


def test_a_fine_tuned_network_is_explained_too(marked):
    """Beside a head of shuffled labels and the audit's test; its sheets are of mode 0600."""
    study = marked("corner", install_trainable_tiny)
    given = {"epochs": 6, "batch_size": 8, "learning_rate": 0.01}
    finetune(study, methods=("full",), settings=given, device="cpu")
    auc = {"estimate": 1.0, "low": 0.9, "high": 1.0}
    result = {"check": "corners", "where": "there", "values": {"auc": auc}}
    write_set(study.results / "audit.json", {"results": [result]})
    record = explain(study, "full", images=5)
    assert [domain["audit"] for domain in record["domains"]] == [{}, {"corners": auc}]
    target = record["domains"][1]["rows"]
    (row,) = (row for row in target if row["class"] == "b")
    assert row["corners"]["estimate"] > record["even"]["corners"]
    assert row["corners"]["low"] > row["shuffled_corners"]["estimate"]
    assert sum(row["images"] for row in target) == 10
    folder = Path(record["folder"])
    on_disk = json.loads((folder / "explain.json").read_text())
    assert on_disk["domains"] == record["domains"]
    assert "there-target-sample.png" in on_disk["files"]
    with Image.open(folder / "there-target-sample.png") as sheet:
        assert sheet.size[0] > 300  # each beside its map
    assert (folder / "there-target-sample.png").stat().st_mode & 0o077 == 0
    # The error is shown, whichever images are measured.
    assert all(row["images"] <= 2 for row in explain(study, "full", images=1)["domains"][1]["rows"])
    assert (folder / "there-target-errors.png").exists()


def adds_up(network, size, dim):
    """Whether the mean of a linear head's map is its score less that of the mean features.

    Exactly, for all networks whose features are a mean over places.
    """
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (6, size // 16, size // 16, 3), np.uint8))
    pixels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    maps = ActivationMaps(network, pixels[:4], "cpu")
    torch.manual_seed(0)
    scores = nn.Linear(dim, 3)
    scores.weight.data /= maps.features.std()  # no probability of 0
    head = nn.Sequential(scores, nn.Softmax(1))
    ((proba, of_head),) = maps.of(pixels, head)
    centre = head(maps.features.double().mean(0)[None]).detach().numpy()
    score = np.log(proba) - np.log(centre)
    chosen = np.eye(3, dtype=bool)[proba.argmax(1)]
    expected = score[chosen] - score[~chosen].reshape(-1, 2).mean(1)
    assert of_head.std((1, 2)).min() > 0
    np.testing.assert_allclose(of_head.mean((1, 2)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow  # they are large
@pytest.mark.parametrize("name", [*BACKBONES, "timm:resnet18"])
def test_every_backbone_has_maps(name, tmp_path):
    """Of its features, of each of its layers, and fine-tuned."""
    from tests.features.test_backbones import reference

    file = tmp_path / "weights.pth"
    torch.save(reference(name).state_dict(), file)
    spec = spec_of(name)
    for layer, dim in {"": spec.dim, **spec.layers}.items():
        adds_up(FeatureExtractor(build(name, file), spec.transform, [layer]), 224, dim)
    assembly = assemble("full", name, file, transform=spec.transform, classes=2, seed=0)
    assembly.state()
    whole = assembly.whole.eval()
    adds_up(nn.Sequential(whole.entry, whole.backbone), 224, spec.dim)


@pytest.mark.parametrize("name", METHODS)
def test_networks_of_every_method_have_maps(name, tmp_path, monkeypatch):
    """But of the fully connected one, which has no places."""
    file = install_trainable_tiny(monkeypatch, tmp_path)
    transform = spec_of("tiny").transform
    whole = assemble(name, "tiny", file, transform=transform, classes=2, seed=0).whole.eval()
    network = nn.Sequential(whole.entry, whole.backbone)
    if name == "scratch_mlp":
        with pytest.raises(ExportError, match="network that ends in global average pooling"):
            adds_up(network, 32, 8)
    else:
        adds_up(network, 32, whole.head[0].in_features)


def test_shares_are_of_area_and_of_the_positive_part():
    """An even map has the share of the area; what is negative counts nothing."""
    even = np.ones((1, 7, 7), np.float32)
    assert mass_shares(even)["border"] == pytest.approx(0.51)
    assert mass_shares(even)["corners"] == pytest.approx(0.16)
    points = np.full((3, 10, 10), -5, np.float32)
    points[0, 0, 0] = points[1, 5, 5] = 2
    assert mass_shares(points)["corners"][:2] == pytest.approx([1, 0])
    assert mass_shares(points)["border"][:2] == pytest.approx([1, 0])
    assert np.isnan(mass_shares(points)["border"][2])


@pytest.fixture
def layered(tmp_path, monkeypatch):
    """A study of two layers and both together, with heads."""
    setting = 'layers = ["0", "1"]'
    study = load_study(stored_tiny_study(tmp_path, monkeypatch, setting=setting))
    compare(study, CompareOptions(heads=("knn", "linear"), repeats=0, draws=20))
    return study


def test_without_a_name_the_best_head_that_has_layers_is_explained(layered):
    """Of all backbones, or on the one that is named."""
    values = record_of(layered.results / "heads.json")
    for entry in values["backbones"]:
        entry["best"] = "knn"
        for row in (row for domain in entry["domains"] for row in domain["rows"]):
            accuracy = {"tiny@0": 0.5, "tiny@1": 0.6}.get(entry["backbone"], 0.7)
            row["scores"]["accuracy"]["estimate"] = accuracy + 0.2 * (row["head"] == "knn")
    rewrite(layered.results / "heads.json", values)
    for backbone, expected, best, reason in (
        (None, "tiny@1", "tiny@0+tiny@1", "it is on several backbones side by side"),
        ("tiny@0", "tiny@0", "tiny@0", "the head knn has no layers: it compares with"),
    ):
        record = explain(layered, images=2, backbone=backbone)
        assert (record["backbone"], record["head"]) == (expected, "linear")
        text = " ".join(show("explain", record).split())
        assert f"on validation, knn on {best}, has no maps: {reason}" in text
    compare(layered, CompareOptions(heads=("knn",), baseline="knn", repeats=0, draws=20))
    with pytest.raises(ExportError, match="the head knn has no layers.* STUDY --only linear"):
        explain(layered, images=2)


def test_a_target_without_labels_is_said_to_have_no_maps(tmp_path, monkeypatch):
    """Else its absence would look like an oversight."""
    file = stored_tiny_study(tmp_path, monkeypatch)
    (tmp_path / "new").mkdir()
    for image in (tmp_path / "there").rglob("*.png"):
        image.rename(tmp_path / "new" / image.name)
    file.write_text(
        file.read_text().replace('path = "there"', 'path = "new"\nlabels = "absent"', 1)
    )
    run("features", "study.toml", "--device", "cpu")
    run("heads", "study.toml", "--only", "linear", "--quick")
    said = run("explain", "study.toml", "--images", "2", "--device", "cpu").output
    assert "no maps of there: it has no labels" in said


def test_the_command_prints_a_table_for_each_domain(layered):
    """And the record with --json; what cannot be explained says why."""
    command = ["explain", "study.toml", "--head", "linear", "--images", "4", "--device", "cpu"]
    command += ["--backbone", "tiny@1"]
    said = run(*command).output
    assert "tiny: where linear on tiny@1 looks" in said
    assert "An even map has 0.51 in the border and 0.16 in the corners." in said
    assert "Run headrace audit STUDY to test what the border alone predicts." in said
    record = json.loads(run(*command, "--json").stdout)
    assert [d["domain"] for d in record["domains"]] == ["source", "there"]
    for name, options, message in (
        ("knn", {}, "the head knn has no layers: it compares with"),
        ("linear", {"images": 0}, "images 0: allowed is 1 or more"),
        ("linear", {"backbone": "tiny@0+tiny@1"}, "side by side; name one of tiny@0, tiny@1"),
    ):
        with pytest.raises(PipelineError, match=message):
            explain(layered, name, **{"backbone": "tiny@1", **options})
