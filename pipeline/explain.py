"""What a model looks at: maps of its score over the picture, and where their mass lies.

Pooled features are the mean over places of the last activations ``A``, so a score that is
linear in them is a sum over places. The map of a place is what it adds to the score of the
predicted class (less the mean of the other classes'), compared with the mean features ``m`` of
the fit split:

    map(x, y) = g . (A(x, y) - m),    g = the gradient of that score by the pooled features.

For linear heads this is exact: the mean of the map is the score less a constant (class
activation maps, Zhou et al. 2016). For others it is the same of their tangent (Grad-CAM,
Selvaraju et al. 2017).

A map is of places in the last activations, which have seen much around them. The share of its
positive part that lies in the border says how far a model leans on what lies there; a head of
the same kind on shuffled labels says what the network alone would do to that share.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from torch import Tensor, nn

from pipeline.audit.contact_sheet import SIDE, SheetEntry, draw_sheet
from pipeline.data.images import Pixels
from pipeline.data.patients import FIT, draw_patients
from pipeline.data.samples import Samples, load_samples
from pipeline.errors import ExportError, StudyError
from pipeline.evaluation.bootstrap import bootstrap_values, percentile_interval
from pipeline.evaluation.compare_heads import eval_sets
from pipeline.export import TrainedModel, load_trained
from pipeline.features.load import choose_backbone, load_features
from pipeline.finetune.data import load_pixels
from pipeline.heads.layers import head_layers
from pipeline.progress import Progress
from pipeline.randomness import stream
from pipeline.results import write_set
from pipeline.study import Study
from pipeline.words import as_file_name, printable

SCHEMA = 1
#: Images of a class and domain whose maps are measured; pictures on a sheet.
IMAGES, PICTURES = 100, 12
#: Side of the middle, and of each corner, as shares of the picture's: as the audit hides them.
_CENTRE, _CORNER = 0.7, 0.2
_BATCH = 16
#: Outputs at the end of a network among which its last activations are looked for.
_LAST = 8
#: Below this a map has no mass whose place could be said.
_NOTHING = 1e-9
REGIONS = ("border", "corners")

Maps = NDArray[np.float32]


def explain(
    study: Study,
    name: str,
    *,
    backbone: str | None = None,
    images: int = IMAGES,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure where the maps of a model lie, and draw those of its surest errors and of others.

    Args:
        study: Where it was trained.
        name: A head, or a method of fine-tuning.
        backbone: Needed where the study has several.
        images: Of each class of each domain, at most.
        device: ``cpu`` or ``cuda``.

    Returns:
        The record, JSON types; also ``explain/<backbone>-<name>/explain.json`` in the results,
        with sheets of pictures and their maps beside it.

    Raises:
        ExportError: The model has no layers, or its features are no mean over places.
        PipelineError: See the modules this calls.
    """
    if images < 1:
        raise StudyError(f"images {images}: allowed is 1 or more")
    choice = choose_backbone(study, backbone)
    if choice.views > 1:
        raise ExportError(
            f"{choice.name} is the mean of {choice.views} views, and a map is of one: draw maps in "
            "a study without views"
        )
    features = load_features(study, choice, load_samples(study)[0])
    samples = features.samples
    model = load_trained(study, choice, name, samples)
    maps = _Maps(model, device)
    fit = samples.where(_some(samples, samples.split == FIT, images, study.seed))
    maps.centre = maps.features(load_pixels(fit, model.policy, folder=study.results).values)
    shuffled = _shuffled(model, name, features.X, samples, study.seed)
    folder = study.results / "explain" / as_file_name(f"{choice.name}-{name}")
    domains, sheets = [], {}
    for data in eval_sets(samples):
        if data.role == FIT or data.row is None:
            continue
        chosen = np.zeros(len(samples), bool)
        chosen[data.row] = True
        some = samples.where(_some(samples, chosen, images, study.seed))
        found = _look(maps, shuffled, some, study, f"{data.name} {data.role}")
        domains.append({"domain": data.name, "role": data.role, "rows": found["rows"]})
        for kind, sheet in found["sheets"].items():
            sheets[f"{as_file_name(data.name)}-{data.role}-{kind}.png"] = sheet
    record = {
        "schema": SCHEMA,
        "study": study.name,
        "head": name,
        "backbone": choice.name,
        "classes": [printable(label) for label in samples.classes],
        "even": {"border": 1 - _CENTRE**2, "corners": 4 * _CORNER**2},
        "domains": domains,
        "folder": str(folder),
    }
    write_set(folder / "explain.json", record, sheets, owned=("*.png",))
    return record


