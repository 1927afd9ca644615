"""Stage 3: methods on one stored, compared on the same images, kept as soon as trained."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import pipeline.finetune.loop as loop_module
import pipeline.finetune.runs as runs_module
import pipeline.finetune.stage as stage_module
from pipeline.compare import CompareOptions, compare
from pipeline.errors import (
    CheckpointError,
    EngineError,
    PartialFailureError,
    StudyError,
    UnknownNameError,
)
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.extract import extract
from pipeline.finetune.methods import METHODS
from pipeline.finetune.runs import ALPHAS
from pipeline.finetune.stage import finetune, trend
from tests.test_cli import run
from tests.tiny import TORCH, record_of, write_images


def only(*methods, limit=None, image_size=None, device="cpu", **settings):
    """Arguments for some methods, three epochs each."""
    given = {"epochs": 3, "batch_size": 8, **settings}
    names = {"limit": limit, "image_size": image_size, "device": device}
    return {"methods": methods, "settings": given, **names}


@pytest.fixture
def trainings(monkeypatch) -> list[str]:
    """Folder of each training that is begun."""
    begun, real = [], runs_module.train

    def train(*arguments, checkpoints, **options):
        begun.append(checkpoints.folder.parent.name)
        return real(*arguments, checkpoints=checkpoints, **options)

    monkeypatch.setattr(runs_module, "train", train)
    return begun


def models(record):
    """By method."""
    (backbone,) = record["backbones"]
    return {model["method"]: model for model in backbone["models"]}


def rows(record, domain):
    """Of one domain, by method and seed."""
    (entry,) = (d for d in record["backbones"][0]["domains"] if d["domain"] == domain)
    return {(row["method"], row["seed"]): row for row in entry["rows"]}


def baselines(record):
    """Names of all that methods are compared with."""
    domains = record["backbones"][0]["domains"]
    return {name for d in domains for row in d["rows"] for name in row["differences"]}


def test_every_method_has_its_row_with_every_number(stored):
    """What is trained, what it does on each domain, what it cost, how it ended; also on disk."""
    record = finetune(stored, **only("all"))
    assert record == record_of(stored.results / "finetune.json")
    assert list(models(record)) == list(METHODS)
    for name, model in models(record).items():
        assert model["trainable"] == METHODS[name].trainable
        assert model["trainable_parameters"] > 0
        assert model["seconds"] > 0
        if METHODS[name].trains:
            assert model["epochs"] == len(model["curves"]) == 3
            assert model["images_per_second"] > 0
        else:
            assert model["epochs"] is model["images_per_second"] is None
        for domain in ("source", "there"):
            assert rows(record, domain)[name, 0]["scores"].keys() == set(METRICS)
    domains = record["backbones"][0]["domains"]
    assert [(d["images"], d["role"]) for d in domains] == [(8, "validation"), (20, "target")]
    backbones = {name: model["backbone"] for name, model in models(record).items()}
    assert backbones["full"] == "tiny"
    assert backbones["scratch_cnn"] == backbones["scratch_mlp"] == "pixels"
    # WiSE-FT: validation chooses a point of the line, which is no worse than its ends.
    line, of_source = models(record)["wise_ft"]["interpolated"], rows(record, "source")
    assert (line["from"], line["to"]) == ("lp", "lp_ft")
    assert line["alpha"] in ALPHAS
    best, *ends = (
        of_source[name, 0]["scores"]["log_loss"]["estimate"] for name in ("wise_ft", "lp", "lp_ft")
    )
    assert best <= min(ends) + 1e-9


def test_numbers_are_those_of_the_kept_probabilities(stored):
    """finetune.h5 has a row for each image under its key, and the record says what it says."""
    record = finetune(stored, **only("lp", "last_block", "scratch_mlp"))
    kept = read_predictions(stored.results / "finetune.h5")
    assert set(kept) == {"tiny", "pixels"}
    assert set(kept["tiny"].proba) == {("lp", 0), ("last_block", 0)}
    target, right = kept["tiny"].split == "target", {}
    for backbone, method in (("tiny", "lp"), ("tiny", "last_block"), ("pixels", "scratch_mlp")):
        proba = kept[backbone].proba[method, 0]
        right[method] = (proba.argmax(1) == kept[backbone].label)[target]
        accuracy = rows(record, "there")[method, 0]["scores"]["accuracy"]
        assert accuracy["low"] <= accuracy["estimate"] == pytest.approx(right[method].mean())
    for domain in ("source", "there"):
        differences = {name: row["differences"] for (name, _), row in rows(record, domain).items()}
        assert [list(difference) for difference in differences.values()] == [[], ["lp"], ["lp"]]
    difference = differences["last_block"]["lp"]
    assert difference["estimate"] == pytest.approx(right["last_block"].mean() - right["lp"].mean())
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert 0 < difference["p"] <= difference["p_adjusted"] <= 1


def test_a_target_without_labels_is_predicted_and_not_scored(stored):
    """Its probabilities are in the file, in no row; the labelled domains go on."""
    blind = replace(stored, targets=(replace(stored.targets[0], labels="absent"),))
    record = finetune(blind, **only("lp", "full", "wise_ft"))
    assert record["unlabelled"] == {"there": 20}
    assert [d["domain"] for d in record["backbones"][0]["domains"]] == ["source"]
    kept = read_predictions(stored.results / "finetune.h5")["tiny"]
    far = kept.domain == "there"
    assert set(kept.label[far]) == {-1}
    for proba in kept.proba.values():
        assert proba[far].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_method_or_backbone_that_fails_costs_no_other(stored, monkeypatch):
    """Its reason is in the record, and the command fails; of nothing left it is the error."""
    real = stage_module.run_method

    def refuse(experiment, name):
        if name == "last_block":
            raise EngineError("out of memory")
        real(experiment, name)

    monkeypatch.setattr(stage_module, "run_method", refuse)
    with pytest.raises(EngineError, match="out of memory"):
        finetune(stored, **only("last_block", limit=4))
    with pytest.raises(PartialFailureError, match="last_block on tiny: out of memory") as error:
        finetune(stored, **only("last_block", "full"))
    record = error.value.record
    assert record["failures"] == {"last_block on tiny": "out of memory"}
    assert "full" in models(record)
    command = "finetune study.toml --method full --method last_block --device cpu --no-figures"
    ended = run(*command.split(), "--epochs", 3, "--batch-size", 8, code=1)
    assert "Error: last_block on tiny: out of memory" in ended.stderr
    assert "full" in ended.stdout
    lost = replace(stored.backbones[0], name="densenet121", weights="lost.pth")
    with pytest.raises(PartialFailureError, match=r"^backbone\.densenet121: .*lost\.pth") as error:
        finetune(replace(stored, backbones=(lost, *stored.backbones)), **only("full"))
    assert "full" in models(error.value.record)


def test_methods_are_compared_with_the_best_head_of_stage_2(stored):
    """Chosen by validation, joined by content key; a trial is not compared with full heads."""
    compare(stored, CompareOptions(heads=("prior", "mlp"), seeds=2))
    record = finetune(stored, **only("lp", "full"))
    assert baselines(record) == {"lp", "heads/mlp"}
    (backbone,) = json.loads((stored.results / "heads.json").read_text())["backbones"]
    (seconds,) = [head["fit_seconds"] for head in backbone["heads"] if head["head"] == "mlp"]
    lp, full = models(record).values()
    assert lp["heads_in_the_same_time"] is None
    assert full["heads_in_the_same_time"] == int(full["seconds"] / seconds)
    # Heads that saw all images are no baseline for a trial with fewer.
    trial = finetune(stored, **only("lp", "full", limit=4))
    assert baselines(trial) == {"lp"}
    assert trial["backbones"][0]["heads_fitted_to_others"]
    # Smaller images are the same images, and a limit above their number leaves none out.
    whole = finetune(stored, **only("lp", "full", limit=999, image_size=16))
    assert baselines(whole) == {"lp", "heads/mlp"}
    assert not whole["backbones"][0]["heads_fitted_to_others"]


def test_a_run_of_one_method_keeps_the_results_of_others(stored, trainings):
    """The comparison is made of all kept models, each seed has its row, none is trained twice."""
    finetune(stored, **only("lp"))
    finetune(stored, **only("last_block"))
    finetune(stored, **only("lp", "last_block"))
    record = finetune(stored, **only("lp", seed=5))
    assert trainings == ["lp-tiny-0", "last_block-tiny-0", "lp-tiny-5"]
    assert list(rows(record, "there")) == [("lp", 0), ("lp", 5), ("last_block", 0)]
    assert len(read_predictions(stored.results / "finetune.h5")["tiny"].proba) == 3
    assert [at for at, row in rows(record, "there").items() if row["differences"]] == [
        ("last_block", 0)
    ]


def test_a_trial_with_fewer_or_smaller_images_touches_no_real_result(stored):
    """It has files of its own, named by what it left out."""
    finetune(stored, **only("lp"))
    before = (stored.results / "finetune.json").read_bytes()
    record = finetune(stored, **only("lp", limit=4, image_size=16))
    assert (stored.results / "finetune.json").read_bytes() == before
    assert record_of(stored.results / "finetune-limit4-16px.json") == record
    assert [d["images"] for d in record["backbones"][0]["domains"]] == [4, 4]
    assert (stored.results / "finetune-limit4-16px" / "lp-tiny-0" / "model.json").is_file()


def _cut_off(monkeypatch, epoch_that_dies):
    """Epochs that are begun; the training dies as one of them begins."""
    real, epochs = loop_module.fit_batches, []

    def dies(*arguments, epoch, **more):
        epochs.append(epoch)
        if epoch == epoch_that_dies:
            raise KeyboardInterrupt
        return real(*arguments, epoch=epoch, **more)

    monkeypatch.setattr(loop_module, "fit_batches", dies)
    return epochs


def test_a_killed_training_goes_on_to_the_same_model(stored, monkeypatch):
    """From its checkpoint, bit for bit; with other settings it is refused, with the field."""
    finetune(stored, **only("full"))
    folder = stored.results / "finetune" / "full-tiny-0"
    expected = (folder / "model.safetensors").read_bytes()
    (folder / "model.json").unlink()
    with monkeypatch.context() as patch:
        assert _cut_off(patch, 2) == []
        with pytest.raises(KeyboardInterrupt):
            finetune(stored, **only("full"))
    with pytest.raises(CheckpointError, match=r"batch_size 8, asked for is 4; .* delete the"):
        finetune(stored, **only("full", batch_size=4))
    epochs = _cut_off(monkeypatch, None)
    finetune(stored, **only("full"))
    assert epochs == [2]
    assert (folder / "model.safetensors").read_bytes() == expected


def test_new_target_images_cost_no_training_and_select_nothing(stored, tmp_path, trainings, caplog):
    """What was learned stands, other models are set aside; trained anew, they are the same."""
    finetune(stored, **only("lp", "last_block", "scratch_mlp"))
    names = ("last_block-tiny-0", "scratch_mlp-pixels-0")
    folders = [stored.results / "finetune" / name for name in names]
    before = [(folder / "model.safetensors").read_bytes() for folder in folders]
    write_images(tmp_path / "there", 10, seed=9, shift=-60)
    extract(stored, TORCH)
    record = finetune(stored, **only("lp", "scratch_mlp"))
    assert list(models(record)) == ["lp", "scratch_mlp"]
    assert "run --method last_block again" in caplog.text
    assert record["backbones"][0]["domains"][-1]["images"] == 30
    assert len(trainings) == 3
    for folder in folders:
        (folder / "model.json").unlink()
    finetune(stored, **only("last_block", "scratch_mlp"))
    assert len(trainings) == 5
    assert [(folder / "model.safetensors").read_bytes() for folder in folders] == before


def test_what_cannot_work_shows_before_any_work(stored, trainings, monkeypatch):
    """Names, numbers, devices and cuts."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = replace(stored.backbones[0], name="timm:resnet18")
    both = replace(stored, backbones=(stored.backbones[0], other))
    for study, options, error, message in (
        (stored, only("ful"), UnknownNameError, "unknown method 'ful'; allowed: lp"),
        (stored, only("lp", augmentation="heavy"), UnknownNameError, "augmentation 'heavy'"),
        (stored, only("lp", epochs=0), StudyError, "epochs 0: allowed is 1 or more"),
        (stored, only("lp", device="cuda"), EngineError, "no CUDA device"),
        (both, only("last_block"), StudyError, "timm:resnet18 has no cut.*tiny.*full needs none"),
    ):
        with pytest.raises(error, match=message):
            finetune(study, **options)
    assert trainings == []


