"""One self-contained HDF5 file of a study's features, to be shared or opened elsewhere."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.recipe import canonical
from pipeline.data.samples import SampleOptions, load_samples
from pipeline.errors import StudyError
from pipeline.features.load import FeatureTable, choose_backbone, load_features
from pipeline.results import write_file
from pipeline.study import Study
from pipeline.words import printable

EXPORT_FORMAT = 1


def export_study(
    study: Study, backbone: str | None, output: Path, options: SampleOptions | None = None
) -> int:
    """Write features, labels, patients, splits and the recipe of one backbone.

    The file has ``features`` (n, d) float32, ``label`` (n,) int64, ``class_names`` (K,),
    ``key`` (n, 32) uint8, ``path``, ``group``, ``domain`` and ``split`` (n,) UTF-8 text,
    and the recipe's fields as root attributes. The label of a target without labels is -1.
    It is built in memory and put in place whole, with its SHA-256 beside it; HDF5 1.10 tools
    read it.

    Returns:
        Number of rows.

    Raises:
        StudyError: The study has several backbones and none is named; or the output is
            something else than an older export.
        MissingFeaturesError: Stage 1 has not been run.
        WriteFailedError: The disk refused.
    """
    _check_output(output)
    choice = choose_backbone(study, backbone)
    samples, _ = load_samples(study, options)
    joined = load_features(study, choice, samples)
    write_file(output, _to_bytes(study, joined))
    return len(joined.samples)


def _check_output(output: Path) -> None:
    """Only an older export may be written over."""
    if output.is_file() and h5py.is_hdf5(output):
        with h5py.File(output) as file:
            if "export_format" in file.attrs:
                return
    if output.exists():
        raise StudyError(f"{output} exists and is no export of headrace: choose another name")


def _to_bytes(study: Study, joined: FeatureTable) -> bytes:
    samples = joined.samples
    text: dict[str, Any] = {
        "class_names": samples.classes,
        "path": [item.path for item in samples.items],
        "group": samples.group,
        "domain": samples.domain,
        "split": samples.split,
    }
    with h5py.File.in_memory(libver=("earliest", "v108")) as file:
        file["features"] = joined.X
        file["label"] = samples.label
        file["key"] = np.frombuffer(b"".join(samples.key), np.uint8).reshape(len(samples), -1)
        for name, values in text.items():
            file.create_dataset(
                name, data=[printable(str(v)) for v in values], dtype=h5py.string_dtype()
            )
        for name, value in joined.stores[0].recipe.to_json().items():
            file.attrs[name] = canonical(value) if name == "preprocessing" else value
        file.attrs["fingerprint"] = joined.stores[0].recipe.fingerprint
        file.attrs["study"] = study.name
        file.attrs["export_format"] = EXPORT_FORMAT
        file.flush()
        image: bytes = file.id.get_file_image()
    return image
