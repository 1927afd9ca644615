"""A saved head on disk: fitted estimators, their description, and the results of the fit.

``model.safetensors`` has the estimators: arrays, and JSON with the objects that hold them. Only
objects of trusted types are written or built: types of this package, public estimators of
scikit-learn, and those in ``_TRUSTED``. Only functions that set their attributes are called, and
there is no pickle. (skops does the same, but imports all of scikit-learn, which takes five times
as long.) The nodes of a tree are not checked: open a head with trees only from someone you trust.

``model.json`` is the record of the set (see ``pipeline.results``). A damaged or exchanged file is
refused before any of its objects is built. A head among results is also refused if ``heads.json``
does not name it. With ``fit.safetensors`` a later run of ``heads`` need not fit the head again, if
everything that the fit depends on is the same.

These files hold no name of a patient and no path of an image. Heads that compare with their
training images store the features of these images, which are data about patients: the JSON says
so in ``contains_training_features``.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache import disk
from cache.errors import StoreFormatError
from cache.recipe import Recipe
from pipeline import randomness
from pipeline.data import patients
from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ModelError, ResultsError
from pipeline.heads import HeadSpec
from pipeline.heads.base import Parameters
from pipeline.heads.search import Fit
from pipeline.results import read_set, write_set
from pipeline.words import as_file_name

_LOG = logging.getLogger(__name__)
_FORMAT = 6
_MODEL, DESCRIPTION, _FIT = "model.safetensors", "model.json", "fit.safetensors"
#: The code that a fit depends on; the second file makes the folds.
_CODE = (Path(__file__).parent, Path(patients.__file__), Path(randomness.__file__))
_TRUSTED = frozenset(
    {
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
_DAMAGES = (
    SafetensorError, KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError,
    MemoryError, ImportError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen network whose features a head takes.

    Attributes:
        recipe: Everything that determines its features, with the digest of its weights.
        dim: Number of its features.
        weights: ``imagenet``, or the file that the weights were read from.
    """

    recipe: Recipe
    dim: int
    weights: str


@dataclass(frozen=True, kw_only=True)
class SavedHead:
    """A fitted head with what it needs to classify an image.

    Attributes:
        head: Name of the head.
        study: Name of the study that it was fitted in.
        classes: Class names in the order of the probabilities.
        networks: The networks whose concatenated features the head takes.
        models: Fitted classifiers, one for each seed; the head's probability is their mean.
        seeds: Seeds of the models, in order.
        parameters: Parameters that were set or chosen, as information for users.
        images: Number of images that it was fitted to.
        window: The source's values of black and white, for images with more than 8 bits.
        frame: The source's choice among several frames.
    """

    head: str
    study: str
    classes: tuple[str, ...]
    networks: tuple[Network, ...]
    models: tuple[Any, ...]
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]
    images: int
    window: tuple[float, float] | None = None
    frame: str | None = None

    @property
    def dim(self) -> int:
        """Number of features that the head takes."""
        return sum(network.dim for network in self.networks)

    def to_json(self) -> dict[str, Any]:
        """The content of ``model.json``, without the models."""
        values = {name: value for name, value in vars(self).items() if name != "models"}
        values["networks"] = [
            {**asdict(network), "recipe": network.recipe.to_json()} for network in self.networks
        ]
        text = json.dumps(values, default=str)
        return dict(json.loads(text))

    @property
    def contains_training_features(self) -> bool:
        """Whether the models hold features of their training images."""
        heads = [getattr(model, "head", model) for model in self.models]
        return any(
            len(getattr(head, name, ())) > 0
            for head in heads
            for name in ("_fit_X", "support_vectors_")
        )

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, dim)`` as the backbone gave them.

        Raises:
            ModelError: The features have a wrong width, or the results are not probabilities.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise ModelError(f"features of shape {X.shape}: the head takes (n, {self.dim})")
        try:
            proba = [np.asarray(model.predict_proba(X), np.float64) for model in self.models]
            mean = proba[0] if len(proba) == 1 else np.mean(proba, axis=0)
        except Exception as cause:
            raise ModelError(
                f"the head cannot be applied ({cause}): fit it again with `headrace heads`"
            ) from cause
        if mean.shape[1] != len(self.classes) or not np.isfinite(mean).all():
            raise ModelError("the head gives no probabilities: its file is damaged; fit it again")
        return mean


def head_folder(results: Path, backbone: str, head: str) -> Path:
    """The folder of a saved head of a study."""
    return results / "heads" / as_file_name(backbone) / as_file_name(head)


