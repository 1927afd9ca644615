"""Leaks: what is in two roles at once, a patient, a picture, or nearly a picture.

A role is a split of the source or a target. All checks of the audit report in the same form,
a :class:`Finding`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import FIT, TARGET, patients_of_items
from pipeline.data.samples import Samples
from pipeline.errors import CheckFailedError, UnknownNameError
from pipeline.study import SOURCE, Domain, Study
from pipeline.words import are, counted

#: The worst first. A leak makes numbers wrong; a warning says what may explain them; a
#: note is worth knowing; ok is a check that found nothing.
LEAK, WARNING, NOTE, OK = SEVERITIES = ("leak", "warning", "note", "ok")
#: Names of the checks in this file.
_PATIENTS, _COPIES, _NEAR_COPIES, _CONFLICTS = (
    "patients",
    "copies",
    "near copies",
    "label conflicts",
)

_ALL_ROLES = "all roles"
_OF_SOURCE = f"{SOURCE} "
#: Images that a finding names.
_SHOWN = 3
#: Of nearest-neighbour cosines between patients of one role: what chance resembles.
_QUANTILE = 0.999
#: Largest Hamming distance of the difference hashes of near copies.
_BITS = 4
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found; one line of an audit.

    Attributes:
        check: Which check; one of its module's.
        severity: One of ``SEVERITIES``.
        where: The roles or the domain that it is about.
        text: What was found, a sentence with its numbers and no name of an image.
        examples: The first few images that it is about; a name can be a patient's.
        advice: What to do next; empty where there is nothing to do.
        values: The numbers and lists behind the sentence, JSON values.

    Raises:
        UnknownNameError: The severity is in no table.
    """

    check: str
    severity: str
    where: str
    text: str
    examples: str = ""
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise UnknownNameError("severity", self.severity, SEVERITIES)


def impossible(check: str, where: str, reason: Exception) -> Finding:
    """A note that a check was not possible, and why."""
    return Finding(check=check, severity=NOTE, where=where, text=f"cannot be tested: {reason}")


def in_each_domain(
    samples: Samples, check: str, run: Callable[[str, NDArray[np.bool_]], Finding]
) -> list[Finding]:
    """The findings of a check that needs labels; a note for a domain that has none.

    Args:
        samples: ``n`` samples.
        check: Its name.
        run: The check, of a domain's name and rows, shape ``(n,)``.
    """
    domains = {name: samples.domain == name for name in dict.fromkeys(samples.domain.tolist())}
    return [
        run(name, rows)
        if samples.labelled[rows].all()
        else Finding(check=check, severity=NOTE, where=name, text="not tested: it has no labels")
        for name, rows in domains.items()
    ]


def refuse_leaks(findings: Iterable[Finding]) -> None:
    """Stop where a leak was found.

    Raises:
        CheckFailedError: With every leak and what to do about the first.
    """
    leaks = [finding for finding in findings if finding.severity == LEAK]
    if not leaks:
        return
    texts = "; ".join(
        f"{leak.where}: {leak.text}{leak.examples and ': '}{leak.examples}" for leak in leaks
    )
    raise CheckFailedError(f"{texts}. {leaks[0].advice}. headrace audit lists them all")


# Roles and identities.


def roles_of(samples: Samples) -> NDArray[np.str_]:
    """Role of each image, shape ``(n,)``; no target can be called as those of the source."""
    of_source = np.array([f"{SOURCE} {split}" for split in samples.split])
    return np.where(samples.split == TARGET, samples.domain, of_source)


def patients_of(samples: Samples) -> NDArray[np.str_]:
    """Patients of all domains, shape ``(n,)``: an id is one person within a domain only."""
    return np.char.add(np.char.add(samples.domain, "|"), samples.group)


def shared_ids(ids: Mapping[str, NDArray[Any]]) -> dict[tuple[str, str], NDArray[Any]]:
    """What each pair of roles has in common, sorted; pairs that share nothing are left out.

    With patient ids this is the patient overlap, with digests of pictures the copies.

    Args:
        ids: By role, shape ``(n_role,)``.
    """
    shared = {(a, b): np.intersect1d(ids[a], ids[b]) for a, b in combinations(ids, 2)}
    return {roles: both for roles, both in shared.items() if both.size}


