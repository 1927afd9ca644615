"""Names, counts and numbers as people read them, and values as JSON holds them."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

#: Below this a number is what sums and iterations leave of 0: shares, points and statistics
#: are larger, or are nothing.
_NOTHING = 1e-9


def composed(text: str) -> str:
    """A text in composed Unicode form (NFC), in which names are compared.

    Files that were copied from macOS have decomposed names, in which "ü" is two characters.
    """
    return unicodedata.normalize("NFC", text)


def printable(name: str) -> str:
    """A name with what is not UTF-8, or would drive a terminal, as backslash escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_file_name(text: str) -> str:
    """A name of ours, such as a backbone's, as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)


def counted(n: int, noun: str, plural: str = "") -> str:
    """``1 copy``, ``2 copies``.

    Args:
        n: How many.
        noun: Of one.
        plural: Of several; the noun with an s where left out.
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def are(n: int) -> str:
    """``is`` for one, else ``are``."""
    return "is" if n == 1 else "are"


def have(n: int) -> str:
    """``has`` for one, else ``have``."""
    return "has" if n == 1 else "have"


def first_line(error: BaseException) -> str:
    """Of what an error of a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def percent(share: float) -> str:
    """A share in per cent, to a tenth."""
    return f"{100 * share:.1f} %"


def zero_noise(value: float) -> float:
    """The value, or 0 for what rounding has left of it: -4e-18 is neither below 0 nor -0.0."""
    return 0.0 if abs(value) < _NOTHING else value


def to_jsonable(value: Any) -> Any:
    """Nested dataclasses, mappings and arrays as JSON values; what is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array: NumPy need not be imported to ask
        return to_jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
