"""Patients of images, and everything that is done by patient: the split, folds, and draws."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.study import HEADER, Domain, SourceDomain
from pipeline.words import counted, have, printable

if TYPE_CHECKING:
    from pipeline.data.items import Item  # which imports all that reads images

_LOG = logging.getLogger(__name__)
FIT, VALIDATION, TARGET = "fit", "validation", "target"
#: Usual names of the parts of a data set, by our name of the split.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        FIT: ("train", "training", "fit"),
        VALIDATION: ("val", "valid", "validation", "validate", "dev"),
        "test": ("test", "testing"),
    }
)
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
#: Warn where validation has less than this share of what was asked for, or more than its inverse.
_SHARE_TOLERANCE = 2 / 3
_SECONDS_FOR_A_NAME = 0.5
#: A given validation part is small if it has fewer patients, and less of the images, than these.
_FEW_PATIENTS, _SMALL_SHARE = 100, 0.1
_ANEW = 'write validation = 0.2 and, as split, the part to learn from, such as "train"'
#: A pattern that finds no patient in more than this share of the images is wrong.
_MOST_UNKNOWN = 0.5


def split_of(name: str) -> str:
    """Our name of a part of a data set, by the word in its name; empty if none or several fit."""
    words = re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name)
    splits = {SPLIT_OF[word.casefold()] for word in words if word.casefold() in SPLIT_OF}
    return splits.pop() if len(splits) == 1 else ""


def text_in_path(path: str, pattern: str) -> str | None:
    """What a pattern finds in an image's path, a patient or a class; None if it finds nothing.

    It is the pattern's group, else the whole match. The pattern is searched in the file's name; if
    it has a ``/``, in the path below the domain's folder. A StudyError if that takes too long: with
    some patterns the time doubles with each letter of the name.
    """
    name = path if "/" in pattern else path.rpartition("/")[2]
    try:
        match = _compiled(pattern).search(name, timeout=_SECONDS_FOR_A_NAME)
    except TimeoutError as cause:
        raise StudyError(
            f"{pattern!r} takes more than {_SECONDS_FOR_A_NAME:g} s for {printable(path)}: "
            "write it without choices that overlap, such as (a|aa)+"
        ) from cause
    if not match:
        return None
    return (match[1] if match.re.groups and match[1] is not None else match[0]) or None


@lru_cache(maxsize=64)  # the library looks its own cache up for 20 us
def _compiled(pattern: str) -> Any:
    import regex  # only for patterns

    return regex.compile(pattern)


def patients_of_items(domain: Domain, items: Sequence["Item"]) -> list[str | None]:
    """Patient id of each image from its header, the pattern, or a table's column; or None."""
    if domain.group is None or domain.group == HEADER:
        return [item.patient or None for item in items]
    return [text_in_path(item.name, domain.group) for item in items]


def patients_or_paths(domain: Domain, items: Sequence["Item"]) -> list[str]:
    """Patient id of each image; without a patient it is the image's path, with a warning.

    Raises:
        StudyError: Patients are asked for, and more than half of the images have none.
    """
    patients = patients_of_items(domain, items)
    unknown = [i.path for i, patient in zip(items, patients, strict=True) if patient is None]
    column = domain.table is not None and "patient" in domain.table.columns
    if (domain.group or column) and len(unknown) > _MOST_UNKNOWN * len(items):
        raise StudyError(
            f"{domain.name}: group = {domain.group or 'the column'!r} finds no patient in "
            f"{len(unknown)} of {counted(len(items), 'image')}; first: {printable(unknown[0])}. A "
            "pattern is searched in the file's name, or with a / in the path below the folder, and "
            f"{HEADER} in the header of DICOM files. Correct it, or remove it if the patients are "
            "unknown"
        )
    if unknown:
        text = unknown_patients(len(unknown), len(items))
        _LOG.warning(
            "%s: %s; images of one patient may be in both parts of the split; first: %s",
            *(domain.name, text, printable(unknown[0])),
        )
    return [patient or item.path for patient, item in zip(patients, items, strict=True)]


def unknown_patients(count: int, images: int) -> str:
    """What it means that the patients of some images are unknown."""
    return (
        f"the patient of {count} of {counted(images, 'image')} is unknown, because no `group` "
        "finds it, and each of these images counts as its own patient"
    )


def single_patient_hint(table: str) -> str:
    """A hint for the case that images of one table of the study file have too few patients."""
    return f"if these are of several patients, the group pattern of [{table}] takes them for one"


# The split of the source by patient. It depends only on the seed and on each patient's id, not on
# the order or number of other images, so it stays (nearly) the same when images are added.


