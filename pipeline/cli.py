"""What all commands share: ``--json``, ``--debug``, errors to exit codes, common options.

Errors of ours become one line and an exit code here and nowhere else.
"""

import importlib.util
import json
import json as json_module
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from pipeline.data.samples import Skip
from pipeline.features.backbones import BACKBONES
from pipeline.features.extract import BackboneReport, ExtractReport
from pipeline.finetune.methods import METHODS, QUICK
from pipeline.finetune.settings import LoopSettings
from pipeline.report.text_tables import new_table as _table
from pipeline.report.text_tables import render as _render
from pipeline.words import counted, printable

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
        stage: A module of ``pipeline.report.figures``.
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

    from pipeline.study import load_study

    try:
        written = import_module(f"pipeline.report.figures.{stage}").draw(load_study(study).results)
    except Exception as error:  # noqa: BLE001 - the numbers are on disk; figures must not cost them
        _LOG.warning("no figures of %s: %s: %s", stage, type(error).__name__, error)
        return
    if written and not quiet:
        click.echo(f"figures: {written[0].parent} ({counted(len(written), 'file')})")


# Results as text for a terminal: small tables, numbers to the right.


_SHOWN = 10


def features_text(report: ExtractReport) -> str:
    """What stage 1 did, a line for each backbone, then the skipped images."""
    lines = [_backbone_line(row) for row in report.backbones]
    return "\n".join(lines + _skipped_lines(report.skipped))


def _backbone_line(row: BackboneReport) -> str:
    if not row.computed:
        done = "nothing to do"
    else:
        done = f"{row.computed} computed in {row.seconds:.1f} s ({row.images_per_second:.1f}/s)"
    return (
        f"{row.backbone}: {done}, {row.reused} reused, {row.skipped} skipped "
        f"of {counted(row.images_in, 'image')} -> {row.store} ({row.dim}-d)"
    )


def _skipped_lines(skipped: Sequence[Skip]) -> list[str]:
    lines = [
        f"  skipped {printable(s.domain + '/' + s.path)}: {s.reason}" for s in skipped[:_SHOWN]
    ]
    if len(skipped) > _SHOWN:
        lines.append(f"  and {len(skipped) - _SHOWN} more; all are in features.json")
    return lines


def stores_text(stores: Sequence[Mapping[str, Any]]) -> str:
    """One line for each store."""
    table = _table(["store", "holds", "precision", "rows", "parts", "MB", "set aside"], left=3)
    for row in stores:
        table.add_row(
            row["store"],
            row["holds"],
            row["precision"],
            str(row["rows"]),
            str(row["parts"]),
            f"{row['size'] / 1e6:.1f}",
            str(row["quarantined"]),
        )
    broken = [f"{row['store']}: {row['error']}" for row in stores if row["error"]]
    return "\n".join([_render(table), *broken])


# The command line of the audit: ``headrace audit``.


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
    from pipeline.data.leaks import refuse_leaks
    from pipeline.features.engines import EngineChoice
    from pipeline.features.extract import ExtractOptions, extract
    from pipeline.study import load_study

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
        from pipeline.report.audit_text import audit_text

        click.echo(audit_text(report))
    elif values["counts"]["leak"]:
        click.echo(json.dumps(values, indent=1))  # the error that follows must not hide it
    refuse_leaks(report.findings)
    return values


# The command line of the feature stores: ``headrace cache ...``.


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
    from pipeline.features.maintain import describe

    found = [asdict(row) for row in describe(root)]
    if not quiet:
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
    from pipeline.features.maintain import verify_stores, verify_study
    from pipeline.study import load_study

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
    from cache.store import compact

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
    from cache.store import gc

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
    from pipeline.data.samples import SampleOptions
    from pipeline.features.export import export_study
    from pipeline.study import load_study

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
    from cache.errors import CacheError
    from cache.store import stores_in

    done = {
        name: {"error": str(store)} if isinstance(store, CacheError) else action(store)
        for name, store in stores_in(root).items()
    }
    if not quiet:
        lines = [f"{name}: {one.get('error') or said(one)}" for name, one in done.items()]
        click.echo("\n".join(lines) or f"no stores in {root}")
    return {"root": str(root), "stores": done}


