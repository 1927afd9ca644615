"""The loop trains what it says it trains, by the formulas it names, and by its seed alone."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.errors import EngineError
from pipeline.features.backbones import spec_of
from pipeline.features.frozen import Normalise
from pipeline.finetune.checkpoint import Checkpoints
from pipeline.finetune.data import augment_lightly, examples_of, order
from pipeline.finetune.loop import WARMUP, predict, share_of_rate, train
from pipeline.finetune.methods import OPTIMISERS, TrainingSettings
from pipeline.progress import Progress
from tests.finetune.jobs import IDENTITY, CutOff, Pictures, same, small_net, tensors

SETTINGS = TrainingSettings(epochs=2, batch_size=4, seed=3)


def _trained(model, settings=SETTINGS, fit=None, validation=None, **options):
    fit = Pictures(10) if fit is None else fit
    rows = train(model, fit, validation or fit, settings, **options)
    return tensors(model), rows


# The rate and the steps


@pytest.mark.parametrize("steps", [1, 7, 10, 40])
def test_the_rate_rises_and_falls_as_torchs_schedules(steps):
    """A straight line to the highest, then a half cosine: as LinearLR and CosineAnnealingLR."""
    rise = math.ceil(steps * WARMUP)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps - rise, 1))
    falling = []
    for _ in range(steps - rise):
        falling.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        fall.step()
    expected = [*np.linspace(0, 1, rise + 1)[1:], *falling]
    actual = [share_of_rate(step, steps) for step in range(steps)]
    assert actual == pytest.approx(expected, abs=1e-12)
    assert max(actual) == 1
    assert min(actual) > 0


def _rows(values, label):
    """Stored activations: any array, with labels."""
    return examples_of(values, np.arange(len(values)), label)


def _activations(count=10):
    """Float64, so that a gradient of exactly zero (a bias before a BatchNorm) stays near it."""
    rng = np.random.default_rng(0)
    return _rows(rng.normal(size=(count, 3, 5, 5)), np.arange(count) % 2)


def _small_float64_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    return net.double()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_steps_are_those_of_a_plain_torch_loop(name, monkeypatch):
    """Order, batches, rate, decay, clipping and optimiser: as written out by hand."""
    monkeypatch.setattr("pipeline.finetune.loop.WEIGHT_DECAY", 0.1)
    monkeypatch.setattr("pipeline.finetune.loop.CLIP", 0.3)
    settings = TrainingSettings(epochs=3, batch_size=4, optimiser=name)
    fit, plain = _activations(), _small_float64_net()
    groups = [
        {"params": [plain[0].weight, plain[3].weight], "weight_decay": 0.1},
        {"params": [plain[0].bias, *plain[1].parameters(), plain[3].bias], "weight_decay": 0},
    ]
    optimiser = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-3),
        "sgd": lambda: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True),
    }[name]()
    losses, step = [], 0
    for epoch in range(3):
        rows = order(settings.seed, epoch, 10)
        losses.append(0.0)
        for batch in (rows[:4], rows[4:8], rows[8:]):
            for group in optimiser.param_groups:
                group["lr"] = 1e-3 * share_of_rate(step, 9)
            optimiser.zero_grad()
            loss = cross_entropy(plain(fit.batch(batch)), torch.from_numpy(fit.label[batch]))
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
            optimiser.step()
            losses[-1] += loss.item() * len(batch) / 10
            step += 1
    actual, rows_ = _trained(_small_float64_net(), settings, fit)
    for key, value in tensors(plain).items():
        torch.testing.assert_close(actual[key], value, rtol=1e-7, atol=1e-9)
    assert [row.fit_loss for row in rows_] == pytest.approx(losses, rel=1e-7)


# By the seed alone


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    """Bit for bit, whatever the caller drew before, whose generator is left alone."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, _ = _trained(small_net())
    assert torch.equal(torch.rand(3), expected)
    assert same(first, _trained(small_net())[0])
    assert not same(first, _trained(small_net(), replace(SETTINGS, seed=4))[0])
    # With all images in one batch the order is no matter, and the masks of dropout still are.
    settings = TrainingSettings(epochs=1, batch_size=10)
    some, others = (
        _trained(small_net(norm=False), replace(settings, seed=seed))[0] for seed in (0, 1)
    )
    assert (some["head.3.weight"] - others["head.3.weight"]).abs().max() > 1e-5


# Early stopping and the history


def _against():
    """Validation examples that every step of training makes worse."""
    validation = Pictures(10)
    validation.label = 1 - validation.label
    return validation


def _loss(model, examples):
    proba = predict(model, examples, batch_size=3, device="cpu")
    return -np.log(proba[np.arange(len(examples)), examples.label]).mean()


