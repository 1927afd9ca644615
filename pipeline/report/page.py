"""The page ``report.html``: what the stages of a study found, in one file.

It is made of the records alone: nothing is computed but the figure on its first screen,
nothing is loaded from elsewhere, no script runs in it. The same files give the same page.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import MissingResultsError, ResultsError
from pipeline.evaluation.predictions import read_predictions
from pipeline.report import parts_of
from pipeline.report.figures import PNG_DOTS, PROBABILITIES, backbones_of, drawn
from pipeline.report.table import Column, Detail, Heading, Part, Table, to_html
from pipeline.results import ResultSet, read_set, write_file
from pipeline.study import Study
from pipeline.words import printable

PAGE = "report.html"
#: By command: the file it writes, the version of its layout that is read here, the title of
#: its section; in the order in which the stages are run.
STAGES: Mapping[str, tuple[str, int | None, str]] = MappingProxyType(
    {
        "features": ("features.json", None, "Stored features"),
        "audit": ("audit.json", 4, "Leaks and shortcuts"),
        "heads": ("heads.json", 6, "Heads on frozen features"),
        "finetune": ("finetune.json", 4, "Frozen and fine-tuned networks"),
        "shift": ("shift.json", 7, "From the source to the targets"),
    }
)
#: In the order of the page.
_SECTIONS = ("heads", "finetune", "shift", "audit", "features")
#: Figures are drawn for a page of paper; on a screen an inch takes a little more room.
_PIXELS_PER_INCH, _PAGE_WIDTH = 118, 850
_MIME = MappingProxyType({".svg": "image/svg+xml", ".png": "image/png"})


@dataclass(frozen=True, kw_only=True)
class Page:
    """What was written.

    Attributes:
        file: The page.
        size: In bytes.
        stages: Whose records are on it.
        missing: A line for each stage that is not on it.
        stale: Signs that records do not belong together; the page begins with them.
    """

    study: str
    file: Path
    size: int
    stages: tuple[str, ...]
    missing: tuple[str, ...]
    stale: tuple[str, ...]


def write_page(study: Study) -> Page:
    """Write ``results/<study>/report.html`` from what the stages have left there.

    Raises:
        MissingResultsError: No stage has left a record that can be read.
    """
    results = study.results
    found, parts, missing = _read(results)
    records = {name: one.record for name, one in found.items()}
    stale = tuple(contradictions(study, records))
    sections = [_section(found[name], parts[name]) for name in parts]
    sections.append(_bookkeeping(results, records, missing))
    page = _render(
        study=study.name,
        sentence=headline(parts, records.get("audit")),
        summary=_summary(parts),
        sections=sections,
        stale=stale,
        version=_version(),
    ).encode()
    write_file(results / PAGE, page)
    return Page(
        study=study.name,
        file=results / PAGE,
        size=len(page),
        stages=tuple(name for name in STAGES if name in records),
        missing=missing,
        stale=stale,
    )


Records = dict[str, ResultSet]
Parts = dict[str, list[Part]]


def _read(results: Path) -> tuple[Records, Parts, tuple[str, ...]]:
    """Results and parts by stage, and a line for each stage that has none that can be read."""
    found: Records = {}
    parts: Parts = {}
    missing = []
    for name, (file, layout, _) in STAGES.items():
        try:
            one = read_set(results / file, name)
            one.check()
            if one.record.get("schema") != layout:
                missing.append(f"{file} is of another version; run headrace {name} STUDY again")
                continue
            parts[name], found[name] = parts_of(name, one.record), one
        except MissingResultsError:
            missing.append(f"{name} has not been run; run headrace {name} STUDY")
        except ResultsError as cause:
            missing.append(str(cause))
    if not found:
        raise MissingResultsError(
            f"{results} holds nothing to report: {'; '.join(missing)}. "
            "Start with headrace features STUDY, then headrace heads STUDY"
        )
    return found, {name: parts[name] for name in _SECTIONS if name in parts}, tuple(missing)


# The first screen: one sentence and one figure, both about the head that is best on validation.


def headline(parts: Parts, audit: Mapping[str, Any] | None) -> str:
    """What a study found, in two or three short sentences.

    Args:
        parts: By stage.
        audit: The record of the audit, where there is one.
    """
    sentences = []
    if audit is not None and audit["counts"]["leak"]:
        sentences.append("The audit found a leak: do not trust the numbers on this page.")
    for head, accuracy in list(_models(parts).items())[:1]:
        values = [f"{100 * value[0]:.1f} % on {domain}" for domain, value in accuracy.items()]
        sentences.append(
            f"The best head on validation, {head}, has an accuracy of {_list(values)}."
        )
    regained = [
        f"{100 * value[0]:.1f} points on {table.about['target']}"
        for table in _tables(parts, "shift_effects")
        for effect, value in zip(table.values("effect"), table.values("points lost"), strict=True)
        if effect == "the head does not transfer" and value[1] is not None and value[1] > 0
    ]
    if regained:
        sentences.append(f"A head trained on the target would regain {_list(regained)}.")
    if audit is not None and not audit["counts"]["leak"]:
        sentences.append("No leak was found.")
    return " ".join(sentences) or "No head has been compared yet."


def _models(parts: Parts) -> dict[str, dict[str, Any]]:
    """Accuracy by domain of the best head, the linear one, and the best fine-tuned network."""
    models: dict[str, dict[str, Any]] = {}
    for table in _of_first_backbone(parts, "heads"):
        domain = table.title.split(":")[0]
        rows = [dict(zip(table.names, row, strict=True)) for row in table.rows]
        chosen = [row for row in rows if row["best"]] + [r for r in rows if r["head"] == "linear"]
        for row in chosen:
            models.setdefault(row["head"], {})[domain] = row["accuracy"]
    trained: dict[str, dict[str, Any]] = {}
    for table in _of_first_backbone(parts, "finetune"):
        for name, value in zip(table.values("method"), table.values("accuracy"), strict=True):
            if name != "lp" and value:
                trained.setdefault(name, {})[table.title.split(":")[0]] = value
    if trained:
        best = max(trained, key=lambda name: trained[name].get("validation", (0.0,))[0])
        models[f"{best} (fine-tuned)"] = trained[best]
    return models


def _tables(parts: Parts, key: str) -> list[Table]:
    found = (part for stage in parts.values() for part in stage if isinstance(part, Table))
    return [table for table in found if table.key == key and table.rows]


def _of_first_backbone(parts: Parts, key: str) -> list[Table]:
    found = _tables(parts, key)
    return [table for table in found if table.about["backbone"] == found[0].about["backbone"]]


def _list(values: Sequence[str]) -> str:
    return " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def _summary(parts: Parts) -> dict[str, Any] | None:
    models = _models(parts)
    if not models:
        return None
    from pipeline.report.figures.forest import summary
    from pipeline.report.figures.style import image_bytes, styled

    image = image_bytes(styled(summary)(models), "svg")
    caption = (
        f"Accuracy by domain of {_list(list(models))}. A point is the share of images that are "
        "classified rightly, the line its 95 % interval over patients."
    )
    return _figure(image, ".svg", caption)


def _figure(image: bytes, suffix: str, caption: str) -> dict[str, Any]:
    data = base64.b64encode(image).decode()
    return {
        "kind": "figure",
        "source": f"data:{_MIME[suffix]};base64,{data}",
        "width": _width(image, suffix),
        "text": caption,
    }


def _width(image: bytes, suffix: str) -> int:
    """In pixels of a screen, so that an inch of every figure is equally wide."""
    if suffix == ".svg":
        points = re.search(rb'<svg[^>]* width="([\d.]+)pt"', image[:4096])
        inches = float(points[1]) / 72 if points else 0.0
    else:
        inches = int.from_bytes(image[16:20], "big") / PNG_DOTS
    return round(_PIXELS_PER_INCH * inches) or _PAGE_WIDTH


# Sections: figures first, then sentences, then tables, folded.


def _section(found: ResultSet, parts: Sequence[Part]) -> dict[str, Any]:
    figures = [
        _figure(image, f".{kind}", f"{caption} ({backbone})")
        for backbone in backbones_of(found.record)
        for caption, kind, image in drawn(found, backbone)
    ]
    blocks = [block for part in parts if (block := _block(part))]
    return {"name": found.stage, "title": STAGES[found.stage][2], "blocks": [*figures, *blocks]}


def _block(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Table):
        if not (part.rows or part.notes):
            return None
        html = Markup(to_html(part))  # noqa: S704 - to_html escapes every text
        return {"kind": "table", "text": part.title or "Table", "html": html}
    kind = (
        "heading" if isinstance(part, Heading) else "note" if isinstance(part, Detail) else "text"
    )
    return {"kind": kind, "text": str(part)}


def _bookkeeping(results: Path, records: Iterable[str], missing: Sequence[str]) -> dict[str, Any]:
    table = Table(
        title=f"Files in results/{results.name}",
        columns=(Column("stage"), Column("file"), Column("written (UTC)")),
        rows=tuple(
            (name, STAGES[name][0], f"{_written(results / STAGES[name][0]):%Y-%m-%d %H:%M}")
            for name in records
        ),
    )
    parts: list[Part] = [*missing, table]
    return {"name": "records", "title": "Records", "blocks": [_block(part) for part in parts]}


def _written(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


# Whether the records belong together.


def contradictions(study: Study, records: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each sign that records are of different data, or older than the study."""
    files = {name: STAGES[name][0] for name in records}
    for name, record in records.items():
        if record["study"] != study.name:
            yield f"{files[name]} is of the study {record['study']}, not of {study.name}"
    known = {"the study file": list(study.classes)} if study.classes else {}
    known |= {files[name]: r["classes"] for name, r in records.items() if "classes" in r}
    first = next(iter(known), "")
    for file, classes in known.items():
        if classes != known[first]:
            both = f"{', '.join(known[first])} in {first}, {', '.join(classes)} in {file}"
            yield f"classes are {both}"
    domains = {domain.name for domain in study.domains}
    first_with: dict[tuple[str, str], tuple[str, Any]] = {}
    for name in records:
        found = _images(study.results, name)
        there = {domain for _, domain in found}
        yield from (f"{d} is not in {files[name]}" for d in sorted(domains - there) if there)
        yield from (f"{d} in {files[name]} is not in the study" for d in sorted(there - domains))
        for where, images in sorted(found.items()):
            file, others = first_with.setdefault(where, (files[name], images))
            if images != others:
                yield f"{file} and {files[name]} have different images or labels of {where[1]}"
    yield from _recipes(records)


