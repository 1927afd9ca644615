"""Is anything in two roles at once: a patient, a picture, nearly a picture?

A role is a use that images are put to: fit and validation of the source, each target.
What is compared comes from the table of samples, the facts and the features; nothing
here reads an image.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.checks.finding import LEAK, NOTE, OK, WARNING, Finding
from pipeline.checks.leaks import (
    Gallery,
    NearDuplicateRule,
    NearPair,
    label_conflicts,
    near_duplicates,
    shared_ids,
)
from pipeline.samples import Samples
from pipeline.samples.splits import FIT, TARGET, patient_of
from pipeline.study import SOURCE, Domain, Study
from pipeline.text.counts import are, counted

PATIENTS, COPIES, NEAR, CONFLICTS = "patients", "copies", "near copies", "label conflicts"
_SHOWN = 3
_OF_SOURCE = f"{SOURCE} "


def roles_of(samples: Samples) -> NDArray[np.str_]:
    """Role of each image, shape ``(n,)``; no target can be called as those of the source."""
    of_source = np.array([f"{SOURCE} {split}" for split in samples.split])
    return np.where(samples.split == TARGET, samples.domain, of_source)


def picture_ids(samples: Samples, facts: NDArray[Any] | None) -> NDArray[np.str_]:
    """What is equal for equal pictures, shape ``(n,)``.

    The digest of the pixels; without facts the content key, which tells byte-identical
    files alone.
    """
    keys = samples.key if facts is None else facts["pixels"]
    return np.array([bytes(key).hex() for key in keys])


def check_leaks(study: Study, samples: Samples, facts: NDArray[Any] | None = None) -> list[Finding]:
    """Patients and pictures in two roles: what must be known before any number.

    Args:
        study: Where the patient patterns are.
        samples: ``n`` samples.
        facts: Records of dtype ``FACTS``, shape ``(n,)``; see :func:`picture_ids`.
    """
    ids = picture_ids(samples, facts)
    copies = check_copies(samples, ids)
    return [*check_patients(study, samples), *copies, *check_conflicts(samples, ids)]


def check_patients(study: Study, samples: Samples) -> list[Finding]:
    """Patients in two roles, and domains whose patients nobody knows.

    An id within the source is believed; of two domains it is not, because hospitals
    number from one.
    """
    roles = roles_of(samples)
    groups = {r: samples.group[roles == r] for r in _in_order(roles) if r.startswith(_OF_SOURCE)}
    findings = [
        Finding(
            check=PATIENTS,
            severity=LEAK,
            where=" and ".join(shared.roles),
            found=f"{counted(len(shared.ids), 'patient')} {are(len(shared.ids))} in both",
            advice="Split again by patient: these images are known to the heads already",
            values={"patients": len(shared.ids)},
        )
        for shared in shared_ids(groups)
    ]
    known = {domain.name: _known_patients(domain, samples) for domain in study.domains}
    findings += [f for domain in study.domains for f in _unknown(domain, known[domain.name])]
    ids = {name: np.array([p for p in found if p is not None]) for name, found in known.items()}
    findings += [_met_again(shared.roles, len(shared.ids)) for shared in shared_ids(ids)]
    seen = np.unique(samples.group).size
    return findings or [
        Finding(
            check=PATIENTS,
            severity=OK,
            where="all roles",
            found=f"no patient is in two roles ({counted(seen, 'patient')})",
        )
    ]


def check_copies(samples: Samples, ids: NDArray[np.str_]) -> list[Finding]:
    """The same picture in two roles is a leak; within one it only counts twice."""
    roles = roles_of(samples)
    findings = [_copied(samples, ids, roles, pair) for pair in _sharing(ids, roles)]
    for role in _in_order(roles):
        findings += _copied_within(samples, ids, np.flatnonzero(roles == role), role)
    return findings or [_nothing(COPIES, "no picture occurs twice")]


def check_conflicts(samples: Samples, ids: NDArray[np.str_]) -> list[Finding]:
    """The same picture under two labels: one of them is wrong."""
    known = np.flatnonzero(samples.labelled)
    conflicts = label_conflicts(ids[known], samples.label[known])
    if not conflicts:
        return [_nothing(CONFLICTS, "copies of one picture have one label")]
    listed = [[samples.name_of(known[row]) for row in one.rows] for one in conflicts]
    return [
        Finding(
            check=CONFLICTS,
            severity=WARNING,
            where="all roles",
            found=f"{counted(len(listed), 'picture')} with several labels",
            named=_some([" and ".join(paths) for paths in listed]),
            advice="Remove what is labelled wrongly, or all of them",
            values={"pictures": listed},
        )
    ]


@dataclass(frozen=True, kw_only=True)
class NearCopies:
    """Pairs of images of two roles that look like copies, and the lines about them."""

    pairs: tuple[NearPair, ...]
    findings: tuple[Finding, ...]


def check_near_copies(
    samples: Samples,
    features: NDArray[np.floating],
    facts: NDArray[Any],
    rule: NearDuplicateRule | None = None,
) -> NearCopies:
    """Pictures of two roles that are alike in features and hash, but not equal.

    Args:
        samples: ``n`` samples.
        features: Shape ``(n, d)``.
        facts: Records of dtype ``FACTS``, shape ``(n,)``.
        rule: What counts as alike.
    """
    roles, ids = roles_of(samples), picture_ids(samples, facts)
    # One of each picture in a role: copies under two patients would pass for chance.
    each = np.unique(np.char.add(np.char.add(roles, "|"), ids), return_index=True)[1]
    each.sort()
    gallery = Gallery(
        features=features[each],
        hashes=facts["dhash"][each],
        roles=roles[each],
        groups=people(samples)[each],
    )
    alike = near_duplicates(gallery, rule)
    found = (replace(p, rows=(int(each[p.rows[0]]), int(each[p.rows[1]]))) for p in alike)
    pairs = tuple(pair for pair in found if ids[pair.rows[0]] != ids[pair.rows[1]])
    counts = Counter(tuple(sorted(roles[list(pair.rows)].tolist())) for pair in pairs)
    findings = [_nearly_copied(both, count) for both, count in sorted(counts.items())]
    none = "no image of a role looks like a copy of another role's"
    return NearCopies(pairs=pairs, findings=tuple(findings) or (_nothing(NEAR, none),))


def people(samples: Samples) -> NDArray[np.str_]:
    """Patients of all domains, shape ``(n,)``: an id is one person within a domain only."""
    return np.char.add(np.char.add(samples.domain, "|"), samples.group)


def near_rows(samples: Samples, pairs: Sequence[NearPair]) -> NDArray[np.bool_]:
    """Images outside fit that have a near copy in fit, shape ``(n,)``."""
    fit = samples.split == FIT
    marked = np.zeros(len(samples), np.bool_)
    for a, b in (pair.rows for pair in pairs):
        marked[a] |= fit[b]
        marked[b] |= fit[a]
    return np.asarray(marked & ~fit)


def _known_patients(domain: Domain, samples: Samples) -> list[str | None]:
    rows = np.flatnonzero(samples.domain == domain.name)
    return [patient_of(samples.items[row].path, domain.group) for row in rows]


def _unknown(domain: Domain, patients: list[str | None]) -> Iterator[Finding]:
    alone = patients.count(None)
    if not alone:
        return
    if domain.group is None:
        found = "an image-level split: without a group pattern every image is its own patient"
    else:
        found = f"{alone} of {len(patients)} names match no patient, each is its own"
    yield Finding(
        check=PATIENTS,
        severity=WARNING,
        where=domain.name,
        found=found,
        advice="Write `group` in the study so that it finds the patient in every name; until "
        "then images of one patient may be in two roles, and intervals are too short",
        values={"images_without_patient": alone, "images": len(patients)},
    )


def _met_again(domains: tuple[str, str], count: int) -> Finding:
    return Finding(
        check=PATIENTS,
        severity=WARNING,
        where=" and ".join(domains),
        found=f"{counted(count, 'patient id')} {are(count)} in both",
        advice="Two hospitals may number alike. If these are the same people, remove them from one",
        values={"ids": count},
    )


def _copied_within(
    samples: Samples, ids: NDArray[np.str_], rows: NDArray[np.intp], role: str
) -> Iterator[Finding]:
    of_picture: dict[str, list[int]] = {}
    for row in rows.tolist():
        of_picture.setdefault(str(ids[row]), []).append(row)
    copied = [found for found in of_picture.values() if len(found) > 1]
    if not copied:
        return
    extra = sum(len(found) - 1 for found in copied)
    listed = [[samples.name_of(row) for row in found] for found in copied]
    yield Finding(
        check=COPIES,
        severity=NOTE,
        where=role,
        found=f"{counted(extra, 'image')} {are(extra)} a copy of another, to the pixel",
        named=_some([" = ".join(paths) for paths in listed]),
        advice="Each counts on its own; remove copies if that is not meant",
        values={"copies": extra, "pictures": listed},
    )


def _sharing(ids: NDArray[np.str_], roles: NDArray[np.str_]) -> list[tuple[str, str]]:
    of_role = {role: ids[roles == role] for role in _in_order(roles)}
    return [shared.roles for shared in shared_ids(of_role)]


def _copied(
    samples: Samples, ids: NDArray[np.str_], roles: NDArray[np.str_], both: tuple[str, str]
) -> Finding:
    first = {ids[row]: int(row) for row in np.flatnonzero(roles == both[0])}
    rows = [int(row) for row in np.flatnonzero(roles == both[1]) if ids[row] in first]
    listed = [[samples.name_of(first[ids[row]]), samples.name_of(row)] for row in rows]
    # Two targets that share a picture are each scored rightly; they are only not independent.
    learns = any(role.startswith(_OF_SOURCE) for role in both)
    return Finding(
        check=COPIES,
        severity=LEAK if learns else WARNING,
        where=" and ".join(both),
        found=f"{counted(len(rows), 'image')} in both, to the pixel",
        named=_some([" = ".join(pair) for pair in listed]),
        advice="Remove them from one of the two",
        values={"images": len(rows), "pairs": listed},
    )


def _nearly_copied(both: tuple[str, ...], count: int) -> Finding:
    return Finding(
        check=NEAR,
        severity=WARNING,
        where=" and ".join(both),
        found=f"{counted(count, 'pair')} {'looks' if count == 1 else 'look'} like copies",
        advice="Look at the contact sheet; if they show one patient, remove them from one role",
        values={"pairs": count},
    )


def _nothing(check: str, found: str) -> Finding:
    return Finding(check=check, severity=OK, where="all roles", found=found)


def _in_order(roles: NDArray[np.str_]) -> list[str]:
    """Fit, validation, the targets; whichever image comes first."""
    present = dict.fromkeys(roles.tolist())
    of_source = sorted(role for role in present if role.startswith(_OF_SOURCE))
    return [*of_source, *(role for role in present if role not in of_source)]


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
