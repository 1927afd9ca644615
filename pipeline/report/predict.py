"""What a saved head predicts for new images."""

from collections.abc import Mapping

from pipeline.report.features import skipped
from pipeline.report.table import Column, Part, Record, Table
from pipeline.words import counted, percent


def tables(record: Record) -> list[Part]:
    """The parts of a report on what ``headrace predict --json`` prints."""
    rows = [{**row, "probability": max(row["probability"])} for row in record["rows"]]
    columns = (Column("image", field="path"), Column("predicted"), Column("probability", "share"))
    more = skipped(record["skipped"], "the output of --json")
    return [Table("", columns, rows), *more, *_sentences(record)]


def predictions(record: Record) -> Table:
    """Every image with the study of the head and the probability of each class, for ``--csv``."""
    names = ("path", "key", "predicted")
    fields = [f"probability of {name}" for name in record["classes"]]
    columns = (
        *map(Column, names),
        *(Column(c, "share", field=f) for c, f in zip(record["classes"], fields, strict=True)),
    )
    rows = [{**row, **dict(zip(fields, row["probability"], strict=True))} for row in record["rows"]]
    return Table("", columns, rows, about={"study": record["study"]})


def exported(card: Record) -> list[str]:
    """What ``headrace export`` says: how near the file is to the model, and its limits."""
    largest = card["compared"]["largest_difference"]
    lines = [f"Probabilities differ from the model's by {largest:.0e} at most."]
    for metric, name in (("accuracy", "Accuracy"), ("auroc", "AUROC")):
        if both := card.get("int8", {}).get(metric):
            values = f"{both['float32']:.3f}, with 8 bits {both['int8']:.3f}"
            lines.append(f"{name} on validation: {values}.")
    return [*lines, *card["limits"]]


def _sentences(record: Record) -> list[str]:
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
    images, right = (sum(c[what] for c in folders.values()) for what in ("images", "right"))
    if not images:
        return []
    by_class = ", ".join(f"{name} {c['right']} of {c['images']}" for name, c in folders.items())
    return [f"Right by folder: {right} of {images} ({percent(right / images)}); {by_class}."]
