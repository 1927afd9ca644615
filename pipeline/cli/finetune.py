"""``headrace finetune``: parse, run stage 3, print."""

from pathlib import Path
from typing import Any

import click

from pipeline.cli.shared import command, draws_figures, first_of_group, study_argument
from pipeline.finetune.methods import METHODS, QUICK
from pipeline.finetune.settings import LoopSettings

_LISTED = "\n".join(f"    {name:<14} {method.about}" for name, method in METHODS.items())
_HELP = f"""Train heads, parts and whole networks, and compare them on the same images.

    Without --method: {", ".join(QUICK)}, which take minutes without a GPU. A method that starts
    from another brings it along; models that are there already are not trained again.

    \b
{_LISTED}

    Example: headrace finetune study.toml --method full --method last_block
    """


@click.command(name="finetune", help=_HELP)
@study_argument
@click.option("--method", "methods", multiple=True, help="A method, or all; may be repeated.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of the methods asked for.")
@click.option("--learning-rate", type=float, help="Of the methods asked for.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=LoopSettings.batch_size,
    show_default=True,
    help="Images a step.",
)
@click.option("--image-size", type=click.IntRange(min=1), help="Side in pixels, for a trial.")
@click.option("--limit", type=click.IntRange(min=1), help="Images of each split, for a trial.")
@click.option(
    "--augmentation", default=LoopSettings.augmentation, show_default=True, help="none or light."
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=LoopSettings.patience,
    show_default=True,
    help="Stop after so many epochs without a better validation loss; 0: never.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the study's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@command
@draws_figures("finetune")
def finetune_command(study: Path, *, quiet: bool, **flags: Any) -> dict[str, Any]:
    """See ``_HELP``."""
    from pipeline.finetune.options import TrainingOptions
    from pipeline.finetune.stage import FinetuneOptions, finetune, report_json
    from pipeline.samples import SampleOptions
    from pipeline.study.file import load_study

    options = FinetuneOptions(
        methods=flags.pop("methods"),
        limit=flags.pop("limit"),
        samples=SampleOptions(allow_conflicts=flags.pop("allow_conflicts")),
        training=TrainingOptions(**flags),
    )
    report = finetune(load_study(study), options)
    if not quiet and first_of_group():
        from pipeline.finetune.text import comparison_text

        click.echo(comparison_text(report))
    return report_json(report)
