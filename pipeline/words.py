"""Names, counts and numbers as text for people, and values for JSON."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

#: A smaller number counts as 0: it is the rounding error of a sum or an iteration.
_NOTHING = 1e-9


def composed(text: str) -> str:
    """A text in composed Unicode form (NFC), the form in which names are compared.

    Files that were copied from macOS have decomposed names, in which "ü" is two characters.
    """
    return unicodedata.normalize("NFC", text)


def printable(name: str) -> str:
    """A name with backslash escapes for bytes that are not UTF-8 and for control characters."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_file_name(text: str) -> str:
    """A name, such as a backbone's, in a form that fits into a file name."""
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)


def class_order(names: Iterable[str]) -> list[str]:
    """Different names of classes, sorted: as numbers if all are whole numbers, else as text."""
    ordered = sorted(set(names))
    numbers = all(name.removeprefix("-").isdecimal() for name in ordered)
    return sorted(ordered, key=int) if numbers else ordered


def counted(n: int, noun: str, plural: str = "") -> str:
    """``1 copy``, ``2 copies``.

    Args:
        n: How many.
        noun: The singular.
        plural: The plural; empty: the noun with an s.
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def first_of(texts: Sequence[str]) -> str:
    """The first three texts, and how many more there are."""
    return "; ".join([*texts[:3], *([f"and {len(texts) - 3} more"] if len(texts) > 3 else [])])


def are(n: int) -> str:
    """``is`` for one, else ``are``."""
    return "is" if n == 1 else "are"


def have(n: int) -> str:
    """``has`` for one, else ``have``."""
    return "has" if n == 1 else "have"


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def percent(share: float) -> str:
    """A share as text in per cent, with one decimal."""
    return f"{100 * share:.1f} %"


def zero_noise(value: float) -> float:
    """The value, or 0 if it is only a rounding error: -4e-18 should print as 0, not as -0.0."""
    return 0.0 if abs(value) < _NOTHING else value


def to_jsonable(value: Any) -> Any:
    """Nested dataclasses, mappings and arrays as JSON values; NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array: NumPy need not be imported to ask
        return to_jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
