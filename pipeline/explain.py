"""Where a model looks: maps of its score over the image, and the shares of border and corners.

Pooled features are the mean over positions of the last activations ``A``, so a score that is linear
in them is a sum over positions. The map gives what each position adds to the score of the predicted
class (minus the mean score of the other classes), relative to the mean features ``m`` of the fit
split:

    map(x, y) = g . (A(x, y) - m),    g = the gradient of that score by the pooled features.

For linear heads this is exact: the mean of the map is the score minus a constant (class activation
maps, Zhou et al. 2016). For other heads it is a linear approximation (Grad-CAM, Selvaraju et al.
2017). With several views, the map is that of the first view, the unchanged image.

Each position of the last activations depends on a large area around it. The share of the map's
positive part in the border says how much the model relies on the border. A linear head that was
fitted to shuffled labels shows which share the network alone would cause.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cache import disk
from pipeline.data.domain import DomainData
from pipeline.data.images import SHEET_SIDE, SheetEntry, draw_sheet
from pipeline.data.patients import FIT, draw_patients
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import ExportError, MissingResultsError, ModelError, StudyError
from pipeline.evaluation.bootstrap import percentile_interval
from pipeline.evaluation.compare_heads import eval_sets
from pipeline.evaluation.heads_record import compared_heads, heads_by_validation
from pipeline.evaluation.metrics import Proba
from pipeline.export import TrainedModel, load_trained
from pipeline.features.load import choose_backbone, load_features
from pipeline.finetune.data import load_pixels
from pipeline.heads import HEADS
from pipeline.heads.layers import head_layers
from pipeline.heads.save import head_folder, load_head
from pipeline.progress import Progress
from pipeline.randomness import stream
from pipeline.results import read_set, write_set
from pipeline.study import Study
from pipeline.words import as_file_name, printable

_LOG = logging.getLogger(__name__)
SCHEMA = 4
#: Images on a sheet.
_ON_SHEET = 12
#: Sides of the middle and of each corner as shares of the image's side, as in the audit.
_CENTRE, _CORNER = 0.7, 0.2
_BATCH = 16
#: A map with a smaller sum counts as empty.
_NOTHING = 1e-9

_Maps = NDArray[np.float32]


def explain(
    study: Study,
    name: str | None = None,
    *,
    backbone: str | None = None,
    images: int = 100,
    device: str = "cpu",
    options: SampleOptions | None = None,
) -> dict[str, Any]:
    """Measure where the maps of a model lie; draw its most confident errors and random images.

    Args:
        study: Study on which the model was trained.
        name: A head, or a method of fine-tuning; None: the head that is best on validation
            among those with layers.
        backbone: Needed if the study has several and a name is given.
        images: Images of each class of each domain, at most.
        device: ``cpu`` or ``cuda``.
        options: Which samples are accepted.

    Returns:
        The record, JSON types; also ``explain/<backbone>-<name>/explain.json`` in the results,
        with sheets of images and their maps beside it.

    Raises:
        ExportError: The model has no layers, or its features are not a mean over positions.
    """
    if images < 1:
        raise StudyError(f"images {images}: allowed is 1 or more")
    disk.prepare(study.results)
    instead_of = None
    if name is None:
        backbone, name, instead_of = _best_with_layers(study, backbone)
    choice = choose_backbone(study, backbone)
    samples = load_features(study, choice, load_samples(study, options)[0]).samples
    model = load_trained(study, choice, name, samples)
    for target in samples.unlabelled:
        _LOG.warning("no maps of %s: it has no labels", target)

    def pixels_of(subset: Samples) -> Tensor:
        held = load_pixels(subset, model.transform, folder=study.results)
        return held.batch(np.arange(len(subset)))

    fit = _sampled(samples, samples.split == FIT, images, study.seed)
    maps = ActivationMaps(model.network, pixels_of(fit), device)
    shuffled = _shuffled_head(maps.features, fit.label, study.seed)
    folder = study.results / "explain" / as_file_name(f"{choice.name}-{name}")
    domains: list[dict[str, Any]] = []
    sheets: dict[str, bytes] = {}
    for data in eval_sets(samples):
        of_domain = (samples.domain == data.name) & (samples.split == data.role)
        subset = _sampled(samples, of_domain, images, study.seed)
        with Progress(f"maps of {data.name} {data.role}", len(subset)) as progress:
            (proba, of_model), (_, of_shuffled) = maps.of(pixels_of(subset), model.head, shuffled)
            progress.advance(len(subset))
        rows = _shares(subset, proba.argmax(1), of_model, of_shuffled, study.seed)
        domains.append(
            {
                "domain": data.name,
                "role": data.role,
                "rows": rows,
                "audit": _audit_aucs(study, data),
            }
        )
        for kind, chosen in _rows_to_draw(samples, of_domain, model, study.seed).items():
            pixels = pixels_of(chosen)
            ((proba, of_model),) = maps.of(pixels, model.head)
            file = f"{as_file_name(data.name)}-{data.role}-{kind}.png"
            sheets[file] = draw_sheet(list(_sheet_entries(chosen, pixels, proba, of_model)))
    record = {
        "schema": SCHEMA,
        "study": study.name,
        "head": name,
        "backbone": choice.name,
        "instead_of": instead_of,
        "even": {"border": 1 - _CENTRE**2, "corners": 4 * _CORNER**2},
        "domains": domains,
        "folder": str(folder),
    }
    write_set(folder / "explain.json", record, sheets, owned=("*.png",))
    return record


def _best_with_layers(study: Study, backbone: str | None) -> tuple[str, str, dict[str, str] | None]:
    """Backbone and name of the head that is best on validation among those with layers.

    If another head is better: that ``head``, its ``backbone``, and the ``reason`` against it.
    """
    names = [choice.name for choice in study.backbones]
    compared = compared_heads(study.results).record["backbones"]
    if backbone is not None:
        names = [choose_backbone(study, backbone).name]
        compared = [entry for entry in compared if entry["backbone"] in names]
    better: list[dict[str, str]] = []
    for on, name in heads_by_validation(compared):
        reason = "it is on several backbones side by side"
        if on in names:
            try:
                head_layers(load_head(head_folder(study.results, on, name)).models[0], name)
            except (ExportError, ModelError) as cause:
                reason = str(cause)
            else:
                return on, name, better[0] if better else None
        better.append({"backbone": on, "head": name, "reason": reason})
    reasons = [head["reason"] for head in better] or [f"none was compared on {', '.join(names)}"]
    why = "; ".join(dict.fromkeys(reasons))
    raise ExportError(f"no head can be explained: {why}. Run headrace heads STUDY --only linear")


def _sampled(samples: Samples, among: NDArray[np.bool_], most: int, seed: int) -> Samples:
    """At most ``most`` rows of each class, at random."""
    keep = np.zeros(len(samples), bool)
    for label in range(len(samples.classes)):
        rows = np.flatnonzero(among & (samples.label == label))
        keep[stream(f"explain {label}", seed).permutation(rows)[:most]] = True
    return samples.where(keep)


def _rows_to_draw(
    samples: Samples, among: NDArray[np.bool_], model: TrainedModel, seed: int
) -> dict[str, Samples]:
    """Random images, and the errors with the highest stored probability."""
    proba_of = dict(zip(map(bytes, model.stored.key), model.proba, strict=True))
    rows = np.flatnonzero(among & (samples.label >= 0))
    stored = {row: proba_of[key] for row in rows if (key := samples.key[row]) in proba_of}
    errors = [row for row, proba in stored.items() if proba.argmax() != samples.label[row]]
    errors.sort(key=lambda row: -stored[row].max())
    chosen = {"errors": errors, "sample": [*stream("sample", seed).permutation(rows)]}
    number = np.arange(len(samples))
    return {
        kind: samples.where(np.isin(number, of_kind[:_ON_SHEET]))
        for kind, of_kind in chosen.items()
        if of_kind
    }


def _shuffled_head(features: Tensor, label: NDArray[np.int64], seed: int) -> nn.Module:
    """A linear head on features ``(n, d)``, fitted to shuffled labels."""
    shuffled = stream("shuffled labels", seed).permutation(label)
    head = HEADS["linear"].make(0).fit(features.cpu().numpy(), shuffled)
    return head_layers(head, "linear")


def _audit_aucs(study: Study, data: DomainData) -> dict[str, Any]:
    """AUC for the class from each region alone, from the audit's record of a domain."""
    try:
        results = read_set(study.results / "audit.json", "audit").record.get("results", ())
    except MissingResultsError:
        return {}
    return {
        region: result["values"]["auc"]
        for region in ("border", "corners")
        for result in results
        if (result["check"], result["where"]) == (region, data.name) and "auc" in result["values"]
    }