def save_head(
    folder: Path, head: SavedHead, extra: Mapping[str, bytes] = MappingProxyType({})
) -> dict[str, str]:
    """Write a head and files beside it; returns their SHA-256 by name. Replaces an older head.

    Raises:
        ModelError: It holds objects of types that :func:`load_head` would refuse.
        WriteFailedError: The disk refused.
    """
    files = {_MODEL: _to_bytes(list(head.models)), **extra}
    versions = {name: version(name) for name in ("headrace", "scikit-learn")}
    description = {
        "format": _FORMAT,
        **versions,
        **head.to_json(),
        "contains_training_features": head.contains_training_features,
    }
    return write_set(folder / DESCRIPTION, description, files)


def load_head(folder: Path) -> SavedHead:
    """Read a head.

    Args:
        folder: Folder that :func:`save_head` wrote, or the ``model.json`` in it.

    Raises:
        ModelError: There is none, it holds a type that is not trusted, or another version of
            headrace wrote it.
        ResultsError: It is damaged, or is not one of the heads that ``heads.json`` names.
    """
    folder = (folder.parent if folder.name == DESCRIPTION else folder).absolute()
    try:
        saved = read_set(folder / DESCRIPTION, "heads")
    except MissingResultsError as cause:
        raise ModelError(f"{folder}: {_missing(folder)}") from cause
    _check_in_record(folder)
    values, data = saved.record, saved.read(_MODEL)
    if values.get("format") != _FORMAT:
        raise ModelError(
            f"{folder}: it has format {values.get('format')}, this headrace reads {_FORMAT}: "
            "install the version that wrote it, or run `headrace heads` again"
        )
    try:
        return _head(values, tuple(_from_bytes(data)))
    except ModelError as cause:
        raise ModelError(
            f"{folder}: {_MODEL} cannot be read: {cause}. It was written with scikit-learn "
            f"{values.get('scikit-learn')}, here is {version('scikit-learn')}. Open only "
            "files that `headrace heads` wrote, or run it again"
        ) from cause
    except (KeyError, TypeError, ValueError, AttributeError, StoreFormatError) as cause:
        raise ModelError(
            f"{folder}: {DESCRIPTION} is damaged ({type(cause).__name__}: {cause})"
        ) from cause


def _check_in_record(folder: Path) -> None:
    """Refuse a head that an interrupted or older run has left among the results."""
    results = folder.parent.parent.parent
    if folder == head_folder(results, folder.parent.name, folder.name):
        name = (folder / DESCRIPTION).relative_to(results).as_posix()
        read_set(results / "heads.json", "heads").read(name)


def _missing(folder: Path) -> str:
    below = [name for name in disk.listdir(folder) if (folder / name / DESCRIPTION).is_file()]
    if below:
        heads = ", ".join(str(folder / name) for name in below[:20])
        return f"the folder holds several heads; name one: {heads}"
    return (
        f"there is no {DESCRIPTION}; `headrace heads` writes results/STUDY/heads/BACKBONE/HEAD; "
        "heads that cannot be saved are listed in heads.json under `not_saved`"
    )


def _head(values: Mapping[str, Any], models: tuple[Any, ...]) -> SavedHead:
    return SavedHead(
        head=str(values["head"]),
        study=str(values["study"]),
        classes=tuple(map(str, values["classes"])),
        networks=tuple(
            Network(**network | {"recipe": Recipe.from_json(network["recipe"])})
            for network in values["networks"]
        ),
        models=models,
        seeds=tuple(map(int, values["seeds"])),
        parameters=dict(values["parameters"]),
        images=int(values["images"]),
        window=tuple(window) if (window := values.get("window")) else None,
        frame=values.get("frame"),
    )


def fit_keys(
    unfitted: SavedHead,
    samples: Samples,
    X: NDArray[np.float32],
    specs: Mapping[str, HeadSpec],
    *,
    seeds: Sequence[int],
    preprocessing: str,
) -> dict[str, str]:
    """For each head, a hash of everything that its fit and its ``model.json`` depend on.

    Args:
        unfitted: The parts that all heads have in common.
        samples: ``n`` images.
        X: Their features, ``(n, d)``, or those of ``k`` views, ``(n, k, d)``.
        specs: The heads by name.
        seeds: Seeds of stochastic heads.
        preprocessing: Name of the preprocessing.
    """
    data = hashlib.sha256(np.ascontiguousarray(X).data)
    for array in (samples.label, samples.group, samples.domain, samples.split):
        data.update(json.dumps(array.tolist()).encode())
    common = [data.hexdigest(), preprocessing, code_version(*_CODE), unfitted.to_json()]
    return {
        name: digest_of(
            [*common, spec.about, repr(list(spec.choices)), seeds if spec.stochastic else seeds[:1]]
        )
        for name, spec in specs.items()
    }


