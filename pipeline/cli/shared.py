"""What all commands share: ``--json``, ``--debug``, errors to exit codes, common options.

Errors of ours become one line and an exit code here and nowhere else.
"""

import json as json_module
import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from pipeline.text.counts import counted

_INTERRUPTED = 130
_LOG = logging.getLogger(__name__)

study_argument = click.argument("study", type=click.Path(path_type=Path))


class _Reported(click.ClickException):
    """An error of ours on its way to one line and its exit code."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error) or type(error).__name__)
        self.exit_code = getattr(error, "exit_code", 1)  # type: ignore[misc]


def first_of_group() -> bool:
    """Whether this is the one of ``torchrun``'s processes that speaks, or no such process."""
    return os.environ.get("RANK", "0") == "0"


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Options and error handling that every command has: ``--json`` and ``--debug``.

    The function returns JSON values, which ``--json`` prints, and gets ``quiet``: whether
    it should leave printing to that.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def run(*, as_json: bool, debug: bool, **arguments: Any) -> None:
        _log_to_stderr()
        try:
            result = function(quiet=as_json, **arguments)
            if as_json and first_of_group():
                click.echo(json_module.dumps(result, indent=1))
        except BrokenPipeError:
            sys.exit(1)
        except click.ClickException:
            raise
        except KeyboardInterrupt:
            click.echo("interrupted: what was committed is safe, run again to go on", err=True)
            sys.exit(_INTERRUPTED)
        except Exception as error:
            if debug:
                raise
            raise _reported(error) from error

    return run


def _reported(error: Exception) -> _Reported:
    if hasattr(error, "exit_code"):
        return _Reported(error)
    if isinstance(error, OSError):
        return _Reported(OSError(f"{error.filename or 'the disk'}: {error.strerror or error}"))
    return _Reported(
        RuntimeError(
            f"a mistake in headrace: {type(error).__name__}: {error}. "
            "Run again with --debug and report what it prints"
        )
    )


def _log_to_stderr() -> None:
    said = set()  # a stage reads the features of each backbone, and would say all again

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            line = prefix + record.getMessage()
            if line not in said:
                click.echo(line, err=True)
            said.add(line)

    for name in ("cache", "pipeline"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if first_of_group() else logging.WARNING)
        logger.handlers = [_Handler()]
        logger.propagate = False


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that run a network."""
    for option in (
        click.option("--batch-size", type=click.IntRange(min=1), help="Images per batch."),
        click.option("--device", default="auto", help="auto, cpu or cuda.", show_default=True),
        click.option(
            "--engine", default="auto", help="auto, openvino or torch.", show_default=True
        ),
    ):
        function = option(function)
    return function


precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16"]),
    help="Instead of the study's; other precisions have stores of their own.",
)


def draws_figures(stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command of a stage ``--figures``, and draw them once its files are written.

    Args:
        stage: A module of ``pipeline.figures``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--figures/--no-figures", default=True, show_default=True, help="Draw what was found."
        )
        @wraps(function)
        def run(study: Path, *, quiet: bool, figures: bool, **arguments: Any) -> Any:
            result = function(study, quiet=quiet, **arguments)
            # Of several processes of one training, the first writes and draws.
            if figures and first_of_group():
                _draw(stage, study, quiet=quiet)
            return result

        return run

    return decorate


def _draw(stage: str, study: Path, *, quiet: bool) -> None:
    from importlib import import_module

    from pipeline.study.file import load_study

    try:
        written = import_module(f"pipeline.figures.{stage}").draw(load_study(study).results)
    except Exception as error:  # noqa: BLE001 - the numbers are on disk; figures must not cost them
        _LOG.warning("no figures of %s: %s: %s", stage, type(error).__name__, error)
        return
    if written and not quiet:
        click.echo(f"figures: {written[0].parent} ({counted(len(written), 'file')})")
