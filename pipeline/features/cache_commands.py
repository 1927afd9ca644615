"""The commands ``headrace cache`` and ``headrace doctor``: stores, and this machine."""

import importlib.util
import os
import platform
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.errors import StoreFormatError
from cache.maintenance import quarantined
from cache.recipe import CANARY_TOLERANCE, Recipe, canonical, check_canaries, relative_l2
from cache.store import stores_in
from pipeline.data.samples import ALL_IMAGES, SampleOptions, load_samples
from pipeline.errors import (
    CheckFailedError,
    MissingFeaturesError,
    PartialFailureError,
    StudyError,
    record_failure,
)
from pipeline.features.backbones import BACKBONES, transform_of
from pipeline.features.decoding import decode_images
from pipeline.features.engines import (
    CPU_BATCH,
    EngineChoice,
    canary_features,
    compute_features,
    start_engine,
)
from pipeline.features.load import choose_backbone, frozen_network, load_features, store_for
from pipeline.results import write_file
from pipeline.study import BackboneChoice, Study
from pipeline.words import are, counted, printable

_EXPORT_FORMAT = 1
#: Tolerance on CPUs: rounding with another batch size stays below 2e-6 in one engine.
_SAMPLE_TOLERANCE = 1e-5
_PACKAGES = (
    *("headrace", "torch", "torchvision", "openvino", "timm"),
    *("h5py", "scikit-learn", "pillow"),
)


def describe(root: Path) -> list[dict[str, Any]]:
    """Read every store in a folder; returns a row for each line of ``headrace cache ls``.

    Returns:
        For each store its name, what it holds, ``precision``, ``rows``, ``parts``, ``size`` in
        bytes, ``quarantined`` parts, and ``error``, the reason why it cannot be read.
    """
    listed = []
    for name, store in stores_in(root).items():
        row = dict.fromkeys(("backbone", "holds", "precision", "error"), "")
        counts = dict.fromkeys(("rows", "parts", "size", "quarantined"), 0)
        if isinstance(store, StoreFormatError):
            row["error"] = str(store)
        else:
            store.scan()
            recipe, parts = store.recipe, store.parts.values()
            row |= {"backbone": recipe.backbone, "precision": recipe.precision}
            row["holds"] = _holds(recipe)
            counts |= {"rows": len(store), "parts": len(parts), "size": sum(p.size for p in parts)}
            counts["quarantined"] = len(quarantined(store))
        listed.append({"store": name, **row, **counts})
    return listed


def _holds(recipe: Recipe) -> str:
    if recipe.pooling == "none":
        return f"activations {recipe.cut}"
    mask, views = recipe.preprocessing.get("mask"), recipe.preprocessing.get("views")
    of_views = f", {len(views)} views" if views else ""
    return f"features, mask {mask}" if mask else f"features{of_views}"


def verify_stores(root: Path) -> list[str]:
    """Check every byte of every store; returns a line for each.

    Raises:
        CheckFailedError: Parts are damaged; they have been set aside.
    """
    lines, faults = [], []
    for name, store in stores_in(root).items():
        if isinstance(store, StoreFormatError):
            faults.append(f"{name}: {store}")
            continue
        store.scan()
        if count := len(store.damaged):
            faults.append(
                f"{store.path}: {counted(count, 'part')} {are(count)} damaged or cannot be read "
                f"({'; '.join(store.damaged.values())}). Run headrace features to compute their "
                "rows"
            )
            continue
        aside = len(quarantined(store))
        earlier = f"; {aside} damaged ones were set aside earlier" if aside else ""
        parts = counted(len(store.parts), "part")
        lines.append(
            f"{name}: {counted(len(store), 'row')} in {parts}, every byte checked{earlier}"
        )
    if faults:
        raise CheckFailedError("; ".join([*faults, *lines]))
    return lines or [f"no stores in {root}"]


def recompute(study: Study, sample: int, choice: EngineChoice) -> list[str]:
    """Compute features of some stored images again, and compare.

    Args:
        study: The study with the images.
        sample: Number of images for each backbone.
        choice: Engine for that; its batch size is changed on purpose.

    Returns:
        Lines that say what was compared, and how large the differences are.

    Raises:
        PartialFailureError: For some backbones a feature differs by more than 1e-5, or by more than
            ``CANARY_TOLERANCE`` if a GPU computed it or the precision is not fp32.
    """
    lines: list[str] = []
    failures: dict[str, Exception] = {}
    for backbone in study.backbones:
        with record_failure(backbone.name, failures):
            lines.append(_recomputed(study, backbone, sample, choice))
    if failures:
        raise PartialFailureError(failures, {"checks": lines})
    return lines