def join_duplicates(group: Sequence[str], key: Sequence[bytes]) -> list[str]:
    """Give patients that share an identical image one common id, transitively.

    Otherwise one image could be in both parts of a split under two names.
    """
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    first: dict[bytes, str] = {}
    for patient, content in zip(group, key, strict=True):
        a, b = find(first.setdefault(content, patient)), find(patient)
        leader[max(a, b)] = min(a, b)
    return [find(patient) for patient in group]


def split_source(
    source: SourceDomain,
    label: NDArray[np.int64],
    group: Sequence[str],
    given: Sequence[str],
    *,
    seed: int,
    names: Sequence[str],
) -> NDArray[np.str_]:
    """The split of each image of the source; ``fit`` throughout one without labels.

    A split that came with the data, ``given``, must have each class in both parts; patients, and
    copies of an image, that are in both are said. ``names`` are those of the classes.
    """
    share = source.validation
    if not source.labelled:
        return np.full(len(label), FIT)
    if isinstance(share, float) and not source.keeps_split:
        split = split_by_patient(label, group, share=share, seed=seed, names=names)
        held_out = float((split == VALIDATION).mean())
        if not _SHARE_TOLERANCE <= held_out / share <= 1 / _SHARE_TOLERANCE:
            _LOG.warning(
                "source: validation holds %.0f %% of the images where %.0f %% were asked for, "
                "because patients stay whole and are few or large",
                *(100 * held_out, 100 * share),
            )
        return split
    split, patients = np.array(given), np.array(group)
    for part in (FIT, VALIDATION):
        if missing := sorted(set(range(len(names))) - set(label[split == part].tolist())):
            raise StudyError(
                f"source: the {part} part of the given split has no image of class "
                f"{printable(names[missing[0]])!r}. Instead {_ANEW}"
            )
    crossing = np.intersect1d(patients[split == FIT], patients[split == VALIDATION])
    if crossing.size:
        _LOG.warning(
            "source: %s %s images in both fit and validation of the given split, so the numbers "
            "of validation are too good. To split by patient %s",
            *(counted(crossing.size, "patient"), have(crossing.size), _ANEW),
        )
    held_out = split == VALIDATION
    few = len({*patients[held_out]})
    if few < _FEW_PATIENTS and held_out.mean() < _SMALL_SHARE:
        _LOG.warning(
            "source: the validation part of the given split has only %s of %s. For a larger one %s",
            *(counted(int(held_out.sum()), "image"), counted(few, "patient"), _ANEW),
        )
    return split


def split_by_patient(
    label: NDArray[np.int64],
    group: Sequence[str],
    *,
    share: float,
    seed: int,
    names: Sequence[str] = (),
) -> NDArray[np.str_]:
    """Hold out whole patients, stratified by the classes of a patient's images.

    If a mixture of classes is so rare that its share would be less than one patient, its patients
    are divided class by class instead.

    Args:
        label: Shape ``(n,)``.
        group: ``n`` patient ids.
        share: Share of the images that validation should have in each stratum, in (0, 1).
        seed: The study's seed.
        names: Class names in label order, for the message.

    Returns:
        ``fit`` or ``validation``, shape ``(n,)``; a StudyError if a class cannot be in both.
    """
    images = Counter(group)
    classes: dict[str, set[int]] = defaultdict(set)
    for patient, k in zip(group, label.tolist(), strict=True):
        classes[patient].add(k)
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient in classes:
        strata[tuple(sorted(classes[patient]))].append(patient)
    held_out: set[str] = set()
    rare: list[str] = []
    for mixture, patients in strata.items():
        patients.sort(key=lambda patient: _draw(seed, patient))
        if len(mixture) > 1 and share * len(patients) < 1:
            rare += patients
        else:
            held_out.update(patients[: _count_held_out([images[p] for p in patients], share)])
    rare.sort(key=lambda patient: _draw(seed, patient))
    held_out |= _by_rarest_class(rare, classes, held_out, share)
    split = np.array([VALIDATION if patient in held_out else FIT for patient in group])
    _check_both_splits(label, group, split, names)
    return split


def _count_held_out(sizes: list[int], share: float) -> int:
    """How many of the first patients come closest to the share; at least one is not held out."""
    filled = np.cumsum(sizes)
    best = int(np.abs(filled - share * filled[-1]).argmin()) + 1
    return min(best, len(sizes) - 1)


