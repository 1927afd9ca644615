"""A part of a saved head, and the checks that every part from a file must pass.

A part is a kind, some numbers, named arrays, and parts inside it. What each kind must
have is declared in ``kinds.KINDS``; nothing here knows a single kind.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError

Array = NDArray[Any]
Settings = Mapping[str, int | float | str]
_KINDS_OF_NUMBER = {"float": "f", "int": "i"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One step of a saved head.

    Attributes:
        kind: A key of ``kinds.KINDS``.
        arrays: By name.
        settings: Numbers and words by name.
        parts: What it is made of, in order.
    """

    kind: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    parts: "tuple[Part, ...]" = ()

    def walk(self) -> "Iterator[Part]":
        """This part and all below it."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a kind of part consists of, and what it computes.

    Attributes:
        apply: Part and rows ``(n, d)`` to rows ``(n, e)``; with ``gives`` = ``K`` these are
            class probabilities.
        arrays: Name to ``(type, dimensions)``: ``float`` or ``int``, and a letter for each
            axis. Axes of one letter are equally long; ``d`` is the width that comes in and
            ``K`` the number of classes.
        settings: Name to allowed words, or to the least and greatest number.
        gives: Width that comes out, as a letter, a number or ``scores`` (1 for two classes,
            else K); empty: that of the last part.
        parts: Least and greatest number of parts inside; they see what this part sees,
            or, with ``chain``, what the one before it gives.
        inside: Kinds that may be inside; empty: any.
        check: Says what else is wrong with the arrays, or None. Gets the part and the
            lengths of all letters.
        may_be_infinite: Arrays where an infinite value has a meaning.
        keeps_rows: Whether the arrays hold features of images that it was fitted on.
    """

    apply: Callable[[Part, Array], Array]
    arrays: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    settings: Mapping[str, tuple[str, ...] | tuple[float, float]] = field(default_factory=dict)
    gives: str = ""
    parts: tuple[int, int] = (0, 0)
    chain: bool = False
    inside: tuple[str, ...] = ()
    check: Callable[[Part, Mapping[str, int]], str | None] = lambda _part, _sizes: None
    may_be_infinite: tuple[str, ...] = ()
    keeps_rows: bool = False


def check_part(part: Part, kinds: Mapping[str, Kind], *, d: int, classes: int) -> int:
    """Check a part and all inside it against the table.

    Args:
        part: As it was read or made.
        kinds: The table.
        d: Width of the rows that come in.
        classes: Number of classes, K.

    Returns:
        Width of the rows that come out.

    Raises:
        ModelError: Saying what is wrong.
    """
    kind = kinds[part.kind]
    _check_settings(part, kind)
    scores = 1 if classes == 2 else classes
    sizes = _sizes(part, kind, {"d": d, "K": classes, "scores": scores})
    if wrong := kind.check(part, sizes):
        raise ModelError(f"{part.kind}: {wrong}")
    least, most = kind.parts
    if not least <= len(part.parts) <= most:
        raise ModelError(f"{part.kind} has {len(part.parts)} parts, allowed is {least} to {most}")
    width, widths = d, []
    for inner in part.parts:
        if kind.inside and inner.kind not in kind.inside:
            allowed = ", ".join(kind.inside)
            raise ModelError(f"{inner.kind} inside {part.kind}: allowed are {allowed}")
        widths.append(check_part(inner, kinds, d=width if kind.chain else d, classes=classes))
        width = widths[-1]
    if len(set(widths)) > 1 and not kind.chain:
        raise ModelError(f"the parts of {part.kind} have different widths: {widths}")
    if not kind.gives:
        return width
    return int(kind.gives) if kind.gives.isdigit() else sizes[kind.gives]


def _check_settings(part: Part, kind: Kind) -> None:
    if part.settings.keys() != kind.settings.keys():
        raise ModelError(
            f"{part.kind} has settings {sorted(part.settings)}, expected {sorted(kind.settings)}"
        )
    for name, allowed in kind.settings.items():
        value = part.settings[name]
        if isinstance(allowed[0], str):
            if value not in allowed:
                raise ModelError(f"{part.kind} {name} = {value!r}: allowed are {allowed}")
        elif (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not allowed[0] <= value <= allowed[1]
        ):
            raise ModelError(
                f"{part.kind} {name} = {value!r}: allowed is {allowed[0]} to {allowed[1]}"
            )


def _sizes(part: Part, kind: Kind, sizes: dict[str, int]) -> dict[str, int]:
    """Length of each letter, after all arrays have agreed on it."""
    if part.arrays.keys() != kind.arrays.keys():
        raise ModelError(
            f"{part.kind} has arrays {sorted(part.arrays)}, expected {sorted(kind.arrays)}"
        )
    for name, (type_, letters) in kind.arrays.items():
        array = part.arrays[name]
        if array.dtype.kind != _KINDS_OF_NUMBER[type_] or array.ndim != len(letters):
            raise ModelError(
                f"{part.kind} {name} is {array.dtype} with {array.ndim} axes, expected {type_} "
                f"with {len(letters)}"
            )
        for letter, length in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, length) != length:
                raise ModelError(
                    f"{part.kind} {name} has shape {array.shape}: axis {letter} should be "
                    f"{sizes[letter]} long"
                )
        bad = np.isnan(array) if name in kind.may_be_infinite else ~np.isfinite(array)
        if bad.any():
            raise ModelError(f"{part.kind} {name} has values that are not finite")
    return sizes
