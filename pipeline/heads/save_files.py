"""A saved head on disk: ``model.safetensors`` has the arrays, ``model.json`` the rest.

Both are data: nothing in them is ever run. The JSON is written last and names the
SHA-256 of the arrays, so a pair that was torn by a crash, or put together by somebody, is
refused. Everything is checked against the table of kinds before it computes anything.

No name of a patient and no path of an image is in them. Heads that compare with their
training images (``neighbours``, ``support vectors``) keep the features of these, which are
data about patients: the JSON says so in ``contains_training_features``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import StoreFormatError
from cache.recipe import Recipe
from pipeline.errors import ModelError
from pipeline.heads.save_kinds import KINDS, predict_proba
from pipeline.heads.save_part import Part, check_part

FORMAT = 1
ARRAYS, DESCRIPTION = "model.safetensors", "model.json"
_MAX_JSON = 20_000_000
_MAX_NESTING = 10
_MAX_WIDTH = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen network whose features a head takes.

    Attributes:
        recipe: All that determines its features; has the digest of its weights.
        dim: Width of its features.
        weights: ``imagenet``, or the file that the weights were read from.
    """

    recipe: Recipe
    dim: int
    weights: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A fitted head with what it needs to classify an image.

    Attributes:
        head: Name of the head.
        study: Name of the study that it was fitted in.
        classes: In the order of the probabilities.
        networks: Their features, side by side, are what the head takes.
        part: From these to probabilities.
        seeds: Of the members, in order; the probability is their mean.
        parameters: What was set or chosen, by member; for people.
        images: Number of images that it was fitted on.
        version: Of headrace that wrote it.
    """

    head: str
    study: str
    classes: tuple[str, ...]
    networks: tuple[Network, ...]
    part: Part
    seeds: tuple[int, ...]
    parameters: tuple[Mapping[str, Any], ...]
    images: int
    version: str

    @property
    def contains_training_features(self) -> bool:
        """Whether features of the images that it was fitted on are in it."""
        return any(KINDS[part.kind].keeps_rows for part in self.part.walk())

    @property
    def dim(self) -> int:
        """Width of the features that the head takes."""
        return sum(network.dim for network in self.networks)

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, dim)``.

        Raises:
            ModelError: The features have another width, or no probabilities come out.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise ModelError(f"features of shape {X.shape}: the head takes (n, {self.dim})")
        return predict_proba(self.part, X)


def save_model(folder: Path, model: Model) -> None:
    """Write a head; an older one there is replaced.

    Raises:
        ModelError: It does not fit together, and could not be read again.
        WriteFailedError: The disk refused.
    """
    from safetensors.numpy import save

    _check(model)
    arrays: dict[str, NDArray[Any]] = {}
    tree = _tree(model.part, arrays)
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    description = {
        "format": FORMAT,
        "headrace": model.version,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "head": model.head,
        "study": model.study,
        "classes": list(model.classes),
        "networks": [
            {**asdict(network), "recipe": network.recipe.to_json()} for network in model.networks
        ],
        "seeds": list(model.seeds),
        "parameters": list(model.parameters),
        "images": model.images,
        "contains_training_features": model.contains_training_features,
        "part": tree,
    }
    text = json.dumps(description, indent=1, allow_nan=False)
    disk.make_dir(folder)
    disk.publish(folder / ARRAYS, data)
    disk.publish(folder / DESCRIPTION, text.encode())


def load_model(folder: Path) -> Model:
    """Read a head; every byte of it is checked, and nothing of it is run.

    Args:
        folder: Where :func:`save_model` wrote, or the ``model.json`` in it.

    Raises:
        ModelError: There is none, it is damaged, or a newer headrace wrote it.
    """
    folder = folder.parent if folder.name == DESCRIPTION else folder
    try:
        values = _description(folder)
        arrays = _arrays(folder, values)
        model = _model(values, arrays)
        _check(model)
    except ModelError as cause:
        raise ModelError(f"{folder}: {cause}") from cause
    return model


def _check(model: Model) -> None:
    width = check_part(model.part, KINDS, d=model.dim, classes=len(model.classes))
    if width != len(model.classes):
        raise ModelError(f"the head gives {width} numbers for {len(model.classes)} classes")


def _tree(part: Part, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The part as JSON; its arrays go into ``arrays`` under numbers of their own."""
    names = {}
    for name, array in part.arrays.items():
        names[name] = f"{len(arrays):05}.{name}"
        arrays[names[name]] = np.asarray(array)
    return {
        "kind": part.kind,
        "settings": dict(part.settings),
        "arrays": names,
        "parts": [_tree(inner, arrays) for inner in part.parts],
    }


