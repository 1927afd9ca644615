"""How a training ended is said by a stated rule."""

import pytest

from pipeline.finetune.history import EpochRow, trend


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([], None),
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


def test_a_line_about_an_epoch_leaves_out_what_was_not_measured():
    """Epochs are counted from 1 for people."""
    row = EpochRow(
        epoch=2, fit_loss=0.25, fit_accuracy=0.9, validation_loss=0.5, validation_accuracy=0.75,
        seconds=2.0, images_per_second=20.0, learning_rate=0.1,
    )  # fmt: skip
    said = "epoch 3/9: loss 0.250, accuracy 0.900, validation 0.500 / 0.750, 20.0 images/s"
    assert row.line(9) == said
