"""What a power cut may take away: judged from the notes of a job, not by luck.

The model is the one POSIX promises and no more. A file's bytes last once it was
synced after its last write; a name lasts once its folder was synced after the name
was given; a removed name may be gone at once.
"""

from pathlib import Path
from typing import Any


class _Device:
    """What a disk holds for now, and what of it is sure to last."""

    def __init__(self, root: Path) -> None:
        self.names = {root}
        self.lasting_names = {root}
        self.lasting_bytes: set[Path] = set()

    def lasts(self, part: Path, root: Path) -> bool:
        """Whether a file would be whole, and be found, after a power cut now."""
        folders = {folder for folder in part.parents if root in folder.parents}
        return part in self.lasting_bytes and {part, *folders} <= self.lasting_names

    def apply(self, what: str, path: Path, target: Path) -> None:
        """Follow one call of the seam."""
        if what in ("make_dir", "open_new"):
            self.names.add(path)
        elif what == "write":
            self.lasting_bytes.discard(path)
        elif what == "fsync":
            self.lasting_bytes.add(path)
        elif what == "fsync_dir":
            self.lasting_names |= {name for name in self.names if name.parent == path}
        elif what == "unlink":
            self._forget(path)
        elif what == "replace":
            (self.lasting_bytes.discard, self.lasting_bytes.add)[path in self.lasting_bytes](target)
            self._forget(path)
            self.names.add(target)

    def _forget(self, path: Path) -> None:
        for known in (self.names, self.lasting_names, self.lasting_bytes):
            known.discard(path)


def rows_at_risk(notes: list[dict[str, Any]], root: Path) -> list[str]:
    """Each moment at which a power cut would take a row that counts as stored.

    Args:
        notes: Of one or more runs of a job on the same store, in order.
        root: Folder that was there before, for good.
    """
    device, held, risks = _Device(root), {}, []
    for note in notes:
        path = Path(note.get("path", root))
        target = Path(note.get("target", path))
        if note["what"] == "replace" and path not in device.lasting_bytes:
            risks.append(f"{target.name} got its name before its bytes were synced")
        device.apply(note["what"], path, target)
        if note["what"] == "ack":
            held[path] = set(note["keys"])
        if note["what"] in ("ack", "unlink"):
            safe = {k for part, keys in held.items() if device.lasts(part, root) for k in keys}
            lost = set().union(*held.values()) - safe
            if lost:
                risks.append(f"{len(lost)} acknowledged rows at {note['what']} of {path.name}")
        if note["what"] == "done":
            parts = {name for name in device.names if name.parent.name == "parts"}
            risks += [f"{p.name} counts as stored" for p in parts if not device.lasts(p, root)]
    return risks