def _images(results: Path, name: str) -> dict[tuple[str, str], list[tuple[bytes, int]]]:
    """Content keys and labels of the images that a stage has scored, by backbone and domain."""
    try:
        kept = read_predictions(results / PROBABILITIES[name])
    except (KeyError, MissingResultsError):
        return {}
    found = {}
    for backbone, one in kept.items():
        for domain in dict.fromkeys(one.domain.tolist()):
            rows = one.domain == domain
            pairs = zip(map(bytes, one.key[rows]), one.label[rows].tolist(), strict=True)
            found[backbone, domain] = sorted(pairs)
    return found


def _recipes(records: Mapping[str, Any]) -> Iterator[str]:
    """Fingerprints of the features that shift was computed from, against those stored last."""
    rows = records.get("features", {}).get("backbones", ())
    last = {row["backbone"]: row["fingerprint"] for row in rows}
    shift = records.get("shift", {"targets": ()})
    changed = {
        backbone
        for target in shift["targets"]
        for backbone, fingerprint in zip(
            target["backbone"].split("+"), target["provenance"]["inputs"]["recipes"], strict=False
        )
        if fingerprint != last.get(backbone, fingerprint)
    }
    for backbone in sorted(changed):
        yield f"shift.json was made from other features of {backbone} than features.json"


def _render(**values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**values)


def _printable(value: Any) -> Any:
    """Names may hold what is no text, or turns it round; markup of ours is printable."""
    if type(value) is str and not value.isprintable():
        return printable(value)
    return value


def _version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "(not installed)"
