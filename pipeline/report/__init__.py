"""What people are shown of a stage: its JSON record as text, tables, figures and a page.

A stage is named by its command. ``pipeline.report.<stage>`` turns its record into parts.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cache import disk
from pipeline.report.table import Part, csv_files, markdown_text, terminal_text

#: Stages whose report is also a Markdown file, with its title.
_MARKDOWN = {"shift": "Domain shift"}


def parts_of(stage: str, record: Mapping[str, Any]) -> list[Part]:
    """Tables and sentences of a stage's record."""
    found: list[Part] = import_module(f"pipeline.report.{stage}").tables(record)
    return found


def show(stage: str, record: Mapping[str, Any]) -> str:
    """The text that a terminal is shown."""
    return terminal_text(parts_of(stage, record))


def write(stage: str, record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the CSV files of a stage and, where it has one, its Markdown file.

    Tables of an earlier run that this record lacks are removed: they would be taken for it.

    Args:
        stage: ``heads``, ``finetune`` or ``shift``.
        record: Its JSON values.
        folder: ``results/<study>``.

    Returns:
        The files written.
    """
    parts = parts_of(stage, record)
    contents = {f"{key}.csv": text for key, text in csv_files(parts).items()}
    if title := _MARKDOWN.get(stage):
        contents[f"{stage}.md"] = markdown_text(f"{title}: {record['study']}", parts)
    before = {path.name for path in folder.glob(f"{stage}*.csv")}
    disk.remove(folder, sorted(before - set(contents)))
    for name, text in contents.items():
        disk.publish(folder / name, text.encode())
    return [folder / name for name in contents]
