"""Copies of pictures: studies in which they are planted, and how many an audit finds.

Copies of generated X-rays, or of those in a folder, one of each patient:
``python -m tests.data.copies [FOLDER [PATIENT PATTERN]]`` prints the table of the audit's README.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.images import Content
from pipeline.data.index import MeasureIndex, measures_of
from pipeline.data.near_duplicates import find_duplicates
from pipeline.data.patients import text_in_path
from pipeline.data.samples import Samples
from pipeline.demo import CLASSES, Hospital, Patient, chest, expose
from pipeline.progress import Progress

STRANGERS, COPIED, SIDE = 2000, 200, 224


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


def measures_of_samples(study_file: Path, samples: Samples) -> NDArray[Any]:
    """Measures of all samples, measured beside the study."""
    index = MeasureIndex(study_file.parent)
    with Progress("measures") as progress:
        assert index.measure(samples.key, samples.items, progress) == {}
    return index.records(samples.key)


def generated(count: int) -> list[Image.Image]:
    """X-rays of as many patients."""
    patients = [Patient(name=f"p{i}", label=CLASSES[i % len(CLASSES)]) for i in range(count)]
    films = (expose(chest(one), one, Hospital(), size=SIDE) for one in patients)
    return [Image.fromarray(film) for film in films]


def of_folder(folder: Path, pattern: str | None) -> list[Image.Image]:
    """The first image of each patient, by file name."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    one_each = {text_in_path(file.name, pattern) or str(file): file for file in files}
    return [Image.open(file).convert("L") for file in one_each.values()]


def small(pictures):
    """Small pictures, ``(n, SMALL, SMALL)``."""
    greys = (np.asarray(one.convert("L")) for one in pictures)
    return np.stack([measures_of(Content(grey))["small"] for grey in greys])


def main(pictures: list[Image.Image]) -> None:
    """Print false alarms, and the recall of each kind of copy."""
    of_all, n = small(pictures), len(pictures)
    group = np.array([str(i) for i in range(n)])
    split = np.where(np.random.default_rng(0).random(n) < 0.5, "fit", "target")
    false = find_duplicates(of_all, split, group)
    print(f"{n} images of different patients: {len(false)} pairs named")
    copied = np.random.default_rng(1).choice(n, min(n, COPIED), replace=False)
    for how, copy in COPIES.items():
        copies = small([copy(pictures[k]) for k in copied])
        splits = np.repeat(["fit", "target"], [n, len(copied)])
        pairs = find_duplicates(
            np.concatenate([of_all, copies]), splits, np.r_[group, group[copied]]
        )
        wanted = {(int(k), n + i) for i, k in enumerate(copied)}
        hit = {pair.rows for pair in pairs} & wanted
        print(f"{how}: {len(hit)} of {len(wanted)}, {len(pairs) - len(hit)} others", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        of_folder(Path(given[0]), given[1] if given[1:] else None)
        if given
        else generated(STRANGERS)
    )
