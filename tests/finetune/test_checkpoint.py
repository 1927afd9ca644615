"""A training that is cut off anywhere ends with the bits of one that was not."""

import hashlib
import json
import logging
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import CheckpointError, PipelineError
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.loop import train
from pipeline.finetune.methods import OPTIMISERS
from tests.cache_jobs import ERRORS, KILLS, SHORT, Fault, notes_in
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
from tests.power_loss import rows_at_risk

#: Every n-th call of the disk; all of them in the slow run.
STRIDES = [3, pytest.param(1, marks=pytest.mark.slow)]


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
    """Final tensors and history of a training that met nothing."""
    return train_job(tmp_path_factory.mktemp("whole"))


def _without_times(history):
    rows = [replace(r, seconds=0, validation_seconds=0, images_per_second=0) for r in history.rows]
    return replace(history, rows=tuple(rows), peak_memory_bytes=None)


def _check_goes_on(folder, whole):
    """Run again, a training ends as the one that met nothing, and leaves little behind."""
    found, history = train_job(folder)
    assert same(found, whole[0])
    assert _without_times(history) == _without_times(whole[1])
    kinds = [name.split("-")[0] for name in os.listdir(folder)]
    # Killed while it clears away behind the last save, it has nothing left to save.
    assert set(kinds) == {"state", "tensors"}
    assert len(kinds) <= 6


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
    assert met >= 60 / stride


def test_killed_again_and_again_at_any_moment_it_goes_on_bit_for_bit(tmp_path, nursery):
    """Killed after random times until it gets through, a training ends with the same bits."""
    whole, moments, kills = (
        train_job(tmp_path / "whole", settings=LONGER),
        np.random.default_rng(0),
        0,
    )
    for _ in range(200):
        code = nursery.run(tmp_path / "t", tmp_path / "log", kill_after=moments.uniform(0.03, 0.12))
        if any(note["what"] == "done" for note in notes_in(tmp_path / "log")):
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 5
    found, history = train_job(tmp_path / "t", settings=LONGER)
    assert same(found, whole[0])
    assert _without_times(history) == _without_times(whole[1])


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
    assert met == 0 if kind == SHORT else met >= 55 / stride


def test_a_power_cut_takes_no_checkpoint_that_was_saved(tmp_path):
    """Bytes are synced before they get their name; the old pair goes after the new one lasts."""
    noted_job(tmp_path / "t", tmp_path / "log")
    notes = notes_in(tmp_path / "log")
    assert sum(note["what"] == "ack" for note in notes) == 2 * 4
    assert rows_at_risk(notes, tmp_path) == []


@pytest.fixture
def half_way(tmp_path, nursery):
    """A folder with the checkpoints of two of four steps."""
    fault = Fault(call=40, kind="kill before")
    assert nursery.run(tmp_path / "t", tmp_path / "log", fault=fault) == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "t")) >= 4
    return tmp_path / "t"


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "a bit of the tensors flipped": lambda state, weights: _flip(weights, -1),
    "a bit of the tensors' header flipped": lambda state, weights: _flip(weights, 20),
    "a bit of the state flipped": lambda state, weights: _flip(state, 200),
    "the tensors cut short": lambda state, weights: _cut(weights),
    "the state cut short": lambda state, weights: _cut(state),
    "the tensors gone": lambda state, weights: weights.unlink(),
    "an empty state": lambda state, weights: state.write_bytes(b""),
    "another's tensors": lambda state, weights: shutil.copy(
        next(p for p in weights.parent.glob("tensors-*") if p != weights), weights
    ),
}


