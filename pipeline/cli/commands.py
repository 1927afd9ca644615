"""The command line: parse, call one stage, print. Nothing else happens here.

Stages are imported inside their command, so that ``headrace --help`` answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli.audit import audit_command
from pipeline.cli.cache import cache_group
from pipeline.cli.finetune import finetune_command
from pipeline.cli.predict import predict_command
from pipeline.cli.report import report_command
from pipeline.cli.shared import (
    command,
    draws_figures,
    engine_options,
    precision_option,
    study_argument,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def main() -> None:
    """Look at every image once with a frozen network, keep the features, compare heads.

    \b
    Try it:        headrace demo && headrace features demo/study.toml
                   headrace heads demo/study.toml
    Own images:    headrace init HOSPITAL_A HOSPITAL_B
    """  # noqa: D301 - the real backspace tells click to keep the lines


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option("--seed", default=0, show_default=True)
@command
def demo(folder: Path, seed: int, *, quiet: bool) -> dict[str, Any]:
    """Write generated X-ray phantoms of two hospitals, and their study file.

    Example: headrace demo demo
    """
    from pipeline.demo import DemoSpec, write_demo
    from pipeline.study.init import demo_backbone

    backbone, why = demo_backbone()
    study = write_demo(folder, DemoSpec(seed=seed), backbone=backbone)
    if not quiet:
        click.echo(f"{study}: backbone {backbone}, because {why}")
    return {"study": str(study), "backbone": backbone, "because": why}


@main.command()
@click.argument("data", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("study.toml"))
@click.option("--backbone", "backbones", multiple=True, default=("densenet121",))
@command
def init(
    data: tuple[Path, ...], output: Path, backbones: tuple[str, ...], *, quiet: bool
) -> dict[str, Any]:
    """Write a study file: the first folder is the source, the others are targets.

    Example: headrace init data/hospital_a data/hospital_b --backbone googlenet
    """
    from pipeline.study.init import write_study

    notes = write_study(data, output, backbones)
    if not quiet:
        click.echo("\n".join([f"wrote {output}", *notes]))
    return {"study": str(output), "notes": notes}


@main.command()
@study_argument
@engine_options
@precision_option
@click.option("--rehash", is_flag=True, help="Read every file again; believe no index.")
@click.option("--strict", is_flag=True, help="A skipped image is an error.")
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@command
def features(study: Path, *, quiet: bool, precision: str | None, **flags: Any) -> dict[str, Any]:
    """Run the frozen backbones once over what the store does not hold yet.

    Example: headrace features study.toml
    """
    from pipeline.features.engines import EngineChoice
    from pipeline.features.extract import ExtractOptions, extract
    from pipeline.samples import SampleOptions
    from pipeline.study.file import load_study

    strict = flags.pop("strict")
    samples = SampleOptions(
        rehash=flags.pop("rehash"), allow_conflicts=flags.pop("allow_conflicts")
    )
    report = extract(
        load_study(study).with_precision(precision),
        ExtractOptions(engine=EngineChoice(**flags), samples=samples, strict=strict),
    )
    if not quiet:
        from pipeline.cli.tables import features_text

        click.echo(features_text(report))
    values = asdict(report)
    return {"study": values["study"], "backbones": list(values["backbones"])}


@main.command()
@study_argument
@click.option("--only", help="Some heads, separated by commas.")
@click.option("--baseline", help="The head to compare with (default: linear).")
@click.option("--seeds", type=click.IntRange(min=1), help="Of the heads that draw (default: 10).")
@click.option(
    "--repeats",
    type=click.IntRange(min=0),
    help="Times that every head is fitted again on five folds, to ask which kind of head is "
    "better and what the best is honestly worth (default: 1; a firm answer takes 10).",
)
@click.option("--quick", is_flag=True, help="3 seeds, 500 draws for an interval, no repeats.")
@click.option(
    "--treatment",
    "treatments",
    multiple=True,
    default=("standardise",),
    show_default=True,
    help="What is done to the features: none, standardise, l2, pca_whiten; may repeat.",
)
@precision_option
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@command
@draws_figures("heads")
def heads(study: Path, *, quiet: bool, precision: str | None, **flags: Any) -> dict[str, Any]:
    """Train and compare heads from the store.

    Example: headrace heads study.toml --only linear,mlp --seeds 3 --quick
    """
    from dataclasses import replace

    from pipeline.compare.report import to_json
    from pipeline.compare.stage import QUICK, CompareOptions, compare
    from pipeline.samples import SampleOptions
    from pipeline.study.file import load_study

    only = flags["only"]
    given = {name: flags[name] for name in ("baseline", "seeds", "repeats")}
    options = replace(
        QUICK if flags["quick"] else CompareOptions(),
        heads=None if only is None else tuple(name.strip() for name in only.split(",")),
        treatments=flags["treatments"],
        samples=SampleOptions(allow_conflicts=flags["allow_conflicts"]),
        **{name: value for name, value in given.items() if value is not None},
    )
    report = compare(load_study(study).with_precision(precision), options)
    if not quiet:
        from pipeline.compare.text import heads_text

        click.echo(heads_text(report))
    return to_json(report)


@main.command()
@study_argument
@click.option(
    "--draws",
    type=click.IntRange(min=19),  # of fewer none gives p <= 0.05; ShiftOptions says the same
    default=999,
    show_default=True,
    help="Relabellings of each test.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Cuts of the target for the fixes.",
)
@precision_option
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@click.option("--allow-leaks", is_flag=True, help="Go on although a role holds another's images.")
@command
@draws_figures("shift")
def shift(study: Path, *, quiet: bool, precision: str | None, **flags: Any) -> dict[str, Any]:
    """Compare the source with each target: tests with controls, and fixes without labels.

    Example: headrace shift study.toml
    """
    from pipeline.samples import SampleOptions
    from pipeline.shift.paper.record import to_json
    from pipeline.shift.stage import ShiftOptions, analyse
    from pipeline.study.file import load_study

    report = analyse(
        load_study(study).with_precision(precision),
        ShiftOptions(
            draws=flags["draws"],
            seeds=flags["seeds"],
            samples=SampleOptions(
                allow_conflicts=flags["allow_conflicts"], allow_leaks=flags["allow_leaks"]
            ),
        ),
    )
    if not quiet:
        from pipeline.shift.paper.text import shift_text

        click.echo(shift_text(report))
    return to_json(report)


@main.command()
@command
def doctor(*, quiet: bool) -> dict[str, Any]:
    """Say which versions, devices and engines are here, and which weights can be had.

    Example: headrace doctor
    """
    from pipeline.cli.doctor import examine

    found = examine()
    if not quiet:
        width = max(map(len, found))
        click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))
    return dict(found)


main.add_command(audit_command)
main.add_command(cache_group)
main.add_command(predict_command)
main.add_command(finetune_command)
main.add_command(report_command)
