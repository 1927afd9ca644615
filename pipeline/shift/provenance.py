"""What a report rests on: rows by role, seeds, digests of the inputs, leaks, caveats."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import OK, Finding
from pipeline.data.samples import Samples
from pipeline.evaluation.intervals import ROUGH_BELOW
from pipeline.evaluation.predictions import Predictions
from pipeline.features.load import FeatureTable
from pipeline.shift.domains import Cohort
from pipeline.study import SOURCE
from pipeline.words import are, counted


@dataclass(frozen=True, kw_only=True)
class Role:
    """Rows that served one purpose.

    Attributes:
        rows: Which rows, in words.
        used_for: What they were used for, and nothing else.
        labels: Whether their labels were read.
        images: How many; of a half, of the whole domain, because halves swap.
        patients: Whose.
    """

    rows: str
    used_for: str
    labels: bool
    images: int
    patients: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the numbers of one target rest on.

    Attributes:
        roles: By name.
        seeds: By purpose.
        inputs: ``source`` and ``target``, digests of keys with labels (:func:`digest_rows`),
            ``recipes``, fingerprints of the features, ``plan``, digest of the fixes' plan.
        caveats: Sentences that must be read with the numbers.
        leak: What the checks before any number found.
    """

    roles: Mapping[str, Role]
    seeds: Mapping[str, Any]
    inputs: Mapping[str, Any]
    caveats: tuple[str, ...]
    leak: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What decides which caveats apply.

    Attributes:
        shared_patients: Ids that both domains have.
        patients: By domain, how many.
        score_changed: Whether Y given the score is shown to have changed.
        elsewhere: The other targets, whose findings are not of this one.
    """

    shared_patients: int
    patients: Mapping[str, int]
    score_changed: bool
    elsewhere: frozenset[str] = frozenset()


def roles_with_labels(source: Cohort, target: Cohort) -> dict[str, Role]:
    """Which rows served what in this stage.

    The head's penalty is a constant of the plan, so no row selects it: ``S_sel`` is empty.
    All labelled rows of the target judge, and none is apart from them: ``T_dev`` is empty
    but for the k-shot rows, which stand in a block of their own.

    Args:
        source: The labelled domain.
        target: The other one.
    """
    return {
        "S_fit": _role(source, "source, all", "fit the head and its scale", labels=True),
        "S_sel": Role(
            rows="none",
            used_for="the head's penalty is fixed beforehand",
            labels=False,
            images=0,
            patients=0,
        ),
        "S_traindev": _role(
            source, "source, out of fold by patient", "error, calibration, thresholds", labels=True
        ),
        "T_adapt": _role(
            target, "target, each half by patient in turn", "fit the fixes", labels=False
        ),
        "T_dev": _role(
            target, "target, some images of each half", "the k-shot rows alone", labels=True
        ),
        "T_test": _role(
            target, "target, the other half in turn", "judge; opened at the end", labels=True
        ),
    }


def roles_without_labels(source: Cohort, target: Cohort) -> dict[str, Role]:
    """Which rows served what where the target has no labels: none can judge.

    Args:
        source: The labelled domain.
        target: The other one.
    """
    roles = roles_with_labels(source, target)
    roles["T_adapt"] = _role(
        target, "target, all", "tests, forecast of the accuracy and of the class mix", labels=False
    )
    none = Role(rows="none", used_for="needs labels", labels=False, images=0, patients=0)
    return roles | {"T_dev": none, "T_test": none}


def _role(cohort: Cohort, rows: str, used_for: str, *, labels: bool) -> Role:
    return Role(
        rows=rows,
        used_for=used_for,
        labels=labels,
        images=len(cohort.groups),
        patients=int(np.unique(cohort.groups).size),
    )


def digest_rows(keys: Iterable[bytes], labels: NDArray[np.integer]) -> str:
    """SHA-256 of the images of a domain with their labels, in any order, 64 hex digits.

    Args:
        keys: Content key of each image.
        labels: Shape (n,).
    """
    lines = sorted(f"{key.hex()} {label}" for key, label in zip(keys, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_of_domain(images: Samples | Predictions, domain: str) -> str:
    """The same of a domain, by the keys and labels that samples and kept predictions have.

    Args:
        images: Of a study.
        domain: Its name.
    """
    rows = np.flatnonzero(images.domain == domain)
    return digest_rows((bytes(images.key[row]) for row in rows), images.label[rows])


def inputs_of(
    joined: FeatureTable, target: str, labels: NDArray[np.integer], plan: str | None
) -> dict[str, Any]:
    """Digests of everything the numbers of one target are made from.

    Args:
        joined: Samples with features.
        target: Its name.
        labels: Shape (m,), of the target, open by now; -1 where it has none.
        plan: Digest of the fixes' plan; None where no fix is scored.
    """
    samples = joined.samples
    there = np.flatnonzero(samples.domain == target)
    return {
        "source": digest_of_domain(samples, SOURCE),
        "target": digest_rows((samples.key[row] for row in there), labels),
        "recipes": [store.recipe.fingerprint for store in joined.stores],
        "plan": plan,
    }


def caveats(found: Circumstances, leak: Iterable[Finding]) -> tuple[str, ...]:
    """Say in sentences what limits the numbers.

    Args:
        found: Of one target.
        leak: Findings of the checks.
    """
    said = []
    if found.shared_patients:
        said.append(
            f"{counted(found.shared_patients, 'patient id')} {are(found.shared_patients)} in both "
            "domains: the numbering may restart, or the domains share patients, and then the loss "
            "is too small."
        )
    said += [
        f"The {domain} has {counted(count, 'patient')}: intervals by patient are rough, and a test "
        "that finds nothing shows nothing."
        for domain, count in found.patients.items()
        if count < ROUGH_BELOW
    ]
    if found.score_changed:
        said.append(
            "Y given the score has changed: estimates of the accuracy without labels and "
            "thresholds moved without labels must not be used."
        )
    said += [
        f"{one.where}: {one.text}."  # which images, the audit says
        for one in leak
        if one.severity != OK and not found.elsewhere & set(one.where.split(" and "))
    ]
    return tuple(said)
