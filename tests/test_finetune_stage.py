"""Stage 3: methods on one study, compared on the same images, kept as soon as trained."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from torch import nn

import pipeline.finetune.training as training_module
from pipeline.cli import main
from pipeline.compare import CompareOptions, compare
from pipeline.errors import (
    CheckpointError,
    EngineError,
    MissingFeaturesError,
    NoCutError,
    StudyError,
    UnknownNameError,
)
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.paired_tests import mcnemar
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.finetune.methods import ALPHAS, METHODS, TrainingOptions
from pipeline.finetune.settings import LoopSettings
from pipeline.finetune.stage import FinetuneOptions, finetune, report_json
from pipeline.report import show
from pipeline.report.page import contradictions
from pipeline.report.table import WIDTH
from pipeline.study import load_study
from tests.tiny import write_images, write_tiny_study
from tests.tiny_trainable import install_trainable_tiny

TORCH = ExtractOptions(engine=EngineChoice(engine="torch", device="cpu", batch_size=4))
TRAINING = TrainingOptions(epochs=3, batch_size=8, device="cpu")


def only(*methods, limit=None, **changes):
    """Options for some methods."""
    return FinetuneOptions(methods=methods, limit=limit, training=replace(TRAINING, **changes))


@pytest.fixture
def study(tmp_path: Path, monkeypatch):
    """A tiny study whose features are stored."""
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = load_study(write_tiny_study(tmp_path))
    extract(loaded, TORCH)
    return loaded


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """Folder of each training that is begun."""
    begun = []
    real = training_module.train
    monkeypatch.setattr(
        training_module,
        "train",
        lambda *a, checkpoints, **k: (
            begun.append(checkpoints.folder.parent.name) or real(*a, checkpoints=checkpoints, **k)
        ),
    )
    return begun


def written(study, tag=""):
    return json.loads((study.results / f"comparison{tag}.json").read_text())


def test_every_method_has_its_row_with_every_number(study):
    """One table: what moved, what it can on each domain, what it cost, how it ended."""
    report = finetune(study, only("all"))
    rows = written(study)["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    for row, record in zip(rows, report.rows, strict=True):
        places = [(d["domain"], d["role"]) for d in row["domains"]]
        assert places == [("source", "fit"), ("source", "validation"), ("there", "target")]
        assert all(set(d["metrics"]) == set(METRICS) for d in row["domains"])
        assert row["moved"] == METHODS[row["method"]].moved
        assert 0 < row["trainable_parameters"] <= row["parameters"]
        assert row["gflop_per_image"] > 0
        assert row["seconds"] > 0
        if METHODS[row["method"]].trains:
            assert row["epochs"] == len(row["curves"]) == 3
            assert row["settings"]["batch_size"] == 8
            assert row["seconds_per_epoch"] == pytest.approx(row["seconds"] / 3)
            assert row["images_per_second"] > 0
            assert row["convergence"]["rule"] == record.record.convergence.rule
    backbones = {row["method"]: row["backbone"] for row in rows}
    assert backbones["full"] == "tiny"
    assert backbones["scratch_cnn"] == backbones["scratch_ann"] == "pixels"


def test_numbers_are_those_of_the_kept_probabilities(study):
    """finetune.h5 has a row for each image under its key, and the table says what it says."""
    finetune(study, only("lp", "last_block", "scratch_ann"))
    kept = read_predictions(study.results / "finetune.h5")
    assert set(kept) == {"tiny", "pixels"}
    assert set(kept["tiny"].proba) == {("lp", 0), ("last_block", 0)}
    rows = {row["method"]: row for row in written(study)["rows"]}
    for backbone, method in (("tiny", "last_block"), ("pixels", "scratch_ann")):
        found = kept[backbone]
        target = found.split == "target"
        right = found.proba[method, 0].argmax(1) == found.label
        metrics = rows[method]["domains"][2]["metrics"]
        assert metrics["accuracy"]["value"] == pytest.approx(right[target].mean())
        assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"]


def test_a_target_without_labels_is_predicted_and_said_to_have_no_scores(study):
    """In the file of probabilities, in no row; the page sees no contradiction in that."""
    blind = replace(study, targets=(replace(study.targets[0], labels="absent"),))
    report = finetune(blind, only("lp"))
    assert written(study)["unlabelled"] == {"there": 20}
    assert {d["domain"] for d in written(study)["rows"][0]["domains"]} == {"source"}
    assert set(read_predictions(report.probabilities)["tiny"].domain) == {"source", "there"}
    assert "there: 20 images without labels" in show("finetune", written(study))
    assert not list(contradictions(blind, {"finetune": written(study)}))


def test_methods_are_compared_with_the_probe_on_the_same_images(study):
    """McNemar for accuracy, Holm over the methods, an interval by patients; never on fit."""
    finetune(study, only("lp", "last_block", "scratch_ann"))
    pairs = written(study)["pairs"]
    assert {(p["head"], p["baseline"], p["domain"]) for p in pairs} == {
        (method, "lp", domain)
        for method in ("last_block", "scratch_ann")
        for domain in ("source", "there")
    }
    kept = read_predictions(study.results / "finetune.h5")["tiny"]
    there = kept.split == "target"
    right = {m: (p.argmax(1) == kept.label)[there] for (m, _), p in kept.proba.items()}
    pair = next(
        p
        for p in pairs
        if (p["head"], p["domain"], p["metric"]) == ("last_block", "there", "accuracy")
    )
    assert pair["p"] == pytest.approx(mcnemar(right["last_block"], right["lp"]).p)
    difference = right["last_block"].mean() - right["lp"].mean()
    assert pair["difference"] == pytest.approx(difference)
    assert pair["backbone"] == "tiny"


def test_methods_are_compared_with_the_best_head_of_stage_2(study):
    """Chosen by validation, joined by content key; and its seconds make the break-even."""
    compare(study, CompareOptions(heads=("prior", "mlp"), seeds=2))
    finetune(study, only("lp", "full"))
    against = {p["baseline"] for p in written(study)["pairs"]}
    assert against == {"lp", "heads/mlp_ensemble"}
    seconds = [
        r["seconds"]
        for r in json.loads((study.results / "heads.json").read_text())["rows"]
        if r["head"] == "mlp"
    ]
    lp, full = written(study)["rows"]
    assert lp["break_even"] is None
    assert full["break_even"]["heads"] == int(full["seconds"] / np.mean(seconds))


def test_a_trial_with_fewer_images_is_not_judged_by_heads_that_saw_all(study):
    """The text says why; the comparison with the probe of the same trial stays."""
    compare(study, CompareOptions(heads=("prior", "mlp")))
    report = finetune(study, only("lp", "full", limit=4))
    assert {p["baseline"] for p in written(study, "-limit4")["pairs"]} == {"lp"}
    # Smaller images are the same images, and a limit above their number leaves none out.
    for whole in (only("lp", "full", image_size=16), only("lp", "full", limit=999)):
        report = finetune(study, whole)
        assert {row.pair.baseline for row in report.pairs} == {"lp", "heads/mlp_ensemble"}


def test_a_run_of_one_method_keeps_the_results_of_others(study, trainings):
    """The comparison is made of all models that are kept; none is trained twice."""
    finetune(study, only("lp"))
    finetune(study, only("last_block"))
    finetune(study, only("lp", "last_block"))
    assert trainings == ["lp-tiny-0", "last_block-tiny-0"]
    assert [row["method"] for row in written(study)["rows"]] == ["lp", "last_block"]
    assert len(read_predictions(study.results / "finetune.h5")["tiny"].proba) == 2


def test_each_seed_has_its_row(study):
    """Side by side, and compared with the probe of the same seed."""
    finetune(study, only("lp", "last_block"))
    finetune(study, only("lp", "last_block", seed=5))
    rows = [(row["method"], row["seed"]) for row in written(study)["rows"]]
    assert rows == [("lp", 0), ("lp", 5), ("last_block", 0), ("last_block", 5)]
    assert {p["seed"] for p in written(study)["pairs"]} == {0, 5}


def test_a_trial_with_fewer_or_smaller_images_touches_no_real_result(study):
    """It has files of its own, named by what it left out."""
    finetune(study, only("lp"))
    before = (study.results / "comparison.json").read_bytes()
    finetune(study, only("lp", "full", limit=4, image_size=16))
    assert (study.results / "comparison.json").read_bytes() == before
    rows = written(study, "-limit4-16px")["rows"]
    assert [row["domains"][0]["n"] for row in rows] == [4, 4]
    assert (study.results / "finetune-limit4-16px" / "full-tiny-0" / "model.json").is_file()


def test_the_weights_are_kept_with_what_made_them(study):
    """Safetensors and JSON: the network without what only helps to train, and its identity."""
    finetune(study, only("full"))
    folder = study.results / "finetune" / "full-tiny-0"
    tensors = load_file(folder / "model.safetensors")
    assert {"backbone.0.weight", "backbone.1.running_mean", "head.3.bias"} <= set(tensors)
    record = json.loads((folder / "model.json").read_text())["record"]
    assert record["identity"]["method"] == "full"
    assert record["identity"]["settings.learning_rate"] == METHODS["full"].learning_rate
    assert not (folder / "checkpoints").exists()


def test_every_alpha_is_scored_on_every_domain_and_validation_chooses(study):
    """Eleven points of the line; the ends are the models themselves."""
    finetune(study, only("wise_ft"))
    rows = {row["method"]: row for row in written(study)["rows"]}
    mixed = rows["wise_ft"]["mixed"]
    assert (mixed["from"], mixed["to"]) == ("lp", "lp_ft")
    assert [point["alpha"] for point in mixed["curve"]] == list(ALPHAS)
    losses = []
    for point in mixed["curve"]:
        assert [d["role"] for d in point["domains"]] == ["validation", "target"]
        losses.append(point["domains"][0]["log_loss"])
    assert mixed["alpha"] == ALPHAS[int(np.argmin(losses))]
    for end, method in ((0, "lp"), (-1, "lp_ft")):
        at_end = mixed["curve"][end]["domains"][1]["accuracy"]
        assert at_end == pytest.approx(rows[method]["domains"][2]["metrics"]["accuracy"]["value"])


def test_a_killed_training_goes_on_to_the_same_model(study, monkeypatch):
    """From its checkpoint, bit for bit; the earlier methods are not trained again."""
    finetune(study, only("full"))
    folder = study.results / "finetune" / "full-tiny-0"
    expected = (folder / "model.safetensors").read_bytes()
    (folder / "model.json").unlink()

    import pipeline.finetune.loop as loop_module

    real, epochs = loop_module.fit_batches, []

    def dies(*arguments, epoch, **more):
        epochs.append(epoch)
        if epoch == 2:
            raise KeyboardInterrupt
        return real(*arguments, epoch=epoch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "fit_batches", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune(study, only("full"))
    assert (folder / "checkpoints").is_dir()
    monkeypatch.setattr(
        loop_module,
        "fit_batches",
        lambda *a, epoch, **k: epochs.append(epoch) or real(*a, epoch=epoch, **k),
    )
    finetune(study, only("full"))
    assert epochs == [0, 1, 2, 2]
    assert (folder / "model.safetensors").read_bytes() == expected


def test_a_training_of_other_settings_that_was_cut_off_is_refused(study, monkeypatch):
    """The message names what differs; nothing is mixed."""
    import pipeline.finetune.loop as loop_module

    real = loop_module.fit_batches

    def dies(*arguments, epoch, **more):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(*arguments, epoch=epoch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "fit_batches", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune(study, only("full"))
    with pytest.raises(CheckpointError, match=r"batch_size 8, asked for is 4; .* delete the"):
        finetune(study, only("full", batch_size=4))


def test_no_table_is_wider_than_a_terminal(study):
    """Nor is a word cut off, with the longest name of a backbone."""
    report = finetune(study, only(*METHODS))
    long = [replace(row.record, backbone="efficientnet_lite0") for row in report.rows]
    rows = [replace(row, record=record) for row, record in zip(report.rows, long, strict=True)]
    text = show("finetune", report_json(replace(report, rows=tuple(rows))))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_run_says_what_it_trains_and_how_it_goes(study, capsys, caplog):
    """Method and backbone head the progress, and a line tells of each epoch."""
    with caplog.at_level("INFO", logger="pipeline.finetune"):
        finetune(study, only("full"))
    assert "full, tiny: 96/96" in capsys.readouterr().err
    number = r"\d\.\d{3}"
    shape = (
        rf"epoch (\d)/3: loss {number}, accuracy {number}, validation {number} / {number}, "
        r"[\d.]+ images/s"
    )
    lines = [re.fullmatch(shape, text) for text in caplog.messages if text.startswith("epoch")]
    assert [line and line[1] for line in lines] == ["1", "2", "3"]


def test_models_of_other_images_are_set_aside(study, tmp_path, caplog):
    """Images were added: the old numbers are of others, and the next run predicts anew."""
    finetune(study, only("lp", "last_block"))
    write_images(tmp_path / "there", 4, seed=9)
    extract(study, TORCH)
    finetune(study, only("lp"))
    assert [row["method"] for row in written(study)["rows"]] == ["lp"]
    assert "run --method last_block again" in caplog.text
    assert written(study)["rows"][0]["domains"][2]["n"] == 24


def test_new_target_images_cost_no_training(study, tmp_path, trainings):
    """What was learned stands; only the predictions are made again."""
    finetune(study, only("lp", "last_block", "scratch_ann"))
    write_images(tmp_path / "there", 4, seed=9)
    extract(study, TORCH)
    finetune(study, only("lp", "last_block", "scratch_ann"))
    assert len(trainings) == 3
    assert [row["domains"][2]["n"] for row in written(study)["rows"]] == [24] * 3


def test_labels_and_images_of_targets_select_nothing(study, tmp_path):
    """Other targets, same weights, whatever the method."""
    finetune(study, only("last_block", "scratch_ann"))
    folders = [
        study.results / "finetune" / f for f in ("last_block-tiny-0", "scratch_ann-pixels-0")
    ]
    before = [(folder / "model.safetensors").read_bytes() for folder in folders]
    for folder in folders:
        (folder / "model.json").unlink()
    write_images(tmp_path / "there", 10, seed=9, shift=-60)
    extract(study, TORCH)
    finetune(study, only("last_block", "scratch_ann"))
    assert [(folder / "model.safetensors").read_bytes() for folder in folders] == before


def test_what_cannot_work_shows_before_any_work(study, trainings):
    """Names, numbers, devices, cuts and stage 1."""
    for options, error, message in (
        (only("ful"), UnknownNameError, "unknown method 'ful'; known: lp"),
        (only("lp", augmentation="heavy"), UnknownNameError, "augmentation 'heavy'"),
        (only("lp", epochs=0), StudyError, "epochs 0: allowed is 1 or more"),
        (only("lp", limit=0), StudyError, "limit 0: allowed is 1 or more"),
        (only("lp", image_size=-2), StudyError, "image size -2"),
    ):
        with pytest.raises(error, match=message):
            finetune(study, options)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="no CUDA device"):
            finetune(study, only("lp", device="cuda"))
    other = replace(study.backbones[0], name="timm:resnet18")
    with pytest.raises(NoCutError, match=r"timm:resnet18 has no cut.*tiny"):
        finetune(replace(study, backbones=(study.backbones[0], other)), only("lp", "last_block"))
    assert trainings == []


def test_out_of_memory_for_the_activations_names_a_batch_size(study, monkeypatch):
    """The frozen part runs before the loop, and its error is as clear."""

    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(training_module, "take", too_large)
    with pytest.raises(EngineError, match="out of memory with 8 images a step; try --batch-size 4"):
        finetune(study, only("last_block"))


@pytest.mark.parametrize("method", ["lp", "full", "scratch_cnn"])
def test_a_size_that_a_network_cannot_take_is_refused(study, trainings, monkeypatch, method):
    """Before anything is taken or trained; the message has the network's own size."""

    def refuse(_, images):
        raise AssertionError(f"height {images.shape[-1]} does not match 32")

    monkeypatch.setattr(nn.Conv2d, "forward", refuse)
    message = (
        r"cannot take images of 8 x 8 pixels \(height 8 does not match 32\); try another "
        "--image-size, or leave it out for its own 32 x 32"
    )
    stores = len(list(study.store_root.iterdir()))
    with pytest.raises(EngineError, match=message):
        finetune(study, only(method, image_size=8))
    assert trainings == []
    assert len(list(study.store_root.iterdir())) == stores


