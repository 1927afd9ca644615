"""Gather the samples of a study: find every image, key it, split by patient, and check.

The checks here are those without which no stage has a meaning: identical images under two
labels, or in the source and a target. :mod:`pipeline.audit.stage` looks for the rest.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckFailedError, ImageError, NoImagesError, StudyError
from pipeline.progress import Progress
from pipeline.samples import UNLABELLED, SampleOptions, Samples, Skip, name_of
from pipeline.samples.doubts import doubt_classes, doubt_folds, doubt_patients, doubt_share
from pipeline.samples.exclusions import kept
from pipeline.samples.keys import KeyIndex
from pipeline.samples.splits import (
    FIT,
    TARGET,
    join_duplicates,
    patient_of,
    split_by_patient,
)
from pipeline.sources import Item, read, scan, scan_unlabelled
from pipeline.sources.walk import not_read
from pipeline.study import SOURCE, Domain, Study
from pipeline.text.counts import are, counted
from pipeline.text.names import legible

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
    listing = scan(domain.path) if domain.labelled else scan_unlabelled(domain.path)
    for reason, count in listing.ignored.items():
        _LOG.info("%s: %s ignored: %s", domain.name, counted(count, "file"), reason)
    if listing.unread:
        _LOG.warning("%s: %s", domain.name, not_read(listing.unread))
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
        return read(item).key
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
    if len(classes) < 2:  # noqa: PLR2004 - a choice needs two
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
        f"image of class {legible(name)} that heads are fitted to": fit & (samples.label == k)
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
        doubt_classes(tuple(number))
        doubt_folds(tuple(number), label, joined, split)
        doubt_share(study.source.validation, split)
        yield label, np.array(joined), split


def _labels(part: _Keyed, number: Mapping[str, int]) -> NDArray[np.int64]:
    if not part.domain.labelled:
        return np.full(len(part.items), UNLABELLED, np.int64)
    return np.array([number[item.label] for item in part.items], np.int64)


def _patients(part: _Keyed) -> list[str]:
    """Patient ids; an image without one is its own patient."""
    found = [patient_of(item.path, part.domain.group) for item in part.items]
    doubt_patients(part.domain, [item.path for item in part.items], found)
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
