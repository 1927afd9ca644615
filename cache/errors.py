"""Errors of the feature store; each also derives from the builtin that a caller expects."""

import errno
from pathlib import Path

#: By errno, what a person can do about a write that failed.
_MAKE_ROOM = "make room, or choose another place"
_NOT_ALLOWED = "get the right to write there, or choose another place"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _MAKE_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _NOT_ALLOWED),
    errno.EIO: "the disk may be failing: check it, or choose another place",
}
_OTHER_ADVICE = "choose another place"


class CacheError(Exception):
    """Base of all errors of the store."""

    exit_code = 1


class WriteFailedError(CacheError, OSError):
    """The disk refused a write; nothing that was already committed is affected."""

    exit_code = 4

    def __init__(self, path: Path, cause: OSError, *, needed: int, free: int | None) -> None:
        """Say which file, why, and how much room there was."""
        room = "unknown" if free is None else f"{free:,}"
        super().__init__(
            f"cannot write {path}: {cause.strerror or cause} (errno {cause.errno}); "
            f"needed {needed:,} bytes, {room} free. What was committed before is safe: "
            f"{_ADVICE.get(cause.errno or 0, _OTHER_ADVICE)} (for features HEADRACE_FEATURES), "
            "then run again"
        )
        self.errno = cause.errno

    def __str__(self) -> str:
        """Show the sentence: OSError would put the errno in front of it."""
        return str(self.args[0])


class NotPlainFileError(CacheError, OSError):
    """A path of ours is a folder, a link, a FIFO or a device, or the file is far too large."""

    def __init__(self, path: Path, reason: str = "not a regular file") -> None:
        """Keep path and reason in the attributes that the system's errors have."""
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        """Show the sentence: OSError would put the errno in front of it."""
        return f"{self.filename}: {self.strerror}"


class DamagedPartError(CacheError, ValueError):
    """The bytes of a part do not match its name or its format."""

    exit_code = 5


class BadFeaturesError(CacheError, ValueError):
    """Rows that must never be stored: not finite, or of the wrong shape."""


class MissingRowsError(CacheError, KeyError):
    """Some keys are not in the store."""

    exit_code = 5

    def __init__(self, store: Path, missing: int, asked: int) -> None:
        """Say how many keys are missing; the keys themselves mean nothing to a reader."""
        images = f"image{'' if asked == 1 else 's'} {'has' if missing == 1 else 'have'}"
        super().__init__(f"{missing} of {asked} {images} no features in {store}")

    def __str__(self) -> str:
        """Show the message plainly: KeyError would put it in quotes."""
        return str(self.args[0])


class StoreFormatError(CacheError, ValueError):
    """The store was written by a newer headrace, or belongs to another recipe."""

    exit_code = 5


class CanaryError(CacheError, ValueError):
    """The current network does not give the features that the store was made with."""

    exit_code = 3
