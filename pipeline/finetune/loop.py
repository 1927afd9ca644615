"""How weights move: the optimisers, their parameter groups, and the rate at each step."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
import logging
import time
from dataclasses import asdict
from functools import partial
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from pipeline.errors import EngineError
from pipeline.finetune import distributed as parallel
from pipeline.finetune.checkpoint import Checkpoint, Checkpoints, Json
from pipeline.finetune.data import Examples, dropout_seed, fit_batches, order, plain_batches
from pipeline.finetune.distributed import autocast, peak_memory, seed_generators, surroundings
from pipeline.finetune.history import EpochRow, History, Score, Standing, best_epoch
from pipeline.finetune.networks import BATCH_NORMS
from pipeline.finetune.settings import LoopSettings
from pipeline.progress import Progress

_MOMENTUM = 0.9


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate at a step: a straight rise, then a half cosine.

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Share of ``steps`` in which it rises, rounded up to whole steps.

    Returns:
        More than 0 and at most 1; 1 at the last step of the rise, or the first of all.
        The cosine would reach 0 at step ``steps``, the first that is not taken (Loshchilov
        and Hutter 2017, without restarts).
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay and without.

    A parameter with one axis is a bias or belongs to a norm; pulling either to zero
    shrinks no function that could overfit, it moves the network's scale.
    """
    moved = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in moved if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in moved if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _adamw(groups: list[dict[str, Any]], learning_rate: float) -> "Optimizer":
    import torch

    return torch.optim.AdamW(groups, lr=learning_rate)


def _sgd(groups: list[dict[str, Any]], learning_rate: float) -> "Optimizer":
    import torch

    return torch.optim.SGD(groups, lr=learning_rate, momentum=_MOMENTUM, nesterov=True)


#: To add an optimiser: a factory above and a line here. SGD has Nesterov momentum of 0.9.
OPTIMISERS: Mapping[str, Callable[[list[dict[str, Any]], float], "Optimizer"]] = MappingProxyType(
    {"adamw": _adamw, "sgd": _sgd}
)


# From a training under way to what a checkpoint keeps of it, and back, bit for bit.


_MODEL, _BEST, _OPTIMISER = "model.", "best.", "optimiser."


def run_of(
    model: nn.Module, fit: Examples, watched: Mapping[str, Examples], settings: LoopSettings
) -> dict[str, Json]:
    """What a checkpoint must agree with beside the caller's identity.

    The number of processes is not in it: with another one a training goes on, as near as
    two such trainings are to each other.
    """
    shapes = [[name, list(t.shape), str(t.dtype)] for name, t in model.state_dict().items()]
    named = dict(model.named_parameters())
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    return {
        **{f"settings.{name}": value for name, value in asdict(settings).items()},
        "settings.device": torch.device(settings.device).type,
        "network": _short(repr(shapes).encode()),
        "parameters": sum(p.numel() for p in named.values()),
        "trained parameters": sum(named[name].numel() for name in trained),
        "trained layers": _short(repr(trained).encode()),
        "fit labels": _labels(fit),
        **{f"{name} labels": _labels(one) for name, one in watched.items()},
    }


def _labels(examples: Examples) -> str:
    return f"{len(examples)} labels, SHA-256 {_short(examples.label.tobytes())}"


