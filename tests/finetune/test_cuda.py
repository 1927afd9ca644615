"""The same trainings on CUDA: near those of the CPU, repeatable where asked, resumable."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.features.backbones import spec_of
from pipeline.features.frozen import Normalise
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.data import augment_lightly, examples_of
from pipeline.finetune.loop import predict, train
from pipeline.finetune.methods import TrainingSettings
from tests.finetune.jobs import IDENTITY, CutOff, Pictures, same, small_net, tensors

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SETTINGS = TrainingSettings(epochs=4, batch_size=8, seed=3, device=DEVICE, augmentation="light")


def held(device=DEVICE):
    """Forty pictures of two classes, where they are trained on."""
    pictures = Pictures(40, side=8)
    return examples_of(pictures.pixels, np.arange(40), pictures.label, device)


def trained(settings=SETTINGS, dropout=0.0, **options):
    """Final tensors, on the CPU, and the rows of the epochs."""
    model, data = small_net(dropout=dropout), held(settings.device)
    rows = train(model, data, data, settings, **options)
    return {name: value.cpu() for name, value in tensors(model).items()}, rows


def assert_near(actual, expected, *, rtol=1e-2, atol=2e-3):
    """Weights, but for the bias before the BatchNorm, and its mean, which take each other out.

    The gradient of that bias is rounding alone, and Adam makes whole steps of it.
    """
    for name in expected.keys() - {"body.0.bias", "body.1.running_mean"}:
        assert actual[name].dtype == expected[name].dtype
        torch.testing.assert_close(actual[name], expected[name], rtol=rtol, atol=atol)


def test_a_training_is_near_that_of_the_cpu():
    """In fp32, with the augmentation and the batches on the device; so are predictions."""
    (actual, rows), (expected, of_cpu) = trained(), trained(replace(SETTINGS, device="cpu"))
    assert held().batch(np.arange(3)).device.type == DEVICE
    assert_near(actual, expected)
    losses = [[row.validation_loss for row in h] for h in (rows, of_cpu)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    model, data = small_net(), Pictures(10)
    proba = predict(model, data, batch_size=4, device="cpu")
    assert predict(model, data, batch_size=4, device=DEVICE) == pytest.approx(proba, abs=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_are_near_fp32(precision):
    """Weights stay float32, and predictions are computed in it."""
    actual, rows = trained(replace(SETTINGS, precision=precision))
    assert_near(actual, trained()[0], rtol=0.1, atol=0.02)
    assert all(np.isfinite(row.fit_loss) for row in rows)


def test_deterministic_trainings_are_equal_to_the_last_bit():
    """Dropout and augmentation included; the process is as it was afterwards."""
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    settings = replace(SETTINGS, deterministic=True)
    assert same(trained(settings, dropout=0.5)[0], trained(settings, dropout=0.5)[0])
    after = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    assert after == before


def test_a_training_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    """From a checkpoint in the middle of an epoch."""
    settings = replace(SETTINGS, deterministic=True)
    expected, _ = trained(settings, dropout=0.5)
    with pytest.raises(KeyboardInterrupt):
        trained(settings, dropout=0.5, checkpoints=CutOff(tmp_path, IDENTITY, seconds=0))
    checkpoints = Checkpoints(tmp_path, IDENTITY, seconds=0)
    assert same(trained(settings, dropout=0.5, checkpoints=checkpoints)[0], expected)


def test_compiled_steps_are_near_plain_ones():
    """The last step of an epoch is not compiled; all count."""
    settings = replace(SETTINGS, batch_size=16, augmentation="none")
    actual, rows = trained(replace(settings, compile=True))
    assert_near(actual, trained(settings)[0])
    assert all(np.isfinite(row.fit_loss) for row in rows)


def test_a_real_network_is_repeatable_in_bf16():
    """Convolutions of every kind, pooling, BatchNorm: all have repeatable algorithms."""
    from torchvision.models import densenet121

    def weights():
        torch.manual_seed(0)
        pixels = Pictures(16, side=64)
        model = nn.Sequential(Normalise(spec_of("densenet121").policy), densenet121(num_classes=2))
        settings = TrainingSettings(
            epochs=1, batch_size=8, device=DEVICE, precision="bf16", deterministic=True
        )
        data = examples_of(pixels.pixels, np.arange(16), pixels.label, DEVICE)
        train(model, data, data, settings)
        return tensors(model)

    assert same(weights(), weights())


def test_the_augmentation_is_that_of_the_cpu():
    """Within one grey level, which is rounding."""
    pixels, rows = torch.from_numpy(Pictures(20, side=32).pixels), np.arange(20)
    expected = augment_lightly(pixels, 1, 2, rows).int()
    actual = augment_lightly(pixels.to(DEVICE), 1, 2, rows).cpu().int()
    assert (actual - expected).abs().max() <= 1
    assert (actual != expected).float().mean() < 0.01
