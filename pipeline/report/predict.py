"""What a saved head predicts for new images."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.features import skipped
from pipeline.report.table import Column, Part, Table
from pipeline.words import counted, percent

_PATH_WIDTH = 60


def tables(record: Mapping[str, Any]) -> list[Part]:
    """The parts of a report on what ``headrace predict --json`` prints."""
    rows = record["rows"]
    table = Table(
        title="",
        columns=(
            Column("image"),
            Column("predicted"),
            Column("probability", "share"),
        ),
        rows=tuple((_end(r["path"]), r["predicted"], max(r["probability"])) for r in rows),
    )
    return [table, *skipped(record["skipped"], "the output of --json"), *_sentences(record)]


def predictions(record: Mapping[str, Any]) -> Table:
    """Every image with the probability of each class, for ``--csv``."""
    return Table(
        title="",
        columns=(
            *(Column(name) for name in ("path", "key", "predicted")),
            *(Column(name, "share") for name in record["classes"]),
        ),
        rows=tuple(
            (r["path"], r["key"], r["predicted"], *r["probability"]) for r in record["rows"]
        ),
        key="predictions",
    )


def _sentences(record: Mapping[str, Any]) -> list[str]:
    stored = max(len(record["rows"]) - record["computed"], 0)
    head = (
        f"Head {record['head']} on {record['backbone']}, fitted on "
        f"{counted(record['images'], 'image')} of {record['study']}. "
        f"{counted(record['computed'], 'image')} computed, {stored} from the store."
    )
    private = "The model file holds features of its training images: treat it as patient data."
    return [
        *_accuracy(record["class_folders"]),
        head,
        *([private] if record["contains_training_features"] else []),
        "Research software, not a medical device: no diagnosis may rest on this.",
    ]


def _accuracy(folders: Mapping[str, Mapping[str, int]]) -> list[str]:
    """How many images in folders of classes are predicted rightly."""
    images, right = (sum(one[what] for one in folders.values()) for what in ("images", "right"))
    if not images:
        return []
    each = (f"{name} {one['right']} of {one['images']}" for name, one in folders.items())
    by_class = ", ".join(each)
    return [f"Right by folder: {right} of {images} ({percent(right / images)}); {by_class}."]


def _end(path: str) -> str:
    """The end of a long path tells two images apart."""
    return path if len(path) <= _PATH_WIDTH else "..." + path[3 - _PATH_WIDTH :]
