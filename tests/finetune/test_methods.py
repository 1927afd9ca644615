"""Methods bring along what they start from; one function says what a training is set to."""

import math

import pytest

from pipeline.errors import PipelineError, UnknownNameError
from pipeline.finetune.methods import (
    FEWEST_STEPS,
    METHODS,
    QUICK,
    TrainingSettings,
    resolve_settings,
    select_methods,
)


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ((), QUICK),
        (("full",), ("full",)),
        (("lp_ft",), ("lp", "lp_ft")),
        (("wise_ft",), ("lp", "lp_ft", "wise_ft")),
        (("all",), tuple(METHODS)),
    ],
)
def test_methods_bring_along_what_they_start_from(names, runs):
    """In the order of the table, so that what is needed is there."""
    assert select_methods(names) == runs
    with pytest.raises(UnknownNameError, match=r"unknown method 'ful'; known: lp, .*, all"):
        select_methods(("ful", *names))


def test_the_users_word_stands_above_the_methods_above_the_default():
    """None is not given; a method that was not named keeps its epochs and its rate."""
    given = {"epochs": 3, "learning_rate": 0.5, "patience": 2, "weight_decay": None}
    settings = resolve_settings("lp_ft", given, seed=7)
    assert (settings.epochs, settings.learning_rate, settings.patience) == (3, 0.5, 2)
    assert settings.keep_statistics  # the method's
    assert settings.weight_decay == TrainingSettings.weight_decay
    assert settings.seed == 7  # the study's
    assert resolve_settings("lp_ft", {"seed": 0}, seed=7).seed == 0
    start = resolve_settings("lp", given, named=False)
    assert (start.epochs, start.learning_rate, start.patience) == (30, 1e-3, 2)
    light = {"augmentation": "light"}  # for methods that read pixels
    found = [resolve_settings(name, light).augmentation for name in ("lp", "full")]
    assert found == ["none", "light"]


def test_the_rate_follows_the_square_root_of_the_batch():
    """Of the table's rate for 32 images, unless the user gives one; of SGD the batch itself."""
    assert resolve_settings("full", {}).learning_rate == 1e-4
    assert resolve_settings("full", {"batch_size": 128}).learning_rate == pytest.approx(2e-4)
    assert resolve_settings("lp", {"batch_size": 8}).learning_rate == pytest.approx(
        1e-3 / math.sqrt(4)
    )
    given = {"batch_size": 64, "optimiser": "sgd"}
    assert resolve_settings("full", given).learning_rate == pytest.approx(2e-4)
    given = {"batch_size": 128, "learning_rate": 3e-4}
    assert resolve_settings("full", given).learning_rate == 3e-4


@pytest.mark.parametrize(
    ("device", "images", "size"),
    [
        ("cpu", 10**6, 32),
        ("cuda", 128 * FEWEST_STEPS, 128),
        ("cuda:1", 128 * FEWEST_STEPS - 1, 64),
        ("cuda", 64 * FEWEST_STEPS - 1, 32),
    ],
)
def test_batches_are_large_on_cuda_where_steps_are_many(device, images, size):
    """The user's number stands above it."""
    assert resolve_settings("full", {}, device=device, images=images).batch_size == size
    given = resolve_settings("full", {"batch_size": 5}, device=device, images=images)
    assert given.batch_size == 5


def test_precision_and_repeatability_are_those_of_the_device():
    """The study's precision is for CUDA, which is repeatable where it is asked to be."""
    cpu = resolve_settings("full", {}, precision="bf16")
    assert (cpu.precision, cpu.deterministic) == ("fp32", False)
    cuda = resolve_settings("full", {}, device="cuda", precision="bf16")
    assert (cuda.precision, cuda.deterministic) == ("bf16", False)
    given = {"precision": "tf32", "deterministic": True}
    cuda = resolve_settings("full", given, device="cuda", precision="bf16")
    assert (cuda.precision, cuda.deterministic) == ("tf32", True)
    assert resolve_settings("full", {"precision": "bf16"}).precision == "bf16"


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": "lion"},
        {"augmentation": "heavy"},
        {"precision": "fp8"},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"clip": -1.0},
        {"patience": -1},
        {"seed": -1},
    ],
)
def test_a_value_that_is_not_allowed_is_named(change):
    """Field, value, and its range or table."""
    (name,) = change
    with pytest.raises(PipelineError, match=rf"{name} .*(: allowed is|; known: )"):
        TrainingSettings(**change)
