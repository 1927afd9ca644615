"""What one check of a study found, and how bad it is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckFailedError, UnknownNameError
from pipeline.samples import Samples

#: The worst first. A leak makes numbers wrong; a warning says what may explain them; a
#: note is worth knowing; ok is a check that found nothing.
LEAK, WARNING, NOTE, OK = SEVERITIES = ("leak", "warning", "note", "ok")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of an audit.

    Attributes:
        check: Which check; one of its module's.
        severity: One of ``SEVERITIES``.
        where: The roles or the domain that it is about.
        found: What was found, a sentence with its numbers and no name of an image.
        named: The first few images that it is about, to stand behind the sentence; a name can
            be a patient's.
        advice: What to do next; empty where there is nothing to do.
        values: The numbers and lists behind the sentence, JSON values.

    Raises:
        UnknownNameError: The severity is in no table.
    """

    check: str
    severity: str
    where: str
    found: str
    named: str = ""
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise UnknownNameError("severity", self.severity, SEVERITIES)

    @property
    def text(self) -> str:
        """One line for a message."""
        return f"{self.where}: {self.told}"

    @property
    def told(self) -> str:
        """What was found, and in which images."""
        return f"{self.found}{self.named and ': '}{self.named}"


def cannot_ask(check: str, where: str, reason: Exception) -> Finding:
    """A note that a check was not possible, and why."""
    return Finding(check=check, severity=NOTE, where=where, found=f"cannot be asked: {reason}")


def in_each_domain(
    samples: Samples, check: str, ask: Callable[[str, NDArray[np.bool_]], Finding]
) -> list[Finding]:
    """What a check that needs labels finds in each domain; a note where nobody has given any.

    Args:
        samples: ``n`` samples.
        check: Which.
        ask: Of a domain's name and rows, shape ``(n,)``.
    """
    rows = {domain: samples.domain == domain for domain in dict.fromkeys(samples.domain.tolist())}
    return [
        ask(domain, here)
        if samples.labelled[here].all()
        else Finding(check=check, severity=NOTE, where=domain, found="not asked: it has no labels")
        for domain, here in rows.items()
    ]


def refuse_leaks(findings: Iterable[Finding]) -> None:
    """Stop where a leak was found.

    Raises:
        CheckFailedError: With every leak and what to do about the first.
    """
    leaks = [finding for finding in findings if finding.severity == LEAK]
    if leaks:
        raise CheckFailedError(
            f"{'; '.join(leak.text for leak in leaks)}. {leaks[0].advice}. "
            "headrace audit lists them all"
        )
