"""A trained model as one ONNX file: pixels in, probabilities out, its model card inside.

Normalisation, network, preprocessing of features, head and calibration become one graph, for
any number of images. It takes uint8 pixels of shape ``(n, size, size, 3)`` and gives float32
``(n, K)``; how a file becomes such pixels is in the card. onnxruntime alone runs it. Before the
file is written its probabilities are compared with those of the model.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from torch import Tensor, nn

from cache import disk
from pipeline.data.images import PixelPolicy
from pipeline.data.patients import FIT, VALIDATION
from pipeline.data.samples import Samples, load_samples
from pipeline.errors import ExportError, MissingResultsError, UnknownNameError
from pipeline.evaluation.metrics import score
from pipeline.features.backbones import policy_of, weights_file
from pipeline.features.load import frozen_network, load_features, store_for
from pipeline.finetune.data import load_pixels
from pipeline.finetune.methods import METHODS
from pipeline.finetune.networks import assemble
from pipeline.finetune.runs import OWN, ModelFolder
from pipeline.heads.base import Calibration
from pipeline.heads.closed_form import DiscriminantHead, PrototypeHead, RidgeHead
from pipeline.heads.mlp import MLPHead
from pipeline.heads.preprocessing import BlockScaler
from pipeline.heads.save import head_folder, load_head
from pipeline.heads.svm import SVMHead
from pipeline.predict import CARD, INPUT, OUTPUT, run_onnx
from pipeline.study import SOURCE, BackboneChoice, Study
from pipeline.words import percent

Proba = NDArray[np.float64]
Pixels = NDArray[np.uint8]
#: Largest difference of a probability between the file and the model.
TOLERANCE = 1e-4
#: What an int8 file may lose of accuracy and of AUROC on validation.
MARGIN = 0.01
#: Images that are compared; images of the fit split that the ranges of int8 are taken from.
_COMPARED, _CALIBRATED = 32, 200
_LIMITS = (
    "Research software, not a medical device: no diagnosis may rest on this.",
    "Probabilities hold for images like those it was trained on; on others see `tested`.",
)
_LICENCES = {
    "imagenet": "pretrained weights: their publisher's licence; ImageNet is for research",
    "file": "as of the weights file that the study names",
}


def export_model(
    study: Study,
    name: str,
    file: Path,
    *,
    backbone: str | None = None,
    int8: bool = False,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Write the ONNX file of a head of stage 2, or of a network of stage 3.

    Args:
        study: Where it was trained; its images must be there, to compare the file with.
        name: A head, or a method of fine-tuning.
        file: To write.
        backbone: Needed where the study has several.
        int8: Whether weights and activations are rounded to 8 bits. Their ranges are those on
            images of the fit split.
        margin: What int8 may lose of accuracy and of AUROC on validation.

    Returns:
        The model card, JSON types; also in the file's metadata.

    Raises:
        ExportError: What cannot be exported, and why; a file that differs from the model; int8
            that loses too much; onnx is not installed.
        ModelError: The head cannot be read.
    """
    _require_onnx()
    choice = _choice(study, backbone)
    samples = load_features(study, choice, load_samples(study)[0]).samples
    make = _fine_tuned if name in METHODS else _frozen
    module, reference, policy, card = make(study, choice, name, samples)
    data = _graph(module, policy)
    pixels, _ = _images(study, samples, policy, (VALIDATION, FIT), _COMPARED)
    difference = float(np.abs(run_onnx(data, pixels) - reference(pixels)).max())
    if difference > TOLERANCE:
        raise ExportError(
            f"the file would differ from the model by {difference:.1e} in a probability; at most "
            f"{TOLERANCE:.0e} is allowed. Please report it with the backbone and the head"
        )
    card["compared"] = {"images": len(pixels), "largest_difference": difference}
    if int8:
        data, card["int8"] = _rounded(study, samples, policy, data, margin)
    card |= {"limits": list(_LIMITS), "headrace": version("headrace")}
    disk.make_dir(file.parent)
    disk.publish(file, _with_card(data, card))
    return card


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as cause:
        raise ExportError(f'{cause.name} is missing: pip install "headrace[onnx]"') from cause


