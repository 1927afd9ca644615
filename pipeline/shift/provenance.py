"""What the numbers of a target rest on: digests of the inputs, and caveats in sentences."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from pipeline.data.leaks import OK, Finding
from pipeline.data.samples import Samples
from pipeline.evaluation.intervals import ROUGH_BELOW
from pipeline.evaluation.predictions import Predictions
from pipeline.words import are, counted


def digest_of_domain(images: Samples | Predictions, domain: str) -> str:
    """SHA-256 of the images of a domain with their labels, in any order, 64 hex digits.

    Args:
        images: Of a study, as it has them now or as they were predicted.
        domain: Its name.
    """
    rows = np.flatnonzero(images.domain == domain)
    lines = sorted(f"{bytes(images.key[row]).hex()} {images.label[row]}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def caveats(
    shared_patients: int,
    patients: Mapping[str, int],
    leaks: Iterable[Finding],
    *,
    others: Collection[str] = (),
) -> tuple[str, ...]:
    """Sentences on what limits the numbers of one target.

    Args:
        shared_patients: Ids that both domains have.
        patients: By domain, how many.
        leaks: Findings of the checks.
        others: The other targets, whose findings are not of this one.
    """
    sentences = []
    if shared_patients:
        sentences.append(
            f"{counted(shared_patients, 'patient id')} {are(shared_patients)} in both domains: the "
            "numbering may restart, or the domains share patients, and then the loss is too small."
        )
    sentences += [
        f"The {domain} has {counted(count, 'patient')}: intervals by patient are rough, and a test "
        "that finds nothing shows nothing."
        for domain, count in patients.items()
        if count < ROUGH_BELOW
    ]
    sentences += [
        f"{finding.where}: {finding.text}."  # which images, the audit says
        for finding in leaks
        if finding.severity != OK and not set(others) & set(finding.where.split(" and "))
    ]
    return tuple(sentences)
