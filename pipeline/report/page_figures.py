"""The figures that stages have drawn, with what each shows in words."""

import base64
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from pipeline.report.blocks import Picture
from pipeline.words import as_file_name

FOLDER = "figures"
#: Figures are drawn for a page of paper; on a screen an inch takes a little more room.
_PIXELS_PER_INCH = 115
_POINTS_PER_INCH = 72
_PAGE = 7.2
_KINDS = MappingProxyType({".svg": "image/svg+xml", ".png": "image/png"})

#: By name: what it shows, and how it is to be read. ``{what}`` stands for what is compared,
#: ``{where}`` for the places, ``{everywhere}`` for those and the targets without labels,
#: ``{divided}`` for those that have subgroups; a figure that is not here is not on the page.
FIGURES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "heads-forest": (
            "Accuracy of {what} with 95 % intervals on {where}",
            "Best validation first, in one order everywhere; pale dots are single seeds.",
        ),
        "heads-roc": (
            "ROC curves of the best heads on {where}",
            "The area under each curve stands beside its name.",
        ),
        "heads-reliability": (
            "Observed frequency against foretold probability of the best heads on {where}",
            "The diagonal is right; the number is what miscalibration adds to the Brier score.",
        ),
        "heads-confusion": (
            "Counts of images by true and called class of the best heads on {where}",
            "True class by row, called class by column; shades are shares of the row.",
        ),
        "heads-time": (
            "Accuracy of {what} against the time to fit on {where}",
            "Seconds on a logarithmic scale, all seeds of a head together.",
        ),
        "heads-curves": (
            "Loss and accuracy by epoch of heads that have epochs",
            "The band spans the seeds.",
        ),
        "heads-path": (
            "Log loss on inner folds along the penalty",
            "The orange dot was chosen, by patients of the fit split alone.",
        ),
        "finetune-forest": (
            "Accuracy of {what} with 95 % intervals on {where}",
            "lp is the frozen backbone with a trained head.",
        ),
        "finetune-curves": (
            "Loss and accuracy by epoch of {what}",
            "The fit split is measured as it is trained, with dropout.",
        ),
        "finetune-time": (
            "Accuracy of {what} against the time to train on {where}",
            "On a logarithmic scale; lp and last_block read the store.",
        ),
        "finetune-alpha": (
            "Accuracy on the line from the linear probe to the fine-tuned network on {where}",
            "Alpha is the share of the fine-tuned network; validation chose the dashed line.",
        ),
        "shift-waterfall": (
            "Errors by role and the steps between them, source to {where}",
            "Lines are 95 % intervals by patient, dotted ones with the head refitted.",
        ),
        "shift-stacks": (
            "The loss from the source to {where} split in several ways",
            "Each bar is the same loss, in points of error.",
        ),
        "shift-null": (
            "Statistics of tests between the source and {everywhere} against relabelled patients",
            "Orange: observed; grey: what relabelling patients gives. Bold: primary tests.",
        ),
        "shift-map": (
            "Features of the source and of {where} on two principal components",
            "Hospitals that are apart here need not be apart in what matters for the label.",
        ),
        "shift-scores": (
            "Densities of the score by class on the source and on {where}",
            "Source above the line, target below it, on a logit scale.",
        ),
        "shift-reliability": (
            "Observed frequency against foretold probability on the source and on {where}",
            "The diagonal is right; the number is what miscalibration adds to the Brier score.",
        ),
        "shift-roc": (
            "ROC curves of the source and of {where} with thresholds carried over",
            "Marks: thresholds chosen on the source, and where they end on the target.",
        ),
        "shift-forecast": (
            "Accuracy on {everywhere} as foretold without labels, and the truth where it is known",
            "Its bands are named at the foot; read the caveats before believing any estimate.",
        ),
        "shift-fixes": (
            "Points of accuracy that each fix gains on {where}, with 95 % intervals",
            "Shaded: fixes that use labels of the target.",
        ),
        "shift-subgroups": (
            "How well the head does in each subgroup of {divided}",
            "The intervals hold for all groups of an attribute at once.",
        ),
    }
)


def pictures(
    results: Path, stage: str, backbone: str, fields: Mapping[str, str]
) -> Iterator[Picture]:
    """The figures of a stage and a backbone that are there, in the order of the table.

    Args:
        results: Of the study.
        stage: Begins the figures' names.
        backbone: Ends them.
        fields: Values of what stands in braces above, for this stage.
    """
    for name, file in drawn(results, stage, backbone):
        shows, reading = FIGURES[name]
        text = shows.format(**fields)
        data = file.read_bytes()
        yield Picture(
            source=f"data:{_KINDS[file.suffix]};base64,{base64.b64encode(data).decode()}",
            width=round(_inches(data, file.suffix) * _PIXELS_PER_INCH),
            alt=f"{text} ({backbone}).",
            caption=f"{text}. {reading}",
        )


def drawn(results: Path, stage: str, backbone: str) -> Iterator[tuple[str, Path]]:
    """Name and file of each figure that is there; of PNG and SVG, the smaller."""
    for name in FIGURES:
        stem = f"{name}-{as_file_name(backbone)}"
        files = [results / FOLDER / (stem + kind) for kind in _KINDS]
        here = [file for file in files if file.is_file()]
        if name.startswith(f"{stage}-") and here:
            yield name, min(here, key=lambda file: file.stat().st_size)


def _inches(data: bytes, kind: str) -> float:
    """Width of what matplotlib has written; where it does not say, that of a page's text."""
    if kind == ".svg":
        points = re.search(rb'<svg[^>]* width="([\d.]+)pt"', data[:4096])
        return float(points[1]) / _POINTS_PER_INCH if points else _PAGE
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        dots = image.info.get("dpi", (0, 0))[0]
        return float(image.width / dots) if dots else _PAGE
