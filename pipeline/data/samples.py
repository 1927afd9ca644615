"""The table of samples: which image is whose, from where, and in which split.

Labels, patients and splits live here and never in the feature store, so relabelling,
renaming or moving an image costs nothing.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import KeyIndex
from pipeline.data.items import Item
from pipeline.data.patients import FIT, TARGET, join_duplicates, patient_of, split_by_patient
from pipeline.data.sources import read_image, scan
from pipeline.data.validate import warn_classes, warn_folds, warn_patients, warn_share
from pipeline.errors import CheckFailedError, ImageError, NoImagesError, StudyError
from pipeline.progress import Progress
from pipeline.study import SOURCE, Domain, Study
from pipeline.words import are, counted, printable

#: Label of an image of a target without labels. It is no class and no metric may meet it:
#: what counts right and wrong refuses it, and stages leave such domains out where they begin.
UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class Skip:
    """An image that is not used, and why; ``key`` in hex where its content was read."""

    domain: str
    path: str
    reason: str
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a study; everything shares the first axis, ``n``.

    Attributes:
        items: Where each image is.
        key: Content key of each image, 32 bytes.
        label: Shape ``(n,)``, int64: index into ``classes``; ``UNLABELLED`` throughout a
            target without labels.
        group: Shape ``(n,)``: patient id; unique within a domain only.
        domain: Shape ``(n,)``: ``source`` or the target's name.
        split: Shape ``(n,)``: ``fit``, ``validation`` or ``target``.
        classes: Class names in label order.
    """

    items: tuple[Item, ...]
    key: tuple[bytes, ...]
    label: NDArray[np.int64]
    group: NDArray[np.str_]
    domain: NDArray[np.str_]
    split: NDArray[np.str_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which samples have a label, shape ``(n,)``."""
        return np.asarray(self.label != UNLABELLED)

    @property
    def unlabelled(self) -> dict[str, int]:
        """Images of each target without labels."""
        return dict(Counter(self.domain[~self.labelled].tolist()))

    def class_of(self, row: int) -> str:
        """Name of the class of a sample, in words if it has none."""
        k = int(self.label[row])
        return "no label" if k == UNLABELLED else self.classes[k]

    def name_of(self, row: int) -> str:
        """Domain and path of a sample, as it is printed and as a study's ``exclude`` lists it."""
        return name_of(str(self.domain[row]), self.items[row].path)

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """The samples where ``mask``, of shape ``(n,)``, is true."""
        rows = np.flatnonzero(mask)
        return type(self)(
            items=tuple(self.items[i] for i in rows),
            key=tuple(self.key[i] for i in rows),
            label=self.label[rows],
            group=self.group[rows],
            domain=self.domain[rows],
            split=self.split[rows],
            classes=self.classes,
        )


def name_of(domain: str, path: str) -> str:
    """An image as it is printed and listed; see :meth:`Samples.name_of`."""
    return printable(f"{domain}/{path}")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How the samples are gathered.

    Attributes:
        rehash: Read every file again instead of believing the index of known files.
        allow_conflicts: Accept that identical images carry different labels.
        allow_leaks: Accept that an image of a target is also in the source.
    """

    rehash: bool = False
    allow_conflicts: bool = False
    allow_leaks: bool = False


# Images that a study leaves out by name: near copies, for example, as the audit lists them.


_HEAD = """\
# Images that no stage should use. To leave them out, write into the study file, above its
# first [table]: exclude = "PATH OF THIS FILE"
"""


def read_exclusions(file: Path) -> tuple[str, ...]:
    """Names in the file, in its order.

    Raises:
        StudyError: It is not a text file.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise StudyError(f"exclude: {file} cannot be read as text: {cause}") from cause
    return tuple(line for line in lines if line.strip() and not line.startswith("#"))


def as_file(names: Iterable[str]) -> bytes:
    """What :func:`read_exclusions` reads, sorted."""
    return (_HEAD + "".join(f"{name}\n" for name in sorted(set(names)))).encode()


def kept(names: Sequence[str], file: Path, skipped: Collection[str] = ()) -> NDArray[np.bool_]:
    """Which images stay.

    Args:
        names: ``n`` images, as the audit prints them.
        file: See :func:`read_exclusions`.
        skipped: Images that cannot be read, and may be listed all the same.

    Returns:
        Shape ``(n,)``.

    Raises:
        StudyError: A line names no image: it is a slip of the pen, another study's, or gone.
    """
    left_out = read_exclusions(file)
    if unknown := sorted(set(left_out) - set(names) - set(skipped)):
        raise StudyError(
            f"exclude: {file} names {unknown[0]!r} ({len(unknown)} such lines), which is no image "
            f"of the study, or no longer there; allowed are lines such as {names[0]}"
        )
    return ~np.isin(names, left_out)


# Gather the samples of a study: find every image, key it, split by patient, and check.


_LOG = logging.getLogger(__name__)
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class _Keyed:
    """One domain with the key of each image that could be read."""

    domain: Domain
    items: tuple[Item, ...]
    key: tuple[bytes, ...]
    skipped: tuple[Skip, ...]


def load_samples(
    study: Study,
    options: SampleOptions | None = None,
    progress: Progress | None = None,
) -> tuple[Samples, tuple[Skip, ...]]:
    """Find and key every image of a study, and split the source by patient.

    Args:
        study: Where the images are.
        options: See :class:`SampleOptions`.
        progress: Told how many files must be read, and of each that was.

    Returns:
        The table, and the images that could not be read.

    Raises:
        StudyError: Classes that do not fit, or identical images with different labels.
        CheckFailedError: Identical images in the source and a target.
        NoImagesError: No image of a domain could be read.
    """
    options = options or SampleOptions()
    with progress or Progress("reading files") as shown:
        found = [_key_domain(study, d, options, shown) for d in study.domains]
    classes = _classes(study, found)
    skipped = tuple(skip for part in found for skip in part.skipped)
    samples = _left_over(study, _table(study, found, classes), skipped)
    _check_conflicts(samples, allowed=options.allow_conflicts)
    _check_leaks(samples, allowed=options.allow_leaks)
    return samples, skipped


def _key_domain(study: Study, domain: Domain, options: SampleOptions, progress: Progress) -> _Keyed:
    listing = scan(domain.path, labelled=domain.labelled)
    for reason, count in listing.ignored.items():
        _LOG.info("%s: %s ignored: %s", domain.name, counted(count, "file"), reason)
    if listing.unread:
        _LOG.warning("%s: %s", domain.name, listing.unread_text)
    index = KeyIndex(study.store_root, domain.path, rehash=options.rehash)
    keys: list[bytes | str | None] = [index.key(item) for item in listing.items]
    unknown = [i for i, key in enumerate(keys) if key is None]
    progress.expect(len(unknown))
    stamp = index.stamp() if unknown else None
    with ThreadPoolExecutor(cpu_count()) as pool:
        results = pool.map(_key_or_reason, (listing.items[i] for i in unknown))
        for i, result in zip(unknown, results, strict=True):
            keys[i] = result
            if isinstance(result, bytes):
                index.learn(listing.items[i], result)
            progress.advance()
    index.save(stamp)
    return _sorted_out(domain, listing.items, keys)


def _key_or_reason(item: Item) -> bytes | str:
    try:
        return read_image(item).key
    except ImageError as reason:
        return str(reason)


def _sorted_out(
    domain: Domain, items: Sequence[Item], keys: Sequence[bytes | str | None]
) -> _Keyed:
    pairs = list(zip(items, keys, strict=True))
    good = [(item, key) for item, key in pairs if isinstance(key, bytes)]
    skipped = tuple(
        Skip(domain=domain.name, path=item.path, reason=str(key))
        for item, key in pairs
        if not isinstance(key, bytes)
    )
    if not good:
        raise NoImagesError(
            f"{domain.path}: none of its {len(items)} images can be read; first reason: "
            f"{skipped[0].path}: {skipped[0].reason}"
        )
    return _Keyed(
        domain=domain,
        items=tuple(item for item, _ in good),
        key=tuple(key for _, key in good),
        skipped=skipped,
    )


def _classes(study: Study, found: list[_Keyed]) -> tuple[str, ...]:
    """Class names in label order; every domain must keep to those of the source."""
    in_source = sorted({item.label for item in found[0].items})
    classes = study.classes or tuple(in_source)
    if missing := sorted(set(classes) - set(in_source)):
        raise StudyError(f"[source] {study.source.path} has no image of class {missing[0]!r}")
    for part in (one for one in found if one.domain.labelled):
        if extra := sorted({item.label for item in part.items} - set(classes)):
            raise StudyError(
                f"{part.domain.path} has class {extra[0]!r}; the study's classes are "
                f"{', '.join(classes)}. Rename or remove the folder, or list it in `classes`"
            )
    if len(classes) < 2:
        raise StudyError(
            f"[source] {study.source.path} has one class only ({classes[0]!r}); a head needs two. "
            "Expected are class folders, one per class, in that folder"
        )
    return classes


def _table(study: Study, found: list[_Keyed], classes: tuple[str, ...]) -> Samples:
    number = {name: i for i, name in enumerate(classes)}
    parts = list(_domain_columns(study, found, number))
    return Samples(
        items=tuple(item for part in found for item in part.items),
        key=tuple(key for part in found for key in part.key),
        label=np.concatenate([label for label, _, _ in parts]),
        group=np.concatenate([group for _, group, _ in parts]),
        split=np.concatenate([split for _, _, split in parts]),
        domain=np.concatenate([np.full(len(p.items), p.domain.name) for p in found]),
        classes=classes,
    )


def _left_over(study: Study, samples: Samples, skipped: Sequence[Skip]) -> Samples:
    """Without what the study excludes; after the split, so that the others stay in theirs."""
    if study.exclude is None:
        return samples
    names = [samples.name_of(row) for row in range(len(samples))]
    stay = kept(names, study.exclude, {name_of(skip.domain, skip.path) for skip in skipped})
    out = int((~stay).sum())
    _LOG.warning("%s %s left out, as %s says", counted(out, "image"), are(out), study.exclude)
    _check_some_stay(study, samples, stay)
    return samples.where(stay)


def _check_some_stay(study: Study, samples: Samples, stay: NDArray[np.bool_]) -> None:
    parts = {f"image of {name}": samples.domain == name for name in np.unique(samples.domain)}
    fit = samples.split == FIT
    parts |= {
        f"image of class {printable(name)} that heads are fitted to": fit & (samples.label == k)
        for k, name in enumerate(samples.classes)
    }
    for what, rows in parts.items():
        if rows.any() and not stay[rows].any():
            raise NoImagesError(
                f"exclude: {study.exclude} leaves out all {int(rows.sum())} and so every {what}; "
                "take some of its lines out, or the domain or class out of the study"
            )


def _domain_columns(
    study: Study, found: list[_Keyed], number: Mapping[str, int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.str_], NDArray[np.str_]]]:
    for part in found:
        label = _labels(part, number)
        group = _patients(part)
        if part.domain.name != SOURCE:
            yield label, np.array(group), np.full(len(group), TARGET)
            continue
        joined = join_duplicates(group, part.key)
        split = split_by_patient(
            label, joined, share=study.source.validation, seed=study.seed, names=tuple(number)
        )
        warn_classes(tuple(number))
        warn_folds(tuple(number), label, joined, split)
        warn_share(study.source.validation, split)
        yield label, np.array(joined), split