# What is here: versions, devices, engines, and which weights can be had.


_PACKAGES = (
    "headrace",
    "torch",
    "torchvision",
    "openvino",
    "timm",
    "h5py",
    "scikit-learn",
    "pillow",
)


def examine() -> dict[str, str]:
    """Name and finding, in the order in which a person would ask."""
    found = {"python": platform.python_version(), "cpu": f"{os.cpu_count()} cores"}
    found |= {package: _version(package) for package in _PACKAGES}
    found["cuda"] = _cuda()
    found["engine"] = "openvino" if importlib.util.find_spec("openvino") else "torch"
    found["stores"] = str(Path(os.environ.get("HEADRACE_FEATURES") or "features").resolve())
    found |= {
        f"weights of {name}": str(spec.pretrained.path() or "not here; fetched when asked for")
        for name, spec in BACKBONES.items()
    }
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


# ``headrace finetune``: parse, run stage 3, print.


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
    from pipeline.data.samples import SampleOptions
    from pipeline.finetune.methods import TrainingOptions
    from pipeline.finetune.stage import FinetuneOptions, finetune, report_json
    from pipeline.study import load_study

    options = FinetuneOptions(
        methods=flags.pop("methods"),
        limit=flags.pop("limit"),
        samples=SampleOptions(allow_conflicts=flags.pop("allow_conflicts")),
        training=TrainingOptions(**flags),
    )
    report = finetune(load_study(study), options)
    if not quiet and first_of_group():
        from pipeline.report.finetune_text import comparison_text

        click.echo(comparison_text(report))
    return report_json(report)


# The command line of saved heads: ``headrace predict``.


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
    from pipeline.predict import PredictOptions, predict, write_csv

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
        from pipeline.report.predict_text import predict_text

        click.echo(predict_text(found))
    return {
        "head": found.model.head,
        "study": found.model.study,
        "classes": list(found.model.classes),
        "rows": [asdict(row) for row in found.rows],
        "skipped": [asdict(one) for one in found.skipped],
        "computed": found.computed,
    }


# The command line of the page: ``headrace report``.


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
    from pipeline.study import load_study

    page = write_page(load_study(study))
    if not quiet:
        lines = [f"{page.file}: {', '.join(page.stages)} ({page.size / 1e6:.1f} MB)"]
        lines += [f"not on it: {line}" for line in page.missing]
        lines += [f"warning: {line}" for line in page.stale]
        click.echo("\n".join(lines))
    return {**asdict(page), "file": str(page.file)}


# The command line: parse, call one stage, print. Nothing else happens here.


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
    from pipeline.study import demo_backbone

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
    from pipeline.study import write_study

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
    from pipeline.data.samples import SampleOptions
    from pipeline.features.engines import EngineChoice
    from pipeline.features.extract import ExtractOptions, extract
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

    from pipeline.compare import QUICK, CompareOptions, compare, to_json
    from pipeline.data.samples import SampleOptions
    from pipeline.study import load_study

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
        from pipeline.report.compare_text import heads_text

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
    from pipeline.data.samples import SampleOptions
    from pipeline.shift.record import to_json
    from pipeline.shift.stage import ShiftOptions, analyse
    from pipeline.study import load_study

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
        from pipeline.report.shift_text import shift_text

        click.echo(shift_text(report))
    return to_json(report)


@main.command()
@command
def doctor(*, quiet: bool) -> dict[str, Any]:
    """Say which versions, devices and engines are here, and which weights can be had.

    Example: headrace doctor
    """
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


if __name__ == "__main__":  # as torchrun calls it
    main()
