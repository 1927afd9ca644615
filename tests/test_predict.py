"""New images through backbone, store and a saved head."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import pipeline.predict as predict_module
from cache.errors import CanaryError
from pipeline import errors
from pipeline.compare import CompareOptions, compare
from pipeline.data import arrays
from pipeline.data.items import ReadOptions
from pipeline.evaluation.predictions import PROBABILITIES, read_predictions
from pipeline.features.extract import extract
from pipeline.heads.save import head_folder
from pipeline.predict import predict as predict_images
from pipeline.report import show
from pipeline.study_file import load_study
from tests.image_files import grey16, pictures
from tests.test_cli import ENGINE, run
from tests.tiny import (
    TORCH,
    forbid_writing,
    record_of,
    rewrite,
    stored_tiny_study,
    write_images,
    write_tiny_study,
)

HEADS = ("linear", "forest", "prior", "knn")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder of a tiny study whose heads are saved; fitted once, never changed."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        study = stored_tiny_study(folder, patch, source=120, target=24)
        compare(load_study(study), CompareOptions(heads=HEADS, seeds=2))
    return folder


@pytest.fixture
def compared(made: Path, tiny_folder: Path):
    """A copy of it, in the current folder."""
    shutil.copytree(made, tiny_folder, dirs_exist_ok=True)
    return load_study(tiny_folder / "study.toml")


def predict(model, images, **more):
    return predict_images(model, images, store=Path("features"), engine=TORCH, **more)


def folder(head):
    return Path("results/tiny/heads/tiny") / head


@pytest.mark.parametrize("head", HEADS)
def test_images_of_the_study_get_the_probabilities_of_the_comparison(compared, head, monkeypatch):
    """From the store, without a network; seeds as the row of their ensemble."""
    monkeypatch.delattr(predict_module, "frozen_network")
    kept = read_predictions(Path("results/tiny/probabilities.h5"))["tiny"]
    record = predict(folder(head), [Path("here"), Path("there")])
    assert record["computed"] == 0
    assert len(record["rows"]) == 144
    row_of = {key.tobytes().hex(): i for i, key in enumerate(kept.key)}
    compared_rows = [row for row in record["rows"] if kept.split[row_of[row["key"]]] != "fit"]
    expected = kept.proba[head, 0][[row_of[row["key"]] for row in compared_rows]]
    given = [row["probability"] for row in compared_rows]
    np.testing.assert_allclose(given, expected, atol=1e-6)
    for row in record["rows"]:
        assert row["predicted"] == "ab"[int(np.argmax(row["probability"]))]


@pytest.mark.parametrize(
    ("setting", "backbone"),
    [("views = 3", "tiny"), ('layers = ["0", "1"]', "tiny@0+tiny@1")],
)
def test_heads_of_views_and_layers_predict_as_they_were_compared(
    tmp_path, monkeypatch, setting, backbone
):
    """Of images that are not stored, the networks give the same, and then keep it."""
    head = '[head.bayes]\nestimator = "sklearn.naive_bayes.GaussianNB"'
    study = load_study(stored_tiny_study(tmp_path, monkeypatch, setting=f"{setting}\n{head}"))
    compare(study, CompareOptions(heads=("linear", "bayes")))
    kept = read_predictions(study.results / PROBABILITIES)[backbone]
    shutil.rmtree("features")
    rows = np.flatnonzero(kept.domain == "there")
    for name, computed in (("linear", len(rows)), ("bayes", 0)):
        record = predict(head_folder(study.results, backbone, name), [Path("there")])
        assert record["computed"] == computed
        proba_of = {row["key"]: row["probability"] for row in record["rows"]}
        given = [proba_of[kept.key[row].tobytes().hex()] for row in rows]
        np.testing.assert_allclose(given, kept.proba[name, 0][rows], atol=1e-6)


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(compared):
    """A text, a FIFO, nothing at all, an empty folder; each with its reason."""
    write_images(Path("new"), 2, seed=9)
    Path("new/a/text.png").write_text("Name: somebody")
    os.mkfifo("fifo.png")
    Path("empty").mkdir()
    Path("new/b.webp").write_bytes(b"")
    Path("new/notes.csv").write_text("no image")
    given = [Path("new"), Path("fifo.png"), Path("nowhere.png"), Path("empty")]
    record = predict(folder("linear"), given)
    assert len(record["rows"]) == 2
    reasons = {skip["path"]: skip["reason"] for skip in record["skipped"]}
    assert reasons["fifo.png"] == "not a regular file"
    assert "No such file" in reasons["nowhere.png"]
    assert "holds no" in reasons["empty"]
    assert reasons["new/a/text.png"].endswith("PPM nor DICOM (found text)")
    assert reasons["new/b.webp"] == "of a format that is not read: convert to .png"
    assert len(reasons) == 5
    with pytest.raises(errors.SkippedImagesError, match="5 images cannot be used and --strict"):
        predict(folder("linear"), given, strict=True)
    with pytest.raises(errors.NoImagesError, match=r"no image to classify.*neither JPEG"):
        predict(folder("linear"), [Path("new/a/text.png")])


def test_a_damaged_archive_is_skipped_and_the_rest_goes_on(compared, monkeypatch):
    """As a whole where it cannot be listed; else each image of an array that is damaged."""
    Path("no.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez_compressed("half.npz", a_images=pictures(3), b_images=pictures(2, seed=5))
    with zipfile.ZipFile("half.npz") as archive:
        data_begins = archive.getinfo("a_images.npy").header_offset + 2000
    data = bytearray(Path("half.npz").read_bytes())
    data[data_begins : data_begins + 99] = bytes(99)
    Path("half.npz").write_bytes(data)
    opened = Mock(wraps=arrays._opened)
    monkeypatch.setattr(arrays, "_opened", opened)
    record = predict(folder("linear"), [Path("no.npz"), Path("half.npz"), Path("there")])
    assert [row["path"] for row in record["rows"][:2]] == ["half.npz/b#0", "half.npz/b#1"]
    assert len(record["rows"]) == 26
    whole, *rows = record["skipped"]
    assert whole["path"] == "no.npz"
    assert "no.npz is not a .npz file, or a damaged one" in whole["reason"]
    assert [skip["path"] for skip in rows] == [f"half.npz/a#{row}" for row in range(3)]
    assert all("a_images is damaged" in skip["reason"] for skip in rows)
    names = [call.args[1] for call in opened.call_args_list]
    assert names.count("a_images") == 2, "its header, and once in vain"


@pytest.mark.parametrize(
    ("bits", "warning"),
    [
        (12, ""),
        (16, "values up to 65535, but white is 4095 for this model: it sees them too bright"),
        (10, "values up to 1023, but white is 4095 for this model: it sees them too dark"),
    ],
)
def test_images_with_other_bits_than_the_source_are_warned_of(tiny_folder, caplog, bits, warning):
    """A model has one white; the study guesses one for each hospital, so their scores are right."""
    file = write_tiny_study(tiny_folder, source=24, target=12)
    for folder, top in (("here", 4095), ("there", 2**bits - 1)):
        for image in Path(folder).rglob("*.png"):
            levels = np.linspace(0, top, 32 * 32).reshape(32, 32)
            np.random.default_rng([*image.name.encode()]).shuffle(levels)
            image.write_bytes(grey16(levels))
    study = load_study(file)
    extract(study, TORCH)
    compare(study, CompareOptions(heads=("linear",)))
    caplog.clear()
    record = predict(head_folder(study.results, "tiny", "linear"), [Path("there")])
    # By the rule of the source: where a target's is another, its images have other features.
    assert (len(record["rows"]), record["computed"]) == (12, 0 if bits == 12 else 12)
    assert warning in caplog.text
    assert bool(caplog.records) == bool(warning)


def test_a_window_that_was_chosen_may_cut_values_off(caplog):
    """The source's brightest values lie above it too."""
    predict_module._warn_of_range(ReadOptions(window=(300.0, 1200.0)), [4000])
    assert not caplog.records