class ActivationMaps:
    """Maps of a network's last activations, weighted by the slopes of heads.

    Args:
        network: From uint8 pixels ``(n, size, size, 3)`` to features ``(n, d)`` that are a mean
            over positions of the output of one of its modules, after ReLU or not.
        pixels: Images whose mean features, ``(m, d)`` in ``features``, are the reference.
        device: Where the network runs.

    Raises:
        ExportError: The features are not such a mean.
    """

    def __init__(self, network: nn.Module, pixels: Tensor, device: str) -> None:
        self.device = device
        self.network = network.to(device).eval().requires_grad_(requires_grad=False)
        self._module, self._after = _last_activations(self.network, pixels[:2].to(device))
        parts = torch.split(pixels, _BATCH)
        self.features = torch.cat([self.network(part.to(device)) for part in parts])

    def of(self, pixels: Tensor, *heads: nn.Module) -> list[tuple[Proba, _Maps]]:
        """Probabilities ``(n, K)`` and maps ``(n, h, w)`` of pixels, for each head.

        The network, which takes nearly all of the time, runs once for each image.
        """
        centre = self.features.double().mean(0)[:, None, None]
        batches = []
        for part in torch.split(pixels, _BATCH):
            features, outputs = _outputs(self.network, part.to(self.device), [self._module])
            away = _by_view(self._after(outputs[self._module]), features)[:, 0].double() - centre
            batches.append([_proba_and_maps(head, features.double(), away) for head in heads])
        return [
            (np.concatenate([p for p, _ in of_head]), np.concatenate([m for _, m in of_head]))
            for of_head in zip(*batches, strict=True)
        ]


