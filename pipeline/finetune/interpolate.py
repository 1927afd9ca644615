"""WiSE-FT: models on the straight line between a linear probe and a fine-tuned network.

Wortsman et al. 2022, whose networks have no BatchNorm. Where there is one it is mixed as
the scale and shift that it comes to, not as weights and statistics apart: variances of
radiographs can be a thousandth of those of ImageNet, and a tenth of the latter in the mean
switches channels off (on chest X-rays a network nine tenths of the way then fell from 94 to
61 % on validation). With alpha 0 the result is the first model, with 1 the second. The one
that is kept has the lowest validation loss; targets choose nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import Samples
from pipeline.evaluation.metrics import score
from pipeline.finetune import distributed as parallel
from pipeline.finetune.history import convergence
from pipeline.finetune.methods import ALPHAS, BASELINE, METHODS
from pipeline.finetune.networks import BATCH_NORMS
from pipeline.finetune.runs import ModelFolder, Proba, Record
from pipeline.finetune.training import Workbench, digest_of, predict_all, wait_for_all

RULE = "lowest validation log loss among the alphas"
_SHOWN = ("accuracy", "auroc", "log_loss")


def mix_method(bench: Workbench, name: str, end: str) -> Record:
    """Mix the models of ``lp`` and of a fine-tuned method, unless it is done already.

    Args:
        bench: Both models must be on it.
        name: Entry of ``METHODS`` that is kept.
        end: Method at the end of the line.
    """
    model = bench.model(name)
    identity = {
        **bench.identity(name),
        "starts from": [bench.model(one).weights_sha256() for one in (BASELINE, end)],
        "alphas": list(ALPHAS),
        "BatchNorm": "mixed as scale and shift",
    }
    samples = digest_of(bench.samples)
    record = model.record()
    wait_for_all(bench.device)  # or a late process would see what the first is about to write
    if record and record.identity == identity and record.samples == samples:
        return record
    if parallel.group().rank == 0:
        _mix(bench, name, end, {"identity": identity, "samples": samples})
    wait_for_all(bench.device)
    record = model.record()
    if record is None:
        raise AssertionError(f"{model.path} was just written")
    return record


def _mix(bench: Workbench, name: str, end: str, known: Mapping[str, Any]) -> None:
    first, second = bench.model(BASELINE), bench.model(end)
    ends: dict[float, Proba] = {0.0: first.probabilities(), 1.0: second.probabilities()}
    assembly = bench.assemble(name)
    states = folded(first.state(), assembly.whole), folded(second.state(), assembly.whole)
    elsewhere = np.flatnonzero(bench.samples.split != FIT)
    curve, losses = [], []
    for alpha in ALPHAS:
        if alpha in ends:
            proba = ends[alpha][elsewhere]
        else:
            assembly.load(between(*states, alpha))
            proba = predict_all(bench, assembly, bench.pixels, elsewhere)
        rows = scored(bench.samples.where(bench.samples.split != FIT), proba)
        curve.append({"alpha": alpha, "domains": rows})
        losses.append(next(r["log_loss"] for r in rows if r["role"] == VALIDATION))
    alpha = ALPHAS[int(np.argmin(losses))]
    assembly.load(between(*states, alpha))
    if alpha in ends:
        proba = ends[alpha]
    else:
        proba = predict_all(bench, assembly, bench.pixels, np.arange(len(bench.samples)))
    mixed = {"from": BASELINE, "to": end, "alpha": alpha, "rule": RULE, "curve": curve}
    record = _record(bench, name, second, {**known, "mixed": mixed})
    bench.model(name).save(record, assembly.state(), proba)


def _record(bench: Workbench, name: str, end: ModelFolder, known: Mapping[str, Any]) -> Record:
    """Mixing trains nothing: what it cost is what its end cost."""
    of_end = end.record()
    if of_end is None:
        raise AssertionError(f"{end.path} was trained before")
    kept = ("seconds", "trainable_parameters", "parameters", "gflop_per_image", "peak_memory_bytes")
    return Record(
        method=name,
        backbone=bench.backbone(name),
        seed=bench.seed,
        moved=METHODS[name].moved,
        **known,
        **{key: getattr(of_end, key) for key in kept},
        epochs=0,
        validation_seconds=0.0,
        images_per_second=None,
        gflop_per_trained_image=0.0,
        stored={"images": 0, "seconds": 0.0},
        best_epoch=None,
        kept_epoch=None,
        stopped_early=False,
        convergence=convergence(()),
    )


def folded(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The same function, with every BatchNorm's statistics taken into its scale and shift.

    Args:
        state: Of the network.
        network: Says which modules are BatchNorms, and their epsilon.
    """
    found = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS) and module.affine:
            weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
            mean, variance = found[f"{name}.running_mean"], found[f"{name}.running_var"]
            scale = weight / (variance + module.eps).sqrt()
            found[f"{name}.weight"], found[f"{name}.bias"] = scale, bias - mean * scale
            found[f"{name}.running_mean"] = torch.zeros_like(mean)
            found[f"{name}.running_var"] = torch.full_like(variance, 1 - module.eps)
    return found


def between(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """State at ``alpha`` of the way, 0 to 1; counters, which are integers, are the second's."""
    return {
        name: (1 - alpha) * tensor + alpha * second[name]
        if tensor.is_floating_point()
        else second[name]
        for name, tensor in first.items()
    }


def scored(samples: Samples, proba: Proba) -> list[dict[str, Any]]:
    """Accuracy, AUROC and log loss of each labelled domain in each role, without intervals."""
    found = []
    for domain, role in dict.fromkeys(zip(samples.domain, samples.split, strict=True)):
        rows = (samples.domain == domain) & (samples.split == role)
        if not samples.labelled[rows].all():
            continue
        values = {name: score(name, samples.label[rows], proba[rows]) for name in _SHOWN}
        found.append({"domain": str(domain), "role": str(role), **values})
    return found
