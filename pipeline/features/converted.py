"""A network in OpenVINO's own form, kept beside the stores: the next run needs no torch.

Exporting and converting a network takes 4 to 20 s of CPU time, reading it back 0.2 s. The
file is disposable: one that is damaged, or made by other versions, is made again. Which
network it is stands in its key, and the canaries of the store compare its features at every
start.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache import disk

_FORMAT = 2
#: The two files of an OpenVINO network: graph and constants.
Converted = tuple[bytes, bytes]


class ConvertedNetwork:
    """Where the converted form of one network is kept.

    Args:
        store_root: Folder of the feature stores.
        fingerprint: Of the recipe whose features the network gives.
        weights: SHA-256 of the weights file. The recipe's own digest is remembered for a
            file; with both, a memory that is damaged finds no network.
    """

    def __init__(self, store_root: Path, *, fingerprint: str, weights: str) -> None:
        self._file = store_root / "index" / "networks" / f"{fingerprint[:16]}.openvino"
        self._key = {"format": _FORMAT, "fingerprint": fingerprint, "weights": weights}

    def load(self, versions: Mapping[str, Any]) -> Converted | None:
        """The network, if it was kept by these versions and no byte of it has changed.

        Args:
            versions: All else that the converted form depends on.
        """
        try:
            head, _, body = disk.read_all(self._file).partition(b"\n")
            values = disk.parse_json(head)
            size = int(values["graph"])
            network = body[:size], body[size:]
            valid = values["key"] == self._key | dict(versions)
            valid &= values["sha256"] == _digest(network)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return network if valid else None

    def save(self, network: Converted, versions: Mapping[str, Any]) -> None:
        """Keep a network; a failure costs only time at the next run."""
        head = {
            "key": self._key | dict(versions),
            "graph": len(network[0]),
            "sha256": _digest(network),
        }
        with suppress(OSError):
            disk.publish(self._file, json.dumps(head).encode() + b"\n" + b"".join(network))


def _digest(network: Converted) -> str:
    """Of both files and of where the first one ends."""
    digest = hashlib.sha256(b"%d" % len(network[0]))
    for part in network:
        digest.update(part)
    return digest.hexdigest()