def test_a_size_that_a_network_cannot_take_is_refused(stored, trainings, monkeypatch):
    """Before anything is taken or trained; the message has the network's own size."""

    def refuse(_, images):
        raise AssertionError(f"height {images.shape[-1]} does not match 32")

    monkeypatch.setattr(nn.Conv2d, "forward", refuse)
    message = (
        r"cannot take images of 8 x 8 pixels \(height 8 does not match 32\); try another "
        "--image-size, or leave it out for 32 x 32"
    )
    stores = len(list(stored.store_root.iterdir()))
    for method in ("lp", "full", "scratch_cnn"):
        with pytest.raises(EngineError, match=message):
            finetune(stored, **only(method, image_size=8))
    assert trainings == []
    assert len(list(stored.store_root.iterdir())) == stores


def test_the_command_runs_the_stage_and_prints_the_table(stored):
    """Options reach the stage, each epoch has a line, --json is the file."""
    command = "finetune study.toml --epochs 1 --device cpu --no-figures --method lp"
    text = run(*command.split(), "--method", "last_block").output
    assert "there: 20 images of 5 patients" in text
    number = r"\d\.\d{3}"
    shape = rf"epoch 1/1: loss {number}, accuracy {number}, validation {number} / {number}, \d+"
    assert len(re.findall(shape, text)) == 2
    record = json.loads(run(*command.split(), "--json", "--precision", "bf16").stdout)
    assert record == record_of(stored.results / "finetune.json")
    assert models(record)["lp"]["epochs"] == 1
    kept = record_of(stored.results / "finetune" / "lp-tiny-0" / "model.json")
    assert kept["record"]["identity"]["settings.precision"] == "bf16"
    help_text = run("finetune", "--help").output
    assert all(f"{name} " in help_text for name in METHODS)


