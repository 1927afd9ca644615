"""Maintenance of a store's folder: merge small parts, remove what dead writers left."""

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cache import disk
from cache.store import FeatureStore, PartInfo

_LOG = logging.getLogger(__name__)
#: A merged part stays below this, so that memory is bounded whatever the number of images.
_MAX_PART_BYTES = 256 << 20


def compact(store: FeatureStore) -> int:
    """Merge small parts of the same provenance; returns by how many the parts decreased.

    Each key is kept once. The merged part is put in place before the old ones are removed, so a
    kill in between leaves the same rows twice, which is harmless. Parts of other users in a
    sticky folder stay as they are, and are named in the log.
    """
    store.scan()
    before = len(store.parts)
    for group in list(_groups(store)):
        _merge(store, group)
    store.scan()
    return before - len(store.parts)


def gc(store: FeatureStore) -> list[str]:
    """Remove temporary files whose writer is dead on this host, or that are a day old.

    Returns their names. Files in ``quarantine/`` stay until a person removes them.
    """
    folders = (store.path, store.path / "parts")
    return [name for folder in folders for name in disk.remove_abandoned(folder)]


def quarantined(store: FeatureStore) -> list[str]:
    """Names of the parts that were found damaged and set aside."""
    return disk.listdir(store.path / "quarantine")


def _groups(store: FeatureStore) -> Iterator[list[PartInfo]]:
    """Runs of two or more small parts of one provenance that fit into one part."""
    by_provenance: dict[str, list[PartInfo]] = {}
    for info in sorted(store.parts.values(), key=lambda p: p.name):
        if info.size > _MAX_PART_BYTES // 2:
            continue
        if not disk.may_remove(path := store.path / "parts" / info.name):
            _LOG.info("%s: stays: it is another user's, and its folder is sticky", path)
            continue
        by_provenance.setdefault(info.provenance, []).append(info)
    for infos in by_provenance.values():
        group: list[PartInfo] = []
        for info in infos:
            if group and sum(p.size for p in group) + info.size > _MAX_PART_BYTES:
                yield group
                group = []
            group.append(info)
        yield group


def _merge(store: FeatureStore, group: list[PartInfo]) -> None:
    if len(group) < 2:
        return
    rows: dict[bytes, NDArray[np.float32]] = {}
    for info in group:
        loaded = store.load_part(info.name)
        if loaded is None:
            # Another process is compacting the same parts: leave it to that one. Or the
            # part went bad since the scan.
            return
        for key, features in zip(loaded[0].key, loaded[0].features, strict=True):
            # Parts come by name, and the smallest name is the one that readers believe.
            rows.setdefault(key.tobytes(), features)
    keys = sorted(rows)
    merged = store.commit(
        np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1),
        np.stack([rows[key] for key in keys]),
        provenance=group[0].provenance,
    )
    disk.remove(store.path / "parts", [info.name for info in group if info.name != merged])
