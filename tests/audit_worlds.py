"""A study of smooth pictures, some of them copied from the source to the target."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.stage import SAMPLES
from pipeline.data.images import PixelPolicy
from pipeline.data.index import FactsIndex
from pipeline.data.leaks import Finding, NearPair, check_near_copies
from pipeline.data.samples import Samples, load_samples
from pipeline.data.sources import read_image
from pipeline.progress import Progress
from pipeline.study import load_study


def smooth_study(folder: Path, copies=()) -> Path:
    """240 smooth pictures in the source, 160 in the target.

    Args:
        folder: Gets the images and the study file.
        copies: (number in the source, number in the target, shift in pixels) of each copy.
    """
    rng = np.random.default_rng(5)
    pictures = {}
    for name, count in (("here", 240), ("there", 160)):
        for i in range(count):
            coarse = rng.uniform(0, 255, (9, 9)).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
            pictures[name, i] = picture
    for of_here, of_there, shift in copies:
        moved = pictures["here", of_here].transform((96, 96), 0, (1, 0, shift, 0, 1, 0))
        pictures["there", of_there] = moved
    for (name, i), picture in pictures.items():
        file = folder / name / "ab"[i % 2] / f"p{name[0]}{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    study = folder / "study.toml"
    study.write_text(
        "name = 'smooth'\n[source]\npath = 'here'\ngroup = '^(p\\w+)'\n"
        "[target.there]\npath = 'there'\ngroup = '^(p\\w+)'\n"
        "[backbone.tiny]\n[store]\npath = 'features'\n"
    )
    return study


def facts_of(study_file: Path, samples: Samples) -> NDArray[Any]:
    """Facts of all samples, measured beside the study."""
    index = FactsIndex(study_file.parent)
    with Progress("facts") as progress:
        assert index.measure(samples.key, samples.items, progress) == {}
    return index.facts(samples.key)


def coarse_pixels(samples: Samples) -> NDArray[np.float32]:
    """12 x 12 grey pixels of each image, which stand in for its features."""
    policy = PixelPolicy(size=12)
    rows = [read_image(item).pixels(policy)[..., 0].ravel() for item in samples.items]
    return np.stack(rows).astype(np.float32)


def near_copies_of(study_file: Path) -> tuple[Samples, tuple[NearPair, ...], list[Finding]]:
    """Samples of a study, the near copies among them by their coarse pixels, and findings."""
    samples, _ = load_samples(load_study(study_file), SAMPLES)
    facts = facts_of(study_file, samples)
    return samples, *check_near_copies(samples, coarse_pixels(samples), facts)
