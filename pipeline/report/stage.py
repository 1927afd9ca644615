"""Stage 5: put the records of a study together as one page, ``report.html``.

The page is made of the records alone: no number is computed, nothing is loaded from
elsewhere, nothing runs in it. The same files give the same page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cache import disk
from pipeline.compare import from_json
from pipeline.errors import MissingPredictionsError
from pipeline.report.blocks import Chapter
from pipeline.report.chapters import audit_chapter, finetune_chapter, heads_chapter
from pipeline.report.opening import answer_chapter, study_chapter
from pipeline.report.page_shift import shift_chapter
from pipeline.report.records import STAGES, Records, contradictions, older_figures, read_records
from pipeline.study import Study
from pipeline.words import printable

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class PageReport:
    """What was written.

    Attributes:
        file: The page.
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


def write_page(study: Study) -> PageReport:
    """Write ``results/<study>/report.html`` from what the stages have left there.

    Raises:
        MissingPredictionsError: No stage has left anything, or a record is not what its
            stage writes.
    """
    records = read_records(study.results)
    chapters = _chapters(records)  # first: a record that is not what it should be is named
    stale = (*contradictions(study, records), *older_figures(records))
    page = _render(study, chapters, stale).encode()
    disk.publish(study.results / PAGE, page)
    return PageReport(
        study=study.name,
        file=study.results / PAGE,
        size=len(page),
        stages=tuple(records.values),
        missing=records.missing,
        stale=stale,
    )


def _chapters(records: Records) -> list[Chapter]:
    heads = _made("heads", lambda: from_json(records.values["heads"]), records)
    made: dict[str, Callable[[], Chapter]] = {
        "audit": lambda: audit_chapter(records),
        "heads": lambda: heads_chapter(records, heads),
        "finetune": lambda: finetune_chapter(records),
        "shift": lambda: shift_chapter(records),
    }
    stages = [_made(name, make, records) for name, make in made.items()]
    return [study_chapter(records), answer_chapter(records, heads), *filter(None, stages)]


def _made(name: str, make: Callable[[], Any], records: Records) -> Any:
    """What a stage's record gives; None where there is no record."""
    if name not in records.values:
        return None
    try:
        return make()
    except (KeyError, TypeError, AttributeError, IndexError) as cause:
        raise MissingPredictionsError(
            f"{records.results / STAGES[name].file} is not what headrace {name} writes "
            f"({type(cause).__name__}: {cause}); run again: headrace {name} STUDY"
        ) from cause


def _render(study: Study, chapters: list[Chapter], stale: tuple[str, ...]) -> str:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(study=study.name, version=_version(), chapters=chapters, stale=stale)


def _shown(value: Any) -> Any:
    """Names may hold what is no text, or turns it round; markup of ours is printable."""
    if isinstance(value, str) and type(value) is str and not value.isprintable():
        return printable(value)
    return value


def _version() -> str:
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "(not installed)"