def _choice(study: Study, backbone: str | None) -> BackboneChoice:
    names = [choice.name for choice in study.backbones]
    if backbone is None and len(names) > 1:
        raise ExportError(f"the study has several backbones; name one: {', '.join(names)}")
    if backbone is not None and "+" in backbone:
        raise ExportError(f"{backbone} joins several networks: one file holds one of them")
    if backbone is not None and backbone not in names:
        raise UnknownNameError("backbone", backbone, names)
    return study.backbones[0 if backbone is None else names.index(backbone)]


Made = tuple[nn.Module, Callable[[Pixels], Proba], PixelPolicy, dict[str, Any]]


def _frozen(study: Study, choice: BackboneChoice, name: str, samples: Samples) -> Made:
    """The graph of a saved head on its frozen network, and what it must agree with."""
    head = load_head(head_folder(study.results, choice.name, name))
    recipe = store_for(study, choice).recipe
    if [network.recipe for network in head.networks] != [recipe]:
        raise ExportError(
            f"the head {name} takes other features than the study has now: run headrace heads again"
        )
    network = frozen_network(choice, recipe)
    module = _Averaged(network, [_layers(model, name) for model in head.models])

    def reference(pixels: Pixels) -> Proba:
        with torch.no_grad():
            features = network(torch.from_numpy(pixels)).numpy()
        return head.predict_proba(features)

    card = {
        **_card(choice, name, samples),
        "recipe": recipe.to_json(),
        "fingerprint": recipe.fingerprint,
        "parameters": dict(head.parameters),
        "trained": {"study": head.study, "images": head.images},
        "tested": _tested(study, "heads.json", choice.name, "head", name),
    }
    return module, reference, policy_of(choice), card


def _fine_tuned(study: Study, choice: BackboneChoice, name: str, samples: Samples) -> Made:
    """The graph of a network that stage 3 keeps."""
    on = choice.name if METHODS[name].pretrained else OWN
    folder = study.results / "finetune" / f"{name}-{on}-{study.seed}"
    record = ModelFolder(folder).record()
    if record is None:
        raise MissingResultsError(
            f"{folder} holds no network; first run: headrace finetune STUDY --method {name}"
        )
    policy, classes = policy_of(choice), samples.classes
    if record.identity["preprocessing"] != policy.to_json() or tuple(
        record.identity["classes"]
    ) != tuple(classes):
        raise ExportError(
            f"{folder} was trained on other pixels or classes: run headrace finetune STUDY "
            f"--method {name} again"
        )
    file = weights_file(choice.name, choice.weights)
    assembly = assemble(
        name, choice.name, file, policy=policy, classes=len(classes), seed=study.seed
    )
    assembly.state()  # without what only helps to train
    assembly.load(ModelFolder(folder).state())
    module = nn.Sequential(assembly.whole, nn.Softmax(dim=1)).eval()

    def reference(pixels: Pixels) -> Proba:
        with torch.no_grad():
            proba: Proba = module(torch.from_numpy(pixels)).double().numpy()
        return proba

    card = {
        **_card(choice, name, samples),
        "identity": dict(record.identity),
        "trained": {"study": study.name, "images": int((samples.split == FIT).sum())},
        "tested": _tested(study, "finetune.json", choice.name, "method", name),
    }
    return module, reference, policy, card


def _card(choice: BackboneChoice, name: str, samples: Samples) -> dict[str, Any]:
    """What is said of every model."""
    return {
        "model": name,
        "backbone": choice.name,
        "classes": list(samples.classes),
        "decision": "the class with the largest probability",
        "window": samples.items[0].reading.window,  # the source comes first
        "frame": samples.items[0].reading.frame,
        "preprocessing": policy_of(choice).to_json(),
        "weights_licence": _LICENCES["imagenet" if choice.weights == "imagenet" else "file"],
    }


def _tested(
    study: Study, record: str, backbone: str, column: str, name: str
) -> list[dict[str, Any]]:
    """Scores with intervals in each domain, from the record of a stage."""
    try:
        entries = json.loads(disk.read_all(study.results / record))["backbones"]
        return [
            {key: domain[key] for key in ("domain", "role", "images", "patients")}
            | {"scores": row["scores"]}
            for entry in entries
            if entry["backbone"] == backbone
            for domain in entry["domains"]
            for row in domain["rows"]
            if row[column] == name
        ]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise MissingResultsError(
            f"{study.results / record} cannot be read ({cause}): the card would not say how good "
            "the model is. Run that stage again"
        ) from cause


