"""The samples of a study: each image with its patient, class and split.

:func:`load_samples` is read top to bottom: find the images, key each, name the classes,
split the source by patient, leave out what the study excludes, check for conflicts and leaks.
Labels, patients and splits live here and never in the feature store, so relabelling, renaming
or moving an image costs nothing.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import RememberedFile
from pipeline.data.index import KeyIndex
from pipeline.data.items import MAX_PIXELS, Item, ReadOptions, read_lines, window_of
from pipeline.data.patients import FIT, TARGET, join_duplicates, patients_or_paths, split_source
from pipeline.data.sources import NO_FOLDERS, check_layout, layout_hint, scan
from pipeline.errors import CheckFailedError, NoImagesError, StudyError, record_failure
from pipeline.parallel import Mapper, in_threads
from pipeline.progress import Progress
from pipeline.study import HEADER, SOURCE, Domain, SourceDomain, Study
from pipeline.words import are, class_order, composed, counted, first_of, have, printable

_LOG = logging.getLogger(__name__)
#: Label of an image of a target without labels. It is not a class: metrics refuse it, and stages
#: leave such domains out from the beginning.
UNLABELLED = -1
_ARRAYS = ("label", "group", "domain", "split")


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """An image that is not used, and why; ``key`` in hex if its content was read."""

    domain: str
    path: str
    reason: str
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a study; all arrays share the first axis, ``n``.

    Attributes:
        items: Where each image is.
        key: Content key of each image, 32 bytes.
        label: Shape ``(n,)``, int64: index into ``classes``; ``UNLABELLED`` throughout a
            target without labels.
        group: Shape ``(n,)``: patient id; unique within a domain only.
        domain: Shape ``(n,)``: ``source`` or the target's name.
        split: Shape ``(n,)``: ``fit``, ``validation`` or ``target``.
        classes: Class names in label order.
        failures: By target, the error why it has no samples; the other targets go on.
    """

    items: tuple[Item, ...]
    key: tuple[bytes, ...]
    label: NDArray[np.int64]
    group: NDArray[np.str_]
    domain: NDArray[np.str_]
    split: NDArray[np.str_]
    classes: tuple[str, ...]
    failures: Mapping[str, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which samples have a label, shape ``(n,)``."""
        return np.asarray(self.label != UNLABELLED)

    @property
    def unlabelled(self) -> dict[str, int]:
        """Number of images of each target without labels."""
        return dict(Counter(self.domain[~self.labelled].tolist()))

    @property
    def reasons(self) -> dict[str, str]:
        """The failures as text, for a record."""
        return {target: str(failure) for target, failure in self.failures.items()}

    def class_of(self, row: int) -> str:
        """Name of the class of a sample, or ``no label``."""
        k = int(self.label[row])
        return "no label" if k == UNLABELLED else self.classes[k]

    def name_of(self, row: int) -> str:
        """Domain and path of a sample, as printed and as listed in the study's ``exclude``."""
        return _name(str(self.domain[row]), self.items[row].path)

    def names_of(self, copies: Iterable[Sequence[int]]) -> list[str]:
        """The names of the copies of each image, given their rows."""
        return [" = ".join(map(self.name_of, rows)) for rows in copies]

    def conflicts(self, image_id: Sequence[Hashable]) -> list[list[int]]:
        """Rows of each image with several labels; ``image_id`` is equal for identical images."""
        rows_of: dict[Hashable, list[int]] = defaultdict(list)
        for row in np.flatnonzero(self.labelled).tolist():
            rows_of[image_id[row]].append(row)
        return [rows for rows in rows_of.values() if len({*self.label[rows].tolist()}) > 1]

    def where(self, mask: NDArray[np.bool_]) -> Self:
        """The samples where ``mask``, of shape ``(n,)``, is true."""
        rows = np.flatnonzero(mask)
        return replace(
            self,
            items=tuple(self.items[i] for i in rows),
            key=tuple(self.key[i] for i in rows),
            **{name: getattr(self, name)[rows] for name in _ARRAYS},
        )


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How the samples are loaded.

    Attributes:
        rehash: Read every file again instead of using the index.
        allow_conflicts: Keep identical images that carry different labels.
        allow_leaks: Accept that an image of a target is also in the source.
    """

    rehash: bool = False
    allow_conflicts: bool = False
    allow_leaks: bool = False


#: Every image, for features, and for an audit, which lists conflicts and leaks itself.
ALL_IMAGES = SampleOptions(allow_conflicts=True, allow_leaks=True)


def load_samples(
    study: Study, options: SampleOptions | None = None, mapper: Mapper = in_threads
) -> tuple[Samples, tuple[SkippedImage, ...]]:
    """Find and key every image of a study, and split the source by patient.

    A target without any usable image becomes one of the samples' ``failures``.

    Returns:
        The samples, and the images that could not be read.

    Raises:
        StudyError: The classes of the source do not fit.
        CheckFailedError: The source and a target have identical images.
        NoImagesError: No image of the source could be read.
    """
    options = options or SampleOptions()
    failures: dict[str, Exception] = {}
    skipped, unused, parts = list[SkippedImage](), list[str](), list[Samples]()
    classes: tuple[str, ...] = ()
    with Progress("reading files") as progress:
        for domain in study.domains:
            with record_failure(domain.name, failures, alone=domain is study.source):
                images, failed, unlabelled = _key_images(study, domain, options, progress, mapper)
                skipped += failed
                unused += [_name(domain.name, path) for path in unlabelled]
                if domain is study.source:
                    classes = _class_names(study, [*images])
                parts.append(_label_and_split(domain, images, classes, study.seed))
    samples = Samples(
        items=tuple(item for part in parts for item in part.items),
        key=tuple(key for part in parts for key in part.key),
        classes=classes,
        failures=failures,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS},
    )
    unused += [_name(image.domain, image.path) for image in skipped]
    if study.exclude:
        samples = _leave_out(study.exclude, samples, unused)
    samples = _without_conflicts(samples, allowed=options.allow_conflicts)
    _check_leaks(samples, allowed=options.allow_leaks)
    return without_empty(study, samples), tuple(skipped)


# Scan and key.


def _key_images(
    study: Study, domain: Domain, options: SampleOptions, progress: Progress, mapper: Mapper
) -> tuple[dict[Item, bytes], list[SkippedImage], list[str]]:
    """The used images with their keys, read by one rule; the unreadable; the unlabelled."""
    listing = scan(domain, mapper)
    if domain.labelled and domain.ignore is None and not domain.table:
        check_layout(domain, listing.items)
    for reason, count in listing.ignored.items():
        _LOG.info("%s: %s ignored: %s", domain.name, counted(count, "file"), reason)
    if listing.unread:
        _LOG.warning("%s: %s", domain.name, listing.unread_text)
    most = int(study.max_megapixels * 1e6) if study.max_megapixels is not None else MAX_PIXELS
    rule = ReadOptions(window=domain.window, frame=domain.frame, max_pixels=most)
    items = [_with_content(item, RememberedFile(b""), rule) for item in listing.items]
    index = KeyIndex(
        study.store_root, domain.path, patients=domain.group == HEADER, rehash=options.rehash
    )
    readable, skipped = list[tuple[Item, RememberedFile]](), list[SkippedImage]()
    for item, content in zip(items, index.contents(items, mapper, progress), strict=True):
        if isinstance(content, str):
            skipped.append(SkippedImage(domain=domain.name, path=item.path, reason=content))
        else:
            readable.append((item, content))
    if not readable:
        raise NoImagesError(
            f"{domain.path}: none of its {len(items)} images can be read; first reason: "
            f"{skipped[0].path}: {skipped[0].reason}"
        )
    # One rule for all images, also for those that are not labelled.
    rule = replace(rule, window=window_of(domain, [file.depth for _, file in readable]))
    images, unlabelled = dict[Item, bytes](), list[str]()
    for item, file in readable:
        if item.label or not domain.labelled:
            images[_with_content(item, file, rule)] = file.key(rule)
        else:
            unlabelled.append(item.path)
    return images, skipped, unlabelled


def _with_content(item: Item, file: RememberedFile, options: ReadOptions) -> Item:
    if item.options == options and not file.patient:
        return item
    return replace(item, options=options, patient=item.patient or file.patient)


# Classes and split.


def _class_names(study: Study, items: Sequence[Item]) -> tuple[str, ...]:
    """Names of the source's classes in label order."""
    if not study.source.labelled:
        return ()
    in_source = class_order(item.label for item in items)
    classes = study.classes or tuple(in_source)
    for name, other in pairwise(sorted(in_source, key=str.casefold)):
        if not study.classes and name.casefold() == other.casefold():
            raise StudyError(
                f"[source] {study.source.path} has the classes {name} and {other}: give them one "
                "name, or list both in `classes`"
            )
    if missing := sorted(set(classes) - set(in_source)):
        raise StudyError(f"[source] {study.source.path} has no image of class {missing[0]!r}")
    if len(classes) < 2:
        raise StudyError(
            f"[source] {study.source.path} has one class only ({classes[0]!r}); a head needs two. "
            f"Expected are class folders, one per class, in that folder. {NO_FOLDERS}"
            f"{layout_hint(study.source, items)}"
        )
    return classes


def _label_and_split(
    domain: Domain, images: Mapping[Item, bytes], classes: tuple[str, ...], seed: int
) -> Samples:
    items, key = tuple(images), tuple(images.values())
    label = np.full(len(items), UNLABELLED, np.int64)
    if domain.labelled:
        if extra := sorted({item.label for item in items} - set(classes)):
            raise StudyError(
                f"{domain.path} has class {extra[0]!r}; the study's classes are "
                f"{', '.join(classes)}. Rename or remove the folder, or list it in `classes`"
                f"{layout_hint(domain, items)}"
            )
        number = {name: k for k, name in enumerate(classes)}
        label[:] = [number[item.label] for item in items]
    group = patients_or_paths(domain, items)
    split = np.full(len(group), TARGET)
    if isinstance(domain, SourceDomain):
        group = join_duplicates(group, key)
        given = [item.split for item in items]
        split = split_source(domain, label, group, given, seed=seed, names=classes)
    return Samples(
        items=items,
        key=key,
        label=label,
        group=np.array(group),
        domain=np.full(len(group), domain.name),
        split=split,
        classes=classes,
    )


# Images that a study leaves out by name, for example near duplicates from the audit's list.


HOW_TO_EXCLUDE = (
    '`headrace audit STUDY --write-exclude FILE` lists the images; `exclude = "FILE"` in the '
    "study leaves them out"
)
_EXCLUSIONS_HEAD = """\
# Images that no stage should use. To leave them out, write into the study file, above its
# first [table]: exclude = "PATH OF THIS FILE"
"""


def exclusions_text(names: Iterable[str]) -> str:
    """The content of a file for the study's ``exclude``, sorted."""
    return _EXCLUSIONS_HEAD + "".join(f"{name}\n" for name in sorted(set(names)))


def _leave_out(exclude: Path, samples: Samples, unused: Iterable[str]) -> Samples:
    """Remove what the study excludes; done after the split, which then does not change."""
    names = [samples.name_of(row) for row in range(len(samples))]
    lines = read_lines(exclude)
    of_failed = tuple(f"{name}/" for name in samples.failures)
    unknown = set(lines) - {*names, *unused}
    # A line that names no image is a typing error, of another study, or of a removed image.
    if unmatched := sorted(line for line in unknown if not line.startswith(of_failed)):
        raise StudyError(
            f"exclude: {exclude} names {unmatched[0]!r} ({len(unmatched)} such lines), which is no "
            f"image of the study, or no longer there; allowed are lines such as {names[0]}"
        )
    excluded = np.isin(names, lines)
    count = int(excluded.sum())
    _LOG.warning("%s %s left out, as %s says", counted(count, "image"), are(count), exclude)
    return samples.where(~excluded)


def _name(domain: str, path: str) -> str:
    return printable(composed(f"{domain}/{path}"))


# Checks whose failure makes every number wrong. More are in pipeline.data.leaks, for the audit.


def _without_conflicts(samples: Samples, *, allowed: bool) -> Samples:
    """Remove identical images with different labels: it is unknown which label is right."""
    copies = samples.conflicts(samples.key)
    if not copies:
        return samples
    what = "left out; --allow-conflicts keeps them"
    if allowed:
        what = "kept here; without --allow-conflicts heads, finetune and shift leave them out"
    _LOG.warning(
        "%s %s several labels: %s. All their copies are %s",
        *(counted(len(copies), "image"), have(len(copies))),
        *(first_of(samples.names_of(copies)), what),
    )
    left_out = np.zeros(len(samples), np.bool_)
    left_out[[row for rows in copies for row in rows]] = not allowed
    return samples.where(~left_out)


def _check_leaks(samples: Samples, *, allowed: bool) -> None:
    """Refuse a target that shares identical images with the source."""
    in_source = {key: i for i, key in enumerate(samples.key) if samples.domain[i] == SOURCE}
    leaks = [
        (in_source[key], i)
        for i, key in enumerate(samples.key)
        if samples.domain[i] != SOURCE and key in in_source
    ]
    if not leaks:
        return
    message = (
        f"{counted(len(leaks), 'image')} of a target {are(len(leaks))} also in the source: "
        f"{first_of(samples.names_of(leaks))}. Remove them from one of the two, or: "
        f"{HOW_TO_EXCLUDE}"
    )
    if not allowed:
        raise CheckFailedError(f"{message}; --allow-leaks goes on all the same")
    _LOG.warning("%s", message)


def without_empty(study: Study, samples: Samples) -> Samples:
    """The same samples; targets without any left are added to the failures.

    Raises:
        NoImagesError: The source has no images left, or none of a class in its fit split.
    """
    fit = samples.split == FIT
    _check_any_left(study.exclude, samples.domain == SOURCE, f"[source] {study.source.path}")
    for k, name in enumerate(samples.classes):
        what = f"class {printable(name)} to learn from"
        _check_any_left(study.exclude, fit & (samples.label == k), what)
    failures = dict(samples.failures)
    for target in study.targets:
        if target.name not in failures:
            with record_failure(target.name, failures):
                _check_any_left(study.exclude, samples.domain == target.name, str(target.path))
    return replace(samples, failures=failures)


def _check_any_left(exclude: Path | None, rows: NDArray[np.bool_], what: str) -> None:
    if not rows.any():
        excluded = exclude and f"; {exclude} leaves out others: take lines out of it"
        raise NoImagesError(
            f"no image of {what} is left. headrace features lists those that cannot be "
            f"used{excluded or ''}"
        )