def _by_rarest_class(
    rare: list[str], classes: Mapping[str, set[int]], held_out: set[str], share: float
) -> set[str]:
    """Which patients with rare mixtures are held out; they come in the order of their draw.

    Iterative stratification: the class with the fewest patients left is divided first, so that
    more frequent classes do not use up its patients (Sechidis, Tsoumakas and Vlahavas 2011).
    """
    total = Counter(k for mixture in classes.values() for k in mixture)
    held = Counter(k for patient in held_out for k in classes[patient])
    chosen: set[str] = set()

    def hold_out(patients: list[str]) -> None:
        chosen.update(patients)
        held.update(k for patient in patients for k in classes[patient])

    unsplit = rare
    while unsplit:
        left = Counter(k for patient in unsplit for k in classes[patient])
        k = min(left, key=lambda k: (left[k], k))
        of_class = [patient for patient in unsplit if k in classes[patient]]
        stays = left[k] + held[k] == total[k]  # one at least has to stay in fit
        wanted = min(max(1, round(share * total[k])) - held[k], len(of_class) - stays)
        hold_out(of_class[: max(0, wanted)])
        unsplit = [patient for patient in unsplit if k not in classes[patient]]
    for k in sorted(total):
        if not held[k]:  # rarer classes have used all its patients
            fit = total - held
            movable = [p for p in rare if k in classes[p] and all(fit[c] > 1 for c in classes[p])]
            hold_out(movable[:1])
    return chosen


def _check_both_splits(
    label: NDArray[np.int64], group: Sequence[str], split: NDArray[np.str_], names: Sequence[str]
) -> None:
    for k in np.unique(label).tolist():
        if len(set(split[label == k])) < 2:
            patients = len({p for p, c in zip(group, label.tolist(), strict=True) if c == k})
            name = repr(printable(names[k] if names else str(k)))
            why = "too few to" if patients == 1 else "and with this seed they do not"
            seed = "" if patients == 1 else ", or take another seed"
            raise StudyError(
                f"class {name} of [source] has images of {counted(patients, 'patient')}, {why} "
                f"be in both parts of a split by patient. Add images of others{seed}; "
                f"{single_patient_hint('source')}"
            )


def _draw(seed: int, patient: str) -> bytes:
    """A random rank that depends only on the seed, the purpose and the patient."""
    text = f"{seed}|validation|{patient}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


# Folds by patient, for everything that is chosen, calibrated or estimated out of fold.


#: Default number of folds.
FOLDS = 5
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def patient_folds(
    label: NDArray[np.integer] | None, group: NDArray[Any], *, folds: int = FOLDS, seed: int
) -> list[Fold]:
    """Row numbers (train, test) of each fold; no patient is in both, every row is tested once.

    Two folds are halves: the test rows of the first, and those of the second. There are fewer
    folds if a class has fewer patients.

    Args:
        label: Shape ``(n,)``: folds are stratified by it, and each is trained on every class.
            None: patients are divided without regard to classes.
        group: Patients, shape ``(n,)``.
        folds: Number of folds at most, two or more.
        seed: Seed of the folds.

    Raises:
        StudyError: There are fewer than two patients, in all or in a class; or one fold has all
            patients of a class.
    """
    classes = [] if label is None else np.unique(label).tolist()
    patients = [len(np.unique(group[label == k])) for k in classes] or [len(np.unique(group))]
    if min(patients) < 2:
        what = "a class has images" if classes else "all images are"
        raise StudyError(f"{what} of one patient alone: folds of patients need two")
    count = min(folds, *patients)
    rows = np.zeros((len(group), 1))
    if label is None:
        # scikit-learn takes longer to import than ten new images take to extract.
        from sklearn.model_selection import GroupKFold

        splits = GroupKFold(count, shuffle=True, random_state=seed).split(rows, groups=group)
    else:
        splits = _stratified_folds(np.unique(label, return_inverse=True)[1], group, count, seed)
    folded = list(splits)
    if label is not None and any(np.unique(label[rows]).size < len(classes) for rows, _ in folded):
        raise StudyError("a class has too few patients of its own: a fold has them all")
    return folded


def _stratified_folds(
    label: NDArray[np.integer], group: NDArray[Any], count: int, seed: int
) -> Iterator[Fold]:
    """The folds of scikit-learn's ``StratifiedGroupKFold``, in a tenth of its time.

    Patients with the most uneven classes come first. Each goes to the fold in which the classes
    are then spread most evenly; of equal folds to the smallest. All folds are tried at once: the
    library's loop took 0.5 s for 1,300 patients.
    """
    patient = np.unique(group, return_inverse=True)[1]
    size = np.bincount(label)
    counts = np.zeros((patient.max() + 1, len(size)))
    np.add.at(counts, (patient, label), 1)
    rng = np.random.RandomState(seed)  # the library's generator, for its folds
    shuffled = rng.permutation(len(counts))
    by_spread = shuffled[np.argsort(-np.std(counts[shuffled], axis=1), kind="stable")]
    filled, fold_of = np.zeros((count, len(size))), np.empty(len(counts), np.intp)
    unit = np.eye(count)[:, :, None]
    for i in by_spread:
        tried = filled + unit * counts[i]
        spread = np.std(tried / size, axis=1).mean(axis=1).tolist()
        rows = filled.sum(axis=1).tolist()
        best = 0
        for k in range(1, count):
            alike = abs(spread[k] - spread[best]) <= 1e-8 + 1e-5 * abs(spread[best])
            if spread[k] < spread[best] or (alike and rows[k] < rows[best]):
                best = k
        filled[best] += counts[i]
        fold_of[i] = best
    for k in range(count):
        test = fold_of[patient] == k
        yield np.flatnonzero(~test), np.flatnonzero(test)