def _images(
    study: Study, samples: Samples, policy: PixelPolicy, splits: Sequence[str], most: int
) -> tuple[Pixels, NDArray[np.int64]]:
    """Pixels and labels of at most so many images of the first split that has any, spread out."""
    of_source = samples.domain == SOURCE
    rows = next(r for s in splits if len(r := np.flatnonzero(of_source & (samples.split == s))))
    some = samples.where(rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))])
    held = load_pixels(some, policy, folder=study.results)
    return held.batch(np.arange(len(some))).numpy(), held.label


# Heads as layers.


class _Averaged(nn.Module):
    """The mean probability of heads, one for each seed, on the same features."""

    def __init__(self, network: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(heads)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.network(pixels)
        return torch.stack([head(features) for head in self.heads]).mean(0)


class _Standardised(nn.Module):
    """Features less a mean, over a scale."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: NDArray[Any] | float, scale: NDArray[Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


class _UnitLength(nn.Module):
    """Each row over its Euclidean norm."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=1, eps=1e-12)


class _Votes(nn.Module):
    """Scores of classes from those of pairs, as scikit-learn adds them up: votes, then margins."""

    first: Tensor
    second: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, offset=1)
        self.register_buffer("first", torch.eye(classes)[first])
        self.register_buffer("second", torch.eye(classes)[second])

    def forward(self, pairs: Tensor) -> Tensor:
        wins = (pairs >= 0).to(pairs.dtype)
        margins = pairs @ (self.first - self.second)
        votes = wins @ self.first + (1 - wins) @ self.second
        return votes + margins / (3 * (margins.abs() + 1))


def _linear(weight: NDArray[np.floating], bias: NDArray[np.floating]) -> nn.Linear:
    """``x @ weight + bias`` of shapes ``(d, k)`` and ``(k,)``."""
    layer = nn.Linear(*weight.shape)
    layer.weight.data = torch.as_tensor(np.ascontiguousarray(weight.T), dtype=torch.float32)
    layer.bias.data = torch.as_tensor(bias, dtype=torch.float32)
    return layer


def _with_softmax(
    weight: NDArray[np.floating], bias: NDArray[np.floating], calibration: Calibration | None = None
) -> nn.Sequential:
    """Scores to probabilities, with a calibration taken into the weights."""
    if calibration:
        weight, bias = calibration.scale * weight, calibration.scale * bias + calibration.offset
    return nn.Sequential(_linear(weight, bias), nn.Softmax(dim=1))


def _logistic(head: Any) -> nn.Module:
    weight, bias = head.coef_.T, head.intercept_
    if weight.shape[1] == 1:  # two classes: the score of the second
        weight, bias = np.hstack([0 * weight, weight]), np.r_[0, bias]
    return _with_softmax(weight, bias)


def _prototype(head: Any) -> nn.Module:
    unit = head.means_ / np.maximum(np.linalg.norm(head.means_, axis=1, keepdims=True), 1e-12)
    return nn.Sequential(
        _UnitLength(), _with_softmax(unit.T, np.zeros(len(unit)), head.calibration_)
    )


def _perceptron(head: Any) -> nn.Module:
    layers = [layer for pair in head.layers_ for layer in (nn.ReLU(), _linear(*pair))][1:]
    return nn.Sequential(*layers, nn.Softmax(dim=1))


def _svm(head: Any) -> nn.Module:
    if head.best_params_["kernel"] != "linear":
        raise _NoGraphError("its kernel is RBF: it compares with features of training images")
    # Each pair of classes has a score that is linear in the features: those of zero and of the
    # axes say all of it.
    machine = copy(head.machine_).set_params(decision_function_shape="ovo")
    kernel = np.zeros((1 + head.n_features_in_, machine.shape_fit_[0]))
    kernel[1:, machine.support_] = head.support_vectors_.T
    scores = machine.decision_function(kernel).reshape(len(kernel), -1)
    weight, bias = scores[1:] - scores[0], scores[0]
    if len(head.classes_) == 2:
        zero = np.zeros_like(weight)
        return _with_softmax(np.hstack([zero, weight]), np.r_[0, bias], head.calibration_)
    calibration = head.calibration_
    last = _linear(calibration.scale * np.eye(len(head.classes_)), calibration.offset)
    return nn.Sequential(_linear(weight, bias), _Votes(len(head.classes_)), last, nn.Softmax(dim=1))