def _some(samples: Samples, among: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.bool_]:
    """At most so many of each class among some rows, drawn by the seed."""
    keep = np.zeros(len(samples), bool)
    for label in np.unique(samples.label[among]):
        rows = np.flatnonzero(among & (samples.label == label))
        keep[stream(f"explain {label}", seed).permutation(rows)[:most]] = True
    return keep


def _shuffled(
    model: TrainedModel, name: str, X: NDArray[np.float32], samples: Samples, seed: int
) -> nn.ModuleList | None:
    """A head of the same kind, fitted to shuffled labels; None of a fine-tuned network."""
    if model.saved is None:
        return None
    fit = samples.split == FIT
    label = stream("shuffled labels", seed).permutation(samples.label[fit])
    return nn.ModuleList([head_layers(clone(model.saved.models[0]).fit(X[fit], label), name)])


class _Maps:
    """Maps of a model, one batch after another.

    Args:
        model: Whose.
        device: Where it runs.

    Attributes:
        centre: Mean features, shape ``(d,)``: what a place is compared with.
    """

    centre: Tensor

    def __init__(self, model: TrainedModel, device: str) -> None:
        self.model, self.device = model, device
        self.network = model.network.to(device).eval().requires_grad_(requires_grad=False)

    def features(self, pixels: Tensor) -> Tensor:
        """Mean pooled features of images, shape ``(d,)``."""
        parts = [self.network(part.to(self.device)) for part in torch.split(pixels, _BATCH)]
        return torch.cat(parts).mean(0)

    def of(self, pixels: Tensor, *models: nn.ModuleList) -> list[tuple[NDArray[np.float64], Maps]]:
        """Of each model's heads, probabilities ``(n, K)`` of pixels ``(n, s, s, 3)`` and maps.

        The network, which takes nearly all of the time, looks at each picture once. Maps have
        the shape ``(n, h, w)``.
        """
        for heads in models:
            heads.to(self.device).double().eval()
        parts: list[list[tuple[NDArray[np.float64], Maps]]] = [[] for _ in models]
        for part in torch.split(pixels, _BATCH):
            activations, features = _activations(self.network, part.to(self.device))
            away = activations.double() - self.centre.double()[:, None, None]
            for heads, of_model in zip(models, parts, strict=True):
                of_model.append(_proba_and_maps(heads, features.double(), away))
        return [
            (np.concatenate([p for p, _ in of_model]), np.concatenate([m for _, m in of_model]))
            for of_model in parts
        ]


def _proba_and_maps(
    heads: nn.ModuleList, features: Tensor, away: Tensor
) -> tuple[NDArray[np.float64], Maps]:
    """Of pooled features ``(n, d)``, and of activations less the centre ``(n, d, h, w)``."""
    pooled = features.requires_grad_()
    proba = torch.stack([head(pooled) for head in heads]).mean(0)
    logits = proba.clamp_min(1e-300).log()
    chosen = nn.functional.one_hot(proba.argmax(1), logits.shape[1]).to(logits.dtype)
    others = (1 - chosen) / (logits.shape[1] - 1)
    (slope,) = torch.autograd.grad((logits * (chosen - others)).sum(), pooled)
    maps = torch.einsum("nd,ndhw->nhw", slope, away).float()
    return proba.detach().cpu().numpy(), maps.cpu().numpy()


