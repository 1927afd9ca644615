"""A trained model as one ONNX file: pixels in, probabilities out, its model card inside.

Normalisation, network, preprocessing of features, head and calibration become one graph, for any
number of images. It takes uint8 pixels of shape ``(n, size, size, 3)`` and gives float32
``(n, K)``. The card says how a file becomes such pixels. Only onnxruntime is needed to run it.
Before the file is written, its probabilities are compared with those of the model.
"""

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.domain import DomainData
from pipeline.data.images import Pixels, Transform
from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import SampleOptions, Samples, load_samples
from pipeline.errors import ExportError, MissingResultsError, UnknownNameError
from pipeline.evaluation.metrics import Proba, score
from pipeline.evaluation.predictions import (
    PROBABILITIES,
    TRAINED_PROBABILITIES,
    Predictions,
    read_predictions,
)
from pipeline.features.backbones import NO_DOWNLOAD, TIMM
from pipeline.features.load import choose_backbone, frozen_network, load_features, store_for
from pipeline.finetune.data import load_pixels
from pipeline.finetune.methods import METHODS
from pipeline.finetune.runs import FROM_PIXELS, Experiment
from pipeline.heads.layers import head_layers
from pipeline.heads.save import SavedHead, head_folder, load_head
from pipeline.predict import CARD, INPUT, OUTPUT, run_onnx
from pipeline.results import read_set, write_file
from pipeline.shift.calibrate import RULES, calibration, choose_threshold, measure_threshold
from pipeline.study import SOURCE, BackboneChoice, Study
from pipeline.words import percent, to_jsonable

#: Largest difference of a probability between the file and the model.
_TOLERANCE = 1e-4
#: Images for the comparison; images of the fit split from which the ranges of int8 are taken.
_COMPARED, _CALIBRATED = 32, 200
_LIMITS = (
    "Research software, not a medical device: no diagnosis may rest on this.",
    "Probabilities hold for images like those it was trained on; on others see `tested`.",
    "Calibration and thresholds are of the validation images on which they were chosen.",
)


