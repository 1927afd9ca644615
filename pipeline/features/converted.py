"""A network in OpenVINO's own form, kept beside the stores: the next run needs no torch.

Exporting and converting a network takes 4 to 20 s of CPU time, reading it back 0.2 s. The
file is disposable: one that is damaged, or made by other versions, is made again. It only
says how the network runs; which network it is stands in its key, and the canaries of the
store compare its features at every start.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import disk
from cache.errors import WriteFailedError

if TYPE_CHECKING:
    import openvino

_FORMAT = 1


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

    def load(self, core: "openvino.Core", versions: Mapping[str, Any]) -> "openvino.Model | None":
        """The network, if it was kept by these versions and no byte of it has changed.

        Args:
            core: Reads it.
            versions: All else that the converted form depends on.
        """
        try:
            head, _, body = disk.read_all(self._file).partition(b"\n")
            values = json.loads(head)
            size, digest = int(values["xml"]), values["sha256"]
            if values["key"] != self._key | dict(versions):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if hashlib.sha256(body).hexdigest() != digest:
            return None
        try:
            return core.read_model(body[:size], body[size:])
        except RuntimeError:
            return None

    def save(self, model: "openvino.Model", versions: Mapping[str, Any]) -> None:
        """Keep a network; a failure costs only time at the next run."""
        import openvino

        try:
            with tempfile.TemporaryDirectory() as folder:
                xml = Path(folder) / "network.xml"
                openvino.save_model(model, xml, compress_to_fp16=False)
                parts = xml.read_bytes(), xml.with_suffix(".bin").read_bytes()
            body = b"".join(parts)
            head = {
                "key": self._key | dict(versions),
                "xml": len(parts[0]),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
            disk.make_dir(self._file.parent)
            disk.publish(self._file, json.dumps(head).encode() + b"\n" + body)
        except (OSError, RuntimeError, WriteFailedError):
            return
