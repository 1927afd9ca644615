"""Names of files and classes, which may be any bytes, made fit to be shown and stored."""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

#: What Markdown may take for more than a character. A bracket that no address follows, an
#: underscore inside a word and a backslash before a letter are themselves already.
_MARKUP = re.compile(r"\](?=[(\[:])|[`*~$]|\\(?=[!-/:-@\[-`{-~])|(?<![^\W_])_|_(?=_*(?:\W|$))")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def printable(name: str) -> str:
    """A name with what is not UTF-8, or would drive a terminal, as backslash escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_markdown(text: str) -> str:
    """A text with names in it, so that Markdown shows it as it stands.

    Links, code, emphasis, formulas and tags are what a name could become.
    """
    plain = _ENTITY.sub("&amp;", printable(text)).replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", plain)


def in_cell(text: str) -> str:
    """The same in a table of Markdown, where a bar would begin another cell."""
    return in_markdown(text).replace("|", "\\|")


def as_file_name(text: str) -> str:
    """A name of ours, such as a backbone's, as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)


# Counts as a sentence has them: one image, two images.


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


def percent(share: float) -> str:
    """A share in per cent, to a tenth."""
    return f"{100 * share:.1f} %"


# A number that is zero but for rounding is shown as zero, without a sign.


#: Below this a number is what sums and iterations leave of 0: shares, points and statistics
#: are larger, or are nothing.
_NOTHING = 1e-9


def zero_noise(value: float) -> float:
    """The value, or 0 for what rounding has left of it: -4e-18 is neither below 0 nor -0.0."""
    return 0.0 if abs(value) < _NOTHING else value


# What a report holds, as JSON values.


def to_jsonable(value: Any) -> Any:
    """Nested dataclasses, mappings and arrays as JSON values; what is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
