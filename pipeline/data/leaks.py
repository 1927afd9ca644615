"""What one check of a study found, and how bad it is."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.patients import FIT, TARGET, patient_of
from pipeline.data.samples import Samples
from pipeline.errors import CheckFailedError, StudyError, UnknownNameError
from pipeline.study import SOURCE, Domain, Study
from pipeline.words import are, counted

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


# Look for leaks and confounders before any number is believed.


_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Ids that two roles have in common."""

    roles: tuple[str, str]
    """Names of the roles."""
    ids: tuple[Any, ...]
    """What both hold, sorted."""


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two images of different roles that look like copies of one."""

    rows: tuple[int, int]
    """Their rows, smaller first."""
    cosine: float
    """Cosine of their features, in [-1, 1]."""
    bits: int
    """Bits by which their perceptual hashes differ, 0 to 64."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicateRule:
    """When two images count as near copies: alike in features *and* in hash."""

    quantile: float = 0.999
    """Of nearest-neighbour cosines between patients of one role: what chance resembles."""
    bits: int = 4
    """Largest Hamming distance of the 64-bit difference hashes."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One picture filed under several labels."""

    key: Any
    """The picture's content key."""
    labels: tuple[int, ...]
    """The labels it has, sorted."""
    rows: tuple[int, ...]
    """Where it occurs."""


def shared_ids(ids: Mapping[str, NDArray[Any]]) -> tuple[Shared, ...]:
    """Return what each pair of roles has in common.

    With patient ids this is the patient overlap, with content keys the exact duplicates.

    Args:
        ids: By role, shape (n_role,), text, bytes or integers.

    Returns:
        One entry per pair of roles that share anything.
    """
    found = (
        Shared(roles=(a, b), ids=tuple(np.intersect1d(ids[a], ids[b]).tolist()))
        for a, b in combinations(ids, 2)
    )
    return tuple(shared for shared in found if shared.ids)


def label_conflicts(keys: NDArray[Any], labels: NDArray[np.integer]) -> tuple[Conflict, ...]:
    """Return the pictures that occur with more than one label.

    Args:
        keys: Shape (n,), content key of each image.
        labels: Shape (n,).
    """
    unique, codes = np.unique(keys, return_inverse=True)
    by_key = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return tuple(
        Conflict(key=key, labels=tuple(np.unique(labels[rows]).tolist()), rows=tuple(rows.tolist()))
        for key, rows in zip(unique.tolist(), by_key, strict=True)
        if np.unique(labels[rows]).size > 1
    )


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images among which near copies are sought; row i of each array is one image."""

    features: NDArray[np.floating]
    """Shape (n, d)."""
    hashes: NDArray[np.uint64]
    """Shape (n,): 64-bit difference hash (dHash) of each image."""
    roles: NDArray[Any]
    """Shape (n,): name of the role of each image."""
    groups: NDArray[Any]
    """Shape (n,): patient ids."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same images.

        Raises:
            StudyError: Lengths differ, or the hashes are not uint64.
        """
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise StudyError(f"a gallery needs one entry per image in every array, got {lengths}")
        if self.hashes.dtype != np.uint64:
            raise StudyError(f"hashes are {self.hashes.dtype}, needed uint64 (64 bits an image)")


def near_duplicates(
    gallery: Gallery, rule: NearDuplicateRule | None = None
) -> tuple[NearPair, ...]:
    """Return the pairs of images of different roles that look like copies.

    For each image its nearest neighbour in any other role is a candidate. It counts if
    their cosine lies above what the nearest images of *different patients in one role*
    reach by chance, and their hashes agree: features alone confuse similar patients,
    hashes alone confuse similar poses.

    Args:
        gallery: The images.
        rule: Both thresholds.

    Returns:
        Pairs, most similar first, each once.
    """
    rule = rule or NearDuplicateRule()
    directions = _centred_directions(gallery.features)
    roles = np.unique(gallery.roles, return_inverse=True)[1]
    patients = np.unique(gallery.groups, return_inverse=True)[1]
    across = _nearest(directions, lambda rows: roles[rows, None] != roles[None])
    strangers = _nearest(
        directions,
        lambda rows: (roles[rows, None] == roles[None]) & (patients[rows, None] != patients[None]),
    )
    # Pairs that the hash takes for copies are no measure of what chance resembles: with a
    # few of them in one role, the threshold would be theirs and hide those across roles.
    apart = hamming(gallery.hashes, gallery.hashes[strangers.row]) > rule.bits
    usual = strangers.cosine[np.isfinite(strangers.cosine) & apart]
    threshold = np.quantile(usual, rule.quantile) if usual.size else -1.0
    bits = hamming(gallery.hashes, gallery.hashes[across.row])
    alike = np.flatnonzero((across.cosine > threshold) & (bits <= rule.bits))
    pairs = {
        (min(i, j), max(i, j)): NearPair(
            rows=(min(i, j), max(i, j)), cosine=float(across.cosine[i]), bits=int(bits[i])
        )
        for i, j in zip(alike.tolist(), across.row[alike].tolist(), strict=True)
    }
    return tuple(sorted(pairs.values(), key=lambda pair: (-pair.cosine, pair.rows)))


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return by how many bits each pair of 64-bit hashes differs, shape (n,), 0 to 64."""
    differing = np.ascontiguousarray(a ^ b).view(np.uint8).reshape(-1, 8)
    return np.asarray(np.unpackbits(differing, axis=1).sum(axis=1), dtype=np.intp)


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    """Nearest neighbour of each row among those allowed to it."""

    row: NDArray[np.intp]
    cosine: NDArray[np.float64]  # -inf where no row is allowed


def _centred_directions(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length 1 about the common mean: raw cosines of pooled features are all near 1."""
    centred = np.asarray(features - features.mean(axis=0, dtype=np.float64), dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 0, length, 1))


def _nearest(
    directions: NDArray[np.float64], allowed: Callable[[NDArray[np.intp]], NDArray[np.bool_]]
) -> _Nearest:
    """Find each row's nearest allowed row, a block of rows at a time."""
    best = np.zeros(len(directions), dtype=np.intp)
    cosine = np.full(len(directions), -np.inf)
    for start in range(0, len(directions), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(directions)))
        similar = np.where(allowed(rows), directions[rows] @ directions.T, -np.inf)
        best[rows] = similar.argmax(axis=1)
        cosine[rows] = similar[np.arange(rows.size), best[rows]]
    return _Nearest(row=best, cosine=cosine)


# Is anything in two roles at once: a patient, a picture, nearly a picture?


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