def _outputs(
    network: nn.Module, pixels: Tensor, modules: Iterable[nn.Module]
) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """Features of pixels, and the last image-shaped output of each module, in order of use."""
    outputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            outputs.pop(module, None)  # a module that is used twice counts at its last use
            outputs[module] = output.clone()  # later modules may change it in place

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        return network(pixels), outputs
    finally:
        for handle in handles:
            handle.remove()


def _by_view(activations: Tensor, features: Tensor) -> Tensor:
    """Activations ``(n * k, d, h, w)`` of ``k`` views an image as ``(n, k, d, h, w)``."""
    return activations.reshape(len(features), -1, *activations.shape[1:])


def _last_activations(
    network: nn.Module, pixels: Tensor
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The last module whose output has the features as its mean, and a function to apply first."""
    features, outputs = _outputs(network, pixels, network.modules())
    for module, output in reversed(outputs.items()):
        for after in (torch.clone, torch.relu):
            if output.shape[1] == features.shape[1] and torch.allclose(
                _by_view(after(output), features).mean((1, 3, 4)), features, rtol=1e-3, atol=1e-4
            ):
                return module, after
    raise ExportError(
        "the features of this backbone are not a mean over positions, so its score has no map: "
        "maps need a network that ends in global average pooling"
    )


def _proba_and_maps(head: nn.Module, features: Tensor, away: Tensor) -> tuple[Proba, _Maps]:
    """Probabilities of pooled features ``(n, d)``; maps of centred activations ``(n, d, h, w)``."""
    pooled = features.requires_grad_()
    proba = head.to(features.device).double().eval()(pooled)
    logits = proba.clamp_min(1e-300).log()
    chosen = nn.functional.one_hot(proba.argmax(1), logits.shape[1]).to(logits.dtype)
    others = (1 - chosen) / (logits.shape[1] - 1)
    (slope,) = torch.autograd.grad((logits * (chosen - others)).sum(), pooled)
    maps = torch.einsum("nd,ndhw->nhw", slope, away).float()
    return proba.detach().cpu().numpy(), maps.cpu().numpy()


def _shares(
    samples: Samples, predicted: NDArray[np.intp], maps: _Maps, shuffled: _Maps, seed: int
) -> list[dict[str, Any]]:
    """Shares of the maps of a model and of a shuffled head, by predicted class."""
    shares = mass_shares(maps)
    shares |= {f"shuffled_{region}": v for region, v in mass_shares(shuffled).items()}
    rows = []
    for number, name in enumerate(samples.classes):
        of_class = np.flatnonzero(predicted == number)
        group = samples.group[of_class]
        intervals = {
            region: _interval(values[of_class], group, stream("shares of maps", seed))
            for region, values in shares.items()
        }
        rows.append({"class": printable(name), "images": len(of_class), **intervals})
    return rows


def mass_shares(maps: _Maps) -> dict[str, NDArray[np.float64]]:
    """Share of the positive part of each of ``n`` maps in a region; NaN for an empty map.

    ``border`` is outside the middle 70 % of each side, ``corners`` are 20 % of each side. A
    position of the map counts with the part of it that lies in the region.
    """
    positive = np.maximum(maps, 0).astype(np.float64)
    mass = positive.sum((1, 2))
    mass[mass < _NOTHING] = np.nan
    middle = [_overlap(n, (1 - _CENTRE) / 2, (1 + _CENTRE) / 2) for n in maps.shape[1:]]
    ends = [_overlap(n, 0, _CORNER) + _overlap(n, 1 - _CORNER, 1) for n in maps.shape[1:]]
    return {
        "border": 1 - np.einsum("nhw,h,w->n", positive, *middle) / mass,
        "corners": np.einsum("nhw,h,w->n", positive, *ends) / mass,
    }


def _overlap(positions: int, low: float, high: float) -> NDArray[np.float64]:
    """Divide 0 to 1 into equal parts; the share of each that lies between two numbers."""
    edges = np.linspace(0, 1, positions + 1)
    inside: NDArray[np.float64] = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(inside.clip(0) * positions)


def _interval(
    shares: NDArray[np.float64], group: NDArray[Any], rng: np.random.Generator
) -> dict[str, float | None] | None:
    """Mean over images, with percentiles of draws of patients; None if all maps are empty."""
    defined = np.isfinite(shares)
    if not defined.any():
        return None
    shares, draws = shares[defined], draw_patients(group[defined], rng)
    values = draws.mean(shares)
    low, high = percentile_interval(values) if len(draws.patients) > 1 else (None, None)
    return {"estimate": float(shares.mean()), "low": low, "high": high}


def _sheet_entries(
    samples: Samples, pixels: Tensor, proba: Proba, maps: _Maps
) -> Iterator[SheetEntry]:
    """Each image and its map in red, with the prediction, most confident first."""
    for row in np.argsort(-proba.max(1), kind="stable"):
        shown = Image.fromarray(pixels[row].numpy()).resize((SHEET_SIDE, SHEET_SIDE))
        heat = np.maximum(maps[row], 0) / max(float(maps[row].max()), _NOTHING)
        wide = Image.fromarray((255 * heat).astype(np.uint8)).resize(
            (SHEET_SIDE, SHEET_SIDE), Image.Resampling.BILINEAR
        )
        strength = np.asarray(wide)[:, :, None] / 255
        grey = np.asarray(shown.convert("L"))[:, :, None]
        red = (1 - 0.7 * strength) * grey + 0.7 * strength * np.array([230, 40, 20])
        best = int(proba[row].argmax())
        called = f"{printable(samples.classes[best])} {proba[row, best]:.2f}"
        truth = f"is {printable(samples.classes[samples.label[row]])}"
        yield (np.asarray(shown), red.round().astype(np.uint8)), (called, truth)
