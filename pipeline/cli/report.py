"""The command line of the page: ``headrace report``."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.shared import command, study_argument


@click.command("report")
@study_argument
@command
def report_command(study: Path, *, quiet: bool) -> dict[str, Any]:
    """Write one self-contained HTML page of everything that the stages found.

    It reads results/STUDY alone: numbers and figures are those of the stages, and a stage
    that has not been run is named. Nothing in the page runs or is loaded from elsewhere.

    Example: headrace report study.toml
    """
    from dataclasses import asdict

    from pipeline.report.stage import write_page
    from pipeline.study.file import load_study

    page = write_page(load_study(study))
    if not quiet:
        lines = [f"{page.file}: {', '.join(page.stages)} ({page.size / 1e6:.1f} MB)"]
        lines += [f"not on it: {line}" for line in page.missing]
        lines += [f"warning: {line}" for line in page.stale]
        click.echo("\n".join(lines))
    return {**asdict(page), "file": str(page.file)}
