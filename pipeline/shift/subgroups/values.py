"""What is known of the subgroups of one domain: numbers, their intervals, the worst."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A group's value minus that of all other images of the domain.

    Attributes:
        low: Lower end of the 95 % interval, simultaneous over the groups.
        high: Upper end.
        below: Whether the whole interval lies below 0.
    """

    estimate: float
    low: float
    high: float
    below: bool


@dataclass(frozen=True, kw_only=True)
class Value:
    """One metric in one group, in [0, 1].

    Attributes:
        low: Lower end of the 95 % interval of this group alone.
        high: Upper end.
        n: Images that it is made of: all, or those of one class.
        simultaneous: Interval that holds for all groups at once, with 95 %; None where no
            other group has a value.
        rest: Difference to all other images; None where these are too few.
    """

    estimate: float
    low: float
    high: float
    n: int
    simultaneous: tuple[float, float] | None = None
    rest: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group.

    Attributes:
        few: Why it has no numbers; None where it has.
        prevalence: Share of the positive class; None for more than two classes.
        metrics: By name.
        missing: Metric to the reason why it has no value.
    """

    name: str
    images: int
    patients: int
    few: str | None = None
    prevalence: Value | None = None
    metrics: Mapping[str, Value] = field(default_factory=lambda: _NOTHING)
    missing: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """One domain, divided by one attribute.

    Attributes:
        domain: ``source`` (scored out of fold) or ``target``.
        threshold: Of sensitivity and specificity, chosen on the source; None for more than
            two classes, which have neither.
        groups: In the order of the attribute.
        worst: Metric to the group with the lowest value; a metric that fewer than two
            groups have is missing. ``unknown`` is never it.
    """

    domain: str
    attribute: str
    threshold: float | None
    groups: tuple[Group, ...]
    worst: Mapping[str, str]