def _picture_ids(samples: Samples, facts: NDArray[Any] | None) -> NDArray[np.str_]:
    """What is equal for equal pictures, shape ``(n,)``.

    The digest of the pixels; without facts the content key, which tells byte-identical
    files alone.
    """
    keys = samples.key if facts is None else facts["pixels"]
    return np.array([bytes(key).hex() for key in keys])


def _rows_by_role(roles: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    """Rows of each role: fit, validation, then the targets, whichever image comes first."""
    present = dict.fromkeys(roles.tolist())
    of_source = sorted(role for role in present if role.startswith(_OF_SOURCE))
    names = [*of_source, *(role for role in present if role not in of_source)]
    return {name: np.flatnonzero(roles == name) for name in names}


# Patients, copies and conflicts.


def check_leaks(study: Study, samples: Samples, facts: NDArray[Any] | None = None) -> list[Finding]:
    """Patients and pictures in two roles: what must be known before any number.

    Args:
        study: Where the patient patterns are.
        samples: ``n`` samples.
        facts: Records of dtype ``FACTS``, shape ``(n,)``. Without them only files that are
            equal byte by byte count as one picture.
    """
    ids = _picture_ids(samples, facts)
    return [
        *_check_patients(study, samples),
        *_check_copies(samples, ids),
        _check_conflicts(samples, ids),
    ]


def _check_patients(study: Study, samples: Samples) -> list[Finding]:
    """Patients in two roles, and domains whose patients nobody knows.

    An id within the source is believed; of two domains it is not, because hospitals
    number from one.
    """
    rows = _rows_by_role(roles_of(samples))
    of_source = {role: samples.group[r] for role, r in rows.items() if role.startswith(_OF_SOURCE)}
    findings = [
        Finding(
            check=_PATIENTS,
            severity=LEAK,
            where=" and ".join(roles),
            text=f"{counted(len(ids), 'patient')} {are(len(ids))} in both",
            advice="Split again by patient: these images are known to the heads already",
            values={"patients": len(ids)},
        )
        for roles, ids in shared_ids(of_source).items()
    ]
    patients = {domain.name: _patients_in_names(domain, samples) for domain in study.domains}
    for domain in study.domains:
        findings += _without_patient(domain, patients[domain.name])
    known = {name: np.array([p for p in ids if p is not None]) for name, ids in patients.items()}
    findings += [
        Finding(
            check=_PATIENTS,
            severity=WARNING,
            where=" and ".join(domains),
            text=f"{counted(len(ids), 'patient id')} {are(len(ids))} in both",
            advice="Two hospitals may number alike. If these are the same people, remove them "
            "from one",
            values={"ids": len(ids)},
        )
        for domains, ids in shared_ids(known).items()
    ]
    seen = counted(np.unique(samples.group).size, "patient")
    return findings or [_fine(_PATIENTS, f"no patient is in two roles ({seen})")]


def _patients_in_names(domain: Domain, samples: Samples) -> list[str | None]:
    rows = np.flatnonzero(samples.domain == domain.name)
    return patients_of_items(domain, [samples.items[row] for row in rows])


def _without_patient(domain: Domain, patients: list[str | None]) -> Iterator[Finding]:
    count = patients.count(None)
    if not count:
        return
    if domain.group is None and count == len(patients):
        text = "an image-level split: without a group pattern every image is its own patient"
    else:
        text = f"{count} of {len(patients)} names match no patient, each is its own"
    yield Finding(
        check=_PATIENTS,
        severity=WARNING,
        where=domain.name,
        text=text,
        advice="Write `group` in the study so that it finds the patient in every name; until "
        "then images of one patient may be in two roles, and intervals are too short",
        values={"images_without_patient": count, "images": len(patients)},
    )


def _check_copies(samples: Samples, ids: NDArray[np.str_]) -> list[Finding]:
    """The same picture in two roles is a leak; within one it only counts twice."""
    rows = _rows_by_role(roles_of(samples))
    shared = shared_ids({role: ids[r] for role, r in rows.items()})
    findings = [
        _copies_across(samples, ids, roles, (rows[roles[0]], rows[roles[1]])) for roles in shared
    ]
    for role in rows:
        findings += _copies_within(samples, ids, rows[role], role)
    return findings or [_fine(_COPIES, "no picture occurs twice")]


def _copies_across(
    samples: Samples,
    ids: NDArray[np.str_],
    roles: tuple[str, str],
    rows: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> Finding:
    first = {ids[row]: row for row in rows[0].tolist()}
    copies = [row for row in rows[1].tolist() if ids[row] in first]
    pairs = [[samples.name_of(first[ids[row]]), samples.name_of(row)] for row in copies]
    # Two targets that share a picture are each scored rightly; they are only not independent.
    learns = any(role.startswith(_OF_SOURCE) for role in roles)
    return Finding(
        check=_COPIES,
        severity=LEAK if learns else WARNING,
        where=" and ".join(roles),
        text=f"{counted(len(pairs), 'image')} in both, to the pixel",
        examples=_first_of([" = ".join(pair) for pair in pairs]),
        advice="Remove them from one of the two",
        values={"images": len(pairs), "pairs": pairs},
    )


def _copies_within(
    samples: Samples, ids: NDArray[np.str_], rows: NDArray[np.intp], role: str
) -> Iterator[Finding]:
    copied = [same for same in _rows_by_picture(ids, rows) if len(same) > 1]
    if not copied:
        return
    extra = sum(len(same) - 1 for same in copied)
    pictures = [[samples.name_of(row) for row in same] for same in copied]
    yield Finding(
        check=_COPIES,
        severity=NOTE,
        where=role,
        text=f"{counted(extra, 'image')} {are(extra)} a copy of another, to the pixel",
        examples=_first_of([" = ".join(names) for names in pictures]),
        advice="Each counts on its own; remove copies if that is not meant",
        values={"copies": extra, "pictures": pictures},
    )


def _check_conflicts(samples: Samples, ids: NDArray[np.str_]) -> Finding:
    """The same picture under two labels: one of them is wrong."""
    pictures = [
        [samples.name_of(row) for row in same]
        for same in _rows_by_picture(ids, np.flatnonzero(samples.labelled))
        if np.unique(samples.label[same]).size > 1
    ]
    if not pictures:
        return _fine(_CONFLICTS, "copies of one picture have one label")
    return Finding(
        check=_CONFLICTS,
        severity=WARNING,
        where=_ALL_ROLES,
        text=f"{counted(len(pictures), 'picture')} with several labels",
        examples=_first_of([" and ".join(names) for names in pictures]),
        advice="Remove what is labelled wrongly, or all of them",
        values={"pictures": pictures},
    )


def _rows_by_picture(ids: NDArray[np.str_], rows: NDArray[np.intp]) -> list[list[int]]:
    by_picture: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_picture.setdefault(str(ids[row]), []).append(row)
    return list(by_picture.values())


def _fine(check: str, text: str) -> Finding:
    return Finding(check=check, severity=OK, where=_ALL_ROLES, text=text)


def _first_of(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


# Near copies: alike in features and in hash.


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two images of different roles that look like copies of one.

    Attributes:
        rows: Their rows, smaller first.
        cosine: Of their features, in [-1, 1].
        bits: By how many bits their difference hashes differ, 0 to 64.
    """

    rows: tuple[int, int]
    cosine: float
    bits: int


def check_near_copies(
    samples: Samples, features: NDArray[np.floating], facts: NDArray[Any]
) -> tuple[tuple[NearPair, ...], list[Finding]]:
    """Pictures of two roles that are alike in features and hash, but not equal.

    Args:
        samples: ``n`` samples.
        features: Shape ``(n, d)``.
        facts: Records of dtype ``FACTS``, shape ``(n,)``.

    Returns:
        The pairs, most similar first, and the findings about them.
    """
    roles, ids = roles_of(samples), _picture_ids(samples, facts)
    # One of each picture in a role: copies under two patients would pass for chance.
    each = np.sort(np.unique(np.char.add(np.char.add(roles, "|"), ids), return_index=True)[1])
    pairs = tuple(
        NearPair(
            rows=(int(each[pair.rows[0]]), int(each[pair.rows[1]])),
            cosine=pair.cosine,
            bits=pair.bits,
        )
        for pair in find_near_copies(
            features[each], facts["dhash"][each], roles[each], patients_of(samples)[each]
        )
        if ids[each[pair.rows[0]]] != ids[each[pair.rows[1]]]
    )
    counts = Counter(tuple(sorted(roles[list(pair.rows)].tolist())) for pair in pairs)
    findings = [
        Finding(
            check=_NEAR_COPIES,
            severity=WARNING,
            where=" and ".join(both),
            text=f"{counted(count, 'pair')} {'looks' if count == 1 else 'look'} like copies",
            advice="Look at the contact sheet; if they show one patient, remove them from one role",
            values={"pairs": count},
        )
        for both, count in sorted(counts.items())
    ]
    none = "no image of a role looks like a copy of another role's"
    return pairs, findings or [_fine(_NEAR_COPIES, none)]


def near_rows(samples: Samples, pairs: Sequence[NearPair]) -> NDArray[np.bool_]:
    """Images outside fit that have a near copy in fit, shape ``(n,)``."""
    fit = samples.split == FIT
    marked = np.zeros(len(samples), np.bool_)
    for a, b in (pair.rows for pair in pairs):
        marked[a] |= fit[b]
        marked[b] |= fit[a]
    return np.asarray(marked & ~fit)


def find_near_copies(
    features: NDArray[np.floating],
    hashes: NDArray[np.uint64],
    roles: NDArray[np.str_],
    group: NDArray[Any],
    *,
    bits: int = _BITS,
) -> tuple[NearPair, ...]:
    """Pairs of images of different roles that look like copies.

    For each image its nearest neighbour in any other role is a candidate. It counts if
    their cosine lies above what the nearest images of *different patients in one role*
    reach by chance, and their hashes agree: features alone confuse similar patients,
    hashes alone confuse similar poses.

    Args:
        features: Shape ``(n, d)``.
        hashes: 64-bit difference hash (dHash) of each image, shape ``(n,)``.
        roles: Shape ``(n,)``.
        group: Patient ids, shape ``(n,)``.
        bits: Largest Hamming distance of the hashes.

    Returns:
        Pairs, most similar first, each once.
    """
    directions = _centred_directions(features)
    role, patient = (np.unique(ids, return_inverse=True)[1] for ids in (roles, group))
    across, cosine = _nearest(directions, lambda rows: role[rows, None] != role[None])
    stranger, by_chance = _nearest(
        directions,
        lambda rows: (role[rows, None] == role[None]) & (patient[rows, None] != patient[None]),
    )
    # Pairs that the hash takes for copies are no measure of what chance resembles: with a
    # few of them in one role, the threshold would be theirs and hide those across roles.
    by_chance = by_chance[np.isfinite(by_chance) & (_hamming(hashes, hashes[stranger]) > bits)]
    threshold = np.quantile(by_chance, _QUANTILE) if by_chance.size else -1.0
    distance = _hamming(hashes, hashes[across])
    pairs = {
        (min(i, j), max(i, j)): NearPair(
            rows=(min(i, j), max(i, j)), cosine=float(cosine[i]), bits=int(distance[i])
        )
        for i, j in enumerate(across.tolist())
        if cosine[i] > threshold and distance[i] <= bits
    }
    return tuple(sorted(pairs.values(), key=lambda pair: (-pair.cosine, pair.rows)))


def _centred_directions(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1 about the common mean: raw cosines of pooled features are all near 1."""
    centred = np.asarray(features - features.mean(axis=0, dtype=np.float64), dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1))


def _nearest(
    directions: NDArray[np.float64], allowed: Callable[[NDArray[np.intp]], NDArray[np.bool_]]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Each row's nearest allowed row and their cosine, -inf where no row is allowed."""
    best = np.zeros(len(directions), dtype=np.intp)
    cosine = np.full(len(directions), -np.inf)
    for start in range(0, len(directions), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(directions)))
        similar = np.where(allowed(rows), directions[rows] @ directions.T, -np.inf)
        best[rows] = similar.argmax(axis=1)
        cosine[rows] = similar[np.arange(rows.size), best[rows]]
    return best, cosine


def _hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.intp]:
    """By how many bits each pair of 64-bit hashes differs, shape ``(n,)``, 0 to 64."""
    differing = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    return np.asarray(np.unpackbits(differing, axis=1).sum(axis=1), dtype=np.intp)
