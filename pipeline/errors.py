"""Errors that a person can act on.

Each says what was got, what is allowed and what to do next, and derives from the
builtin that a Python caller would expect. The command line turns them into one
line and an exit code; before it, :func:`go_on` alone catches them, where one part of
many must not cost the others.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger(__name__)


class PipelineError(Exception):
    """Base of all errors that headrace raises on purpose."""

    exit_code = 1
    #: JSON values that a command has in spite of it.
    record: Mapping[str, Any] | None = None


class StudyError(PipelineError, ValueError):
    """The study file, or the data it points at, is not what it should be."""


class NoImagesError(PipelineError, ValueError):
    """There is nothing to work on: an empty data set, or every image was skipped."""

    exit_code = 2


class ImageError(PipelineError, ValueError):
    """One image cannot be used; the message is the reason, fit to be listed."""


class SkippedImagesError(PipelineError, ValueError):
    """Images were skipped and the caller asked for strictness."""


class WeightsError(PipelineError, OSError):
    """Weights cannot be had, or do not fit the network."""


class EngineError(PipelineError, RuntimeError):
    """The asked-for engine or device is not there, or failed."""


class MissingFeaturesError(PipelineError, LookupError):
    """Features are asked for that no run has computed yet."""

    exit_code = 5


class MissingResultsError(PipelineError, LookupError):
    """Results of a stage are asked for that has not been run."""

    exit_code = 5


class ResultsError(PipelineError, ValueError):
    """Results of a stage are damaged, or of two runs."""

    exit_code = 5


class ModelError(PipelineError, ValueError):
    """A saved head cannot be used: damaged, of another version, or not for these images."""

    exit_code = 5


class ExportError(PipelineError, ValueError):
    """A model has no layers, or its file would not be the model."""


class CheckpointError(PipelineError, ValueError):
    """A checkpoint belongs to another training, or none is whole."""

    exit_code = 5


class CheckFailedError(PipelineError, ValueError):
    """A check found a leak or a disagreement; the numbers must not be trusted."""

    exit_code = 3


class UnknownNameError(PipelineError, KeyError):
    """A name is in none of our tables; the message lists the allowed ones."""

    def __init__(self, kind: str, got: str, allowed: object) -> None:
        """Build the message from the table itself, so that it cannot go stale."""
        names = ", ".join(map(str, allowed))  # type: ignore[call-overload]
        super().__init__(f"unknown {kind} {got!r}; known: {names}")

    def __str__(self) -> str:
        """Show the message plainly: KeyError would put it in quotes."""
        return str(self.args[0])


@contextmanager
def go_on(part: str, failures: dict[str, Exception], *, alone: bool = False) -> Iterator[None]:
    """Take note of a part that fails, a target or a backbone, and say it: the others go on.

    A full disk stops everything: it would fail them too. So does a part that is ``alone``.
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


class PartsError(PipelineError, RuntimeError):
    """A stage failed for some findings, targets or backbones of a study; it was run for all."""

    def __init__(self, failures: Mapping[str, Exception], record: Mapping[str, Any]) -> None:
        """Name each part with its reason; the exit code is the one of the first."""
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in failures.items()))
        self.exit_code = getattr(next(iter(failures.values())), "exit_code", 1)
        self.record = record
