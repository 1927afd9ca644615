"""The command line: parse, call one stage, print. Nothing else happens here.

Stages are imported inside their command, so that ``headrace --help`` answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli_cache import cache_group
from pipeline.cli_shared import command, engine_options, precision_option, study_argument


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
    from pipeline.init import demo_backbone

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
    from pipeline.init import write_study

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
    from pipeline.engines import EngineChoice
    from pipeline.extract import ExtractOptions, extract
    from pipeline.samples import SampleOptions
    from pipeline.study import load_study

    strict = flags.pop("strict")
    samples = SampleOptions(
        rehash=flags.pop("rehash"), allow_conflicts=flags.pop("allow_conflicts")
    )
    report = extract(
        load_study(study).with_precision(precision),
        ExtractOptions(engine=EngineChoice(**flags), samples=samples, strict=strict),
    )
    if not quiet:
        from pipeline.tables import features_text

        click.echo(features_text(report))
    values = asdict(report)
    return {"study": values["study"], "backbones": list(values["backbones"])}


@main.command()
@study_argument
@click.option("--only", help="Some heads, separated by commas.")
@click.option("--seeds", default=10, show_default=True, help="Seeds of the heads that draw.")
@click.option("--baseline", default="linear", show_default=True, help="The head to compare with.")
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
def heads(study: Path, *, quiet: bool, precision: str | None, **flags: Any) -> dict[str, Any]:
    """Train and compare heads from the store.

    Example: headrace heads study.toml --only linear,mlp
    """
    from pipeline.compare import CompareOptions, compare
    from pipeline.samples import SampleOptions
    from pipeline.study import load_study

    only = flags["only"]
    options = CompareOptions(
        heads=None if only is None else tuple(name.strip() for name in only.split(",")),
        seeds=flags["seeds"],
        baseline=flags["baseline"],
        treatments=flags["treatments"],
        samples=SampleOptions(allow_conflicts=flags["allow_conflicts"]),
    )
    report = compare(load_study(study).with_precision(precision), options)
    if not quiet:
        from pipeline.tables import heads_text

        click.echo(heads_text(report))
    return {"study": report.study, "rows": [asdict(row) for row in report.rows]}


@main.command()
@study_argument
@click.option("--draws", default=999, show_default=True, help="Relabellings of each test.")
@click.option("--seeds", default=10, show_default=True, help="Cuts of the target for the fixes.")
@precision_option
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@command
def shift(study: Path, *, quiet: bool, precision: str | None, **flags: Any) -> dict[str, Any]:
    """Compare the source with each target: tests with controls, and fixes without labels.

    Example: headrace shift study.toml
    """
    from pipeline.samples import SampleOptions
    from pipeline.shift.stage import ShiftOptions, analyse, to_json
    from pipeline.study import load_study

    report = analyse(
        load_study(study).with_precision(precision),
        ShiftOptions(
            draws=flags["draws"],
            seeds=flags["seeds"],
            samples=SampleOptions(allow_conflicts=flags["allow_conflicts"]),
        ),
    )
    if not quiet:
        from pipeline.tables import shift_text

        click.echo(shift_text(report))
    return to_json(report)


@main.command()
@command
def doctor(*, quiet: bool) -> dict[str, Any]:
    """Say which versions, devices and engines are here, and which weights can be had.

    Example: headrace doctor
    """
    from pipeline.doctor import examine

    found = examine()
    if not quiet:
        width = max(map(len, found))
        click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))
    return dict(found)


main.add_command(cache_group)

if __name__ == "__main__":
    main()
