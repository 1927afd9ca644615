"""How many near copies an audit finds, and how many strangers it takes for some.

Copies of generated X-rays, or of those in a folder, one of each patient:
``python -m tests.data.copies [FOLDER [PATIENT PATTERN]]`` prints the table of the audit's README.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.images import Content
from pipeline.data.index import facts_of
from pipeline.data.near_copies import find_near_copies
from pipeline.data.patients import patient_of
from pipeline.demo import CLASSES, Hospital, Patient, chest, expose
from tests.audit_worlds import COPIES

STRANGERS, COPIED, SIDE = 2000, 200, 224


def generated(count: int) -> list[Image.Image]:
    """X-rays of as many patients."""
    patients = [Patient(name=f"p{i}", label=CLASSES[i % len(CLASSES)]) for i in range(count)]
    films = (expose(chest(one), one, Hospital(), size=SIDE) for one in patients)
    return [Image.fromarray(film) for film in films]


def of_folder(folder: Path, pattern: str | None) -> list[Image.Image]:
    """The first image of each patient, by file name."""
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    one_each = {patient_of(file.name, pattern) or str(file): file for file in files}
    return [Image.open(file).convert("L") for file in one_each.values()]


def small(pictures):
    """Small pictures, ``(n, SMALL, SMALL)``."""
    return np.stack([facts_of(Content(np.asarray(one.convert("L"))))["small"] for one in pictures])


def main(pictures: list[Image.Image]) -> None:
    """Print false alarms, and the recall of each kind of copy."""
    of_all, n = small(pictures), len(pictures)
    group = np.array([str(i) for i in range(n)])
    role = np.where(np.random.default_rng(0).random(n) < 0.5, "fit", "target")
    false = find_near_copies(of_all, role, group)
    print(f"{n} images of different patients: {len(false)} pairs named")
    copied = np.random.default_rng(1).choice(n, min(n, COPIED), replace=False)
    for how, copy in COPIES.items():
        copies = small([copy(pictures[k]) for k in copied])
        roles = np.repeat(["fit", "target"], [n, len(copied)])
        pairs = find_near_copies(
            np.concatenate([of_all, copies]), roles, np.r_[group, group[copied]]
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