def _labels(part: _Keyed, number: Mapping[str, int]) -> NDArray[np.int64]:
    if not part.domain.labelled:
        return np.full(len(part.items), UNLABELLED, np.int64)
    return np.array([number[item.label] for item in part.items], np.int64)


def _patients(part: _Keyed) -> list[str]:
    """Patient ids; an image without one is its own patient."""
    found = [patient_of(item.path, part.domain.group) for item in part.items]
    warn_patients(part.domain, [item.path for item in part.items], found)
    return [patient or item.path for item, patient in zip(part.items, found, strict=True)]


def _check_conflicts(samples: Samples, *, allowed: bool) -> None:
    first: dict[bytes, int] = {}
    pairs = []
    for i, key in enumerate(samples.key):
        if samples.label[i] == UNLABELLED:
            continue
        j = first.setdefault(key, i)
        if samples.label[i] != samples.label[j]:
            pairs.append(f"{samples.name_of(j)} and {samples.name_of(i)}")
    if not pairs:
        return
    message = (
        f"{counted(len(pairs), 'pair')} of identical images "
        f"{'carries' if len(pairs) == 1 else 'carry'} different labels: "
        f"{'; '.join(pairs[:_SHOWN])}. Remove one of each"
    )
    if not allowed:
        raise StudyError(f"{message}, or accept them with --allow-conflicts")
    _LOG.warning("%s", message)


def _check_leaks(samples: Samples, *, allowed: bool) -> None:
    """An identical image in source and target makes the target's number a lie."""
    of_source = {key: i for i, key in enumerate(samples.key) if samples.domain[i] == SOURCE}
    leaks = [
        f"{samples.name_of(of_source[key])} and {samples.name_of(i)}"
        for i, key in enumerate(samples.key)
        if samples.domain[i] != SOURCE and key in of_source
    ]
    if not leaks:
        return
    message = (
        f"{counted(len(leaks), 'image')} of a target {are(len(leaks))} also in the source: "
        f"{'; '.join(leaks[:_SHOWN])}. Remove them from one of the two"
    )
    if not allowed:
        raise CheckFailedError(message)
    _LOG.warning("%s", message)