def test_images_in_folders_of_classes_are_counted(compared):
    """Right ones of each class, as the rows say; one image elsewhere, and nothing is counted."""
    record = predict(folder("linear"), [Path("there")])
    for name in "ab":
        of_class = [row for row in record["rows"] if f"/{name}/" in row["path"]]
        right = sum(row["predicted"] == name for row in of_class)
        assert record["class_folders"][name] == {"images": len(of_class), "right": right}
    right = sum(count["right"] for count in record["class_folders"].values())
    shown = " ".join(show("predict", record).split())
    assert f"agrees with the class folder for {right} of 24 images (" in shown
    assert all(
        f"class {name}: {count['right']} of {count['images']}" in shown
        for name, count in record["class_folders"].items()
    )
    shutil.copy(next(Path("there/a").iterdir()), "loose.png")
    assert predict(folder("linear"), [Path("there"), Path("loose.png")])["class_folders"] == {}


def test_other_weights_are_refused_and_the_right_ones_may_lie_elsewhere(compared, monkeypatch):
    """The digest decides, never the path."""
    write_images(Path("new"), 2, seed=9)
    state = torch.load("tiny.pth", weights_only=True)
    Path("tiny.pth").replace("moved.pth")
    torch.save(state | {"0.bias": state["0.bias"] + 1}, "tiny.pth")
    with pytest.raises(errors.WeightsError, match=r"are not those of the features.*--weights"):
        predict(folder("linear"), [Path("new")])
    record = predict(folder("linear"), [Path("new")], weights=Path("moved.pth"))
    assert record["computed"] == 2


