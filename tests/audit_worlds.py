"""A study of smooth pictures, some of them copied from the source to the target."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.index import FactsIndex
from pipeline.data.samples import Samples
from pipeline.progress import Progress


def recompressed(picture: Image.Image) -> Image.Image:
    """As JPEG of a low quality."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=30)
    return Image.open(stream)


#: How one picture is made from another.
COPIES: Mapping[str, Any] = MappingProxyType(
    {
        "scaled by 1/2": lambda p: p.resize((p.width // 2, p.height // 2)),
        "scaled by 2": lambda p: p.resize((p.width * 2, p.height * 2)),
        "recompressed": recompressed,
        "brightened": lambda p: ImageEnhance.Brightness(p).enhance(1.3),
        "darkened": lambda p: ImageEnhance.Brightness(p).enhance(0.6),
        "gamma 0.7": lambda p: p.point([round(255 * (i / 255) ** 0.7) for i in range(256)]),
        "mirrored": ImageOps.mirror,
        "cropped by 5 %": lambda p: ImageOps.crop(p, round(0.025 * p.width)),
        "cropped by 10 %": lambda p: ImageOps.crop(p, round(0.05 * p.width)),
    }
)


def smooth_picture(rng: np.random.Generator, size: int = 96) -> Image.Image:
    """A picture of a patient of its own."""
    coarse = rng.uniform(0, 255, (12, 12)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def smooth_study(folder: Path, copies=()) -> Path:
    """120 smooth pictures in the source, 80 in the target.

    Args:
        folder: Gets the images and the study file.
        copies: (number in the source, number in the target, an entry of ``COPIES``).
    """
    rng = np.random.default_rng(5)
    counts = {"here": 120, "there": 80}
    pictures = {(name, i): smooth_picture(rng) for name, n in counts.items() for i in range(n)}
    for of_here, of_there, how in copies:
        pictures["there", of_there] = COPIES[how](pictures["here", of_here])
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
