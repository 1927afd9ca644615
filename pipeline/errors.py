"""Errors that a person can act on.

Each says what was got, what is allowed and what to do next, and derives from the builtin that a
Python caller would expect. The command line turns them into one line and an exit code. Before
that, only :func:`record_failure` catches them, so that a part that fails does not stop the others.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger(__name__)


class PipelineError(Exception):
    """Base of all errors that headrace raises on purpose."""

    exit_code = 1
    #: Results, as JSON values, that a command has in spite of the error.
    record: Mapping[str, Any] | None = None


class StudyError(PipelineError, ValueError):
    """The study file, or the data that it points at, cannot be used."""


class NoImagesError(PipelineError, ValueError):
    """There is nothing to work on: an empty data set, or every image was skipped."""

    exit_code = 2


class ImageError(PipelineError, ValueError):
    """One image cannot be used; the message is the reason, fit to be listed."""


class SkippedImagesError(PipelineError, ValueError):
    """Images were skipped, and the caller asked for ``strict``."""


class WeightsError(PipelineError, OSError):
    """Weights are not available, or do not fit the network."""


class EngineError(PipelineError, RuntimeError):
    """The requested engine or device is not available, or failed."""


class MissingFeaturesError(PipelineError, LookupError):
    """The requested features have not been computed yet."""

    exit_code = 5


class MissingResultsError(PipelineError, LookupError):
    """The stage whose results are requested has not been run."""

    exit_code = 5


class ResultsError(PipelineError, ValueError):
    """Results of a stage are damaged, or come from two runs."""

    exit_code = 5


class ModelError(PipelineError, ValueError):
    """A saved head cannot be used: damaged, of another version, or not for these images."""

    exit_code = 5


class ExportError(PipelineError, ValueError):
    """A model has no layers, or its file would differ from it."""


class CheckpointError(PipelineError, ValueError):
    """A checkpoint belongs to another training, or all checkpoints are damaged."""

    exit_code = 5


class CheckFailedError(PipelineError, ValueError):
    """A check found a leak or a disagreement; the numbers must not be trusted."""

    exit_code = 3


class UnknownNameError(PipelineError, KeyError):
    """A name is not in its table; the message lists the allowed names."""

    def __init__(self, kind: str, got: str, allowed: object) -> None:
        """Build the message from the table itself, so that it cannot go stale."""
        names = ", ".join(map(str, allowed))  # type: ignore[call-overload]
        super().__init__(f"unknown {kind} {got!r}; allowed: {names}")

    def __str__(self) -> str:
        """Show the message plainly: KeyError would put it in quotes."""
        return str(self.args[0])


@contextmanager
def record_failure(
    part: str, failures: dict[str, Exception], *, alone: bool = False
) -> Iterator[None]:
    """Record and log the failure of one part, such as a target or a backbone, and go on.

    A full disk stops everything, because the other parts would fail too. So does the failure of a
    part that is ``alone``.
    """
    from cache.errors import CacheError, WriteFailedError  # the store's array libraries come along

    try:
        yield
    except WriteFailedError:
        raise
    except (PipelineError, CacheError) as failure:
        if alone:
            raise
        # Its traceback would keep the engine and its memory, which the next backbone needs.
        failures[part] = failure.with_traceback(None)
        failure.__cause__ = failure.__context__ = None
        _LOG.warning("%s: %s", part, failure)


class PartialFailureError(PipelineError, RuntimeError):
    """A command ran for all parts (findings, targets, backbones, models), and failed for some."""

    def __init__(self, failures: Mapping[str, Exception], record: Mapping[str, Any]) -> None:
        """Name each part with its reason; the exit code is the one of the first."""
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in failures.items()))
        self.exit_code = getattr(next(iter(failures.values())), "exit_code", 1)
        self.record = record
