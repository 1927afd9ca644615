"""The page ``report.html``: the results of all stages of a study, in one file.

The page is made from the records alone; only the figure on its first screen is drawn here. It
loads nothing from elsewhere and runs no script. The same files give the same page.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from pipeline.errors import MissingResultsError, ResultsError
from pipeline.evaluation.predictions import predictions_in
from pipeline.report import parts_of
from pipeline.report.figures import FIGURES, backbones_of, drawn, stored_arrays
from pipeline.report.heads import name_of_domain
from pipeline.report.stages import better_head
from pipeline.report.summary import (
    PageHead,
    aurocs_of_findings,
    headline,
    headline_of_findings,
    models,
    page_head,
    status,
    status_of_findings,
)
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table
from pipeline.results import ResultSet, read_set, write_file
from pipeline.study import Study
from pipeline.words import as_file_name, percent, printable

#: By command, in the order of the page: the layout of its record that is read here, and the
#: title of its section. The features stand with the records, at the end.
STAGES: Mapping[str, tuple[int, str]] = {
    "heads": (10, "Heads on frozen features"),
    "finetune": (9, "Frozen and fine-tuned networks"),
    "shift": (13, "Shift from the source to the targets"),
    "audit": (5, "Leaks and shortcuts"),
    "features": (1, "Stored features"),
}
#: The layout of a table over findings that is read here.
FINDINGS_LAYOUT = 1
#: One element of a section in the template: a part of a report, or a figure and the like.
_Block = Part | dict[str, Any]
#: Sentences below each heading that are not folded.
_SENTENCES = 2
_SENTENCE_END = re.compile(r"(?<=[^.]\.) (?=[A-Z*])")
#: Width on a screen as a share of a figure's pixels: figures are drawn for print.
_SCALE = 0.59
_ACCURACY = (
    "Accuracy of {head.name} on {head.backbone}, the head (classifier) that is best on validation, "
    "and of others for comparison. Validation holds patients of the source that no head was fitted "
    "to; the best head was chosen there, so it is a little too good there. A point is the share of "
    "images that are classified correctly; the line is its 95 % interval over patients."
)
_AUROC = (
    "AUROC of the best head on validation for each finding: how often an image with the finding "
    "scores above one without it. The grey line is chance. The thin line is the 95 % interval "
    "over patients."
)
_ERRORS = (
    "{where}: the errors to which {head} gives the highest probability. Red areas moved the score "
    "towards the predicted class. The text below gives that class with its probability, and the "
    "true class."
)
_STRIPS = (
    "Typical images have the median probability of their class. In uncertain images two classes "
    "have nearly the same probability. The text below gives the class that {head} predicts, with "
    "its probability."
)


def write_page(study: Study, *, images: bool = False) -> dict[str, Any]:
    """Write ``results/<study>/report.html`` from what the stages have left there.

    Args:
        study: The study whose results are shown.
        images: Whether images of patients are shown; the file then has the mode 0600.

    Returns:
        JSON values: ``study``; ``file`` and its ``size`` in bytes; ``sentence`` and ``status`` of
        the first screen; the ``stages`` on the page; a line for each ``missing`` stage; ``stale``,
        the signs that records do not belong together, which stand at the top of the page.

    Raises:
        MissingResultsError: No stage has left a record that can be read.
    """
    sets: dict[str, ResultSet] = {}
    missing = []
    for stage, (layout, _) in STAGES.items():
        file = study.results / f"{stage}.json"
        if stage == "features" and not file.exists():
            of_all = study.results.parent / file.name  # all findings share one record
            file = of_all if of_all.exists() else file
        try:
            sets[stage] = _read(file, stage, layout)
        except (MissingResultsError, ResultsError) as cause:
            missing.append(str(cause))
    if not sets:
        raise MissingResultsError(f"{study.results} holds nothing to report: {'; '.join(missing)}")
    records = {stage: results.record for stage, results in sets.items()}
    head, figure = page_head(records.get("heads")), None
    if head and head.accuracy:
        series = models(records, head)
        figure = _first_figure("summary", series, "Accuracy by domain", _ACCURACY.format(head=head))
    explained: set[str] = set()
    sections = [_section(sets[name], head, explained) for name in sets if name != "features"]
    if images and head is not None:
        sections.insert(1, _images(study, sets["heads"], head))
    stale = list(_contradictions(study, sets))
    written = _write(
        study,
        images=images,
        status=status(records, head),
        sections=[*sections, _records(sets, missing)],
        sentence=headline(records, head),
        stale=stale,
        summary=figure,
    )
    return {**written, "stages": list(records), "missing": missing, "stale": stale}


def write_index(study: Study, pages: Mapping[str, Record]) -> dict[str, Any]:
    """Write ``results/<study>/report.html`` over the findings of a study.

    Its first screen is like that of the other pages. Then come the headline of each finding with
    a link to its page, and the tables over the findings.

    Args:
        study: A study with several findings.
        pages: What :func:`write_page` returned, by finding.

    Returns:
        JSON values: ``study``, ``file``, its ``size`` in bytes, ``sentence`` and ``status``.
    """
    links = [
        {
            "kind": "link",
            "to": Path(page["file"]).relative_to(study.results).as_posix(),
            "name": finding,
            "text": page["sentence"],
        }
        for finding, page in pages.items()
    ]
    sections: list[dict[str, Any]] = [{"name": "findings", "title": "Findings", "blocks": links}]
    of_heads: list[Record] = []
    for stage in ("heads", "shift", "audit"):
        try:
            record = _read(study.results / f"findings_{stage}.json", stage, FINDINGS_LAYOUT).record
            of_heads += record["rows"] if stage == "heads" else []
            blocks = parts_of("findings", record)
        except MissingResultsError:
            continue
        except ResultsError as cause:
            blocks = [str(cause)]
        sections.append({"name": stage, "title": STAGES[stage][1], "blocks": blocks})
    series = aurocs_of_findings(of_heads)
    return _write(
        study,
        sections=sections,
        sentence=headline_of_findings(len(pages), of_heads),
        status=status_of_findings(page["status"] for page in pages.values()),
        summary=_first_figure("aurocs", series, "AUROC by finding", _AUROC) if series else None,
        unfolded=True,
    )


def _read(file: Path, stage: str, layout: int) -> ResultSet:
    """Read a record; refuse another layout, and files that are not those it names."""
    results = read_set(file, stage)
    results.check()
    if results.record.get("schema") != layout:
        raise ResultsError(
            f"{file.name} was written by another version; run headrace {stage} STUDY again"
        )
    return results


def _figure(png: bytes, caption: str, alt: str = "", scale: float = _SCALE) -> dict[str, Any]:
    return {
        "kind": "figure",
        "source": _inline(png, "png"),
        "width": round(scale * int.from_bytes(png[16:20], "big")),
        "text": caption,
        "alt": alt or f"{caption} The tables of this section hold the numbers.",
    }


def _inline(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _first_figure(
    name: str, series: Mapping[str, Mapping[str, Any]], what: str, caption: str
) -> dict[str, Any]:
    """The figure on the first screen, drawn by ``forest``, with its numbers as text."""
    from pipeline.report.figures import forest
    from pipeline.report.figures.style import png_of

    written = percent if name == "summary" else "{:.2f}".format
    numbers = "; ".join(
        f"{key}: {', '.join(f'{row} {written(v[0])}' for row, v in values.items())}"
        for key, values in series.items()
    )
    return _figure(png_of(getattr(forest, name), series), caption, f"{what}. {numbers}")


def _section(results: ResultSet, head: PageHead | None, explained: set[str]) -> dict[str, Any]:
    """Figures and report parts of a stage; figures are of the page's backbone, else the first.

    ``explained`` collects the sentences on how to read figures, so that each is said once.
    """
    blocks: list[_Block] = []
    backbones = backbones_of(results.record)
    shown = head.backbone if head and head.backbone in backbones else "".join(backbones[:1])
    for figure, image in drawn(results, shown):
        _, what, how = FIGURES[figure]
        reading = [s for s in _SENTENCE_END.split(how) if s not in explained]
        explained.update(reading)
        blocks.append(_figure(image, " ".join([what, *reading])))
    if blocks and len(backbones) > 1:
        blocks.append(
            f"The figures are of the backbone {shown}. The folder figures has those of the others."
        )
    blocks += _blocks(parts_of(results.stage, results.record))
    return {"name": results.stage, "title": STAGES[results.stage][1], "blocks": blocks}


def _blocks(parts: Iterable[Part]) -> Iterator[_Block]:
    """Below each heading: two sentences, the tables, and the other sentences folded."""
    left, more = _SENTENCES, list[str]()
    for part in (*parts, Heading()):
        if isinstance(part, Table):
            if part.records or part.notes:
                yield part
        elif isinstance(part, Heading):
            if more:
                yield {"kind": "more", "texts": more}
            left, more = _SENTENCES, []
            yield part
        else:
            sentences = _SENTENCE_END.split(part)
            visible = 0 if isinstance(part, Detail) else left
            yield " ".join(sentences[:visible])
            more += filter(None, [" ".join(sentences[visible:])])
            left = max(0, left - len(sentences)) if visible else left


def _images(study: Study, heads: ResultSet, head: PageHead) -> dict[str, Any]:
    """Strips of images by domain, then maps of errors, which take the place of their strips."""
    from pipeline.report.strips import CONFIDENT_ERRORS, as_jpeg, strips

    try:
        notes, maps = _maps(study.results / "explain", head)
    except (MissingResultsError, ResultsError) as cause:
        notes, maps = [f"There are no maps of what moved the score: {cause}."], {}
    blocks: list[_Block] = [_STRIPS.format(head=head.name)]
    stored = predictions_in(stored_arrays(heads))[head.backbone]
    for domain, title, strip in strips(study, head, stored):
        if title.startswith(CONFIDENT_ERRORS) and domain in maps and not notes:
            continue
        images = [(_inline(as_jpeg(pixels), "jpeg"), text) for text, pixels in strip]
        blocks.append({"kind": "strip", "text": f"{domain}: {title}", "images": images})
    return {"name": "images", "title": "Images", "blocks": [*blocks, *notes, *maps.values()]}


def _maps(folder: Path, head: PageHead) -> tuple[list[str], dict[str, _Block]]:
    """The head's most confident errors by domain, as ``headrace explain`` has drawn them.

    If the head has no layers, a note says so and the maps are of the best head that has.
    """
    file = folder / as_file_name(f"{head.backbone}-{head.name}") / "explain.json"
    notes: list[str] = []
    if not file.exists():
        for other in sorted(folder.glob("*/explain.json")):
            record = read_set(other, "explain").record
            best = record.get("instead_of") or {}
            if (best.get("backbone"), best.get("head")) == (head.backbone, head.name):
                file, notes = other, [*better_head(record)]
    explained = read_set(file, "explain")
    maps: dict[str, _Block] = {}
    for domain in explained.record["domains"]:
        where = name_of_domain(domain)
        sheet = f"{as_file_name(domain['domain'])}-{domain['role']}-errors.png"
        if sheet in explained.digests:
            caption = _ERRORS.format(where=where, head=explained.record["head"])
            maps[where] = _figure(explained.read(sheet), caption, scale=1)
    return notes, maps


def _records(sets: Mapping[str, ResultSet], missing: Sequence[str]) -> dict[str, Any]:
    rows = []
    for file in (results.file for results in sets.values()):
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        rows.append({"file": file.as_posix(), "written": f"{written:%Y-%m-%d %H:%M}"})
    columns = Column("file"), Column("written (UTC)", field="written")
    parts: list[Part] = [Table("Files", columns, rows)]
    if "features" in sets:
        parts += parts_of("features", sets["features"].record)
    return {"name": "records", "title": "Records", "blocks": [*missing, *_blocks(parts)]}


def _contradictions(study: Study, sets: Mapping[str, ResultSet]) -> Iterator[str]:
    """A sentence for each sign that records used different data or an older study file."""
    in_study, first = {d.name for d in study.domains}, dict[tuple[str, str], tuple[str, Any]]()
    for stage, results in sets.items():
        file, scored = stored_arrays(results), set[str]()
        for backbone, of in predictions_in(file).items() if file else ():
            scored.update(of.domain.tolist())
            for domain in dict.fromkeys(of.domain.tolist()):
                rows = of.domain == domain
                classes = [of.classes[k] if k >= 0 else "" for k in of.label[rows]]
                images = sorted(zip(map(bytes, of.key[rows]), classes, strict=True))
                other, others = first.setdefault((backbone, domain), (stage, images))
                if images != others:
                    both = f"{other}.json and {stage}.json"
                    yield f"{both} have different images, labels or classes for {domain}"
        left_out = {pair["target"] for pair in results.record.get("not_compared", ())}
        left_out.update(results.record.get("failed_targets", ()))
        if scored:
            removed, missing = scored - in_study, in_study - scored - left_out
            yield from (f"{domain} is not in {stage}.json" for domain in sorted(missing))
            yield from (
                f"{domain} in {stage}.json is not in the study" for domain in sorted(removed)
            )
    if {"features", "shift"} <= sets.keys():
        stored = {r["backbone"]: r["fingerprint"] for r in sets["features"].record["backbones"]}
        made_from = {
            recipe
            for target in sets["shift"].record["targets"]
            for recipe in zip(
                target["backbone"].split("+"), target["provenance"]["recipes"], strict=False
            )
        }
        for backbone, fingerprint in sorted(made_from):
            if stored.get(backbone, fingerprint) != fingerprint:
                yield f"shift.json used other features of {backbone} than features.json describes"


def _write(study: Study, *, images: bool = False, **values: Any) -> dict[str, Any]:
    """Fill the template, put the page in place, and return its path, size, sentence and status."""
    from pipeline.report.strips import readable_by_owner_alone

    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["heading"] = lambda block: isinstance(block, Heading)
    values |= {"study": study.name, "images": images, "version": version("headrace")}
    page = environment.get_template("page.html").render(values).encode()
    file = study.results / "report.html"
    with readable_by_owner_alone() if images else nullcontext():
        write_file(file, page)
    written = {"study": study.name, "file": str(file), "size": len(page)}
    return {**written, "sentence": values["sentence"], "status": values["status"]}


def _printable(value: Any) -> Any:
    """Escape names that hold control characters; our own markup stays as it is."""
    is_name = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_name and not value.isprintable() else value