def test_patience_stops_and_goes_back_to_the_best_weights():
    """Two epochs after the best it stops; the model then scores as it did at the best."""
    settings = TrainingSettings(epochs=30, batch_size=2, learning_rate=0.02, patience=2)
    model = small_net(dropout=0.0)
    losses = [row.validation_loss for row in _trained(model, settings, validation=_against())[1]]
    assert len(losses) == int(np.argmin(losses)) + 3 < 30
    assert losses[-1] > min(losses) == pytest.approx(_loss(model, _against()))
    # Without patience the last weights are kept.
    model = small_net(dropout=0.0)
    settings = replace(settings, patience=0, epochs=6)
    _, rows = _trained(model, settings, validation=_against())
    assert np.argmin([row.validation_loss for row in rows]) < len(rows) - 1 == 5
    assert rows[-1].validation_loss == pytest.approx(_loss(model, _against()))


class Counted(Progress):
    """Counts what it hears of."""

    expected = done = 0

    def expect(self, images):
        self.expected += images

    def advance(self, images=1):
        self.done += images


def test_the_rows_tell_what_happened():
    """Numbers of each epoch, right answers as predict gives them, time, rate, progress."""
    model, validation, start = small_net(), Pictures(7, seed=2), time.perf_counter()
    fit, counted = Pictures(10, pause=0.005), Counted("training")
    _, rows = _trained(model, fit=fit, validation=validation, progress=counted)
    assert counted.expected == counted.done == 20
    assert 0 < sum(row.seconds for row in rows) < time.perf_counter() - start
    assert [row.epoch for row in rows] == [0, 1]
    for row in rows:
        assert row.images_per_second == pytest.approx(10 / row.seconds)
        assert 0 <= row.fit_accuracy <= 1
    assert rows[-1].validation_loss == pytest.approx(_loss(model, validation))
    proba = predict(model, validation, batch_size=3, device="cpu")
    assert proba.dtype == np.float64
    right = proba.argmax(1) == validation.label
    assert rows[-1].validation_accuracy == pytest.approx(right.mean())


# Precision, and what is refused


def test_bf16_is_near_fp32_and_leaves_float32_weights():
    """Products are rounded, weights and loss are not: the path that CUDA takes."""
    full, _ = _trained(small_net(dropout=0.0))
    mixed, rows = _trained(small_net(dropout=0.0), replace(SETTINGS, precision="bf16"))
    assert {t.dtype for t in mixed.values()} == {torch.float32, torch.int64}
    assert not same(full, mixed)
    for name, value in full.items():
        torch.testing.assert_close(mixed[name], value, rtol=0.05, atol=0.01)
    assert all(math.isfinite(row.fit_loss) for row in rows)


def test_full_batches_are_compiled_and_the_last_is_not(monkeypatch):
    """Of ten images in steps of four, two of three steps have the compiled shape."""
    shapes = []

    def compiled(network, **options):
        assert options == {"dynamic": False}
        return lambda batch: shapes.append(len(batch)) or network(batch)

    monkeypatch.setattr(torch, "compile", compiled)
    actual, _ = _trained(small_net(), replace(SETTINGS, compile=True))
    assert shapes == [4] * 4
    assert same(actual, _trained(small_net())[0])
    assert shapes == [4] * 4


def _failing(error):
    class Failing(nn.Linear):
        def forward(self, batch):
            raise error

    return Failing(8, 2)


_OF_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
_OF_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
#: Network, settings, value of all features, error and message; of five rows.
_REFUSED = [
    (_failing(_OF_CUDA), {"batch_size": 9}, 1, EngineError, "9 images a step; try --batch-size 4"),
    (_failing(_OF_CPU), {"batch_size": 1}, 1, EngineError, "1 image a step; try a smaller --image"),
    (_failing(RuntimeError("a shape")), {}, 1, RuntimeError, "^a shape$"),
    (nn.Linear(8, 2), {"precision": "tf32"}, 1, EngineError, "tf32 is a prec.*use fp32"),
    (nn.Linear(8, 2), {}, np.inf, EngineError, "epoch 0 is not finite: try a smaller --learning"),
    (
        nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2)), {}, 1, EngineError,
        "one image alone for a BatchNorm .* another --batch-size than 4",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "settings", "value", "error", "message"), _REFUSED)
def test_an_error_says_what_to_try(model, settings, value, error, message):
    """Memory, one image alone in a step, a precision, a loss that diverged; others pass."""
    fit = _rows(np.full((5, 8), value, np.float32), np.arange(5) % 2)
    with pytest.raises(error, match=message):
        _trained(model, replace(SETTINGS, **settings), fit)