def digest_of(values: Sequence[Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@cache
def code_version(*paths: Path) -> str:
    """Hash of source files, also those in folders, and of the libraries' versions."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        digest.update(f"{name} {version(name)} ".encode())
    return digest.hexdigest()


def save_fit(results: Path, backbone: str, head: SavedHead, fit: Fit, key: str) -> dict[str, str]:
    """Save a head of a study with the results of its fit, under its key.

    Returns the SHA-256 of each file, by name below the results; errors as :func:`save_head`.
    """
    folder = head_folder(results, backbone, head.head)
    shown = _to_bytes(vars(replace(fit, models=())) | {"key": key})
    return _below(results, folder, save_head(folder, head, {_FIT: shown}))


def read_fit(
    results: Path, backbone: str, name: str, key: str
) -> tuple[Fit, dict[str, str]] | None:
    """The stored fit of a head with this key, without its models, and SHA-256 by file.

    None if there is none, or if it is damaged.
    """
    folder = head_folder(results, backbone, name)
    try:
        saved = read_set(folder / DESCRIPTION, "heads")
        saved.check()
        values = _from_bytes(saved.read(_FIT)) if _FIT in saved.digests else {}
    except MissingResultsError:
        return None
    except (ResultsError, ModelError) as cause:
        _LOG.warning("%s. It is fitted again now", cause)
        return None
    if values.pop("key", None) != key:
        return None
    digests = {**saved.digests, DESCRIPTION: saved.sha256}
    return Fit(**values), _below(results, folder, digests)


def _below(results: Path, folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    prefix = folder.relative_to(results).as_posix()
    return {f"{prefix}/{file}": digest for file, digest in digests.items()}


# Objects as bytes.


def _to_bytes(value: Any) -> bytes:
    """Estimators, or lists of them, as a safetensors file; a ModelError if that is impossible."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    text = json.dumps(_structure(value, arrays)).encode()
    return bytes(save({**arrays, _STRUCTURE: np.frombuffer(text, np.uint8)}))


def _from_bytes(data: bytes) -> Any:
    """Read what :func:`_to_bytes` wrote; a ModelError if it is damaged, or of other types."""
    try:
        arrays = load(data)
        return _object(json.loads(arrays.pop(_STRUCTURE).tobytes()), arrays)
    except ModelError:
        raise
    except _DAMAGES as cause:
        raise ModelError(f"damaged ({type(cause).__name__}: {str(cause)[:100]})") from cause


def _structure(value: Any, arrays: dict[str, NDArray[np.uint8]]) -> Any:
    """JSON of a value; its arrays are stored separately."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return {"array": _store_array(np.asarray(value), arrays), "scalar": np.isscalar(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_structure(item, arrays) for item in value]}
    if isinstance(value, dict):
        pairs = [[_structure(k, arrays), _structure(v, arrays)] for k, v in value.items()]
        return {"dict": pairs}
    return _structure_of_object(value, arrays)


def _structure_of_object(value: Any, arrays: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    if isinstance(value, np.random.Generator):
        return {"generator": _structure(value.bit_generator.state, arrays)}
    module = type(value).__module__
    if module == "_loss":  # as scikit-learn before 1.9 calls it
        module = "sklearn._loss._loss"
    name = f"{module}.{type(value).__qualname__}"
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


def _store_array(value: NDArray[Any], arrays: dict[str, NDArray[np.uint8]]) -> list[Any]:
    """Store the bytes of an array; returns its name, type, shape and order."""
    if value.dtype.hasobject:
        raise ModelError(f"it holds an array of Python objects ({value.ravel()[:3]!r})")
    columns = value.flags.f_contiguous and not value.flags.c_contiguous
    name = str(len(arrays))
    data = np.ascontiguousarray(value.T if columns else value)
    arrays[name] = np.frombuffer(data.tobytes(), np.uint8)
    return [name, np.lib.format.dtype_to_descr(value.dtype), list(value.shape), columns]


def _object(structure: Any, arrays: Mapping[str, NDArray[np.uint8]]) -> Any:
    """Build the value that :func:`_structure` was given."""
    if not isinstance(structure, dict):
        return structure
    if "array" in structure:
        name, kind, shape, columns = structure["array"]
        array = _array(arrays[name], kind, shape, columns=columns)
        return array[()] if structure["scalar"] else array
    if "dict" in structure:
        return {_object(k, arrays): _object(v, arrays) for k, v in structure["dict"]}
    for kind in (list, tuple):
        if kind.__name__ in structure:
            return kind(_object(item, arrays) for item in structure[kind.__name__])
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
    """A trusted type by its name; a ModelError if it is not trusted."""
    module, _, last = name.rpartition(".")
    ours = module.startswith("pipeline.heads.")
    if name in _TRUSTED or (estimators and (ours or module.startswith("sklearn."))):
        kind = getattr(import_module(module), last)
        base = Parameters if ours else import_module("sklearn.base").BaseEstimator
        if name in _TRUSTED or (isinstance(kind, type) and issubclass(kind, base)):
            return kind
    raise ModelError(f"it holds objects of types that are not trusted: {name}")