def _newest(folder):
    state = max(folder.glob("state-*"))
    return state, folder / json.loads(state.read_text())["tensors"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(half_way, whole, caplog, damage):
    """The one before it takes over, the warning names the file, and no bit differs."""
    state, weights = _newest(half_way)
    DAMAGES[damage](state, weights)
    with caplog.at_level(logging.WARNING):
        _check_goes_on(half_way, whole)
    assert [state.name in record.getMessage() for record in caplog.records] == [True]


def test_a_damaged_checkpoint_is_not_kept_as_the_last_good_one(half_way):
    """After the next save there are two whole checkpoints; the damaged one is cleared away."""
    state, weights = _newest(half_way)
    _cut(weights)
    checkpoints = Checkpoints(half_way, IDENTITY)
    before = checkpoints._read(min(half_way.glob("state-*")).name)
    state_, run = before[1].state, before[0]["identity"]
    run = {name: value for name, value in run.items() if name not in IDENTITY}
    checkpoints.load(run)
    checkpoints.save(state_, {"w": torch.zeros(2)}, run)
    assert not state.exists()
    assert not weights.exists()
    assert len(os.listdir(half_way)) == 4


def test_no_whole_checkpoint_is_an_error_not_a_new_start(half_way):
    """Hours of work are not thrown away in silence: the user is asked to delete the folder."""
    for path in half_way.glob("tensors-*"):
        _cut(path)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* delete the folder"):
        train_job(half_way)


def test_the_state_names_its_tensors_by_their_content(half_way):
    """Both names are the SHA-256 of the bytes, so no pair can be mixed."""
    for state in half_way.glob("state-*"):
        assert hashlib.sha256(state.read_bytes()).hexdigest() in state.name
        weights = json.loads(state.read_text())["tensors"]
        assert hashlib.sha256((half_way / weights).read_bytes()).hexdigest() in weights


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
    "method": {"identity": {**IDENTITY, "method": "last_block"}},
    "data": {"identity": {**IDENTITY, "data": [1, 3]}},
    "weights": {"identity": {**IDENTITY, "weights": "new"}},
    "settings.seed": {"settings": replace(SETTINGS, seed=2)},
    "settings.epochs": {"settings": replace(SETTINGS, epochs=9)},
    "settings.augmentation": {"settings": replace(SETTINGS, augmentation="none")},
    "network": {"model": small_net(norm=False)},
    "trained parameters": {"model": _frozen_body()},
    "fit labels": {"fit": Pictures(6)},
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("field", OTHERS)
def test_another_training_is_refused_with_the_field_that_differs(half_way, finished, field):
    """Field, what the file has, what was asked for, and what to do."""
    if finished:
        train_job(half_way)
    with pytest.raises(CheckpointError) as caught:
        _train(half_way, **OTHERS[field])
    assert f"training has {field} " in str(caught.value)
    assert "asked for is " in str(caught.value)
    assert f"with the settings it has, or delete the folder {half_way}" in str(caught.value)
    assert isinstance(caught.value, PipelineError)
    assert isinstance(caught.value, ValueError)


def test_a_field_that_is_gone_is_named(half_way):
    """What only the file has differs too."""
    with pytest.raises(CheckpointError, match="has method 'full', asked for is None"):
        _train(half_way, {"study": "tiny", "data": [1, 2]})


def test_a_finished_training_is_not_run_again(tmp_path):
    """The second run looks at no image, writes nothing, and has weights and history."""
    first, history = train_job(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model, fit = small_net(seed=5), Pictures()
    again = _train(tmp_path, model=model, fit=fit)
    assert fit.asked == 0
    assert again == history
    assert same(tensors(model), first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_checkpoints_move_no_bit(tmp_path, optimiser):
    """With a checkpoint at each step, at each epoch, or none, the weights are the same."""
    settings = replace(SETTINGS, optimiser=optimiser)
    often, _ = train_job(tmp_path / "often", settings=settings)
    seldom, never = small_net(), small_net()
    _train(tmp_path / "seldom", settings=settings, model=seldom)
    train(never, Pictures(), Pictures(3, seed=1), settings)
    assert same(often, tensors(seldom))
    assert same(often, tensors(never))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_moments_of_either_optimiser_survive(tmp_path, optimiser):
    """Cut off after each save in turn and run again, the weights are the same."""
    settings = replace(SETTINGS, optimiser=optimiser)
    expected, _ = train_job(tmp_path / "whole", settings=settings)
    for saves in range(1, 5):
        folder, validation = tmp_path / str(saves), Pictures(3, seed=1)
        checkpoints = CutOff(folder, IDENTITY, seconds=0)
        checkpoints.last = saves
        with pytest.raises(KeyboardInterrupt):
            train(small_net(), Pictures(), validation, settings, checkpoints=checkpoints)
        assert same(train_job(folder, settings=settings)[0], expected)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([0.1, float("nan"), -0.0], dtype=torch.float64),
        torch.ones(3, dtype=torch.bfloat16),
        torch.zeros(0, 3),
    ],
)
def test_a_tensor_comes_back_bit_for_bit(tmp_path, tensor):
    """Whatever its type, shape and layout, and twice under two names."""
    checkpoints = Checkpoints(tmp_path, {})
    state = {"x": 0.1 + 0.2, "infinite": float("inf"), "none": None}
    checkpoints.save(state, {"a": tensor, "b": tensor})
    found = Checkpoints(tmp_path, {}).load()
    assert found.state == state
    for name in "ab":
        assert found.tensors[name].dtype == tensor.dtype
        assert np.array_equal(
            found.tensors[name].contiguous().view(torch.uint8)
            if tensor.dim()
            else found.tensors[name],
            tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor,
        )


def test_a_checkpoint_is_due_after_its_time(tmp_path, monkeypatch):
    """Not before, and again only after the next save."""
    clock = [100.0]
    monkeypatch.setattr("pipeline.finetune.checkpoint.time.monotonic", lambda: clock[0])
    checkpoints = Checkpoints(tmp_path, {}, seconds=60)
    clock[0] += 59
    assert not checkpoints.due()
    clock[0] += 1
    assert checkpoints.due()
    checkpoints.save({}, {})
    assert not checkpoints.due()


def test_litter_of_a_dead_process_is_cleared_away(tmp_path, nursery, whole):
    """A temporary file that a kill left is removed by the next save."""
    fault = Fault(call=9, kind="kill before")
    nursery.run(tmp_path / "t", tmp_path / "log", fault=fault)
    assert [name[:5] for name in os.listdir(tmp_path / "t")] == [".tmp-"]
    _check_goes_on(tmp_path / "t", whole)
