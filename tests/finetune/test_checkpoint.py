"""A training that is cut off anywhere ends with the bits of one that was not."""

import hashlib
import logging
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import OPTIMISERS
from tests.cache_jobs import ERRORS, KILLS, SHORT, Fault, notes_in, rows_at_risk
from tests.finetune.jobs import (
    IDENTITY,
    LONGER,
    SETTINGS,
    CutOff,
    Nursery,
    Pictures,
    noted_job,
    same,
    small_net,
    tensors,
    train_job,
)
from tests.tiny import flip

#: Every n-th call of the disk; all of them in the slow run.
STRIDES = [5, pytest.param(1, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the children have: with more threads a sum could be cut elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nursery():
    """Children that can be killed, in milliseconds each."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Final tensors and rows of a training that met nothing."""
    return train_job(tmp_path_factory.mktemp("whole"))


def _check_goes_on(folder, whole, settings=SETTINGS):
    """Run again, a training ends as the one that met nothing, and leaves little behind."""
    (tensors_, rows), (expected, of_whole) = train_job(folder, settings=settings), whole
    assert same(tensors_, expected)
    untimed = {"seconds": 0, "images_per_second": 0}
    assert [replace(r, **untimed) for r in rows] == [replace(r, **untimed) for r in of_whole]
    # Killed while it clears away behind the last save, it has nothing left to save.
    names = os.listdir(folder)
    assert {name.split("-")[0] for name in names} == {"checkpoint"}
    assert len(names) <= 3


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_a_call_of_the_disk_it_goes_on_bit_for_bit(
    tmp_path, nursery, whole, kind, stride
):
    """``kill -9`` before or after any call of the disk changes no bit of the final weights."""
    met = 0
    for call in range(1, 1000, stride):
        folder, log = tmp_path / str(call), tmp_path / f"{call}.log"
        code = nursery.run(folder, log, fault=Fault(call=call, kind=kind))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        met += 1
        _check_goes_on(folder, whole)
    assert met >= 35 / stride


def test_killed_again_and_again_at_any_moment_it_goes_on_bit_for_bit(tmp_path, nursery):
    """Killed after random times until it gets through, a training ends with the same bits."""
    moments, kills = np.random.default_rng(0), 0
    for _ in range(200):
        code = nursery.run(tmp_path / "t", tmp_path / "log", kill_after=moments.uniform(0.03, 0.12))
        if any(note["what"] == "done" for note in notes_in(tmp_path / "log")):
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 5
    _check_goes_on(tmp_path / "t", train_job(tmp_path / "whole", settings=LONGER), LONGER)


@pytest.mark.parametrize("kind", [*ERRORS, SHORT])
@pytest.mark.parametrize("stride", STRIDES)
def test_a_disk_that_fails_is_an_error_that_loses_nothing(tmp_path, whole, kind, stride):
    """Whatever call fails: one error that names the file, and the next run goes on."""
    met = 0
    for call in range(1, 1000, stride):
        folder, log = tmp_path / str(call), tmp_path / f"{call}.log"
        noted_job(folder, log, Fault(call=call, kind=kind))
        notes = notes_in(log)
        if notes[-1]["number"] < call:
            break
        errors = [note for note in notes if note["what"] == "error"]
        met += bool(errors)
        assert all(str(tmp_path) in error["text"] for error in errors)
        assert all(error["errno"] == ERRORS[kind][0] for error in errors)
        _check_goes_on(folder, whole)
    assert met == 0 if kind == SHORT else met >= 30 / stride


def test_a_power_cut_takes_no_checkpoint_that_was_saved(tmp_path):
    """Bytes are synced before they get their name; the old one goes after the new one lasts."""
    noted_job(tmp_path / "t", tmp_path / "log")
    notes = notes_in(tmp_path / "log")
    assert sum(note["what"] == "ack" for note in notes) == 4
    assert rows_at_risk(notes, tmp_path) == []


def _cut_off(folder, saves, settings=SETTINGS):
    """Train until so many checkpoints were saved; whether that was before the end."""
    checkpoints = CutOff(folder, IDENTITY, seconds=0)
    checkpoints.last = saves
    try:
        train(small_net(), Pictures(), Pictures(3, seed=1), settings, checkpoints=checkpoints)
    except KeyboardInterrupt:
        return True
    return False


@pytest.fixture
def half_way(tmp_path):
    """A folder with the checkpoints of two of four steps."""
    assert _cut_off(tmp_path / "t", 2)
    assert len(os.listdir(tmp_path / "t")) == 2
    return tmp_path / "t"


DAMAGES = {
    "a bit of the tensors flipped": lambda newest: flip(newest, -1),
    "a bit of the header flipped": lambda newest: flip(newest, 20),
    "cut short": lambda newest: newest.write_bytes(newest.read_bytes()[:-1]),
    "empty": lambda newest: newest.write_bytes(b""),
    "another's bytes": lambda newest: shutil.copy(min(newest.parent.iterdir()), newest),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(half_way, whole, caplog, damage):
    """The one before it takes over, the warning names the file, and no bit differs."""
    newest = max(half_way.iterdir())
    DAMAGES[damage](newest)
    with caplog.at_level(logging.WARNING):
        _check_goes_on(half_way, whole)
    assert [newest.name in record.getMessage() for record in caplog.records] == [True]
    assert not newest.exists()


def test_no_whole_checkpoint_is_an_error_not_a_new_start(half_way):
    """Hours of work are not thrown away in silence: the user is asked to delete the folder."""
    for path in half_way.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in path.name
        flip(path, -1)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* delete the folder"):
        train_job(half_way)


def _train(folder, identity=IDENTITY, settings=SETTINGS, *, model=None, fit=None):
    fit, validation = fit or Pictures(), Pictures(3, seed=1)
    model = model or small_net()
    return train(model, fit, validation, settings, checkpoints=Checkpoints(folder, identity))


def _frozen_body():
    model = small_net()
    model.body.requires_grad_(requires_grad=False)
    return model


OTHERS = {
    "study": {"identity": {**IDENTITY, "study": "other"}},
    "data": {"identity": {**IDENTITY, "data": [1, 3]}},
    "weights": {"identity": {**IDENTITY, "weights": "new"}},
    "method": {"identity": {"study": "tiny", "data": [1, 2]}},
    "settings.epochs": {"settings": replace(SETTINGS, epochs=9)},
    "settings.augmentation": {"settings": replace(SETTINGS, augmentation="none")},
    "network": {"model": small_net(norm=False)},
    "trained parameters": {"model": _frozen_body()},
    "fit labels": {"fit": Pictures(6)},
}


@pytest.mark.parametrize("field", OTHERS)
def test_another_training_is_refused_with_the_field_that_differs(half_way, field):
    """Field, what the file has, what was asked for, and what to do; finished or not."""
    for finish in (False, True):
        if finish:
            train_job(half_way)
        with pytest.raises(CheckpointError) as caught:
            _train(half_way, **OTHERS[field])
        assert f"training has {field} " in str(caught.value)
        assert "asked for is " in str(caught.value)
        assert f"with the settings it has, or delete the folder {half_way}" in str(caught.value)


def test_a_finished_training_is_not_run_again(tmp_path):
    """The second run looks at no image, writes nothing, and has weights and history."""
    first, rows = train_job(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model, fit = small_net(seed=5), Pictures()
    again = _train(tmp_path, model=model, fit=fit)
    assert fit.asked == 0
    assert again == rows
    assert same(tensors(model), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_neither_checkpoints_nor_interruptions_move_a_bit(tmp_path, optimiser):
    """Without any, cut off after each save in turn, or never: the weights are the same."""
    settings, never = replace(SETTINGS, optimiser=optimiser), small_net()
    train(never, Pictures(), Pictures(3, seed=1), settings)
    for saves in range(1, 6):
        assert _cut_off(tmp_path / str(saves), saves, settings) == (saves < 5)
        assert same(train_job(tmp_path / str(saves), settings=settings)[0], tensors(never))


def test_tensors_come_back_bit_for_bit(tmp_path):
    """Whatever their type, shape and layout, and one under two names."""
    shared = torch.ones(3, dtype=torch.bfloat16)
    saved = {
        "scalar": torch.tensor(3.0),
        "channels last": torch.rand(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "float64": torch.tensor([0.1, float("nan"), -0.0], dtype=torch.float64),
        "a": shared,
        "b": shared,
        "empty": torch.zeros(0, 3),
    }
    state = {"x": 0.1 + 0.2, "infinite": float("inf"), "none": None}
    Checkpoints(tmp_path, {}, seconds=0).save(state, saved)
    values, tensors_of = Checkpoints(tmp_path, {}, seconds=0).load()
    assert values == state
    for name, tensor in saved.items():
        assert tensors_of[name].dtype == tensor.dtype
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensors_of[name], tensor)]
        assert torch.equal(*bits), name