def _identity(step: Any) -> nn.Module:
    if step.func is not None:
        raise _NoGraphError("a function of its own stands before it")
    return nn.Identity()


class _NoGraphError(Exception):
    """Why a step has no graph."""


#: By type of a fitted step. To add one: a line here.
_STEPS: Mapping[type, Callable[[Any], nn.Module]] = MappingProxyType(
    {
        Pipeline: lambda pipe: nn.Sequential(*(_step(step) for _, step in pipe.steps)),
        StandardScaler: lambda step: _Standardised(step.mean_, step.scale_),
        BlockScaler: lambda step: _Standardised(0.0, step.scale_),
        FunctionTransformer: _identity,
        Normalizer: lambda _: _UnitLength(),
        PCA: lambda step: _linear(*_whitening(step)),
        LogisticRegression: _logistic,
        RidgeHead: lambda head: _with_softmax(head.coef_, head.intercept_, head.calibration_),
        DiscriminantHead: lambda head: _with_softmax(head.coef_, head.intercept_),
        PrototypeHead: _prototype,
        SVMHead: _svm,
        MLPHead: _perceptron,
    }
)
#: Why others have no graph, by the head's name.
_REASONS = {
    "knn": "it compares with features of its training images, which are data about patients",
    "forest": "trees have no layers",
    "boosting": "trees have no layers",
    "prior": "it looks at no image",
}


def _whitening(step: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weight = step.components_.T / np.sqrt(step.explained_variance_)
    return weight, -step.mean_ @ weight


def _step(step: Any) -> nn.Module:
    if type(step) not in _STEPS:
        raise _NoGraphError(f"{type(step).__name__} has no layers here")
    return _STEPS[type(step)](step)


def _layers(model: Any, name: str) -> nn.Module:
    """A fitted head as layers, features ``(n, d)`` to probabilities ``(n, K)``."""
    try:
        return _step(model)
    except _NoGraphError as cause:
        possible = "linear, ridge, lda, mlp, prototype, svm with a linear kernel"
        raise ExportError(
            f"the head {name} cannot be exported: {_REASONS.get(name, cause)}. Heads that can: "
            f"{possible}; methods of fine-tuning: {', '.join(METHODS)}"
        ) from cause


# The file.


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices of the exporter's own libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _graph(module: nn.Module, policy: PixelPolicy) -> bytes:
    """The serialised graph of a module, checked by onnx."""
    import onnx

    example = torch.zeros((2, policy.size, policy.size, 3), dtype=torch.uint8)
    module.eval()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    if program is None:
        raise AssertionError("the exporter gives a program")
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _with_card(data: bytes, card: Mapping[str, Any]) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(proto, {CARD: json.dumps(card, allow_nan=False)})
    return bytes(proto.SerializeToString())


def _rounded(
    study: Study, samples: Samples, policy: PixelPolicy, data: bytes, margin: float
) -> tuple[bytes, dict[str, Any]]:
    """The graph in int8, and what that costs on validation.

    Raises:
        ExportError: More than the margin, or there is no validation split.
    """
    if not (samples.split == VALIDATION).any():
        raise ExportError("int8 needs a validation split, on which its loss can be measured")
    fit, _ = _images(study, samples, policy, (FIT,), _CALIBRATED)
    small = _quantise(data, fit)
    pixels, label = _images(study, samples, policy, (VALIDATION,), len(samples))
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
    """Weights and activations of convolutions and matrix products in 8 bits."""
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            row = next(self.rows, None)
            return None if row is None else {INPUT: row[None]}

    with TemporaryDirectory() as folder, _quiet():
        given, prepared, small = (Path(folder, f"{n}.onnx") for n in ("given", "prepared", "int8"))
        given.write_bytes(data)
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(
            str(prepared),
            str(small),
            Reader(),
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
        )
        onnx.checker.check_model(str(small))
        return small.read_bytes()