def export_model(
    study: Study,
    name: str,
    file: Path,
    *,
    backbone: str | None = None,
    int8: bool = False,
    margin: float = 0.01,
    options: SampleOptions | None = None,
) -> dict[str, Any]:
    """Write the ONNX file of a head of stage 2, or of a network of stage 3.

    Args:
        study: Study on which it was trained; its images are needed for the comparison.
        name: A head, or a method of fine-tuning.
        file: The file to write.
        backbone: Needed if the study has several.
        int8: Whether weights and activations are rounded to 8 bits. Their ranges are taken from
            images of the fit split.
        margin: Accuracy and AUROC on validation that int8 may lose.
        options: Which samples are accepted.

    Returns:
        The model card, JSON types; also in the file's metadata.

    Raises:
        ExportError: The model cannot be exported; the file would differ from the model; int8
            loses too much; onnx is not installed.
        ModelError: The head cannot be read.
    """
    for module in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(module) is None:
            raise ExportError(f'{module} is missing: pip install "headrace[onnx]"')
    choice = choose_backbone(study, backbone)
    samples = load_features(study, choice, load_samples(study, options)[0]).samples
    model = load_trained(study, choice, name, samples)
    transform, card = model.transform, model.card
    data = _graph(nn.Sequential(model.network, model.head), transform)
    pixels, _ = _images(study, samples, transform, (VALIDATION, FIT), _COMPARED)
    difference = float(np.abs(run_onnx(data, pixels) - _proba(model, pixels)).max())
    if difference > _TOLERANCE:
        raise ExportError(
            f"the file would differ from the model by {difference:.1e} in a probability; at most "
            f"{_TOLERANCE:.0e} is allowed. Please report it with the backbone and the head"
        )
    card["compared"] = {"images": len(pixels), "largest_difference": difference}
    if int8:
        data, card["int8"] = _rounded(study, samples, transform, data, margin)
    import onnx

    proto = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(proto, {CARD: json.dumps(card, allow_nan=False)})
    write_file(file, proto.SerializeToString())
    return card


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A head on its frozen network, or a fine-tuned network, as layers.

    Attributes:
        network: From uint8 pixels ``(n, size, size, 3)`` to pooled features ``(n, d)``.
        head: From features to probabilities ``(n, K)``.
        transform: From files to pixels.
        saved: The saved head; None for a fine-tuned network.
        stored: The study's images with the probabilities by all models of its stage.
        proba: The probabilities by this model.
        card: The model card so far; JSON types.
    """

    network: nn.Module
    head: nn.Module
    transform: Transform
    saved: SavedHead | None
    stored: Predictions
    proba: Proba
    card: dict[str, Any]


def load_trained(study: Study, choice: BackboneChoice, name: str, samples: Samples) -> TrainedModel:
    """Load a head of stage 2 or a network of stage 3 as layers; ``name`` is a head or a method.

    Raises:
        ExportError: It has no layers, or was trained on other pixels or classes.
        ModelError: The head cannot be read.
        MissingResultsError: It has not been trained, or its probabilities are not stored.
        UnknownNameError: No head or network of this name was trained on the backbone.
    """
    saved, on = None, choice.name
    choice = choice.network if name in METHODS else choice
    folder = study.results / "finetune"
    run = Experiment(study=study, choice=choice, samples=samples, folder=folder)
    if name in METHODS:
        on, stage, column, seed = run.backbone(name), "finetune", "method", study.seed
        file = TRAINED_PROBABILITIES
        network, head, about = _fine_tuned(run, name)
    else:
        saved_in = head_folder(study.results, on, name)
        if not saved_in.exists() and (trained := _trained(study, choice)) and name not in trained:
            raise UnknownNameError("trained head or method", name, trained)
        saved = load_head(saved_in)
        stage, column, file, seed = "heads", "head", PROBABILITIES, saved.seeds[0]
        network, head, about = _frozen(study, choice, saved)
    stored = read_predictions(study.results / file).get(on)
    if stored is None or (name, seed) not in stored.proba:
        option = "" if saved else f" --method {name}"
        raise MissingResultsError(
            f"{file} has no probabilities of {name} on {on} with seed {seed}; first run: headrace "
            f"{stage} STUDY{option}"
        )
    proba = stored.proba[name, seed]
    options = samples.items[0].options  # source comes first
    card = {
        "model": name,
        "backbone": choice.name,
        "classes": list(samples.classes),
        "decision": "the class with the largest probability",
        "window": options.window,
        "frame": options.frame,
        "preprocessing": run.transform.to_json(),
        "weights_licence": _licence(choice),
        "limits": list(_LIMITS),
        "headrace": version("headrace"),
        **about,
        "tested": _tested(study, stage, on, column, name),
        **_on_validation(stored, proba),
    }
    return TrainedModel(
        network=network,
        head=head,
        transform=run.transform,
        saved=saved,
        stored=stored,
        proba=proba,
        card=card,
    )


def _trained(study: Study, choice: BackboneChoice) -> list[str]:
    """Names of the heads, then of the networks, that were trained on a backbone."""
    networks = (choice.network.name, FROM_PIXELS)
    names: list[str] = []
    for file, backbones in ((PROBABILITIES, (choice.name,)), (TRAINED_PROBABILITIES, networks)):
        with suppress(MissingResultsError):
            stored = read_predictions(study.results / file)
            names += [name for on in backbones if on in stored for name, _ in stored[on].proba]
    return list(dict.fromkeys(names))


def _frozen(
    study: Study, choice: BackboneChoice, saved: SavedHead
) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """Network and head of a saved head, and its part of the card."""
    recipe = store_for(study.store_root, choice).recipe
    if [network.recipe for network in saved.networks] != [recipe]:
        raise ExportError(
            f"the head {saved.head} takes other features than the study has now: run headrace "
            "heads again"
        )
    network: nn.Module = frozen_network(choice, recipe)
    about = {
        "recipe": recipe.to_json(),
        "fingerprint": recipe.fingerprint,
        "parameters": dict(saved.parameters),
        "trained": {"study": saved.study, "images": saved.images},
    }
    if choice.views > 1:
        network = nn.Sequential(network, _MeanOfViews())
    return network, _Mean(head_layers(model, saved.head) for model in saved.models), about


def _fine_tuned(run: Experiment, name: str) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The same of a fine-tuned network."""
    folder = run.model(name)
    record = folder.record()
    again = f"run headrace finetune STUDY --method {name}"
    if record is None:
        raise MissingResultsError(f"{folder.path} holds no network: {again}")
    made_for = record.identity["preprocessing"], record.identity["classes"]
    if made_for != (run.transform.to_json(), list(run.samples.classes)):
        raise ExportError(f"{folder.path} was trained on other pixels or classes: {again}")
    assembly = run.assemble(name)
    assembly.state()  # without what only helps to train
    assembly.load(folder.state())
    whole = assembly.whole.eval()
    about = {
        "recipe": dict(record.identity),
        "fingerprint": folder.weights_sha256(),
        "trained": {"study": run.study.name, "images": len(run.rows(FIT))},
    }
    network = nn.Sequential(whole.entry, whole.backbone)
    return network, nn.Sequential(whole.head, nn.Softmax(dim=1)), about


# The model card.


def _licence(choice: BackboneChoice) -> str:
    if choice.weights != "imagenet":
        return "that of the weights file which the study names"
    if choice.name.startswith(TIMM):
        return f"that of {choice.name.removeprefix(TIMM)} on the Hugging Face hub"
    licence = "Apache-2.0 (timm)" if choice.network.name == NO_DOWNLOAD else "BSD-3 (torchvision)"
    return f"{licence}; trained on ImageNet, whose images are for non-commercial research"


