"""The file of per-image probabilities that every predicting stage writes.

It holds a group for each backbone. All datasets of a group share their first axis: row ``i`` of
each describes the same image. It holds no path and no name of a person; a patient is a number
that is valid only within the file.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.data.samples import Samples
from pipeline.results import read_set
from pipeline.words import printable

#: Stage 2 writes its probabilities here, below the study's results.
PROBABILITIES = "probabilities.h5"
#: Stage 3 writes those of trained networks here.
TRAINED_PROBABILITIES = "finetune.h5"
_ARRAYS, _TEXTS = ("key", "label", "patient"), ("domain", "split")
#: Name of a predictor, and the seed that it was trained with.
Trained = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Probabilities by all predictors on one backbone, for the same ``n`` images.

    Attributes:
        classes: Class names in label order.
        key: Content keys, uint8 of shape ``(n, 32)``.
        label: Shape ``(n,)``, 0 to K - 1; -1 for images of a target without labels.
        patient: Numbers, shape ``(n,)``; within a domain, equal numbers are one patient.
        domain: Shape ``(n,)``.
        split: ``fit``, ``validation`` or ``target``, shape ``(n,)``.
        proba: Float64 (scores near 0 and 1 stay apart), ``(n, K)`` for each (name, seed).
    """

    classes: tuple[str, ...]
    key: NDArray[np.uint8]
    label: NDArray[np.int64]
    patient: NDArray[np.int64]
    domain: NDArray[np.str_]
    split: NDArray[np.str_]
    proba: Mapping[Trained, NDArray[np.float64]]


def predictions_of(samples: Samples, proba: Mapping[Trained, NDArray[np.floating]]) -> Predictions:
    """Probabilities of all samples of a study, ready to be stored."""
    patient: NDArray[np.int64] = np.unique(samples.group, return_inverse=True)[1]
    return Predictions(
        classes=tuple(printable(name) for name in samples.classes),
        key=np.frombuffer(b"".join(samples.key), np.uint8).reshape(len(samples), -1),
        label=samples.label,
        patient=patient,
        domain=samples.domain,
        split=samples.split,
        proba={name: values.astype(np.float64) for name, values in proba.items()},
    )


def predictions_file(
    by_backbone: Mapping[str, Predictions],
    *,
    curves: Mapping[str, Mapping[str, NDArray[Any]]] = MappingProxyType({}),
) -> bytes:
    """The content of a file of predictions.

    Args:
        by_backbone: Predictions on each backbone.
        curves: Arrays for figures, by backbone and name; stored below ``curves``.
    """
    with h5py.File.in_memory(libver=("earliest", "v108")) as file:
        for backbone, predictions in by_backbone.items():
            _write(file.create_group(backbone), predictions)
            for name, values in curves.get(backbone, {}).items():
                file[f"{backbone}/curves/{name}"] = values
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def stored_predictions(path: Path) -> bytes:
    """The bytes of a stage's file of predictions; checked to belong to its record.

    Raises:
        MissingResultsError: The stage has not been run.
        ResultsError: Record or file are damaged, or of two runs.
    """
    stage = "heads" if path.name == PROBABILITIES else path.stem
    return read_set(path.with_name(f"{stage}.json"), stage.split("-")[0]).read(path.name)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """By backbone; errors as :func:`stored_predictions`."""
    return predictions_in(stored_predictions(path))


def predictions_in(content: bytes) -> dict[str, Predictions]:
    """The predictions in a file with this content, by backbone."""
    with h5py.File(io.BytesIO(content), "r") as file:
        return {backbone: _read(file[backbone]) for backbone in file}


def _write(group: Any, predictions: Predictions) -> None:
    group.attrs["classes"] = list(predictions.classes)
    for name in _ARRAYS:
        group[name] = getattr(predictions, name)
    for name in _TEXTS:
        texts = [str(value) for value in getattr(predictions, name)]
        group.create_dataset(name, data=texts, dtype=h5py.string_dtype())
    for (name, seed), proba in predictions.proba.items():
        group[f"heads/{name}/{seed}"] = proba


def _read(group: Any) -> Predictions:
    heads = group["heads"]
    return Predictions(
        classes=tuple(str(name) for name in group.attrs["classes"]),
        **{name: group[name][:] for name in _ARRAYS},
        **{name: group[name].asstr()[:].astype(str) for name in _TEXTS},
        proba={(name, int(seed)): heads[name][seed][:] for name in heads for seed in heads[name]},
    )