def _recomputed(study: Study, backbone: BackboneChoice, sample: int, choice: EngineChoice) -> str:
    store = store_for(study.store_root, backbone)
    samples, _ = load_samples(study, ALL_IMAGES)
    stored = {k: i for k, i in zip(samples.key, samples.items, strict=True) if k in store}
    if not stored:
        raise MissingFeaturesError(f"{store.path} holds no image of the study: run features first")
    keys = list(stored)
    rng = np.random.default_rng(study.seed)
    picked = {keys[i]: stored[keys[i]] for i in rng.permutation(len(keys))[:sample]}

    transform = transform_of(backbone)
    other = replace(choice, batch_size=choice.batch_size or CPU_BATCH * 2 - 1)
    network = partial(frozen_network, backbone, store.recipe)
    with closing(start_engine(network, other, backbone.precision)) as engine:
        canaries = canary_features(engine, transform)
        check_canaries(store.path, store.recipe, canaries, provenance=engine.provenance())
        unusable: dict[bytes, str] = {}
        pairs = dict(compute_features(decode_images(picked, transform, unusable), engine))
    for key, reason in unusable.items():
        raise CheckFailedError(
            f"{store.path.name}: {len(unusable)} of {counted(len(picked), 'image')} could not be "
            f"compared; first: {stored[key].path}: {reason}"
        )
    distance = relative_l2(np.stack(list(pairs.values())), store.read(pairs))
    line = (
        f"{store.path.name}: {counted(len(pairs), 'image')} recomputed ({engine.description}): "
        f"relative L2 median {np.median(distance):.1e}, largest {distance.max():.1e}"
    )
    # CUDA, then or now, adds in another order.
    devices = (engine.description, *(part.provenance for part in store.parts.values()))
    exact = backbone.precision == "fp32" and not any("cuda" in text for text in devices)
    allowed = _SAMPLE_TOLERANCE if exact else CANARY_TOLERANCE[backbone.precision]
    if distance.max() > allowed:
        worst = stored[list(pairs)[int(distance.argmax())]].path
        raise CheckFailedError(f"{line}, allowed {allowed:.0e}; worst: {worst}")
    return line


def export_study(
    study: Study, backbone: str | None, output: Path, options: SampleOptions | None = None
) -> int:
    """Write features, labels, patients, splits and the recipe of one backbone as one HDF5 file.

    It has ``features`` (n, d) float32, ``label`` (n,) int64, ``class_names`` (K,),
    ``key`` (n, 32) uint8, ``path``, ``group``, ``domain`` and ``split`` (n,) UTF-8 text,
    and the recipe's fields as root attributes. The label of a target without labels is -1.
    The file is built in memory and written whole, with its SHA-256 beside it. HDF5 1.10 tools
    can read it.

    Returns:
        Number of rows.

    Raises:
        StudyError: The study has several backbones and none is named; or the output exists and
            is not an older export.
        MissingFeaturesError: Stage 1 has not been run.
        WriteFailedError: The disk refused.
    """
    if output.exists() and not _is_export(output):
        raise StudyError(f"{output} exists and is not an export of headrace: choose another name")
    choice = choose_backbone(study, backbone)
    samples, _ = load_samples(study, options)
    table = load_features(study, choice, samples)
    samples, recipe = table.samples, table.stores[0].recipe
    text = {
        "class_names": samples.classes,
        "path": [item.path for item in samples.items],
        **{name: getattr(samples, name) for name in ("group", "domain", "split")},
    }
    with h5py.File.in_memory(libver=("earliest", "v108")) as file:
        file["features"] = table.X
        file["label"] = samples.label
        file["key"] = np.frombuffer(b"".join(samples.key), np.uint8).reshape(len(samples), -1)
        for name, values in text.items():
            spelled = [printable(str(value)) for value in values]
            file.create_dataset(name, data=spelled, dtype=h5py.string_dtype())
        for name, value in recipe.to_json().items():
            file.attrs[name] = canonical(value) if name == "preprocessing" else value
        file.attrs["fingerprint"] = recipe.fingerprint
        file.attrs["study"] = study.name
        file.attrs["export_format"] = _EXPORT_FORMAT
        file.flush()
        image: bytes = file.id.get_file_image()
    write_file(output, image)
    return len(samples)


def _is_export(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return "export_format" in file.attrs


def describe_machine(store: Path) -> dict[str, str]:
    """Facts for a bug report: versions, devices, engines, the folder of the stores, weights."""
    import torch

    weights = {
        f"weights of {name}": str(
            spec.pretrained(download=False) or "not found; downloaded when needed"
        )
        for name, spec in BACKBONES.items()
    }
    return {
        "python": platform.python_version(),
        "cpu": f"{os.cpu_count()} cores",
        **{package: _version(package) for package in _PACKAGES},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "engine": "openvino" if importlib.util.find_spec("openvino") else "torch",
        "stores": str(store.resolve()),
        **weights,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
