"""What people are shown of a stage: its JSON record as text, tables, figures and a page.

A stage is named by its command. ``pipeline.report.<stage>`` turns its record into parts.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipeline.report.table import Part, csv_files, terminal_text


def parts_of(stage: str, record: Mapping[str, Any]) -> list[Part]:
    """Tables and sentences of a stage's record."""
    parts: list[Part] = import_module(f"pipeline.report.{stage}").tables(record)
    return parts


def show(stage: str, record: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """The text that a terminal is shown.

    Args:
        stage: Of the record.
        record: Its JSON values.
        before: An earlier record of the same run: what was shown of it is not shown again.
    """
    earlier = parts_of(stage, before) if before else []
    return terminal_text(part for part in parts_of(stage, record) if part not in earlier)


def files(stage: str, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The CSV files of a stage, by name.

    Args:
        stage: ``heads``, ``finetune`` or ``shift``.
        record: Its JSON values.
    """
    contents = csv_files(parts_of(stage, record))
    return {f"{key}.csv": text.encode() for key, text in contents.items()}