def _tested(
    study: Study, stage: str, backbone: str, column: str, name: str
) -> list[dict[str, Any]]:
    """Scores with intervals in each domain, from a stage's record."""
    return [
        {key: domain[key] for key in ("domain", "role", "images", "patients")}
        | {"scores": row["scores"]}
        for entry in read_set(study.results / f"{stage}.json", stage).record["backbones"]
        if entry["backbone"] == backbone
        for domain in entry["domains"]
        for row in domain["rows"]
        if row[column] == name and row.get("seed", study.seed) == study.seed
    ]


def _on_validation(stored: Predictions, proba: Proba) -> dict[str, Any]:
    """Calibration on validation; with two classes also thresholds."""
    rows = stored.split == VALIDATION
    if not rows.any():
        return {"calibration": None, "thresholds": []}
    data = DomainData(
        name=SOURCE,
        role=VALIDATION,
        group=stored.patient[rows],
        label=stored.label[rows],
        proba=proba[rows],
    )
    share = float(np.mean(data.get_label() == 1))
    two = len(stored.classes) == 2 and 0 < share < 1
    chosen = {rule: choose_threshold(rule, data) for rule in RULES} if two else {}
    thresholds = [
        {"rule": rule, "threshold": value, **measure_threshold(data, value, share)}
        for rule, value in chosen.items()
    ]
    return dict(to_jsonable({"calibration": calibration(data), "thresholds": thresholds}))


def _images(
    study: Study, samples: Samples, transform: Transform, splits: Sequence[str], most: int
) -> tuple[Pixels, NDArray[np.int64]]:
    """Pixels and labels of at most ``most`` images, evenly from the first split with images."""
    of_source = samples.domain == SOURCE
    rows = next(r for s in splits if len(r := np.flatnonzero(of_source & (samples.split == s))))
    spread = np.linspace(0, len(rows) - 1, most).astype(int)
    some = samples.where(np.isin(np.arange(len(samples)), rows[spread]))
    held = load_pixels(some, transform, folder=study.results)
    return held.batch(np.arange(len(some))).numpy(), held.label


class _MeanOfViews(nn.Module):
    def forward(self, features: Tensor) -> Tensor:  # (n, k, d) to (n, d)
        return features.mean(1)


class _Mean(nn.ModuleList):
    """Mean probability of the heads of all seeds, on the same features."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self]).mean(0)


def _proba(model: TrainedModel, pixels: Pixels) -> Proba:
    """The probabilities that the file must give; a saved head computes them, not its layers."""
    with torch.no_grad():
        features = model.network(torch.from_numpy(pixels))
        if model.saved:
            return model.saved.predict_proba(features.numpy())
        proba: Proba = model.head(features).double().numpy()
        return proba


# The file.


def _graph(module: nn.Module, transform: Transform) -> bytes:
    """The serialised graph of a module, checked by onnx."""
    import onnx

    example = torch.zeros((2, transform.size, transform.size, 3), dtype=torch.uint8)
    module.eval()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _rounded(
    study: Study, samples: Samples, transform: Transform, data: bytes, margin: float
) -> tuple[bytes, dict[str, Any]]:
    """The graph in int8, and its loss on validation."""
    if not (samples.split == VALIDATION).any():
        raise ExportError("int8 needs a validation split, on which its loss can be measured")
    fit, _ = _images(study, samples, transform, (FIT,), _CALIBRATED)
    small = _quantise(data, fit)
    pixels, label = _images(study, samples, transform, (VALIDATION,), len(samples))
    both = [run_onnx(graph, pixels) for graph in (data, small)]
    measured: dict[str, Any] = {"images": len(label), "margin": margin}
    for metric in ("accuracy", "auroc"):
        before, after = (score(metric, label, proba) for proba in both)
        if before is None or after is None:
            continue
        measured[metric] = {"float32": before, "int8": after}
        if before - after > margin:
            raise ExportError(
                f"int8 loses too much {metric} on validation: {percent(before)} before, "
                f"{percent(after)} after; the margin is {percent(margin)}. Leave --int8 out, or "
                "allow more with --margin"
            )
    return small, measured


def _quantise(data: bytes, pixels: Pixels) -> bytes:
    """Convolutions in 8 bits; the head, which would amplify rounding errors, stays in float.

    An activation that limits a convolution's range is quantised with it: before a ReLU6 the range
    is many times as wide as after, so 8 bits would be too coarse for the values that pass. Weights
    take 7 bits: on processors without VNNI, sums of products of 8 bits would overflow.
    """
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            row = next(self.rows, None)
            return None if row is None else {INPUT: row[None]}

    with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        given, prepared, small = (Path(folder, f"{n}.onnx") for n in ("given", "prepared", "int8"))
        given.write_bytes(data)
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(
            str(prepared),
            str(small),
            Reader(),
            op_types_to_quantize=["Conv", "Clip", "Relu"],
            activation_type=q.QuantType.QUInt8,
            reduce_range=True,
            per_channel=True,
        )
        onnx.checker.check_model(str(small))
        return small.read_bytes()
