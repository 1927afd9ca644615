"""A model as one ONNX file gives what the model gives, with onnxruntime alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.export as export_module
from pipeline import heads
from pipeline.compare import CompareOptions, compare
from pipeline.data.samples import load_samples
from pipeline.errors import ExportError, MissingResultsError, ModelError, PipelineError
from pipeline.evaluation.predictions import read_predictions
from pipeline.export import export_model, load_trained
from pipeline.features.extract import extract
from pipeline.features.load import load_features
from pipeline.finetune.stage import finetune
from pipeline.heads.base import PREPROCESSING, PreprocessedHead, make_preprocessing
from pipeline.heads.layers import head_layers
from pipeline.heads.save import head_folder
from pipeline.predict import predict as predict_images
from pipeline.study_file import load_study
from tests.test_cli import run
from tests.tiny import (
    TORCH,
    install_trainable_tiny,
    stored_tiny_study,
    write_images,
    write_tiny_study,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
HEADS = ("linear", "ridge", "lda", "mlp", "prototype", "svm")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder of a tiny study with heads and a fine-tuned network; made once, never changed."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        install_trainable_tiny(patch, folder)
        patch.chdir(folder)
        study = load_study(write_tiny_study(folder))
        extract(study, TORCH)
        options = {"seeds": 2, "repeats": 0, "draws": 20}
        compare(study, CompareOptions(heads=("linear", "mlp", "forest", "knn"), **options))
        given = {"epochs": 1, "batch_size": 8}
        finetune(study, methods=("full",), settings=given, device="cpu")
        write_images(folder / "new", 6, seed=9)
        export_model(study, "mlp", folder / "mlp.onnx")
    return folder


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """A copy of it, in the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return load_study(tmp_path / "study.toml")


@pytest.fixture
def graph_of_mlp(study, monkeypatch):
    """Takes the place of a graph that is being made, which takes seconds."""
    graph = Path("mlp.onnx").read_bytes()
    monkeypatch.setattr(export_module, "_graph", lambda *_: graph)


def probabilities(model):
    """By path, of all images: those of both hospitals and new ones."""
    images = [Path("here"), Path("there"), Path("new")]
    record = predict_images(Path(model), images, store=Path("features"), engine=TORCH)
    return {row["path"]: row["probability"] for row in record["rows"]}


def test_a_file_gives_the_probabilities_of_the_head(study):
    """On 66 images, the mean of two seeds; onnx finds it valid; the card says how good it is."""
    given, expected = probabilities("mlp.onnx"), probabilities("results/tiny/heads/tiny/mlp")
    assert given.keys() == expected.keys()
    assert len(given) == 66
    np.testing.assert_allclose(list(given.values()), list(expected.values()), atol=1e-4)
    proto = onnx.load("mlp.onnx")
    onnx.checker.check_model(proto, full_check=True)
    card = json.loads(proto.metadata_props[0].value)
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:] == [32, 32, 3]
    assert [(d["role"], d["images"]) for d in card["tested"]] == [("validation", 8), ("target", 20)]
    assert card["tested"][1]["scores"]["accuracy"]["low"] <= 1
    assert card["classes"] == ["a", "b"]
    assert card["trained"] == {"study": "tiny", "images": 32}
    recipe = json.loads(Path("results/tiny/heads/tiny/mlp/model.json").read_text())["networks"][0]
    assert card["recipe"] == recipe["recipe"]
    assert len(card["fingerprint"]) == 64
    assert [row["rule"] for row in card["thresholds"]] == ["youden", "specificity", "sensitivity"]
    assert card["thresholds"][1]["specificity"]["estimate"] >= 0.9
    assert 0 <= card["calibration"]["ece"] < 0.5
    assert card["weights_licence"].startswith("BSD-3")


@pytest.mark.slow  # a graph takes seconds
@pytest.mark.parametrize("setting", ["views = 2", 'layers = ["1"]'])
def test_views_and_layers_are_in_the_file(tmp_path, monkeypatch, setting):
    """It takes the picture as it is, and gives what the head gives to the mean of the views."""
    study = load_study(stored_tiny_study(tmp_path, monkeypatch, setting=setting))
    compare(study, CompareOptions(heads=("linear",), repeats=0, draws=20))
    card = export_model(study, "linear", Path("model.onnx"))
    assert card["compared"]["largest_difference"] <= 1e-4
    folder = head_folder(study.results, study.backbones[0].name, "linear")
    of_head, of_file = (
        predict_images(model, [Path("there")], store=Path("features"), engine=TORCH)["rows"]
        for model in (folder, Path("model.onnx"))
    )
    for row, same in zip(of_head, of_file, strict=True):
        np.testing.assert_allclose(row["probability"], same["probability"], atol=1e-4)