# Draws of patients with replacement: the bootstrap, and every fit that is repeated on it.


#: Number of draws for an interval.
DRAWS = 2000
_MOST_LEFT_OUT = 500
#: 2 MB of weights, which stay in a core's cache from one statistic to the next.
_BLOCK_CELLS = 1 << 18

Weights = NDArray[np.float64]
#: From weights of rows ``(b, n)`` to one number for each draw, ``(b,)``; NaN if undefined.
WeightedStatistic = Callable[[Weights], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class PatientDraws:
    """Draws with replacement of the patients that some rows belong to.

    Images of one patient are not independent, so whole patients are drawn. All statistics
    that are evaluated on the same draws are paired.

    Attributes:
        patients: Sorted ids, shape ``(P,)``.
        counts: How often each patient is in each draw, uint8 of shape ``(B, P)``.
        member: Number of each row's patient, shape ``(n,)``.
    """

    patients: NDArray[Any]
    counts: NDArray[np.uint8]
    member: NDArray[np.intp]

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.counts)

    def of(self, group: NDArray[Any]) -> "PatientDraws":
        """The same draws for other rows, whose patients (m,) are all among ``patients``."""
        return replace(self, member=np.searchsorted(self.patients, group))

    def weights(self, which: slice = slice(None)) -> Weights:
        """How often each row is in each of ``b`` draws, shape ``(b, n)``."""
        return self.counts[which].astype(np.float64)[:, self.member]

    def blocks(self) -> Iterator[slice]:
        """The draws in order, so many at a time that their weights take about 2 MB."""
        step = max(1, _BLOCK_CELLS // max(1, len(self.member)))
        return (slice(start, start + step) for start in range(0, len(self), step))

    def apply(self, statistic: WeightedStatistic) -> NDArray[np.float64]:
        """A statistic of row weights in every draw, shape ``(B,)``; NaN if undefined.

        Several statistics may be stacked: ``(S, b)`` for ``b`` draws gives ``(S, B)``.
        """
        parts = [statistic(self.weights(which)) for which in self.blocks()]
        return np.concatenate(parts, axis=-1)

    def mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Mean in each draw of a number per row (n,), shape ``(B,)``; NaN for a draw of no rows."""
        sums, rows = (
            np.bincount(self.member, weights=each, minlength=len(self.patients))
            for each in (values, None)
        )
        drawn = np.concatenate(
            [self.counts[which].astype(np.float64) @ np.c_[sums, rows] for which in self.blocks()]
        )
        means = np.full(len(self), np.nan)
        np.divide(drawn[:, 0], drawn[:, 1], out=means, where=drawn[:, 1] > 0)
        return means


def leave_out_patients(group: Sequence[object] | NDArray[Any]) -> PatientDraws:
    """Leave out each of ``n`` patient ids in turn: the "draws" of the jackknife.

    Of more than 500 patients, 500 groups of equal size are left out instead (delete-a-group
    jackknife); the groups are random but always the same.
    """
    patients, member = np.unique(np.asarray(group), return_inverse=True)
    block = np.arange(patients.size)
    if patients.size > _MOST_LEFT_OUT:
        block = np.random.default_rng(0).permutation(block) % _MOST_LEFT_OUT
    counts = block != np.arange(block.max() + 1)[:, None]
    return PatientDraws(patients=patients, counts=counts.astype(np.uint8), member=member)


def draw_patients(
    group: Sequence[object] | NDArray[Any],
    rng: np.random.Generator,
    *,
    draws: int = DRAWS,
    label: NDArray[np.integer] | None = None,
) -> PatientDraws:
    """Draw as many patients as there are, with replacement.

    Args:
        group: ``n`` patient ids.
        rng: Generator of the draws.
        draws: Number of draws.
        label: Shape ``(n,)``: a draw that lacks one of these classes is drawn again.
    """
    patients, member = np.unique(np.asarray(group), return_inverse=True)
    share = np.full(patients.size, 1 / patients.size)
    classes = [] if label is None else np.unique(label).tolist()
    with_class = [np.unique(member[label == k]) for k in classes]
    accepted: list[NDArray[np.uint8]] = []
    while missing := draws - sum(map(len, accepted)):
        # One byte is enough: no patient is ever drawn more than 255 times.
        counts = rng.multinomial(patients.size, share, size=missing).astype(np.uint8)
        for members in with_class:
            counts = counts[counts[:, members].any(axis=1)]
        accepted.append(counts)
    return PatientDraws(patients=patients, counts=np.concatenate(accepted), member=member)
