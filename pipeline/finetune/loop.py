"""The training loop of every method, read from top to bottom."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.errors import EngineError
from pipeline.finetune import distributed as parallel
from pipeline.finetune.checkpoint import (
    Checkpoints,
    EpochRow,
    TrainingState,
    describe_training,
    pack_tensors,
    restore,
)
from pipeline.finetune.data import Examples, dropout_seed, fit_batches, ordered_batches
from pipeline.finetune.distributed import autocast, seed_generators, torch_settings
from pipeline.finetune.methods import TrainingSettings
from pipeline.finetune.networks import BATCH_NORMS, main_logits, training_loss
from pipeline.progress import Progress

_LOG = logging.getLogger(__name__)
#: Weight decay of weights; biases and parameters of norms have none.
WEIGHT_DECAY = 1e-4
#: Share of all steps in which the learning rate rises from 0; then a cosine lowers it to 0.
WARMUP = 0.1
#: Largest norm of the gradient of all parameters; larger ones are clipped.
CLIP = 1.0


# One loop, read from top to bottom, is easier to trust than its pieces would be.
def train(  # noqa: C901, PLR0915
    model: nn.Module,
    fit: Examples,
    validation: Examples,
    settings: TrainingSettings,
    *,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> list[EpochRow]:
    """Train the trainable parameters of a model, in place; continue from a checkpoint.

    In a group, all processes call this with the same arguments, and end with the same weights
    and numbers.

    Args:
        model: Takes a batch of the examples and is moved to the device; parameters without
            ``requires_grad`` and their running statistics do not change.
        fit: Examples for training.
        validation: Examples that are scored after each epoch, for the history and for early
            stopping.
        settings: Settings of the training.
        checkpoints: Where checkpoints are kept; a finished training is not run again.
        progress: Is advanced by every trained image.

    Returns:
        A row for each epoch, including those before an interruption. The weights are those of
        the best epoch with ``patience``, else of the last.

    Raises:
        EngineError: A precision that the device does not have; out of memory; a loss that is
            not finite.
        CheckpointError: The checkpoint is of another training.
    """
    device, group = torch.device(settings.device), parallel.group()
    identity = describe_training(
        model, {"fit": fit.label, "validation": validation.label}, settings
    )
    steps = math.ceil(len(fit) / settings.batch_size)
    with torch_settings(settings), progress or Progress("training") as shown:
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = _optimiser(model, settings)
        trained = [p for part in optimiser.param_groups for p in part["params"]]
        last = checkpoints.load(identity) if checkpoints else None
        newest = checkpoints.newest if checkpoints else ""
        parallel.check_same(newest, device, "checkpoints")
        now, best = restore(last, model, optimiser)
        if now.finished:
            return now.rows
        network = parallel.data_parallel(model, device)
        # The last step of an epoch has a shape of its own: neither compiling nor measuring
        # algorithms would pay for it.
        compiled = torch.compile(network, dynamic=False) if settings.compile else network

        def save() -> None:
            if checkpoints and group.rank == 0:
                tensors = pack_tensors(model, best, None if now.finished else optimiser)
                checkpoints.save(asdict(now), tensors)

        if group.rank == 0:
            done = now.epoch * len(fit) + now.step * settings.batch_size
            shown.expect(settings.epochs * len(fit) - done)
        for epoch in range(now.epoch, settings.epochs):
            _set_train_mode(model, keep_statistics=settings.keep_statistics)
            totals = torch.tensor(now.totals, dtype=torch.float64, device=device)
            before, start = now.seconds, time.perf_counter()
            batches = fit_batches(fit, settings, group, epoch=epoch, first=now.step)
            for inputs, labels, factor in batches:
                share = share_of_rate(epoch * steps + now.step, settings.epochs * steps)
                for parameters in optimiser.param_groups:
                    parameters["lr"] = share * settings.learning_rate
                seed_generators(dropout_seed(settings.seed, epoch, now.step, group.rank), device)
                of_all = min(settings.batch_size, len(fit) - now.step * settings.batch_size)
                whole = of_all == settings.batch_size
                torch.backends.cudnn.benchmark = whole and not settings.deterministic
                with autocast(settings):
                    output = (compiled if whole else network)(inputs)
                    loss = training_loss(output, labels)
                optimiser.zero_grad()
                (loss * factor).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(trained, CLIP)
                optimiser.step()
                correct = (main_logits(output).argmax(1) == labels).double().mean()
                tally = torch.stack([loss.detach().double(), correct, torch.ones_like(correct)])
                totals += parallel.sum_over_processes(tally * (len(labels) if factor else 0))
                now.step += 1
                now.seconds = before + time.perf_counter() - start
                if group.rank == 0:
                    shown.advance(of_all)
                if checkpoints and checkpoints.due() and now.step < steps:
                    now.totals = _finite(totals, epoch)
                    save()
            now.totals = _finite(totals, epoch)  # waits for the device: its work is timed too
            now.seconds = before + time.perf_counter() - start
            parallel.broadcast_buffers(model)
            row = _epoch_row(model, now, validation, settings)
            now = TrainingState(epoch=epoch + 1, rows=[*now.rows, row])
            if settings.patience and _best_epoch(now.rows) == epoch:
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if settings.patience and epoch - _best_epoch(now.rows) >= settings.patience:
                break
            if now.epoch < settings.epochs:
                save()

        if settings.patience:
            model.load_state_dict(best)
        now.finished, best = True, {}
        save()
    return now.rows


def predict(
    model: nn.Module, examples: Examples, *, batch_size: int, device: str
) -> NDArray[np.float64]:
    """Class probabilities ``(n, K)``, without dropout, in float32 for every training precision.

    The model is moved to the device and left in eval mode. In a group, each process that calls
    this computes all rows.

    Raises:
        EngineError: Out of memory.
    """
    settings = TrainingSettings(batch_size=batch_size, device=device, deterministic=True)
    with torch_settings(settings), torch.no_grad():
        model.to(device).eval()
        rows = [
            main_logits(model(inputs)).double().softmax(1).cpu().numpy()
            for inputs, _ in ordered_batches(examples, settings)
        ]
        proba: NDArray[np.float64] = np.concatenate(rows)
        return proba


def share_of_rate(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step: a linear rise, then a half cosine.

    Args:
        step: From 0.
        steps: Steps of the whole training; the rise takes ``WARMUP`` of them, rounded up.

    Returns:
        More than 0 and at most 1; 1 at the last step of the rise. The cosine would reach 0 at
        step ``steps``, just after the last one (Loshchilov and Hutter 2017, without restarts).
    """
    rise = math.ceil(WARMUP * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def _set_train_mode(model: nn.Module, *, keep_statistics: bool = False) -> None:
    """Set training mode, except for frozen modules.

    A module without trained parameters is in eval mode, with all that it contains: BatchNorm
    keeps its running statistics, and dropout drops nothing. A module without any parameter (ReLU,
    dropout, a norm without weights) has the mode of the module around it.
    """
    model.train()
    for module in model.modules():
        trained = [p.requires_grad for p in module.parameters()]
        frozen = trained and not any(trained)
        if frozen or (keep_statistics and isinstance(module, BATCH_NORMS)):
            module.eval()


def _optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser; parameters with one axis (biases and norms) have no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = True if settings.device.startswith("cuda") else None
    if settings.optimiser == "sgd":
        rate = settings.learning_rate
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def _best_epoch(rows: Sequence[EpochRow]) -> int:
    """The first epoch with the lowest validation loss."""
    losses = [row.validation_loss for row in rows]
    return losses.index(min(losses))


def _epoch_row(
    model: nn.Module, now: TrainingState, validation: Examples, settings: TrainingSettings
) -> EpochRow:
    """The row of the epoch that was just trained, with its validation; it is logged."""
    validation_loss, validation_accuracy = _score(model, validation, settings)
    loss, correct, images = now.totals
    row = EpochRow(
        epoch=now.epoch,
        fit_loss=loss / images,
        fit_accuracy=correct / images,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        seconds=now.seconds,
        images_per_second=images / now.seconds,
    )
    _LOG.info(
        f"epoch {now.epoch + 1}/{settings.epochs}: loss {row.fit_loss:.3f}, accuracy "
        f"{row.fit_accuracy:.3f}, validation {validation_loss:.3f} / {validation_accuracy:.3f}, "
        f"{row.images_per_second:.1f} images/s"
    )
    return row


def _score(model: nn.Module, examples: Examples, settings: TrainingSettings) -> tuple[float, float]:
    """Mean cross-entropy and accuracy; processes share the batches and get the same sums."""
    totals = torch.zeros(2, dtype=torch.float64, device=settings.device)
    model.eval()
    torch.backends.cudnn.benchmark = False
    with torch.no_grad():
        for inputs, labels in ordered_batches(examples, settings, parallel.group()):
            with autocast(settings):
                logits = main_logits(model(inputs))
            losses = cross_entropy(logits.double(), labels, reduction="sum")
            right = (logits.argmax(1) == labels).double().sum()
            totals += torch.stack([losses, right])
    loss, correct = parallel.sum_over_processes(totals).tolist()
    return loss / len(examples), correct / len(examples)


def _finite(totals: Tensor, epoch: int) -> list[float]:
    """The sums as numbers; stops a training that diverged."""
    values: list[float] = totals.tolist()
    if not all(map(math.isfinite, values)):
        raise EngineError(
            f"the loss of epoch {epoch} is not finite: try a smaller --learning-rate, or a longer "
            "warm-up"
        )
    return values