# The same trainings on CUDA: near those of the CPU, repeatable where asked, resumable.

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
ON_CUDA = replace(SETTINGS, epochs=4, batch_size=8, device="cuda", augmentation="light")
REPEATABLE = replace(ON_CUDA, deterministic=True)


def _held(device):
    """Forty pictures of two classes, where they are trained on."""
    pictures = Pictures(40)
    return examples_of(pictures.pixels, np.arange(40), pictures.label, device)


def _on(settings=ON_CUDA, dropout=0.0, **options):
    """Final tensors, on the CPU, and the rows of the epochs."""
    after, rows = _trained(small_net(dropout=dropout), settings, _held(settings.device), **options)
    return {name: value.cpu() for name, value in after.items()}, rows


def _assert_near(actual, expected, *, rtol=1e-2, atol=2e-3):
    """Weights, but for the bias before the BatchNorm, and its mean, which take each other out.

    The gradient of that bias is rounding alone, and Adam makes whole steps of it.
    """
    for name in expected.keys() - {"body.0.bias", "body.1.running_mean"}:
        assert actual[name].dtype == expected[name].dtype
        torch.testing.assert_close(actual[name], expected[name], rtol=rtol, atol=atol)


@cuda
def test_a_training_on_cuda_is_near_that_of_the_cpu():
    """In fp32, with the augmentation and the batches on the device; so are predictions."""
    (actual, rows), (expected, of_cpu) = _on(), _on(replace(ON_CUDA, device="cpu"))
    assert _held("cuda").batch(np.arange(3)).device.type == "cuda"
    _assert_near(actual, expected)
    losses = [[row.validation_loss for row in h] for h in (rows, of_cpu)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    model, data = small_net(), Pictures(10)
    proba = predict(model, data, batch_size=4, device="cpu")
    assert predict(model, data, batch_size=4, device="cuda") == pytest.approx(proba, abs=1e-5)


@cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_on_cuda_are_near_fp32(precision):
    """Weights stay float32, and predictions are computed in it."""
    actual, rows = _on(replace(ON_CUDA, precision=precision))
    _assert_near(actual, _on()[0], rtol=0.1, atol=0.02)
    assert all(np.isfinite(row.fit_loss) for row in rows)


@cuda
def test_a_training_on_cuda_that_was_cut_off_goes_on_bit_for_bit(tmp_path):
    """From a checkpoint inside an epoch, with dropout; the process is as it was afterwards."""

    def state():
        cudnn = torch.backends.cudnn
        return cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()

    before, (expected, _) = state(), _on(REPEATABLE, dropout=0.5)
    assert state() == before
    assert same(_on(REPEATABLE, dropout=0.5)[0], expected)
    with pytest.raises(KeyboardInterrupt):
        _on(REPEATABLE, dropout=0.5, checkpoints=CutOff(tmp_path, IDENTITY, seconds=0))
    checkpoints = Checkpoints(tmp_path, IDENTITY, seconds=0)
    assert same(_on(REPEATABLE, dropout=0.5, checkpoints=checkpoints)[0], expected)


@cuda
def test_compiled_steps_on_cuda_are_near_plain_ones():
    """The last step of an epoch is not compiled; all count."""
    settings = replace(ON_CUDA, batch_size=16, augmentation="none")
    actual, rows = _on(replace(settings, compile=True))
    _assert_near(actual, _on(settings)[0])
    assert all(np.isfinite(row.fit_loss) for row in rows)


@cuda
def test_a_real_network_on_cuda_is_repeatable_in_bf16():
    """Convolutions of every kind, pooling, BatchNorm: all have repeatable algorithms."""
    from torchvision.models import densenet121

    def weights():
        torch.manual_seed(0)
        pixels = Pictures(16, side=64)
        first = Normalise(spec_of("densenet121").transform)
        model = nn.Sequential(first, densenet121(num_classes=2))
        data = examples_of(pixels.pixels, np.arange(16), pixels.label, "cuda")
        return _trained(model, replace(REPEATABLE, epochs=1, precision="bf16"), data)[0]

    assert same(weights(), weights())


@cuda
def test_the_augmentation_on_cuda_is_that_of_the_cpu():
    """Within one grey level, which is rounding."""
    pixels, rows = torch.from_numpy(Pictures(20, side=32).pixels), np.arange(20)
    expected = augment_lightly(pixels, 1, 2, rows).int()
    actual = augment_lightly(pixels.cuda(), 1, 2, rows).cpu().int()
    assert (actual - expected).abs().max() <= 1
    assert (actual != expected).float().mean() < 0.01