def test_stage_1_must_have_run(tmp_path, monkeypatch):
    """The message says which command."""
    install_trainable_tiny(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFeaturesError, match="first run: headrace features STUDY"):
        finetune(load_study(write_tiny_study(tmp_path)), only("lp"))


def test_the_command_runs_the_stage_and_prints_the_table(study, tmp_path):
    """Options reach the stage; --json is the file."""
    command = ["finetune", str(tmp_path / "study.toml"), "--epochs", "1", "--device", "cpu"]
    text = CliRunner().invoke(main, [*command, "--method", "lp", "--method", "last_block"])
    assert text.exit_code == 0, text.output
    assert "accuracy against lp on there, tiny, seed 0" in text.output
    found = CliRunner().invoke(main, [*command, "--json", "--method", "lp"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout) == written(study)
    assert written(study)["rows"][0]["epochs"] == 1
    wrong = CliRunner().invoke(main, [*command, "--method", "ful"])
    assert wrong.exit_code == 1
    assert "unknown method 'ful'; known: lp, frozen_online" in wrong.output


def test_help_lists_the_methods_and_every_default_is_the_loops():
    """A name on the help page is an entry of the table."""
    text = CliRunner().invoke(main, ["finetune", "--help"]).output
    assert all(f"{name} " in text for name in METHODS)
    options, loop = TrainingOptions(), LoopSettings()
    for name in ("batch_size", "augmentation", "patience"):
        assert getattr(options, name) == getattr(loop, name)


def test_epochs_are_those_of_the_methods_asked_for(study):
    """The head that full fine-tuning starts from is trained as it always is."""
    rows = finetune(study, only("lp_ft", epochs=1)).rows
    epochs = {row.record.method: row.record.epochs for row in rows}
    assert epochs == {"lp": METHODS["lp"].epochs, "lp_ft": 1}


def test_a_model_that_others_start_from_is_taken_as_it_is_there(study):
    """A line from lp to a short lp_ft trains neither of them again."""
    before = {r.record.method: r.record for r in finetune(study, only("lp_ft", epochs=1)).rows}
    rows = finetune(study, FinetuneOptions(methods=("wise_ft",), training=TrainingOptions())).rows
    after = {row.record.method: row.record for row in rows}
    assert after.keys() == {"lp", "lp_ft", "wise_ft"}
    assert {name: after[name] for name in before} == before


def test_a_target_without_labels_is_predicted_and_not_scored(study):
    """Every network is asked about it, none is judged by it, and the labelled ones go on."""
    (there,) = study.targets
    blind = replace(study, targets=(replace(there, labels="absent"),))
    finetune(blind, only("lp", "full", "wise_ft"))
    kept = read_predictions(study.results / "finetune.h5")["tiny"]
    far = kept.domain == "there"
    assert far.any()
    assert set(kept.label[far]) == {-1}
    for proba in kept.proba.values():
        assert proba[far].sum(axis=1) == pytest.approx(1, abs=1e-5)
    for row in written(study)["rows"]:
        assert {one["domain"] for one in row["domains"]} == {"source"}
