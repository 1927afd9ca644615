"""What people are shown of a stage: its JSON record as text, tables, figures and a page.

A stage is named by its command, and so is the function that turns its record into parts.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pipeline.report.table import Part, Table, terminal_text, to_csv

#: Where the function of a stage stands; those of the others are in ``stages``.
_MODULES = {"heads": "heads", "finetune": "heads", "shift": "shift"}


def parts_of(stage: str, record: Mapping[str, Any]) -> list[Part]:
    """Tables and sentences of a stage's record."""
    module = import_module(f"pipeline.report.{_MODULES.get(stage, 'stages')}")
    return list(getattr(module, stage)(record))


def show(stage: str, record: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """The text for a terminal, without the parts that it was already shown of ``before``."""
    texts = [terminal_text([part]) for part in parts_of(stage, record)]
    for part in parts_of(stage, before) if before else ():
        if (text := terminal_text([part])) in texts:
            texts.remove(text)  # once: tables of two backbones may be equal
    return "\n\n".join(filter(None, texts))


def files(stage: str, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The CSV files of a stage, by name; tables of one key stand below one another."""
    by_key: dict[str, list[Table]] = {}
    for part in parts_of(stage, record):
        if isinstance(part, Table) and part.key:
            by_key.setdefault(part.key, []).append(part)
    return {f"{key}.csv": to_csv(*tables).encode() for key, tables in by_key.items()}
