"""Fitted heads as torch layers, to join them with their network and to compute gradients."""

from collections.abc import Callable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer
from torch import Tensor, nn

from pipeline.errors import ExportError
from pipeline.heads.base import PreprocessedHead, Standardiser
from pipeline.heads.closed_form import Calibration, DiscriminantHead, PrototypeHead, RidgeHead
from pipeline.heads.mlp import MLPHead
from pipeline.heads.scikit_learn import SVMHead


class _Standardised(nn.Module):
    """Features minus a mean, divided by a scale."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: NDArray[Any] | float, scale: NDArray[Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


class _UnitLength(nn.Module):
    """Each row divided by its Euclidean norm."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=1, eps=1e-12)


class _Votes(nn.Module):
    """Scores of classes from scores of pairs, as in scikit-learn: votes, then margins."""

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
    """From scores to probabilities, with the calibration folded into the weights.

    With two classes a single score is that of the second class.
    """
    if weight.shape[1] == 1:
        weight, bias = np.hstack([0 * weight, weight]), np.r_[0, bias]
    if calibration:
        weight, bias = calibration.scale * weight, calibration.scale * bias + calibration.offset
    return nn.Sequential(_linear(weight, bias), nn.Softmax(dim=1))


def _prototype(head: Any) -> nn.Module:
    unit = head.means_ / np.maximum(np.linalg.norm(head.means_, axis=1, keepdims=True), 1e-12)
    return nn.Sequential(
        _UnitLength(), _with_softmax(unit.T, np.zeros(len(unit)), head.calibration_)
    )


def _perceptron(head: Any) -> nn.Module:
    layers = [layer for pair in head.layers_ for layer in (nn.ReLU(), _linear(*pair))][1:]
    return nn.Sequential(*layers, nn.Softmax(dim=1))


def _svm(head: Any) -> nn.Module:
    if head.kernel != "linear":
        raise _NoLayersError("its kernel is RBF: it compares with features of training images")
    # Each pair of classes has a score that is linear in the features, so the scores of zero and
    # of the unit vectors determine it.
    machine = copy(head.machine_).set_params(decision_function_shape="ovo")
    kernel = np.zeros((1 + head.n_features_in_, machine.shape_fit_[0]))
    kernel[1:, machine.support_] = head.support_vectors_.T
    scores = machine.decision_function(kernel).reshape(len(kernel), -1)
    weight, bias = scores[1:] - scores[0], scores[0]
    calibration = head.calibration_
    if len(head.classes_) == 2:
        return _with_softmax(weight, bias, calibration)
    last = _linear(calibration.scale * np.eye(len(head.classes_)), calibration.offset)
    return nn.Sequential(_linear(weight, bias), _Votes(len(head.classes_)), last, nn.Softmax(dim=1))


def _whitening(step: Any) -> nn.Module:
    weight = step.components_.T / np.sqrt(step.explained_variance_)
    return _linear(weight, -step.mean_ @ weight)


class _NoLayersError(Exception):
    """A step has no layers; the message says why."""


#: By type of a fitted step. To add one: a line here.
_STEPS: Mapping[type, Callable[[Any], nn.Module]] = MappingProxyType(
    {
        PreprocessedHead: lambda model: nn.Sequential(
            _step(model.preprocessing), _step(model.head)
        ),
        Pipeline: lambda pipe: nn.Sequential(*(_step(step) for _, step in pipe.steps)),
        Standardiser: lambda step: _Standardised(step.mean_, step.scale_),
        FunctionTransformer: lambda _: nn.Identity(),
        Normalizer: lambda _: _UnitLength(),
        PCA: _whitening,
        LogisticRegression: lambda head: _with_softmax(head.coef_.T, head.intercept_),
        RidgeHead: lambda head: _with_softmax(head.coef_, head.intercept_, head.calibration_),
        DiscriminantHead: lambda head: _with_softmax(head.coef_, head.intercept_),
        PrototypeHead: _prototype,
        SVMHead: _svm,
        MLPHead: _perceptron,
    }
)
#: By head, the reason why it has no layers.
_REASONS = {
    "knn": "it compares with features of its training images, which are data about patients",
    "forest": "it is made of trees",
    "boosting": "it is made of trees",
    "prior": "it looks at no image",
    "naive_bayes": "it compares densities, and layers for these are not written",
}


def _step(step: Any) -> nn.Module:
    if type(step) not in _STEPS:
        raise _NoLayersError(f"{type(step).__name__} has no layers here")
    return _STEPS[type(step)](step)


def head_layers(model: Any, name: str) -> nn.Module:
    """A fitted head as layers, from features ``(n, d)`` to probabilities ``(n, K)``.

    Raises:
        ExportError: It has none; the message says why, and which heads have layers.
    """
    try:
        return _step(model)
    except _NoLayersError as cause:
        raise ExportError(
            f"the head {name} has no layers: {_REASONS.get(name, cause)}. Heads that have: "
            "linear, ridge, lda, mlp, prototype, svm with a linear kernel; every method of "
            "fine-tuning has"
        ) from cause
