"""The command line of the feature stores: ``headrace cache ...``."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.cli.shared import command, engine_options, precision_option, study_argument
from pipeline.text.counts import counted

_ROOT = click.option(
    "--store",
    "root",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get("HEADRACE_FEATURES") or "features"),
    help="Folder of the stores; default: HEADRACE_FEATURES, or features.",
)


@click.group("cache")
def cache_group() -> None:
    """Look into, check and tidy the feature stores."""


@cache_group.command("ls")
@_ROOT
@command
def list_stores(root: Path, *, quiet: bool) -> dict[str, Any]:
    """List the stores: rows, parts, size, what was set aside.

    Example: headrace cache ls
    """
    from pipeline.features.upkeep import describe

    found = [asdict(row) for row in describe(root)]
    if not quiet:
        from pipeline.cli.tables import stores_text

        click.echo(stores_text(found) if found else f"no stores in {root}")
    return {"root": str(root), "stores": found}


@cache_group.command()
@click.argument("study", type=click.Path(path_type=Path), required=False)
@_ROOT
@click.option("--sample", type=click.IntRange(min=1), help="Recompute this many stored images.")
@engine_options
@command
def verify(
    study: Path | None, *, root: Path, sample: int | None, quiet: bool, **engine: Any
) -> dict[str, Any]:
    """Check every byte of the stores; with a study, also recompute a sample of its images.

    Example: headrace cache verify study.toml --sample 300
    """
    from pipeline.features.engines import EngineChoice
    from pipeline.features.upkeep import verify_stores, verify_study
    from pipeline.study.file import load_study

    if sample and not study:
        raise click.UsageError("--sample needs a STUDY: it knows where the images are")
    if study is None:
        lines = verify_stores(root)
    else:
        lines = verify_study(load_study(study), sample, EngineChoice(**engine))
    if not quiet:
        click.echo("\n".join(lines))
    return {"checks": lines}


@cache_group.command("compact")
@_ROOT
@command
def compact_stores(root: Path, *, quiet: bool) -> dict[str, Any]:
    """Merge the small parts of each store.

    Example: headrace cache compact
    """
    from cache.upkeep import compact

    return _each_store(
        root,
        lambda store: {"parts_fewer": compact(store)},
        lambda found: f"{counted(found['parts_fewer'], 'part')} fewer",
        quiet=quiet,
    )


@cache_group.command("gc")
@_ROOT
@command
def clear_temporaries(root: Path, *, quiet: bool) -> dict[str, Any]:
    """Remove temporary files of dead processes; damaged parts set aside stay.

    Example: headrace cache gc
    """
    from cache.upkeep import gc

    return _each_store(
        root,
        lambda store: {"removed": gc(store)},
        lambda found: f"{counted(len(found['removed']), 'temporary file')} removed",
        quiet=quiet,
    )


@cache_group.command()
@study_argument
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--backbone", help="Needed when the study has several.")
@precision_option
@click.option("--allow-conflicts", is_flag=True, help="Accept identical images of two classes.")
@command
def export(study: Path, output: Path, *, quiet: bool, **options: Any) -> dict[str, Any]:
    """Write one self-contained HDF5 file of features, labels, patients and splits.

    Example: headrace cache export study.toml --backbone densenet121 out.h5
    """
    from pipeline.features.export import export_study
    from pipeline.samples import SampleOptions
    from pipeline.study.file import load_study

    rows = export_study(
        load_study(study).with_precision(options["precision"]),
        options["backbone"],
        output,
        SampleOptions(allow_conflicts=options["allow_conflicts"]),
    )
    if not quiet:
        click.echo(
            f"wrote {output}: {counted(rows, 'row')}; it names files and patients, treat it so"
        )
    return {"output": str(output), "rows": rows}


def _each_store(
    root: Path,
    action: Callable[[Any], dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
    *,
    quiet: bool,
) -> dict[str, Any]:
    from cache import CacheError, stores_in

    done = {
        name: {"error": str(store)} if isinstance(store, CacheError) else action(store)
        for name, store in stores_in(root).items()
    }
    if not quiet:
        lines = [f"{name}: {one.get('error') or said(one)}" for name, one in done.items()]
        click.echo("\n".join(lines) or f"no stores in {root}")
    return {"root": str(root), "stores": done}
