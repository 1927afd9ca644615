"""Findings of the audit as sentences, without the files that they name."""

from collections.abc import Mapping
from typing import Any

#: Where findings list images, group by group.
_LISTS = ("pictures", "pairs")


def told(finding: Mapping[str, Any]) -> str:
    """Check, where, and what was found; names of files are left to the record."""
    return f"{finding['check']} ({finding['where']}): {nameless(finding)}"


def nameless(finding: Mapping[str, Any]) -> str:
    """What was found, cut before the first image that it names: a name can be a patient's."""
    found = str(finding["found"])
    groups = [finding["values"].get(name) for name in _LISTS]
    names = [image for one in groups if isinstance(one, list) for group in one for image in group]
    starts = [start for name in names if (start := found.find(name)) >= 0]
    return found[: min(starts, default=len(found))].rstrip(" :")
