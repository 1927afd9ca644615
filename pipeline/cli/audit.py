"""The command line of the audit: ``headrace audit``."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.shared import command, engine_options, precision_option, study_argument


@click.command("audit")
@study_argument
@click.option(
    "--probes/--no-probes",
    default=True,
    help="Ask border and corners alone for the label. Costs two more runs of the first "
    "backbone over all images, once; their features are kept.",
)
@engine_options
@precision_option
@command
def audit_command(
    study: Path, *, quiet: bool, probes: bool, precision: str | None, **engine: Any
) -> dict[str, Any]:
    """Look for leaks and confounders before any number is believed; 3 is a leak's exit code.

    Patients and pictures in two roles, nearly equal pictures, contradicting and doubtful
    labels; how well the hospital can be told from the features, and the label from size,
    greys, border and corners. Near copies are listed for the study's `exclude`.

    Example: headrace audit study.toml --no-probes
    """
    from pipeline.audit.stage import AuditOptions, audit, probed, to_json
    from pipeline.checks.finding import refuse_leaks
    from pipeline.features.engines import EngineChoice
    from pipeline.features.extract import ExtractOptions, extract
    from pipeline.study.file import load_study

    loaded = load_study(study).with_precision(precision)
    options = AuditOptions(probes=probes)
    if probes:
        extract(
            probed(loaded),
            ExtractOptions(
                engine=EngineChoice(**engine),
                samples=options.samples,
                report="features_of_probes.json",
            ),
        )
    report = audit(loaded, options)
    values = to_json(report)
    if not quiet:
        from pipeline.audit.text import audit_text

        click.echo(audit_text(report))
    elif values["counts"]["leak"]:
        click.echo(json.dumps(values, indent=1))  # the error that follows must not hide it
    refuse_leaks(report.findings)
    return values