def _description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    try:
        if disk.size(file) > _MAX_JSON:
            raise ModelError(f"{DESCRIPTION} is larger than {_MAX_JSON} bytes")
        values = json.loads(disk.read_all(file), parse_constant=_no_constant)
    except FileNotFoundError as cause:
        raise ModelError(_none_here(folder)) from cause
    except OSError as cause:
        raise ModelError(f"{DESCRIPTION} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:
        if isinstance(cause, ModelError):
            raise
        raise ModelError(f"{DESCRIPTION} is damaged ({str(cause)[:100]})") from cause
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise ModelError(f"{DESCRIPTION} is no description of a head")
    if values["format"] != FORMAT:
        raise ModelError(
            f"it has format {values['format']}, this headrace reads {FORMAT}: upgrade it "
            "(pip install --upgrade headrace), or run `headrace heads` again"
        )
    return values


def _none_here(folder: Path) -> str:
    below = [f"{folder / name}" for name in disk.listdir(folder) if (folder / name).is_dir()]
    models = [name for name in below if (Path(name) / DESCRIPTION).is_file()]
    if models:
        return f"several heads are here; name one: {', '.join(models[:20])}"
    return (
        f"there is no {DESCRIPTION}; `headrace heads` writes results/STUDY/heads/BACKBONE/HEAD, "
        "and says under `unsaved` in heads.json which heads have no form that can be kept"
    )


def _no_constant(word: str) -> float:
    raise ModelError(f"{DESCRIPTION} holds {word}, which is no number")


def _arrays(folder: Path, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = folder / ARRAYS
    try:
        if disk.size(file) != values.get("bytes"):
            raise ModelError(f"{ARRAYS} is not the one that {DESCRIPTION} was written with")
        data = disk.read_all(file)
    except OSError as cause:
        raise ModelError(f"{ARRAYS} cannot be read: {cause.strerror}") from cause
    if hashlib.sha256(data).hexdigest() != values.get("sha256"):
        raise ModelError(
            f"{ARRAYS} is not the one that {DESCRIPTION} was written with (SHA-256): "
            "run `headrace heads` again"
        )
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ModelError(f"{ARRAYS} is damaged ({str(cause)[:100]})") from cause


def _model(values: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> Model:
    classes = _texts(values, "classes")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ModelError(f"classes = {classes!r}: needed are two or more different names")
    part = _part(values.get("part"), arrays, 0)
    if arrays:
        raise ModelError(f"{ARRAYS} holds {min(arrays)!r}, which no part uses")
    return Model(
        head=_typed(values, "head", str),
        study=_typed(values, "study", str),
        classes=classes,
        networks=tuple(_network(one) for one in _objects(values, "networks")),
        part=part,
        seeds=tuple(_integers(values, "seeds")),
        parameters=tuple(_objects(values, "parameters", empty=True)),
        images=_typed(values, "images", int),
        version=_typed(values, "headrace", str),
    )


def _part(values: Any, arrays: dict[str, NDArray[Any]], depth: int) -> Part:
    """Takes its arrays out of ``arrays``, so that none can be used twice."""
    if depth > _MAX_NESTING:
        raise ModelError(f"parts are nested more than {_MAX_NESTING} deep")
    if not isinstance(values, dict):
        raise ModelError(f"a part is {type(values).__name__}, expected an object")
    kind = _typed(values, "kind", str)
    if kind not in KINDS:
        raise ModelError(f"unknown part {kind[:40]!r}; known: {', '.join(KINDS)}")
    settings, names = _typed(values, "settings", dict), _typed(values, "arrays", dict)
    found = {}
    for name, key in names.items():
        if not isinstance(key, str) or key not in arrays:
            raise ModelError(f"{kind} {name} = {str(key)[:40]!r} is not in {ARRAYS}, or used twice")
        found[name] = arrays.pop(key)
    inner = [_part(one, arrays, depth + 1) for one in _typed(values, "parts", list)]
    return Part(kind=kind, arrays=found, settings=settings, parts=tuple(inner))


def _network(values: Mapping[str, Any]) -> Network:
    try:
        recipe = Recipe.from_json(_typed(values, "recipe", dict))
    except StoreFormatError as cause:
        raise ModelError(str(cause)) from cause
    dim = _typed(values, "dim", int)
    if not 1 <= dim <= _MAX_WIDTH:
        raise ModelError(f"dim = {dim}: allowed is 1 to {_MAX_WIDTH}")
    return Network(recipe=recipe, dim=dim, weights=_typed(values, "weights", str))


def _typed(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{DESCRIPTION}: {key} is {type(value).__name__}, not {kind.__name__}")
    return value


def _texts(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = _typed(values, key, list)
    if not all(isinstance(one, str) for one in found):
        raise ModelError(f"{DESCRIPTION}: {key} holds what is no text")
    return tuple(found)


def _integers(values: Mapping[str, Any], key: str) -> Sequence[int]:
    found: list[int] = _typed(values, key, list)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        raise ModelError(f"{DESCRIPTION}: {key} holds what is no integer")
    return found


def _objects(
    values: Mapping[str, Any], key: str, *, empty: bool = False
) -> Iterator[dict[str, Any]]:
    found = _typed(values, key, list)
    if not all(isinstance(one, dict) for one in found) or not (found or empty):
        raise ModelError(f"{DESCRIPTION}: {key} is not a list of objects")
    return iter(found)
