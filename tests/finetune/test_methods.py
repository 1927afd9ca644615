"""Methods bring along what they start from; one function says what a training is set to."""

from dataclasses import asdict

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
    assert select_methods(names)[0] == runs
    with pytest.raises(UnknownNameError, match=r"unknown method 'ful'; allowed: lp, .*, all"):
        select_methods(("ful", *names))


@pytest.mark.parametrize(
    ("name", "given", "more", "wanted"),
    [
        # The user's word stands above the method's above the default; None is not given.
        ("lp_ft", {"epochs": 3, "patience": 2}, {}, {"epochs": 3, "patience": 2}),
        ("lp_ft", {"patience": None}, {}, {"patience": TrainingSettings.patience}),
        ("lp_ft", {}, {"seed": 7}, {"seed": 7, "keep_statistics": True}),
        ("lp_ft", {"seed": 0}, {"seed": 7}, {"seed": 0}),
        # A method that was not named keeps its epochs and its rate.
        (
            "lp", {"epochs": 3, "learning_rate": 0.5, "patience": 2}, {"named": False},
            {"epochs": 30, "learning_rate": 1e-3, "patience": 2},
        ),
        # Stored rows cannot be augmented.
        ("lp", {"augmentation": "light"}, {}, {"augmentation": "none"}),
        ("full", {"augmentation": "light"}, {}, {"augmentation": "light"}),
        # The rate is for 32 images: it follows the root of the batch, of SGD the batch itself.
        ("full", {}, {}, {"learning_rate": 1e-4, "batch_size": 32}),
        ("full", {"batch_size": 128}, {}, {"learning_rate": pytest.approx(2e-4)}),
        ("lp", {"batch_size": 8}, {}, {"learning_rate": pytest.approx(1e-3 / 2)}),
        (
            "full", {"batch_size": 64, "optimiser": "sgd"}, {},
            {"learning_rate": pytest.approx(2e-4)},
        ),
        ("full", {"batch_size": 128, "learning_rate": 3e-4}, {}, {"learning_rate": 3e-4}),
        # Batches are large on CUDA where steps are many; the user's number stands above it.
        ("full", {}, {"images": 10**6}, {"batch_size": 32}),
        ("full", {}, {"device": "cuda", "images": 128 * FEWEST_STEPS}, {"batch_size": 128}),
        ("full", {}, {"device": "cuda:1", "images": 128 * FEWEST_STEPS - 1}, {"batch_size": 64}),
        ("full", {}, {"device": "cuda", "images": 64 * FEWEST_STEPS - 1}, {"batch_size": 32}),
        ("full", {"batch_size": 5}, {"device": "cuda", "images": 10**6}, {"batch_size": 5}),
        # The study's precision is for CUDA, which is repeatable where it is asked to be.
        ("full", {}, {"precision": "bf16"}, {"precision": "fp32", "deterministic": False}),
        ("full", {"precision": "bf16"}, {}, {"precision": "bf16"}),
        ("full", {}, {"device": "cuda", "precision": "bf16"}, {"precision": "bf16"}),
        (
            "full", {"precision": "tf32", "deterministic": True}, {"device": "cuda"},
            {"precision": "tf32", "deterministic": True},
        ),
    ],
)  # fmt: skip
def test_a_training_is_set_as_the_user_then_the_method_then_the_table_says(
    name, given, more, wanted
):
    """One function puts the three together."""
    settings = asdict(resolve_settings(name, given, **more))
    assert {key: settings[key] for key in wanted} == wanted


def test_a_value_that_is_not_allowed_is_named():
    """Field, value, and its range or table."""
    wrong = {"optimiser": "lion", "augmentation": "heavy", "precision": "fp8", "patience": -1}
    wrong |= {"epochs": 0, "batch_size": 0, "learning_rate": float("nan"), "seed": -1}
    for name, value in wrong.items():
        with pytest.raises(PipelineError, match=rf"{name} .*(: allowed is|; allowed: )"):
            TrainingSettings(**{name: value})