def _short(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def tensors_of(
    model: nn.Module, best: Mapping[str, Tensor], optimiser: Optimizer | None
) -> dict[str, Tensor]:
    """All that a training goes on from, by name; of a finished one there is no optimiser."""
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    tensors |= {_BEST + name: value for name, value in best.items()}
    if optimiser:
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= {f"{_OPTIMISER}{number}.{key}": value for key, value in values.items()}
    return tensors


def restore(
    found: Checkpoint | None, model: nn.Module, optimiser: Optimizer
) -> tuple[Standing, dict[str, Tensor]]:
    """Bring model and optimiser to a checkpoint.

    Returns:
        Where the training stands, and the best weights so far, if they are looked for.
    """
    if found is None:
        return Standing(), {}
    device = next(model.parameters()).device
    model.load_state_dict(_under(found.tensors, _MODEL))
    best = {name: value.to(device) for name, value in _under(found.tensors, _BEST).items()}
    state: dict[int, dict[str, Any]] = {}
    for name, value in _under(found.tensors, _OPTIMISER).items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    if state:
        optimiser.load_state_dict(
            {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
        )
        _lay_out(optimiser)
    return Standing.from_json(found.state), best


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _lay_out(optimiser: Optimizer) -> None:
    """Files hold tensors row by row; torch's fast path wants moments laid out as parameters."""
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)


# The training loop of every fine-tuning method, read from top to bottom.


__all__ = [
    "VALIDATION",
    "Criterion",
    "EpochRow",
    "Examples",
    "History",
    "LoopSettings",
    "Score",
    "logits_of",
    "order",
    "predict",
    "train",
    "train_mode",
]

_LOG = logging.getLogger(__name__)
#: Name of the watched examples that every epoch, and early stopping, looks at.
VALIDATION = "validation"

#: Output of the model and labels ``(n,)`` -> mean loss of the ``n`` rows, nats.
Criterion = Callable[[Any, Tensor], Tensor]


# One loop, read from top to bottom, is easier to trust than its pieces would be.
def train(  # noqa: C901, PLR0915
    model: nn.Module,
    fit: Examples,
    watched: Mapping[str, Examples],
    settings: LoopSettings,
    *,
    criterion: Criterion | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> History:
    """Train what is trainable of a model, in place; go on where a checkpoint stands.

    In a group of processes (:mod:`pipeline.finetune.distributed`) all of them call this with
    the same arguments, and end with the same weights and numbers.

    Args:
        model: Takes a batch of the examples; parameters without ``requires_grad`` and the
            running statistics beside them stay as they are (:func:`train_mode`). It is
            moved to the device, and its images are laid out channels_last.
        fit: To learn from.
        watched: ``validation`` is scored after each epoch, every one of them at the end.
        settings: See :class:`LoopSettings`.
        criterion: Default: cross-entropy of :func:`logits_of` with the label smoothing.
        checkpoints: Where to keep and find them; a finished training is not run again.
        progress: Is told of every image that was trained on.

    Returns:
        What happened; of a training that was cut off, over all its runs.

    Raises:
        EngineError: No such device; a precision it does not have; out of memory (the
            message names a batch size to try); a loss that is not finite.
        CheckpointError: The checkpoint is of another training; see :class:`Checkpoints`.
        ValueError: Nothing to train, or ``patience`` without validation examples.
    """
    _check(model, fit, watched, settings)
    device, group = torch.device(settings.device), parallel.group()
    criterion = criterion or partial(_cross_entropy, label_smoothing=settings.label_smoothing)
    run = run_of(model, fit, watched, settings)
    steps = math.ceil(len(fit) / settings.batch_size)
    with surroundings(settings), progress or Progress("training") as shown:
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = decay_groups(model, settings.weight_decay)
        optimiser = OPTIMISERS[settings.optimiser](groups, settings.learning_rate)
        moved = [p for group_ in groups for p in group_["params"]]
        found = checkpoints.load(run) if checkpoints else None
        parallel.check_same(int(found.sha256[:15], 16) if found else 0, device, "checkpoints")
        now, best = restore(found, model, optimiser)
        if now.history:
            return now.history
        network = parallel.wrapped(model, device)

        def save() -> None:
            if checkpoints and group.rank == 0:
                tensors = tensors_of(model, best, None if now.history else optimiser)
                checkpoints.save(now.to_json(), tensors, run)

        if group.rank == 0:
            done = now.epoch * len(fit) + now.step * settings.batch_size
            shown.expect(settings.epochs * len(fit) - done)
        for epoch in range(now.epoch, settings.epochs):
            train_mode(model, keep_statistics=settings.keep_statistics)
            totals = torch.tensor(now.totals, dtype=torch.float64, device=device)
            before, start = now.seconds, time.perf_counter()
            for batch in fit_batches(fit, settings, group, epoch=epoch, first=now.step):
                at = epoch * steps + now.step
                share = share_of_rate(at, settings.epochs * steps, settings.warmup)
                now.rate = share * settings.learning_rate
                for parameters in optimiser.param_groups:
                    parameters["lr"] = now.rate
                seed_generators(dropout_seed(settings.seed, epoch, now.step, group.rank), device)
                inputs, labels = batch.to(device)
                with autocast(settings):
                    output = network(inputs)
                    loss = criterion(output, labels)
                optimiser.zero_grad()
                (loss * batch.factor).backward()  # type: ignore[no-untyped-call]
                if settings.clip:
                    nn.utils.clip_grad_norm_(moved, settings.clip)
                optimiser.step()
                hits = (logits_of(output).argmax(1) == labels).double().mean()
                tally = torch.stack([loss.detach().double(), hits, torch.ones_like(hits)])
                totals += parallel.summed(tally * batch.images)
                now.step += 1
                now.seconds = before + time.perf_counter() - start
                if group.rank == 0:
                    shown.advance(batch.images_of_all)
                if checkpoints and checkpoints.due() and now.step < steps:
                    now.totals = _finite(totals, epoch)
                    save()
            now.totals = _finite(totals, epoch)  # waits for the device: its work is timed too
            now.seconds = before + time.perf_counter() - start
            parallel.take_buffers_of_first(model)
            row = _row(model, now, watched, settings)
            _LOG.info("%s", row.line(settings.epochs))
            now.rows.append(row)
            now.peak = _larger(now.peak, peak_memory(settings.device))
            now.begin_epoch()
            if settings.patience and best_epoch(now.rows) == epoch:
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if settings.patience and epoch - best_epoch(now.rows) >= settings.patience:
                break
            if now.epoch < settings.epochs:
                save()

        if settings.patience:
            model.load_state_dict(best)
        now.history = History(
            rows=tuple(now.rows),
            best_epoch=best_epoch(now.rows),
            kept_epoch=best_epoch(now.rows) if settings.patience else len(now.rows) - 1,
            stopped_early=len(now.rows) < settings.epochs,
            peak_memory_bytes=now.peak,
            final={name: _score(model, one, settings) for name, one in watched.items()},
        )
        best = {}
        save()
    return now.history


def predict(
    model: nn.Module, examples: Examples, *, batch_size: int, device: str
) -> NDArray[np.float64]:
    """Class probabilities ``(n, K)``, nothing dropped, in float32 whatever it was trained in.

    The model is moved to the device and left in eval mode. Every process of a group that
    calls this computes all rows.

    Raises:
        EngineError: No such device, or out of memory.
    """
    settings = LoopSettings(batch_size=batch_size, device=device)
    with surroundings(settings), torch.no_grad():
        model.to(device).eval()
        rows = []
        for batch in plain_batches(examples, batch_size, device):
            inputs, _ = batch.to(torch.device(device))
            rows.append(logits_of(model(inputs)).double().softmax(1).cpu().numpy())
        found: NDArray[np.float64] = np.concatenate(rows)
        return found


def train_mode(model: nn.Module, *, keep_statistics: bool = False) -> None:
    """Training mode, but for what is frozen.

    A module that has parameters, its own or of modules within it, none of which is
    trained, is in eval mode with all that it contains: its BatchNorm keeps its running
    statistics, and its dropout drops nothing. A module without any parameter (ReLU,
    dropout, a norm without weights) is as the module around it. See
    :class:`LoopSettings` for ``keep_statistics``.
    """
    model.train()
    for module in model.modules():
        trained = [p.requires_grad for p in module.parameters()]
        frozen = trained and not any(trained)
        if frozen or (keep_statistics and isinstance(module, BATCH_NORMS)):
            module.eval()


def logits_of(output: Any) -> Tensor:
    """Main logits ``(n, K)``: the first of a tuple (auxiliary classifiers follow), else all."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


def _cross_entropy(output: Any, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    return cross_entropy(logits_of(output), labels, label_smoothing=label_smoothing)


def _check(
    model: nn.Module, fit: Examples, watched: Mapping[str, Examples], settings: LoopSettings
) -> None:
    if settings.patience and VALIDATION not in watched:
        raise ValueError(f"patience looks at {VALIDATION!r} examples: give them, or patience 0")
    if empty := [name for name, one in {"fit": fit, **watched}.items() if not len(one)]:
        raise ValueError(f"no examples in {', '.join(empty)}: a training needs at least one each")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("every parameter is frozen: nothing to train")


def _row(
    model: nn.Module, now: Standing, watched: Mapping[str, Examples], settings: LoopSettings
) -> EpochRow:
    """The epoch that has just been trained, and its validation."""
    start = time.perf_counter()
    score = _score(model, watched[VALIDATION], settings) if VALIDATION in watched else None
    loss, hits, images = now.totals
    return EpochRow(
        epoch=now.epoch,
        fit_loss=loss / images,
        fit_accuracy=hits / images,
        validation_loss=score.loss if score else None,
        validation_accuracy=score.accuracy if score else None,
        seconds=now.seconds,
        validation_seconds=time.perf_counter() - start,
        images_per_second=images / now.seconds,
        learning_rate=now.rate,
    )


def _score(model: nn.Module, examples: Examples, settings: LoopSettings) -> Score:
    """Each process computes its share of the batches; all get the same sums."""
    device, group = torch.device(settings.device), parallel.group()
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for batch in plain_batches(examples, settings.batch_size, settings.device, group):
            inputs, labels = batch.to(device)
            with autocast(settings):
                logits = logits_of(model(inputs))
            losses = cross_entropy(logits.double(), labels, reduction="sum")
            totals += torch.stack([losses, (logits.argmax(1) == labels).double().sum()])
    loss, hits = parallel.summed(totals).tolist()
    return Score(loss=loss / len(examples), accuracy=hits / len(examples))


def _finite(totals: Tensor, epoch: int) -> list[float]:
    """The sums as numbers; a training that diverged stops before it is kept."""
    values: list[float] = totals.tolist()
    if not all(map(math.isfinite, values)):
        raise EngineError(
            f"the loss of epoch {epoch} is not finite: try a smaller --learning-rate, or a longer "
            "warm-up"
        )
    return values


def _larger(before: int | None, now: int | None) -> int | None:
    return now if before is None or now is None else max(before, now)
