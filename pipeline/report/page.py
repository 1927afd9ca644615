"""The page ``report.html``: what the stages of a study found, in one file.

It is made of the records alone: nothing is computed but the figure on its first screen,
nothing is loaded from elsewhere, no script runs in it. The same files give the same page.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, PackageLoader

from pipeline.errors import MissingResultsError, ResultsError
from pipeline.evaluation.predictions import read_predictions
from pipeline.report import parts_of
from pipeline.report.figures import FIGURES, PNG_DOTS, PROBABILITIES, backbones_of, drawn
from pipeline.report.summary import (
    Interval,
    PageHead,
    aurocs_of_findings,
    headline,
    headline_of_findings,
    lights,
    lights_of_findings,
    models,
    page_head,
)
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table
from pipeline.results import ResultSet, read_set, write_file
from pipeline.study import Study
from pipeline.words import as_file_name, printable

PAGE = "report.html"
#: By command: the layout of its record that is read here, and the title of its section; in the
#: order of the page. Features are bookkeeping and come with the records, at the end.
STAGES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "heads": (7, "Heads on frozen features"),
        "finetune": (6, "Frozen and fine-tuned networks"),
        "shift": (10, "From the source to the targets"),
        "audit": (4, "Leaks and shortcuts"),
        "features": (1, "Stored features"),
    }
)
#: The layout of a table over findings that is read here.
FINDINGS_LAYOUT = 1
#: What a section is made of, as the template takes it.
_Block = dict[str, Any]
#: Sentences of a part of a section that are not folded.
_SENTENCES = 2
#: Figures are drawn for a page of paper; on a screen an inch takes a little more room.
_PIXELS_PER_INCH = 118
#: Of the figure on the first screen, which is narrow enough for a phone.
_SUMMARY_WIDTH = 640


def write_page(study: Study, *, images: bool = False) -> dict[str, Any]:
    """Write ``results/<study>/report.html`` from what the stages have left there.

    Args:
        study: Whose results.
        images: Whether images of patients are shown; the file then has the mode 0600.

    Returns:
        JSON values: ``study``, ``file``, its ``size`` in bytes, ``sentence`` and ``lights`` of its
        first screen, ``stages`` that are on it, a line for each that is ``missing``, and ``stale``:
        signs that records do not belong together, with which the page begins.

    Raises:
        MissingResultsError: No stage has left a record that can be read.
    """
    results = study.results
    sets, missing = _read(results)
    records = {name: of_stage.record for name, of_stage in sets.items()}
    head = page_head(records.get("heads"))
    stale = list(_contradictions(study, records))
    explained: set[str] = set()
    sections = [_section(sets[name], head, explained) for name in sets if name != "features"]
    if images and head is not None:
        sections.insert(1, _pictures(study, head))
    sections.append(_bookkeeping(results, records, missing))
    written = _write(
        study,
        images=images,
        lights=lights(records, head),
        sections=sections,
        sentence=headline(records, head),
        stale=stale,
        summary=_summary(records, head),
    )
    return {**written, "stages": list(records), "missing": missing, "stale": stale}


def write_index(study: Study, pages: Mapping[str, Record]) -> dict[str, Any]:
    """Write ``results/<study>/report.html`` over the findings of a study.

    Its first screen is like theirs. Below it are of each finding the sentence of its page and a
    link to it, and the tables over the findings.

    Args:
        study: With several findings an image.
        pages: What :func:`write_page` returned, by finding.

    Returns:
        JSON values: ``study``, ``file``, its ``size`` in bytes, and the ``sentence`` on it.
    """
    blocks: list[_Block] = [
        {
            "kind": "link",
            "to": Path(page["file"]).relative_to(study.results).as_posix(),
            "name": finding,
            "text": page["sentence"],
        }
        for finding, page in pages.items()
    ]
    sections = [{"name": "findings", "title": "Findings", "blocks": blocks}]
    tables: dict[str, Record] = {}
    for stage, (_, title) in STAGES.items():
        try:
            record = read_set(study.results / f"findings_{stage}.json", stage).record
            if record.get("schema") == FINDINGS_LAYOUT:
                blocks = list(_unfolded(parts_of("findings", record)))
                tables[stage] = record
            else:
                text = _of_another_version(f"findings_{stage}.json", stage)
                blocks = [{"kind": "text", "text": text}]
        except MissingResultsError:
            continue
        except ResultsError as cause:
            blocks = [{"kind": "text", "text": str(cause)}]
        sections.append({"name": stage, "title": title, "blocks": blocks})
    series = aurocs_of_findings(tables.get("heads"))
    return _write(
        study,
        sections=sections,
        sentence=headline_of_findings(len(pages), series, tables.get("shift")),
        lights=lights_of_findings(page["lights"] for page in pages.values()),
        summary=_summary_of_findings(series),
    )


def _unfolded(parts: Iterable[Part]) -> Iterator[_Block]:
    for part in parts:
        if isinstance(part, Table):
            yield {"kind": "text", "text": part.title}
            yield {"kind": "table", "table": part}


def _read(results: Path) -> tuple[dict[str, ResultSet], list[str]]:
    """Results by stage, and a line for each stage that has none that can be read."""
    sets: dict[str, ResultSet] = {}
    missing = []
    for name, (layout, _) in STAGES.items():
        try:
            of_stage = read_set(_record_file(results, name), name)
            of_stage.check()
            if of_stage.record.get("schema") == layout:
                sets[name] = of_stage
            else:
                missing.append(_of_another_version(f"{name}.json", name))
        except MissingResultsError:
            missing.append(f"{name} has not been run; run headrace {name} STUDY")
        except ResultsError as cause:
            missing.append(str(cause))
    if not sets:
        raise MissingResultsError(
            f"{results} holds nothing to report: {'; '.join(missing)}. "
            "Start with headrace features STUDY, then headrace heads STUDY"
        )
    return sets, missing


def _of_another_version(file: str, stage: str) -> str:
    return f"{file} is of another version; run headrace {stage} STUDY again"


def _record_file(results: Path, stage: str) -> Path:
    """The features of several findings are stored once, for the whole study."""
    file = results / f"{stage}.json"
    of_all = results.parent / file.name
    return of_all if stage == "features" and of_all.exists() and not file.exists() else file


# Blocks: what a section is made of, as the template takes them.


def _summary(records: Mapping[str, Record], head: PageHead | None) -> _Block | None:
    """The figure on the first screen."""
    if head is None or not head.accuracy:
        return None
    from pipeline.report.figures.forest import summary
    from pipeline.report.figures.style import image_bytes, styled

    series = models(records, head)
    numbers = "; ".join(
        f"{name}: {', '.join(f'{d} {100 * value[0]:.1f} %' for d, value in values.items())}"
        for name, values in series.items()
    )
    caption = (
        f"Accuracy of {head.name} on {head.backbone}, the head that is best on validation, and of "
        "others for comparison. A point is the share of images that are classified rightly, the "
        "line its 95 % interval over patients."
    )
    image = image_bytes(styled(summary)(series))
    return _figure(image, caption, f"Accuracy by domain. {numbers}", width=_SUMMARY_WIDTH)


def _summary_of_findings(series: Mapping[str, Mapping[str, Interval]]) -> _Block | None:
    """AUROC by finding, a colour for each domain."""
    if not series:
        return None
    from pipeline.report.figures.forest import summary
    from pipeline.report.figures.style import image_bytes, styled

    numbers = "; ".join(
        f"{domain}: {', '.join(f'{name} {value[0]:.2f}' for name, value in values.items())}"
        for domain, values in series.items()
    )
    caption = (
        "AUROC of the best head of each finding on validation: how often an image with the finding "
        "scores above one without it; 0.5 is chance. The line is its 95 % interval over patients."
    )
    image = image_bytes(styled(summary)(series, "AUROC"))
    return _figure(image, caption, f"AUROC by finding. {numbers}", width=_SUMMARY_WIDTH)


def _figure(png: bytes, caption: str, alt: str = "", width: int = 0) -> _Block:
    """A figure; where no width in pixels is given, as wide as it is on paper."""
    on_paper = _PIXELS_PER_INCH * _pixels(png) / PNG_DOTS
    return {
        "kind": "figure",
        "source": _inline(png, "png"),
        "width": width or round(on_paper),
        "text": caption,
        "alt": alt or f"{caption} The tables of this section hold its numbers.",
    }


def _pixels(png: bytes) -> int:
    """Its width."""
    return int.from_bytes(png[16:20], "big")


def _inline(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _section(results: ResultSet, head: PageHead | None, explained: set[str]) -> _Block:
    """Figures of the backbone of the head of the page, then the parts; other figures are folded.

    Args:
        results: Of one stage.
        head: Of the page.
        explained: Sentences on how figures are read that the page has said; grows.
    """
    blocks: list[_Block] = []
    others: list[_Block] = []
    backbones = backbones_of(results.record)
    shown = head.backbone if head and head.backbone in backbones else "".join(backbones[:1])
    for backbone in sorted(backbones, key=lambda backbone: backbone != shown):
        for figure, image in drawn(results, backbone):
            _, what, how = FIGURES[figure]
            reading = "".join(f" {s}" for s in _SENTENCE_END.split(how) if s not in explained)
            explained.update(_SENTENCE_END.split(how))
            where = f" Backbone {backbone}." if len(backbones) > 1 else ""
            block = _figure(image, f"{what}{reading}{where}")
            (blocks if backbone == shown else others).append(block)
    blocks += _folded("Figures of other backbones", others)
    analysed = {t["backbone"]: t["head"] for t in results.record.get("targets", ())}.get(shown)
    if head and analysed not in (None, head.name):
        text = f"This section is about the head {analysed}; the head of the page is {head.name}."
        blocks.append({"kind": "text", "text": text})
    blocks += _blocks(parts_of(results.stage, results.record))
    return {"name": results.stage, "title": STAGES[results.stage][1], "blocks": blocks}


def _blocks(parts: Iterable[Part]) -> Iterator[_Block]:
    """Below each heading two sentences and folded tables, then the other sentences, folded."""
    left, more = _SENTENCES, list[_Block]()
    for part in parts:
        if isinstance(part, Table):
            if part.records or part.notes:
                yield from _folded(part.title or "Table", [{"kind": "table", "table": part}])
        elif isinstance(part, Heading):
            yield from _folded("More", more)
            left, more = _SENTENCES, []
            yield {"kind": "heading", "text": str(part)}
        else:
            sentences = _SENTENCE_END.split(part)
            visible = 0 if isinstance(part, Detail) else left
            if shown := " ".join(sentences[:visible]):
                yield {"kind": "text", "text": shown}
            if rest := " ".join(sentences[visible:]):
                more.append({"kind": "text", "text": rest})
            left = max(0, left - len(sentences)) if visible else left
    yield from _folded("More", more)


_SENTENCE_END = re.compile(r"(?<=[^.]\.) (?=[A-Z*])")


def _folded(text: str, blocks: Sequence[_Block]) -> list[_Block]:
    return [{"kind": "fold", "text": text, "blocks": blocks}] if blocks else []


def _pictures(study: Study, head: PageHead) -> _Block:
    """Strips of images, by domain."""
    from pipeline.report.pictures import as_jpeg, strips

    blocks: list[_Block] = [{"kind": "text", "text": _STRIPS.format(head=head.name)}]
    stored = read_predictions(study.results / PROBABILITIES["heads"])[head.backbone]
    for domain, title, pictures in strips(study, head, stored):
        images = [(_inline(as_jpeg(pixels), "jpeg"), text) for text, pixels in pictures]
        blocks.append({"kind": "strip", "text": f"{domain}: {title}", "images": images})
    blocks += _maps(study.results, head)
    return {"name": "images", "title": "Images", "blocks": blocks}


def _maps(results: Path, head: PageHead) -> Iterator[_Block]:
    """The errors that the head is surest of, with maps, as ``headrace explain`` has drawn them."""
    try:
        explained = _explained(results / "explain", head)
        sheets = {name: explained.read(name) for name in explained.digests if _SHEET in name}
    except (MissingResultsError, ResultsError) as cause:
        text = f"No maps of what moved the score: {cause}."
        yield {"kind": "text", "text": text}
        return
    for name, sheet in sheets.items():
        where = name.removesuffix(_SHEET).removesuffix("-target").replace("source-", "")
        model = explained.record.get("head", head.name)
        caption = _ERRORS.format(where=where, head=model)
        yield _figure(sheet, caption, width=_pixels(sheet))


def _explained(folder: Path, head: PageHead) -> ResultSet:
    """Of the head, or of the best that has layers where it has none."""
    file = folder / as_file_name(f"{head.backbone}-{head.name}") / "explain.json"
    others = [] if file.exists() else sorted(folder.glob("*/explain.json"))
    for other in (read_set(path, "explain") for path in others):
        best = other.record.get("instead_of") or {}
        if (best.get("backbone"), best.get("head")) == (head.backbone, head.name):
            return other
    return read_set(file, "explain")


#: How the files end that ``headrace explain`` draws errors in.
_SHEET = "-errors.png"
_ERRORS = (
    "{where}: errors that {head} is surest of. Red is what moved the score to the class that it "
    "predicts; below each stand that class with its probability, and the true one."
)
_STRIPS = (
    "Typical images have the median probability of their class; of uncertain ones two classes are "
    "nearly as probable. Below each stands the class that {head} predicts, with its probability."
)


def _bookkeeping(results: Path, records: Mapping[str, Record], missing: Sequence[str]) -> _Block:
    files = {f"{name}.json": _record_file(results, name) for name in records}
    rows = [{"file": name, "written (UTC)": _written(file)} for name, file in files.items()]
    columns = (Column("file"), Column("written (UTC)"))
    parts: list[Part] = [Table(f"Files in {results.as_posix()}", columns, rows)]
    if "features" in records:
        parts += parts_of("features", records["features"])
    blocks = [*({"kind": "text", "text": line} for line in missing), *_blocks(parts)]
    return {"name": "records", "title": "Records", "blocks": blocks}


def _written(file: Path) -> str:
    return f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M}"


# Whether the records belong together.


def _contradictions(study: Study, records: Mapping[str, Record]) -> Iterator[str]:
    """A sentence for each sign that records are of different data, or older than the study."""
    domains = {domain.name for domain in study.domains}
    first_with: dict[tuple[str, str], tuple[str, Any]] = {}
    for name in records:
        scored = _images(study.results, name)
        of_record = {domain for _, domain in scored}
        missing = sorted(domains - of_record - _not_used(records[name]))
        gone = sorted(of_record - domains)
        yield from (f"{domain} is not in {name}.json" for domain in missing if of_record)
        yield from (f"{domain} in {name}.json is not in the study" for domain in gone)
        for where, images in sorted(scored.items()):
            other, others = first_with.setdefault(where, (name, images))
            if images != others:
                both = f"{other}.json and {name}.json"
                yield f"{both} have different images, labels or classes of {where[1]}"
    yield from _recipes(records)


def _not_used(record: Record) -> set[str]:
    """Targets that a stage had to leave out; its section says why."""
    left_out = {pair["target"] for pair in record.get("not_compared", ())}
    return left_out | set(record.get("failed_targets", ()))


def _images(results: Path, name: str) -> dict[tuple[str, str], list[tuple[bytes, str]]]:
    """Content keys and classes of the images that a stage has scored, by backbone and domain."""
    try:
        by_backbone = read_predictions(results / PROBABILITIES[name])
    except (KeyError, MissingResultsError):
        return {}
    images = {}
    for backbone, stored in by_backbone.items():
        for domain in dict.fromkeys(stored.domain.tolist()):
            rows = stored.domain == domain
            classes = [stored.classes[k] if k >= 0 else "" for k in stored.label[rows]]
            images[backbone, domain] = sorted(
                zip(map(bytes, stored.key[rows]), classes, strict=True)
            )
    return images


def _recipes(records: Mapping[str, Record]) -> Iterator[str]:
    """Fingerprints of the features that shift was computed from, against those stored last."""
    rows = records.get("features", {}).get("backbones", ())
    last = {row["backbone"]: row["fingerprint"] for row in rows}
    shift = records.get("shift", {"targets": ()})
    changed = {
        backbone
        for target in shift["targets"]
        for backbone, fingerprint in zip(
            target["backbone"].split("+"), target["provenance"]["recipes"], strict=False
        )
        if fingerprint != last.get(backbone, fingerprint)
    }
    for backbone in sorted(changed):
        yield f"shift.json was made from other features of {backbone} than features.json"


def _write(
    study: Study, *, images: bool = False, sentence: str, sections: Sequence[_Block], **values: Any
) -> dict[str, Any]:
    """Fill the template and put the page in place; what is known of it."""
    from pipeline.report.pictures import readable_by_owner_alone

    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values |= {"study": study.name, "images": images, "sentence": sentence, "sections": sections}
    template = environment.get_template("page.html")
    page = template.render(version=version("headrace"), **values).encode()
    file = study.results / PAGE
    with readable_by_owner_alone() if images else nullcontext():
        write_file(file, page)
    first_screen = {"sentence": sentence, "lights": values["lights"]}
    return {"study": study.name, "file": str(file), "size": len(page), **first_screen}


def _printable(value: Any) -> Any:
    """Names may hold what is no text, or turns it round; markup of ours is printable."""
    return printable(value) if type(value) is str and not value.isprintable() else value
