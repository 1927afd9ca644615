"""What is in the stores and on this machine: ``headrace cache ls``, ``verify`` and ``doctor``."""

import importlib.util
import os
import platform
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import StoreFormatError
from cache.recipe import CANARY_TOLERANCE, Recipe, check_canaries, relative_l2_rows
from cache.store import FeatureStore, quarantined, stores_in
from pipeline.data.samples import load_samples
from pipeline.errors import CheckFailedError, MissingFeaturesError, PartsError, go_on
from pipeline.features.backbones import BACKBONES, policy_of
from pipeline.features.decoding import decode_images
from pipeline.features.engines import CPU_BATCH, Engine, EngineChoice, start_engine
from pipeline.features.extract import canary_features, compute_features
from pipeline.features.load import frozen_network, store_for
from pipeline.study import BackboneChoice, Study
from pipeline.words import are, counted

#: On CPUs. Rounding of one network in one engine with another batch size stays below 2e-6.
_SAMPLE_TOLERANCE = 1e-5
_PACKAGES = (
    *("headrace", "torch", "torchvision", "openvino", "timm"),
    *("h5py", "scikit-learn", "pillow"),
)


def describe(root: Path) -> list[dict[str, Any]]:
    """Read every store under a folder; a row for each line of ``headrace cache ls``.

    Returns:
        Its name, what it holds, ``precision``, ``rows``, ``parts``, ``size`` in bytes,
        ``quarantined`` parts, and ``error``, why it cannot be read.
    """
    return [_described(name, store) for name, store in stores_in(root).items()]


def _described(name: str, store: FeatureStore | StoreFormatError) -> dict[str, Any]:
    if isinstance(store, StoreFormatError):
        nothing = {"backbone": "", "holds": "", "precision": "", "rows": 0, "parts": 0, "size": 0}
        return {"store": name, **nothing, "quarantined": 0, "error": str(store)}
    store.scan()
    return {
        "store": name,
        "backbone": store.recipe.backbone,
        "holds": _holds(store.recipe),
        "precision": store.recipe.precision,
        "rows": len(store),
        "parts": len(store.parts),
        "size": sum(part.size for part in store.parts.values()),
        "quarantined": len(quarantined(store)),
        "error": "",
    }


def verify_stores(root: Path) -> list[str]:
    """Check every byte of every store; a line for each.

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
    """Compute so many stored images of a study again, and compare.

    Args:
        study: Knows where the images are.
        sample: How many, for each backbone.
        choice: Engine for that; its batch size is changed on purpose.

    Returns:
        Lines that say what was compared and how far apart it was.

    Raises:
        PartsError: Of some backbones a feature differs by more than 1e-5, or than
            ``CANARY_TOLERANCE`` where a GPU computed or the precision is not fp32.
    """
    lines: list[str] = []
    failures: dict[str, Exception] = {}
    for backbone in study.backbones:
        with go_on(backbone.name, failures):
            lines.append(_recomputed(study, backbone, sample, choice))
    if failures:
        raise PartsError(failures, {"checks": lines})
    return lines


def _holds(recipe: Recipe) -> str:
    if recipe.pooling == "none":
        return f"activations {recipe.cut}"
    mask, views = recipe.preprocessing.get("mask"), recipe.preprocessing.get("views")
    of_views = f", {len(views)} views" if views else ""
    return f"features, mask {mask}" if mask else f"features{of_views}"


def _recomputed(study: Study, backbone: BackboneChoice, sample: int, choice: EngineChoice) -> str:
    store = store_for(study, backbone)
    samples, _ = load_samples(study)
    stored = {k: i for k, i in zip(samples.key, samples.items, strict=True) if k in store}
    if not stored:
        raise MissingFeaturesError(f"{store.path} holds no image of the study: run features first")
    keys = list(stored)
    rng = np.random.default_rng(study.seed)
    picked = [keys[i] for i in rng.permutation(len(keys))[:sample]]

    policy = policy_of(backbone)
    other = replace(choice, batch_size=choice.batch_size or CPU_BATCH * 2 - 1)
    network = partial(frozen_network, backbone, store.recipe)
    with closing(start_engine(network, other, backbone.precision)) as engine:
        canaries = canary_features(engine, policy)
        check_canaries(store.path, store.recipe, canaries, provenance=engine.provenance())
        unusable: dict[bytes, str] = {}
        images = decode_images({key: stored[key] for key in picked}, policy, unusable)
        pairs = dict(compute_features(images, engine))
    for key, reason in unusable.items():
        raise CheckFailedError(
            f"{store.path.name}: {len(unusable)} of {counted(len(picked), 'image')} could not be "
            f"compared; first: {stored[key].path}: {reason}"
        )
    distance = relative_l2_rows(np.stack(list(pairs.values())), store.read(pairs))
    line = (
        f"{store.path.name}: {counted(len(pairs), 'image')} recomputed ({engine.description}): "
        f"relative L2 median {np.median(distance):.1e}, largest {distance.max():.1e}"
    )
    exact = backbone.precision == "fp32" and not _saw_a_gpu(store, engine)
    allowed = _SAMPLE_TOLERANCE if exact else CANARY_TOLERANCE[backbone.precision]
    if distance.max() > allowed:
        worst = stored[list(pairs)[int(distance.argmax())]].path
        raise CheckFailedError(f"{line}, allowed {allowed:.0e}; worst: {worst}")
    return line


def _saw_a_gpu(store: FeatureStore, engine: Engine) -> bool:
    """Whether one of the two computed on CUDA, which adds in another order."""
    made_on = [part.provenance for part in store.parts.values()]
    return any("cuda" in text for text in (engine.description, *made_on))


def describe_machine(store: Path) -> dict[str, str]:
    """What a bug report needs to know: versions, devices, engines, the stores' folder, weights."""
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
