"""Which group each image of a study belongs to, by the attributes that its files give."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.attributes import UNKNOWN, Attribute, AttributeFile, read_attributes
from pipeline.data.patients import patient_of
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.study import Domain, Study
from pipeline.words import counted, have, printable

_LOG = logging.getLogger(__name__)
#: More groups than these are names or numbers, not groups.
MOST_GROUPS = 12


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The images of one domain, divided by one attribute.

    Attributes:
        attribute: Its name.
        names: Groups, the same and in the same order for all domains: bins from below,
            texts sorted, ``unknown`` at the end where some image is.
        member: Shape ``(n,)``, index into ``names`` of each image of the domain.
    """

    attribute: str
    names: tuple[str, ...]
    member: NDArray[np.int64]


def groupings(study: Study, samples: Samples) -> Mapping[str, tuple[Grouping, ...]]:
    """Divide the images of each domain that has a file of attributes.

    Args:
        study: Its ``subgroups`` say by what.
        samples: Of the study.

    Returns:
        By domain, one for each attribute of the study; a domain without a file is missing.

    Raises:
        StudyError: A file is not what it should be, none of its rows names an image, or an
            attribute has too many groups.
    """
    if not study.subgroups:
        return {}
    found = {
        domain.name: _groups_of_images(domain, study.subgroups, samples)
        for domain in study.domains
        if domain.attributes is not None
    }
    names = [
        _names(study, attribute, {rows[number] for table in found.values() for rows in table})
        for number, attribute in enumerate(study.subgroups)
    ]
    return {
        domain: tuple(
            Grouping(
                attribute=attribute.name,
                names=names[number],
                member=np.array([names[number].index(rows[number]) for rows in table], np.int64),
            )
            for number, attribute in enumerate(study.subgroups)
        )
        for domain, table in found.items()
    }


def _names(study: Study, attribute: Attribute, present: set[str]) -> tuple[str, ...]:
    last = (UNKNOWN,) if UNKNOWN in present else ()
    if attribute.edges is not None:
        return (*attribute.bins(), *last)
    known = sorted(present - {UNKNOWN})
    if len(known) > MOST_GROUPS:
        files = ", ".join(str(d.attributes) for d in study.domains if d.attributes is not None)
        raise StudyError(
            f"{attribute.name} has {len(known)} different texts in {files}; allowed are "
            f"{MOST_GROUPS} groups. If they are numbers, give bins in the study file, such as "
            f"[subgroups] {attribute.name} = [18, 40, 65]; else join some of them"
        )
    return (*known, *last)


def _groups_of_images(
    domain: Domain, wanted: Sequence[Attribute], samples: Samples
) -> list[tuple[str, ...]]:
    """For each image of the domain its group by each attribute; said where there is no row."""
    file = domain.attributes
    if file is None:
        return []
    read = read_attributes(file, wanted)
    keys = _keys(domain, read, samples)
    without = sum(key not in read.groups for key in keys)
    if without == len(keys):
        raise StudyError(
            f"{file}: none of its {len(read.groups)} rows names an image of "
            f"{domain.name}; its first {read.key} is {_first(list(read.groups))}, the first in "
            f"{domain.path} is {_first(keys)}: write them alike"
        )
    if without:
        _LOG.warning(
            "%s: %d of %s %s no row in %s and count as %s",
            *(domain.name, without, counted(len(keys), "image"), have(without), file, UNKNOWN),
        )
    nothing = (UNKNOWN,) * len(wanted)
    return [read.groups.get(key, nothing) for key in keys]


def _keys(domain: Domain, read: AttributeFile, samples: Samples) -> list[str]:
    """What each image is called in the file; patients by name, before copies join them."""
    rows = np.flatnonzero(samples.domain == domain.name)
    paths = [samples.items[i].path for i in rows]
    if read.key == "path":
        return paths
    if domain.group is None:
        raise StudyError(
            f"{read.file} has rows by patient, but {domain.name} has no `group` pattern that finds "
            "a patient in a file's name: give one in the study file, or rows by path"
        )
    return [patient_of(path, domain.group) or path for path in paths]


def _first(keys: Sequence[str]) -> str:
    return printable(keys[0]) if keys else "missing"
