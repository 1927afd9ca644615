"""A saved head on disk: ``model.safetensors`` has the fitted estimators, ``model.json`` the rest.

The estimators are built by ``pipeline.heads.objects``: of types that are trusted, without
pickle. The JSON is the record of a set (see ``pipeline.results``), so a damaged or exchanged
file is refused before a single object of it is built; beside other results, a head that
``heads.json`` does not name is refused too. Nobody checks the nodes of a tree: open a head
with trees only from somebody you trust.

No name of a patient and no path of an image is in either file. Heads that compare with
their training images keep the features of these, which are data about patients: the JSON
says so in ``contains_training_features``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.errors import StoreFormatError
from cache.recipe import Recipe
from pipeline.errors import MissingResultsError, ModelError
from pipeline.heads.objects import from_bytes, to_bytes
from pipeline.results import ResultSet, read_set, write_set
from pipeline.words import as_file_name

FORMAT = 5
MODEL, DESCRIPTION = "model.safetensors", "model.json"


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

    def to_json(self) -> dict[str, Any]:
        """As ``model.json`` has it."""
        return {**asdict(self), "recipe": self.recipe.to_json()}


@dataclass(frozen=True, kw_only=True)
class SavedHead:
    """A fitted head with what it needs to classify an image.

    Attributes:
        head: Name of the head.
        study: Name of the study that it was fitted in.
        classes: In the order of the probabilities.
        networks: Their features, side by side, are what the head takes.
        models: Fitted classifiers, one for each seed; the head's probability is their mean.
        seeds: Of the models, in order.
        parameters: What was set or chosen; for people.
        images: Number of images that it was fitted on.
        window: Of the source: values that are black and white, of images of more than 8 bits.
        frame: Of the source: which of several frames is read.
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
        """Width of the features that the head takes."""
        return sum(network.dim for network in self.networks)

    @property
    def contains_training_features(self) -> bool:
        """Whether features of the images that it was fitted on are in it."""
        heads = [getattr(model, "head", model) for model in self.models]
        estimators = [getattr(head, "estimator_", head) for head in heads]
        return any(
            len(getattr(estimator, name, ())) > 0
            for estimator in estimators
            for name in ("_fit_X", "support_vectors_")
        )

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Class probabilities ``(n, K)`` of features ``(n, dim)`` as the backbone gave them.

        Raises:
            ModelError: The features have another width, or no probabilities come out.
        """
        if X.ndim != 2 or X.shape[1] != self.dim:
            raise ModelError(f"features of shape {X.shape}: the head takes (n, {self.dim})")
        try:
            proba = mean_proba(self.models, X)
        except Exception as cause:
            raise ModelError(
                f"the head cannot be applied ({cause}): fit it again with `headrace heads`"
            ) from cause
        if proba.shape[1] != len(self.classes) or not np.isfinite(proba).all():
            raise ModelError("the head gives no probabilities: its file is damaged; fit it again")
        return proba


def mean_proba(models: Sequence[Any], X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean class probabilities ``(n, K)`` of fitted classifiers on features ``(n, d)``."""
    proba = [np.asarray(model.predict_proba(X), np.float64) for model in models]
    return proba[0] if len(proba) == 1 else np.mean(proba, axis=0)


def head_folder(results: Path, backbone: str, head: str) -> Path:
    """Where a head of a study is kept."""
    return results / "heads" / as_file_name(backbone) / as_file_name(head)


def save_head(
    folder: Path, head: SavedHead, beside: Mapping[str, bytes] | None = None
) -> dict[str, str]:
    """Write a head, and files that belong to it; an older one there is replaced.

    Returns:
        SHA-256 of each file, by name.

    Raises:
        ModelError: It holds objects of types that :func:`load_head` would refuse.
        WriteFailedError: The disk refused.
    """
    data = to_bytes(list(head.models))
    description = {
        "format": FORMAT,
        "headrace": version("headrace"),
        "scikit-learn": version("scikit-learn"),
        "head": head.head,
        "study": head.study,
        "classes": list(head.classes),
        "networks": [network.to_json() for network in head.networks],
        "seeds": list(head.seeds),
        "parameters": dict(head.parameters),
        "images": head.images,
        "window": head.window,
        "frame": head.frame,
        "contains_training_features": head.contains_training_features,
    }
    description = json.loads(json.dumps(description, default=str))
    return write_set(folder / DESCRIPTION, description, {MODEL: data, **(beside or {})})


def load_head(folder: Path) -> SavedHead:
    """Read a head.

    Args:
        folder: Where :func:`save_head` wrote, or the ``model.json`` in it.

    Raises:
        ModelError: There is none, it holds a type that is not trusted, or another version of
            headrace wrote it.
        ResultsError: It is damaged, or is not one of the heads that ``heads.json`` names.
    """
    folder = (folder.parent if folder.name == DESCRIPTION else folder).absolute()
    try:
        try:
            saved = read_set(folder / DESCRIPTION, "heads")
        except MissingResultsError as cause:
            raise ModelError(_missing(folder)) from cause
        _check_named(folder)
        _check_format(saved.record.get("format"))
        return _head(saved.record, _models(saved))
    except ModelError as cause:
        raise ModelError(f"{folder}: {cause}") from cause


def _check_format(written: object) -> None:
    if written != FORMAT:
        raise ModelError(
            f"it has format {written}, this headrace reads {FORMAT}: install the version that "
            "wrote it, or run `headrace heads` again"
        )


def _check_named(folder: Path) -> None:
    """Refuse a head among results that an interrupted or an older run left there."""
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
        f"there is no {DESCRIPTION}; `headrace heads` writes results/STUDY/heads/BACKBONE/HEAD, "
        "and lists in heads.json under `not_saved` the heads that cannot be saved"
    )


def _models(saved: ResultSet) -> tuple[Any, ...]:
    """The fitted estimators, after the file's digest was checked."""
    try:
        return tuple(from_bytes(saved.read(MODEL)))
    except (ModelError, TypeError) as cause:
        raise ModelError(
            f"{MODEL} cannot be read: {cause}. It was written with scikit-learn "
            f"{saved.record.get('scikit-learn')}, here is {version('scikit-learn')}. Open only "
            "files that `headrace heads` wrote, or run it again"
        ) from cause


def _head(values: Mapping[str, Any], models: tuple[Any, ...]) -> SavedHead:
    try:
        networks = tuple(
            Network(
                recipe=Recipe.from_json(network["recipe"]),
                dim=int(network["dim"]),
                weights=str(network["weights"]),
            )
            for network in values["networks"]
        )
        return SavedHead(
            head=str(values["head"]),
            study=str(values["study"]),
            classes=tuple(map(str, values["classes"])),
            networks=networks,
            models=models,
            seeds=tuple(map(int, values["seeds"])),
            parameters=dict(values["parameters"]),
            images=int(values["images"]),
            window=tuple(window) if (window := values.get("window")) else None,
            frame=values.get("frame"),
        )
    except (KeyError, TypeError, ValueError, AttributeError, StoreFormatError) as cause:
        raise ModelError(f"{DESCRIPTION} is damaged ({type(cause).__name__}: {cause})") from cause