def test_a_model_that_others_start_from_is_taken_as_it_is_there(stored, trainings):
    """It keeps its own epochs, and a line from lp to a short lp_ft trains neither again."""
    before = models(finetune(stored, **only("lp_ft", epochs=1)))
    epochs = {name: model["epochs"] for name, model in before.items()}
    assert epochs == {"lp": METHODS["lp"].settings["epochs"], "lp_ft": 1}
    after = models(finetune(stored, methods=("wise_ft",), device="cpu"))
    assert after.keys() == {"lp", "lp_ft", "wise_ft"}
    assert {name: after[name] for name in before} == before
    assert trainings == ["lp-tiny-0", "lp_ft-tiny-0"]


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([1.0, 0.9, 0.8, 0.7], None),
        ([1.0, 0.9, 0.8, 0.7, 0.6], "falling"),
        ([1.0, 0.9, 0.7, 0.8, 0.6], "falling"),
        ([9.0, 8.0, 0.5, 0.5, 0.501, 0.499, 0.5], "flat"),
        ([0.3, 0.35, 0.42, 0.45, 0.5], "rising"),
        ([0.5, 0.9, 0.5, 0.9, 0.5], "noisy"),  # no slope, but which one is not known
        ([0.9, 0.5, 0.8, 0.6, 0.7], "noisy"),
    ],
)
def test_the_trend_is_that_of_the_last_epochs(losses, word):
    """Too few say nothing; a slope must be above 1 % an epoch and twice its error."""
    assert trend(losses) == word