def test_a_store_that_may_only_be_read_serves_old_and_new_images(compared, monkeypatch, caplog):
    """Features of new images are not kept, which is said; canaries are compared all the same."""
    write_images(Path("new"), 6, seed=9)
    forbid_writing(monkeypatch, Path("features"))
    caplog.set_level("WARNING")
    assert predict(folder("linear"), [Path("here")])["computed"] == 0
    assert not caplog.messages
    first = predict(folder("linear"), [Path("new"), Path("here")])
    assert (first["computed"], len(first["rows"])) == (6, 126)
    assert [row["predicted"] for row in first["rows"][:6]] == ["a"] * 3 + ["b"] * 3
    assert [m for m in caplog.messages if m.startswith("the new features are not stored: cannot")]
    assert predict(folder("linear"), [Path("new")])["computed"] == 6
    (meta,) = Path("features").glob("tiny-*/meta.json")
    values = json.loads(meta.read_text())
    values["canaries"]["features"][0] += 1
    meta.write_text(json.dumps(values))
    with pytest.raises(CanaryError):
        predict(folder("linear"), [Path("new")])


def test_a_head_that_the_record_does_not_name_is_not_offered(compared):
    """Neither one of an interrupted run nor one without any record; a copy elsewhere is."""
    results = Path("results/tiny")
    shutil.copytree(folder("linear"), "passed_on")
    shutil.copytree(folder("linear"), folder("stray"))
    with pytest.raises(
        errors.ResultsError, match=r"stray/model.json is not the file that heads.json"
    ):
        predict(folder("stray"), [Path("here")])
    assert len(predict(Path("passed_on"), [Path("here")])["rows"]) == 120
    compare(compared, CompareOptions(heads=HEADS, seeds=2))
    assert not folder("stray").exists()
    (results / "heads.json").unlink()
    with pytest.raises(errors.MissingResultsError, match="run headrace heads STUDY first"):
        predict(folder("linear"), [Path("here")])


def test_another_recipe_is_refused_and_the_field_named(compared):
    """A head never sees features that were made in another way."""
    file = folder("linear") / "model.json"
    values = record_of(file)
    values["networks"][0]["recipe"]["preprocessing"]["icc"] = "applied"
    rewrite(file, values)
    heads, name = file.parents[3] / "heads.json", "heads/tiny/linear/model.json"
    rewrite(heads, files={name: file.read_bytes()})
    with pytest.raises(
        errors.ModelError, match=r"preprocessing.icc was 'applied', and is 'ignored'"
    ):
        predict(folder("linear"), [Path("here")])


def test_the_command_prints_a_table_and_writes_a_csv(compared):
    """With what it is not, and for knn with what is in its file."""
    first = min(Path("here/a").iterdir())
    first.replace(first.with_name("[bold]1.png"))
    arguments = ["--model", folder("knn"), "--csv", "out/rows.csv", "here/a", "nowhere.png"]
    output = " ".join(run("predict", *arguments, *ENGINE).output.split())
    said = ("not a medical device", "Treat it as patient data", "Skipped images", "nowhere.png")
    for text in (*said, "here/a/[bold]1.png"):  # a name is no markup
        assert text in output
    lines = Path("out/rows.csv").read_text().splitlines()
    assert lines[0] == "study,path,key,predicted,a,b"
    assert len(lines) == 61


def test_a_model_that_cannot_be_used_costs_no_other(compared):
    """Of several: the others answer, as JSON too, and the exit code is that of the failure."""
    good, bad = (str(compared.results / "heads" / "tiny" / head) for head in ("linear", "gone"))
    given = ("--model", bad, "--model", good, "--json", *ENGINE)
    result = run("predict", "there", *given, code=5)
    (record,) = json.loads(result.stdout).values()
    assert len(record["rows"]) == 24
    assert "gone" in result.stderr
