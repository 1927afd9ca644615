"""Fitted estimators as bytes: arrays in safetensors, and what holds them as JSON beside them.

Only objects of types that are trusted are written or built: ours and a few of scikit-learn's,
named in ``TRUSTED``, and scikit-learn's public estimators. Nothing of them is called but what
sets their attributes. No pickle is read or written. (skops does the same, and imports all of
scikit-learn for it: 0.5 s and 0.4 s more for eleven heads, where this takes 0.1 s.)
"""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import ModelError

TRUSTED = frozenset(
    {
        "pipeline.heads.base.PreprocessedHead",
        "pipeline.heads.base.PriorHead",
        "pipeline.heads.base.Standardiser",
        "pipeline.heads.boosting.BoostingHead",
        "pipeline.heads.calibration.Calibration",
        "pipeline.heads.closed_form.DiscriminantHead",
        "pipeline.heads.closed_form.PrototypeHead",
        "pipeline.heads.closed_form.RidgeHead",
        "pipeline.heads.mlp.MLPHead",
        "pipeline.heads.svm.SVMHead",
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss._loss.CyHalfMultinomialLoss",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfMultinomialLoss",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.tree._tree.Tree",
    }
)
_STRUCTURE = "structure"


def to_bytes(value: Any) -> bytes:
    """Estimators, or lists of them, as a safetensors file.

    Raises:
        ModelError: They hold something that cannot be written, or objects of other types.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    text = json.dumps(_structure(value, arrays)).encode()
    return bytes(save({**arrays, _STRUCTURE: np.frombuffer(text, np.uint8)}))


def from_bytes(data: bytes) -> Any:
    """What :func:`to_bytes` wrote.

    Raises:
        ModelError: It is damaged, or holds objects of types that are not trusted.
    """
    try:
        arrays = load(data)
        return _object(json.loads(arrays.pop(_STRUCTURE).tobytes()), arrays)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, IndexError) as cause:
        if isinstance(cause, ModelError):
            raise
        raise ModelError(f"damaged ({type(cause).__name__}: {str(cause)[:100]})") from cause
    except (RecursionError, MemoryError, ImportError, OverflowError) as cause:
        raise ModelError(f"damaged ({type(cause).__name__})") from cause


def _structure(value: Any, arrays: dict[str, NDArray[np.uint8]]) -> Any:
    """JSON of a value whose arrays are put aside."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return {"array": _put_aside(np.asarray(value), arrays), "scalar": np.isscalar(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_structure(item, arrays) for item in value]}
    if isinstance(value, dict):
        pairs = [[_structure(k, arrays), _structure(v, arrays)] for k, v in value.items()]
        return {"dict": pairs}
    return _structure_of_object(value, arrays)


def _structure_of_object(value: Any, arrays: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    if isinstance(value, np.random.Generator):
        return {"generator": _structure(value.bit_generator.state, arrays)}
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    _type(name)
    if hasattr(value, "__dict__"):
        return {"object": name, "state": _structure(vars(value), arrays)}
    # Of types written in C: the arguments that build it, and a state where it has one.
    made_by, arguments, *state = value.__reduce_ex__(2)
    return {
        "built": name,
        "arguments": _structure(arguments[made_by is not type(value) :], arrays),
        "state": _structure(state[0] if state else None, arrays),
    }


def _put_aside(value: NDArray[Any], arrays: dict[str, NDArray[np.uint8]]) -> list[Any]:
    """Name, type, shape and order of an array whose bytes are kept."""
    if value.dtype.hasobject:
        raise ModelError(f"it holds an array of Python objects ({value.ravel()[:3]!r})")
    columns = value.flags.f_contiguous and not value.flags.c_contiguous
    name = str(len(arrays))
    data = np.ascontiguousarray(value.T if columns else value)
    arrays[name] = np.frombuffer(data.tobytes(), np.uint8)
    return [name, np.lib.format.dtype_to_descr(value.dtype), list(value.shape), columns]


def _object(structure: Any, arrays: Mapping[str, NDArray[np.uint8]]) -> Any:
    """What :func:`_structure` was given."""
    if not isinstance(structure, dict):
        return structure
    if "array" in structure:
        name, kind, shape, columns = structure["array"]
        array = _array(arrays[name], kind, shape, columns=columns)
        return array[()] if structure["scalar"] else array
    if "dict" in structure:
        return {_object(k, arrays): _object(v, arrays) for k, v in structure["dict"]}
    for plain in (list, tuple):
        if plain.__name__ in structure:
            return plain(_object(item, arrays) for item in structure[plain.__name__])
    return _build(structure, arrays)


def _array(data: NDArray[np.uint8], kind: Any, shape: list[int], *, columns: bool) -> NDArray[Any]:
    if isinstance(kind, list):  # of fields, which JSON cannot hold as tuples
        kind = [tuple(field) for field in kind]
    flat = np.frombuffer(data.tobytes(), np.lib.format.descr_to_dtype(kind)).copy()
    return flat.reshape(shape[::-1]).T if columns else flat.reshape(shape)


def _build(structure: Mapping[str, Any], arrays: Mapping[str, NDArray[np.uint8]]) -> Any:
    if "generator" in structure:
        built: Any = np.random.default_rng()
        built.bit_generator.state = _object(structure["generator"], arrays)
    elif "object" in structure:
        kind = _type(structure["object"])
        built = kind.__new__(kind)
        vars(built).update(_object(structure["state"], arrays))
    else:
        kind = _type(structure["built"], estimators=False)
        built = kind(*_object(structure["arguments"], arrays))
        if structure["state"] is not None:
            built.__setstate__(_object(structure["state"], arrays))
    return built


def _type(name: str, *, estimators: bool = True) -> Any:
    """A type that is trusted.

    Raises:
        ModelError: It is not.
    """
    module, _, last = name.rpartition(".")
    if name in TRUSTED or (estimators and module.startswith("sklearn.")):
        kind = getattr(import_module(module), last)
        if name in TRUSTED or (isinstance(kind, type) and issubclass(kind, _estimator())):
            return kind
    raise ModelError(f"it holds objects of types that are not trusted: {name}")


def _estimator() -> type:
    from sklearn.base import BaseEstimator  # a second to import

    return BaseEstimator  # type: ignore[no-any-return]