def test_every_preprocessing_and_three_classes_have_a_graph():
    """Against the fitted pipelines themselves, on made-up features."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    X = (rng.normal(size=(90, 6)) + 2 * np.eye(6)[label]).astype(np.float32)
    for preprocessing in PREPROCESSING:
        for head in HEADS:
            transformer = make_preprocessing(preprocessing, (2, 4))
            fitted = heads.HEADS[head].make(0)
            if head == "svm":
                fitted.set_params(kernel="linear", C=0.1)
            rows = transformer.fit(X).transform(X)
            model = PreprocessedHead(transformer, fitted.fit(rows, label))
            proba = head_layers(model, head)(torch.from_numpy(X)).detach().numpy()
            np.testing.assert_allclose(proba, model.predict_proba(X), atol=1e-4)


def test_a_fine_tuned_network_is_one_file_too(study):
    """As the probabilities that stage 3 kept."""
    card = export_model(study, "full", Path("full.onnx"))
    assert card["model"] == "full"
    assert [d["role"] for d in card["tested"]] == ["validation", "target"]
    assert card["recipe"]["settings.epochs"] == 1
    assert len(card["fingerprint"]) == 64
    assert len(card["thresholds"]) == 3
    kept = read_predictions(study.results / "finetune.h5")["tiny"]
    expected = dict(zip(map(bytes, kept.key), kept.proba["full", 0], strict=True))
    rows = predict_images(Path("full.onnx"), [Path("here")], store=Path("features"))["rows"]
    for row in rows:
        of_key = expected[bytes.fromhex(row["key"])]
        assert row["probability"] == pytest.approx(of_key, abs=1e-4)
    assert len(rows) == 40


def test_a_study_of_another_seed_has_models_too(study):
    """Stored probabilities are found under its seed; where they are not, the command is named."""
    file = Path("study.toml")
    file.write_text("seed = 3\n" + file.read_text())
    other = load_study(file)
    given = {"epochs": 1, "batch_size": 8}
    finetune(other, methods=("full",), settings=given, device="cpu")
    compare(other, CompareOptions(heads=("mlp", "linear"), seeds=2, repeats=0, draws=20))
    compare(other, CompareOptions(heads=("mlp",), seeds=2, repeats=0, draws=20))
    choice = other.backbones[0]
    samples = load_features(other, choice, load_samples(other)[0]).samples
    for name in ("mlp", "full"):
        model = load_trained(other, choice, name, samples)
        np.testing.assert_array_equal(model.proba, model.stored.proba[name, 3])
        assert len(model.card["thresholds"]) == 3
    with pytest.raises(MissingResultsError, match="of linear on tiny with seed 3; first run: head"):
        load_trained(other, choice, "linear", samples)  # saved by an earlier run


def test_the_file_is_used_without_torch_and_scikit_learn(study):
    """By the command, in a process that has neither."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'sklearn', 'skops.io'));"
        "from pipeline.cli import main; main(['predict', 'new', '--model', 'mlp.onnx', '--json'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["head"], record["study"], record["computed"]) == ("mlp", "tiny", 6)
    assert {row["predicted"] for row in record["rows"]} <= {"a", "b"}


def test_the_command_writes_the_file(study, graph_of_mlp):
    """And says how near it is."""
    said = run("export", "study.toml", "out/mlp.onnx", "--head", "mlp").output
    assert "wrote out/mlp.onnx (" in said
    assert "not a medical device" in said


def test_int8_is_measured_and_refused_above_the_margin(study, graph_of_mlp):
    """The card has accuracy before and after; a margin that nothing can keep is an error."""
    card = export_model(study, "mlp", Path("int8.onnx"), int8=True, margin=1.0)
    measured = card["int8"]
    assert measured["images"] == 8
    assert measured["accuracy"].keys() == measured["auroc"].keys() == {"float32", "int8"}
    operations = [node.op_type for node in onnx.load("int8.onnx").graph.node]
    assert "QuantizeLinear" in operations
    # The network's own is part of its range; those of the two heads stay.
    assert operations.count("Relu") == 2
    rows = predict_images(Path("int8.onnx"), [Path("here")], store=Path("features"))["rows"]
    exact = probabilities("mlp.onnx")
    differences = [np.abs(np.subtract(r["probability"], exact[r["path"]])).max() for r in rows]
    assert 0 < np.mean(differences) < 0.1
    with pytest.raises(ExportError, match="loses too much accuracy on validation.*--margin"):
        export_model(study, "mlp", Path("no.onnx"), int8=True, margin=-1.0)
    with pytest.raises(ExportError, match="would differ from the model by"):
        export_model(study, "linear", Path("no.onnx"))  # and the graph is that of mlp
    assert not Path("no.onnx").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("forest", {}, "forest has no layers: it is made of trees. Heads that have: linear"),
        ("knn", {}, "features of its training images, which are data about patients"),
        ("last_block", {}, "run headrace finetune STUDY --method last_block"),
        ("lienar", {}, "head or method 'lienar'; allowed: forest, knn, linear, mlp, full"),
        ("linear", {"backbone": "other"}, "unknown backbone of the study 'other'; allowed: tiny"),
    ],
)
def test_what_cannot_be_exported_says_why(study, name, options, message):
    """And what can be; nothing is written."""
    with pytest.raises(PipelineError, match=message):
        export_model(study, name, Path("model.onnx"), **options)
    assert not Path("model.onnx").exists()


def test_a_file_of_others_is_refused(tmp_path):
    """Neither a text nor a graph without a card is a model."""
    other = tmp_path / "other.onnx"
    other.write_bytes(b"no graph")
    write_images(tmp_path / "new", 2)
    with pytest.raises(ModelError, match="other.onnx is no ONNX file"):
        predict_images(other, [tmp_path / "new"], store=tmp_path)
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), other)
    with pytest.raises(ModelError, match="has no model card of headrace"):
        predict_images(other, [tmp_path / "new"], store=tmp_path)
