"""The command line of saved heads: ``headrace predict``."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli.shared import command, engine_options

_PATH = click.Path(path_type=Path)


@click.command("predict")
@click.argument("images", type=_PATH, nargs=-1, required=True)
@click.option(
    "--model", type=_PATH, required=True, help="Folder results/STUDY/heads/BACKBONE/HEAD."
)
@click.option(
    "--store",
    type=_PATH,
    default=lambda: Path(os.environ.get("HEADRACE_FEATURES") or "features"),
    help="Folder of the stores; default: HEADRACE_FEATURES, or features.",
)
@click.option("--weights", type=_PATH, help="File of the backbone's weights, if it moved.")
@click.option("--csv", "table", type=_PATH, help="Also write the rows to this file.")
@click.option("--strict", is_flag=True, help="An image that cannot be used is an error.")
@engine_options
@command
def predict_command(images: tuple[Path, ...], *, quiet: bool, **flags: Any) -> dict[str, Any]:
    """Classify new images, files or folders, with a head that `headrace heads` kept.

    Research software, not a medical device.

    Example: headrace predict --model results/demo/heads/densenet121/linear new/1.png
    """
    from pipeline.features.engines import EngineChoice
    from pipeline.predict.stage import PredictOptions, predict, write_csv

    table = flags.pop("table")
    options = PredictOptions(
        store=flags.pop("store"),
        weights=flags.pop("weights"),
        strict=flags.pop("strict"),
        engine=EngineChoice(**{k: v for k, v in flags.items() if k != "model"}),
    )
    found = predict(flags["model"], images, options)
    if table is not None:
        write_csv(table, found)
    if not quiet:
        from pipeline.predict.text import predict_text

        click.echo(predict_text(found))
    return {
        "head": found.model.head,
        "study": found.model.study,
        "classes": list(found.model.classes),
        "rows": [asdict(row) for row in found.rows],
        "skipped": [asdict(one) for one in found.skipped],
        "computed": found.computed,
    }
