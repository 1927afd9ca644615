"""Tables of a TOML file, checked as they are read: what was got, what is allowed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline.errors import StudyError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CheckedTables:
    """Reads values of one file; knows the file for its messages.

    Every method raises :class:`pipeline.errors.StudyError` for what it does not allow.
    """

    file: Path

    def name(self, name: Any, where: str) -> str:
        """A name that may stand for a folder or a column."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fail(
                f"{where} {name!r}: allowed are letters, digits, '.', '_' and '-', "
                "because it names a folder or a column"
            )
        return str(name)

    def tables(self, table: Mapping[str, Any], key: str) -> Mapping[str, Mapping[str, Any]]:
        """The tables below a key, by name; none where the key is missing."""
        tables = self.table(table, key)
        for name, value in tables.items():
            if not isinstance(value, dict):
                self.fail(f"[{key}] {name} = {value!r}: write a table [{key}.{name}]")
        return tables

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """The table below a key; empty where it is missing."""
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.fail(f"{key} = {value!r}: write a table [{key}]")
        return dict(value)

    def typed(self, table: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
        """The value of a key, of this kind; None where it is missing."""
        value = table.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            wanted = getattr(kind, "__name__", "number").replace("str", "text")
            self.fail(f"{where} {key} = {value!r}: allowed is {wanted}")
        return value

    def one_of(self, value: str | None, allowed: tuple[str, ...], where: str) -> None:
        """Refuse a value that is not among those allowed."""
        if value is not None and value not in allowed:
            self.fail(f"{where} = {value!r}: allowed are {', '.join(allowed)}")

    def known(self, table: Mapping[str, Any], allowed: Any, where: str) -> None:
        """Refuse a key that nobody reads: it is a slip of the pen."""
        if unknown := sorted(set(table) - set(allowed)):
            self.fail(
                f"unknown key {unknown[0]!r} in {where}; allowed: {', '.join(sorted(allowed))}"
            )

    def fail(self, message: str) -> NoReturn:
        """Raise, with the file in front of the message."""
        raise StudyError(f"{self.file}: {message}")