def _activations(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Last activations ``(n, d, h, w)`` of a network, and the features that are their mean.

    They are found by that: the last tensor of four axes in it whose mean, after ReLU or not, is
    the features.

    Raises:
        ExportError: There are none.
    """
    seen: deque[Tensor] = deque(maxlen=_LAST)

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
            seen.append(output)

    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        features = network(pixels)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in reversed(seen):
        for activations in (tensor, tensor.relu()):
            if activations.shape[1] == features.shape[1] and torch.allclose(
                activations.mean((2, 3)), features, rtol=1e-3, atol=1e-4
            ):
                return activations, features
    raise ExportError(
        "the features of this backbone are no mean over places, so a score cannot be divided among "
        "them: maps are for networks that end in global average pooling"
    )


def _look(
    maps: _Maps, shuffled: nn.ModuleList | None, some: Samples, study: Study, purpose: str
) -> dict[str, Any]:
    """Shares by predicted class, and sheets, of the images of one domain."""
    pixels = load_pixels(some, maps.model.policy, folder=study.results)
    images = pixels.batch(np.arange(len(some)))
    with Progress(f"maps of {purpose}", len(some)) as progress:
        models = [maps.model.heads, *([] if shuffled is None else [shuffled])]
        (proba, found), *controls = maps.of(images, *models)
        progress.advance(len(some))
    shares = mass_shares(found)
    control = mass_shares(controls[0][1]) if controls else None
    predicted = proba.argmax(1)
    rows = []
    for number, name in enumerate(some.classes):
        of_class = np.flatnonzero(predicted == number)
        rows.append(
            {
                "class": printable(name),
                "images": len(of_class),
                "patients": len(np.unique(some.group[of_class])),
                **{r: _interval(shares[r], some, of_class, study.seed, purpose) for r in REGIONS},
                **{
                    f"shuffled_{r}": _interval(control[r], some, of_class, study.seed, purpose)
                    for r in REGIONS
                    if control
                },
            }
        )
    sure = proba[np.arange(len(some)), predicted]
    wrong = np.flatnonzero(predicted != some.label)
    drawn = stream(f"sample {purpose}", study.seed).permutation(len(some))[:PICTURES]
    chosen = {"errors": wrong[np.argsort(-sure[wrong], kind="stable")][:PICTURES], "sample": drawn}
    sheets = {
        kind: draw_sheet(list(_pairs(images.numpy(), found, some, proba, of_kind)))
        for kind, of_kind in chosen.items()
        if len(of_kind)
    }
    return {"rows": rows, "sheets": sheets}


def mass_shares(maps: Maps) -> dict[str, NDArray[np.float64]]:
    """Share of each map's positive part that lies in a region, 0 to 1; NaN of an empty map.

    Args:
        maps: Shape ``(n, h, w)``.

    Returns:
        ``border``, outside of the middle 70 % of each side, and ``corners``, 20 % of each side;
        a place of the map counts by the part of it that lies there.
    """
    positive = np.maximum(maps, 0).astype(np.float64)
    mass = positive.sum((1, 2))
    mass[mass < _NOTHING] = np.nan
    inside = [_overlap(n, (1 - _CENTRE) / 2, (1 + _CENTRE) / 2) for n in maps.shape[1:]]
    ends = [_overlap(n, 0, _CORNER) + _overlap(n, 1 - _CORNER, 1) for n in maps.shape[1:]]
    return {
        "border": 1 - np.einsum("nhw,h,w->n", positive, *inside) / mass,
        "corners": np.einsum("nhw,h,w->n", positive, *ends) / mass,
    }


def _overlap(places: int, low: float, high: float) -> NDArray[np.float64]:
    """Part of each of some equal places on a line from 0 to 1 that lies between two numbers."""
    edges = np.linspace(0, 1, places + 1)
    inside: NDArray[np.float64] = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(inside.clip(0) * places)


def _interval(
    values: NDArray[np.float64],
    samples: Samples,
    rows: NDArray[np.intp],
    seed: int,
    purpose: str,
) -> dict[str, float | None] | None:
    """Mean over images, with percentiles of draws of patients; None where no map has mass."""
    rows = rows[np.isfinite(values[rows])]
    if not len(rows):
        return None
    shares, draws = values[rows], draw_patients(samples.group[rows], stream(purpose, seed))
    drawn = bootstrap_values([lambda weights: weights @ shares / weights.sum(-1)], draws)
    low, high = percentile_interval(drawn[0])
    several = len(draws.patients) > 1
    bounds = {"low": low, "high": high} if several else {"low": None, "high": None}
    return {"estimate": float(shares.mean()), **bounds}


def _pairs(
    images: Pixels,
    maps: Maps,
    samples: Samples,
    proba: NDArray[np.float64],
    rows: Sequence[int] | NDArray[np.intp],
) -> Iterator[SheetEntry]:
    """Each picture beside the same with its map in red; below it what was said of it."""
    for row in rows:
        picture = Image.fromarray(images[row]).resize((SIDE, SIDE))
        heat = np.maximum(maps[row], 0) / max(float(maps[row].max()), _NOTHING)
        wide = Image.fromarray((255 * heat).astype(np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR
        )
        strength = np.asarray(wide)[:, :, None] / 255
        grey = np.asarray(picture.convert("L"))[:, :, None]
        red = (1 - 0.7 * strength) * grey + 0.7 * strength * np.array([230, 40, 20])
        best = int(proba[row].argmax())
        said = f"{printable(samples.classes[best])} {proba[row, best]:.2f}"
        truth = f"is {printable(samples.classes[samples.label[row]])}"
        yield SheetEntry(
            pixels=(np.asarray(picture), red.round().astype(np.uint8)), lines=(said, truth)
        )
