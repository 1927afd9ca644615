"""The command line: parse, call one stage, show what it found. Nothing else happens here.

Errors of ours become one line and an exit code here and nowhere else; :func:`main` lists them.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from pipeline.finetune.methods import AUGMENTATIONS, METHODS, OPTIMISERS, PRECISIONS, QUICK
from pipeline.words import counted

_LOG = logging.getLogger(__name__)
_MISTAKE, _INTERRUPTED = 70, 130
#: Longer messages lose their middle: the beginning says what is wrong, the end what to do.
_LONGEST = 1500
_PATH = click.Path(path_type=Path)
_Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _first_process() -> bool:
    """Whether this is the one of ``torchrun``'s processes that reports, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Options and error handling that every command has: ``--json`` and ``--debug``.

    The function returns JSON values, which ``--json`` prints in place of its text.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def run(*, as_json: bool, debug: bool, **arguments: Any) -> None:
        _log_to_stderr(foreign=debug)
        try:
            with redirect_stdout(None if as_json else sys.stdout):
                result = function(**arguments)
            if as_json and _first_process():
                click.echo(json.dumps(result, indent=1))
        except BrokenPipeError:
            sys.exit(1)
        except click.ClickException:
            raise
        except KeyboardInterrupt:
            click.echo("interrupted: finished work is safe, run again to go on", err=True)
            sys.exit(_INTERRUPTED)
        except Exception as error:
            if as_json and (record := getattr(error, "record", None)):
                click.echo(json.dumps(record, indent=1))  # the error must not hide it
            if debug:
                raise
            raise _in_one_line(error) from error

    return run


def _in_one_line(error: Exception) -> click.ClickException:
    """An error as click shows it, with its exit code."""
    text, code = str(error) or type(error).__name__, getattr(error, "exit_code", None)
    if code is None and isinstance(error, OSError):
        text, code = f"{error.filename or 'the disk'}: {error.strerror or error}", 4
    elif code is None:
        text = f"a mistake in headrace: {type(error).__name__}: {_bounded(text)}. "
        text, code = text + "Run again with --debug and report what it prints", _MISTAKE
    shown = click.ClickException(_bounded(text))
    shown.exit_code = code  # type: ignore[misc]
    return shown


def _bounded(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def _log_to_stderr(*, foreign: bool) -> None:
    """Show what we log, each line once; what libraries log and warn only where asked for."""
    logging.captureWarnings(not foreign)
    if not foreign and not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    shown = set()  # a stage reads the features of each backbone, and would repeat its warnings

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            line = _bounded(prefix + record.getMessage())
            if line not in shown:
                click.echo(line, err=True)
            shown.add(line)

    for name in ("cache", "pipeline"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if _first_process() else logging.WARNING)
        logger.handlers = [_Handler()]
        logger.propagate = False


def _all_of(*options: _Option) -> _Option:
    """Several options as one decorator, in the order of the help text."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _choice(name: str, values: Sequence[str], text: str, default: str | None = None) -> _Option:
    shown, kind = default is not None, click.Choice(list(values))
    return click.option(name, type=kind, default=default, show_default=shown, help=text)


def _count(name: str, text: str) -> _Option:
    return click.option(name, type=click.IntRange(min=1), help=text)


_study_argument = click.argument("study", type=_PATH)
_recipe_options = _all_of(
    _choice("--precision", PRECISIONS, "Default: the study's; each has its own stores."),
    _choice("--decode", ["cpu", "gpu"], "Default: the study's; each has its own stores."),
)
_conflicts_option = click.option(
    "--allow-conflicts", is_flag=True, help="Keep identical images that are in two classes."
)
_figures_option = click.option(
    "--figures/--no-figures", default=None, help="Draw the results; default: unless --quick."
)
_strict_option = click.option(
    "--strict", is_flag=True, help="An image that cannot be used is an error."
)
_backbone_option = click.option("--backbone", help="Needed when the study has several.")
_effort_options = _all_of(
    click.option("--quick", is_flag=True, help="Less resampling, fewer seeds, no figures."),
    click.option("--thorough", is_flag=True, help="More seeds, folds and draws; takes minutes."),
)
_device_option = _choice("--device", ["auto", "cpu", "cuda"], "What the network runs on.", "auto")
_engine_options = _all_of(
    _choice("--engine", ["auto", "openvino", "torch"], "What runs the network.", "auto"),
    _device_option,
    _count("--batch-size", "Images in one batch."),
    _choice(
        "--compile",
        ["auto", "never", "always"],
        "Whether torch compiles the network; auto: where so many images pay for it.",
        "auto",
    ),
)


def _default_store() -> Path:
    from pipeline.study import default_store

    return default_store()


_store_option = click.option(
    "--store",
    type=_PATH,
    default=_default_store,
    help="Folder of the stores; default: HEADRACE_FEATURES, or features.",
)


def _load(file: Path, flags: dict[str, Any]) -> Any:
    """The study with the recipe that the flags ask for; these are taken from them."""
    from pipeline.features.backbones import check_backbone_name
    from pipeline.study_file import load_study

    study = load_study(file)
    for choice in study.backbones:
        check_backbone_name(choice.name)
    if "decode" not in flags:
        return study
    return study.with_recipe(precision=flags.pop("precision"), decode=flags.pop("decode"))


def _parts(study: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """The studies of some findings by name, all where none is wanted; or the study itself."""
    if unknown := sorted(set(wanted) - set(study.findings)):
        from pipeline.errors import UnknownNameError

        raise UnknownNameError("finding", unknown[0], study.findings)
    findings = [name for name in study.findings if name in wanted or not wanted]
    return {name: study.of_finding(name) for name in findings} or {"": study}


_finding_option = click.option(
    "--finding", help="Needed when the study has several findings an image."
)


def _load_finding(file: Path, flags: dict[str, Any]) -> Any:
    """The study, of one finding where it has several; see :func:`_load`."""
    finding = flags.pop("finding")
    parts = _parts(_load(file, flags), [finding] if finding else [])
    if len(parts) > 1:
        raise click.UsageError(f"choose one with --finding: {', '.join(parts)}")
    return next(iter(parts.values()))


def _each_finding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a stage for a study, or for each of its findings; then a table over them.

    One that fails does not cost the others; the command fails at the end.
    """

    @_study_argument
    @click.option(
        "--finding", "findings", multiple=True, help="One of several an image; default: each."
    )
    @wraps(function)
    def run(study: Path, *, findings: tuple[str, ...], **flags: Any) -> Any:
        from pipeline.errors import PartsError, go_on

        whole = _load(study, flags)
        parts = _parts(whole, findings)
        if not whole.findings:
            return function(whole, **flags)
        if len(parts) > 1 and flags.get("write_exclude"):
            raise click.UsageError("--write-exclude writes the images of one --finding")
        records: dict[str, Any] = {}
        failures: dict[str, Exception] = {}
        for number, (finding, part) in enumerate(parts.items(), start=1):
            _LOG.info("finding %d of %d: %s", number, len(parts), finding)
            with go_on(finding, failures):
                records[finding] = function(part, **flags)
            if record := getattr(failures.get(finding), "record", None):
                records[finding] = record
        # Of some findings alone p would be adjusted over too few, in the file of all.
        table = [] if findings else _over_findings(function.__name__, whole, records)
        result = {"findings": records, "table": table}
        if failures:
            raise PartsError(failures, result)
        return result

    return run


def _over_findings(stage: str, study: Any, records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Print and write the table over the findings; its rows, none where a stage has no such.

    Of pages it is a page over them.
    """
    if not records or not _first_process():
        return []
    if stage == "report":
        from pipeline.report.page import write_index

        page = write_index(study, records)
        click.echo(f"{page['file']}: {counted(len(records), 'finding')}")
    if stage not in ("heads", "shift", "audit"):
        return []
    from pipeline import report
    from pipeline.findings import compare_findings
    from pipeline.results import write_set

    table = compare_findings(stage, study, records)
    _show("findings", table)
    file = study.results / f"findings_{stage}.json"
    write_set(file, table, report.files("findings", table))
    return table["rows"]  # type: ignore[no-any-return]


def _samples(flags: dict[str, Any]) -> Any:
    """Which conflicts and leaks are accepted; these are taken from the flags."""
    from pipeline.data.samples import SampleOptions

    names = [name for name in flags if name in ("allow_conflicts", "allow_leaks")]
    return SampleOptions(**{name: flags.pop(name) for name in names})


def _engine(flags: Mapping[str, Any]) -> Any:
    from pipeline.features.engines import EngineChoice

    return EngineChoice(**flags)


def _effort(flags: Mapping[str, Any], quick: Any, thorough: Any) -> Any:
    """Options of ``--quick`` or ``--thorough``; None without either."""
    if flags["quick"] and flags["thorough"]:
        raise click.UsageError("--quick and --thorough exclude each other")
    return quick if flags["quick"] else thorough if flags["thorough"] else None


def _drawn_too(flags: Mapping[str, Any]) -> bool:
    """Whether figures are asked for; with --quick they would take a third of the time."""
    drawn = flags["figures"]
    return not flags.get("quick") if drawn is None else bool(drawn)


def _show(
    stage: str, record: Mapping[str, Any], *, before: Mapping[str, Any] | None = None
) -> None:
    if sys.stdout is None:  # as JSON
        return
    from pipeline import report

    if text := report.show(stage, record, before):
        click.echo(f"\n{text}" if before else text)


def _publish(
    stage: str,
    record: dict[str, Any],
    study: Any,
    *,
    draw: Callable[[], Mapping[str, bytes]],
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Print the text of a stage, then write its tables and figures; returns the record."""
    if not _first_process():
        return record
    from pipeline import report
    from pipeline.report.figures import ERROR_SHEET
    from pipeline.results import add_files

    _show(stage, record, before=before)
    drawn: Mapping[str, bytes] = {}
    try:
        drawn = draw()
    except Exception as error:  # noqa: BLE001 - the numbers are on disk; figures must not cost them
        _LOG.warning("figures of %s are missing: %s: %s", stage, type(error).__name__, error)
    files = {**report.files(stage, record), **drawn}
    # Pictures of patients are not for a team that shares results either.
    private = {name: image for name, image in drawn.items() if ERROR_SHEET in name}
    if private:
        from pipeline.report.pictures import readable_by_owner_alone

        with readable_by_owner_alone():
            add_files(study.results / f"{stage}.json", record, private, stage)
    shared = {name: data for name, data in files.items() if name not in private}
    add_files(study.results / f"{stage}.json", record, shared, stage)
    if drawn:
        click.echo(f"\nfigures: {study.results / 'figures'} ({counted(len(drawn), 'file')})")
    return record


def _draw(
    stage: str, record: Mapping[str, Any], study: Any, file: bytes | None = None
) -> dict[str, bytes]:
    """Figures of a stage, of the arrays in its file; None: as it is on disk."""
    from pipeline.report import figures
    from pipeline.report.pictures import error_sheet
    from pipeline.results import read_set

    if file is None:
        file = figures.stored_arrays(read_set(study.results / f"{stage}.json", stage))
    sheet = {"of the surest errors": partial(error_sheet, study, record, file)}
    return figures.draw(stage, record, file, sheet if stage == "heads" else {})


def _prepare_to_draw() -> None:
    """Import what draws the figures of heads, which takes as long as drawing them; read fonts."""
    from pipeline.report import pictures  # noqa: F401
    from pipeline.report.figures import curves, forest, style  # noqa: F401

    style.png_of(style.new_figure, 1.0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def main() -> None:
    """Run a frozen network once over every image, store the features, compare heads.

    \b
    Try it:        headrace demo && headrace features demo/study.toml
                   headrace heads demo/study.toml
    Own images:    headrace init HOSPITAL_A HOSPITAL_B

    \b
    Exit codes:    0  all is well
                   1  the study, or what was asked for, cannot be used
                   2  wrong usage, or no image that can be used
                   3  a check failed: a leak, damage, another network
                   4  the disk refused
                   5  another command must be run first, or again
                  70  a mistake in headrace
                 130  interrupted; finished work is safe
    """  # noqa: D301 - the real backspace tells click to keep the lines


@main.command()
@click.argument("folder", type=_PATH, default=Path("demo"))
@command
def demo(folder: Path) -> dict[str, Any]:
    """Write generated chest X-rays of two hospitals, for a try.

    Example: headrace demo demo
    """
    from pipeline.demo import write_demo
    from pipeline.init import default_backbone

    backbone, why = default_backbone()
    study = write_demo(folder, backbone=backbone)
    click.echo(f"{study}: backbone {backbone}, because {why}")
    return {"study": str(study), "backbone": backbone, "because": why}


@main.command()
@click.argument("data", type=_PATH, nargs=-1, required=True)
@click.option("--output", type=_PATH, default=Path("study.toml"), show_default=True)
@click.option("--backbone", "backbones", multiple=True, default=("densenet121",), show_default=True)
@command
def init(data: tuple[Path, ...], output: Path, backbones: tuple[str, ...]) -> dict[str, Any]:
    """Write a study file for folders of images.

    The first folder is the source, the others are targets.

    Example: headrace init data/hospital_a data/hospital_b --backbone googlenet
    """
    from pipeline.init import write_study

    notes = write_study(data, output, backbones)
    click.echo("\n".join([f"wrote {output}", *notes]))
    return {"study": str(output), "notes": notes}


@main.command()
@_study_argument
@_engine_options
@_recipe_options
@click.option("--rehash", is_flag=True, help="Read every file again; trust no index.")
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Run on a cluster of Ray; without an address, on the one that RAY_ADDRESS or this "
    "machine has, or on this machine alone. Images and stores lie in shared folders.",
)
@_strict_option
@command
def features(study: Path, **flags: Any) -> dict[str, Any]:
    """Run the frozen networks over images that are not stored yet.

    Example: headrace features study.toml
    """
    from pipeline.errors import PartsError
    from pipeline.features.extract import extract

    loaded = _load(study, flags)
    given = {name: flags.pop(name) for name in ("rehash", "strict", "ray")}
    try:
        record = extract(loaded, _engine(flags), **given)
    except PartsError as failure:
        _show("features", failure.record or {})
        raise
    _show("features", record)
    return {"study": record["study"], "backbones": list(record["backbones"])}


@main.command()
@click.option("--only", help="These heads alone, separated by commas.")
@click.option(
    "--baseline", default="linear", show_default=True, help="The head to compare the others with."
)
@_effort_options
@click.option(
    "--preprocessing",
    default="standardise",
    show_default=True,
    help="Of the features: none, standardise, l2 or pca_whiten.",
)
@_recipe_options
@_conflicts_option
@_figures_option
@command
@_each_finding
def heads(study: Any, **flags: Any) -> dict[str, Any]:
    """Fit heads on stored features and compare them.

    Example: headrace heads study.toml --only linear,mlp --quick
    """
    from pipeline.parallel import Processes

    shown: list[dict[str, Any]] = []
    drawing: list[Any] = []
    names = flags["only"]
    only = None if names is None else tuple(name.strip() for name in names.split(","))
    # A process of its own: drawing would hold Python's lock while heads are fitted out of fold.
    # Of the prior alone, which looks at no image, nothing is drawn.
    figures = _drawn_too(flags) and only != ("prior",)
    with Processes(int(figures)) as processes:
        if figures and not (study.results / "heads.json").exists():
            processes.submit(_prepare_to_draw)  # a later run may have nothing to draw
        from pipeline.compare import QUICK, THOROUGH, CompareOptions, compare  # meanwhile

        options = replace(
            _effort(flags, QUICK, THOROUGH) or CompareOptions(),
            heads=only,
            baseline=flags["baseline"],
            preprocessing=flags["preprocessing"],
            samples=_samples(flags),
        )

        def show_scores(so_far: dict[str, Any], file: bytes) -> None:
            if file and figures:
                newest = so_far | {"backbones": so_far["backbones"][-1:]}
                drawing.append(processes.submit(_draw, "heads", newest, study, file))
            _show("heads", so_far, before=shown[-1] if shown else None)
            shown.append(so_far)

        def drawn() -> dict[str, bytes]:
            return {name: image for job in drawing for name, image in job.result().items()}

        record = compare(study, options, show_scores)
        return _publish("heads", record, study, draw=drawn, before=shown[-1])


@main.command()
@click.option(
    "--shortcuts/--no-shortcuts",
    default=True,
    help="Test whether border and corners alone predict the label. The first backbone runs "
    "twice more over all images, once; these features are stored too.",
)
@click.option(
    "--write-exclude",
    type=_PATH,
    metavar="FILE",
    help="Write the images that should not be scored to this file, for the study's `exclude`.",
)
@_engine_options
@_recipe_options
@command
@_each_finding
def audit(
    study: Any, *, shortcuts: bool, write_exclude: Path | None, **flags: Any
) -> dict[str, Any]:
    """Look for leaks and shortcuts before any number is believed. A leak is exit code 3.

    Patients and images in two roles, nearly equal images, contradicting and doubtful labels;
    how well features predict the hospital, and size, greys, border and corners the label.

    Example: headrace audit study.toml --write-exclude leave_out.txt
    """
    from cache import disk
    from pipeline.audit.stage import audit as run
    from pipeline.data.leaks import Finding, refuse_leaks
    from pipeline.data.samples import exclusions_text
    from pipeline.errors import CheckFailedError

    record = run(study, shortcuts=shortcuts, engine=_engine(flags))
    if write_exclude is not None:
        disk.make_dir(write_exclude.absolute().parent)
        disk.publish(write_exclude, exclusions_text(record["leave_out"]).encode())
    _show("audit", record)
    try:
        refuse_leaks(Finding(**finding) for finding in record["findings"])
    except CheckFailedError as leak:
        leak.record = record
        raise
    return record


_FINETUNE_HELP = f"""Train parts of networks and whole ones, and compare them.

    Without --method: {", ".join(QUICK)}, which take minutes without a GPU. A method that starts
    from another one trains that first; models that are there already are not trained again.

    \b
{chr(10).join(f"    {name:<14} {method.about}" for name, method in METHODS.items())}

    Example: headrace finetune study.toml --method full --method last_block
    """


@main.command(help=_FINETUNE_HELP)
@click.option("--method", "methods", multiple=True, help="A method, or all; may be repeated.")
@_count("--epochs", "Passes over the images, for the methods named.")
@click.option(
    "--learning-rate",
    type=float,
    help="For the methods named; default: the method's, times the root of batch size / 32.",
)
@_count(
    "--batch-size",
    "Images in one step; default 32, on CUDA 64 or 128 where an epoch then has 20 steps.",
)
@_count("--image-size", "Side in pixels, for a trial.")
@_count("--limit", "Images of each split, for a trial.")
@_choice("--optimiser", OPTIMISERS, "Default adamw, which the learning rates are for.")
@_choice("--augmentation", AUGMENTATIONS, "Of methods that read pixels; default none.")
@click.option(
    "--patience",
    type=int,
    help="Stop after so many epochs without a better validation loss; default 0: never.",
)
@click.option("--seed", type=int, help="Default: the study's.")
@_device_option
@_choice("--precision", PRECISIONS, "Default: the study's on CUDA, else fp32.")
@click.option("--deterministic", is_flag=True, help="On CUDA: the same bits each time; slower.")
@click.option("--compile", is_flag=True, help="torch.compile: a minute first, then faster steps.")
@_conflicts_option
@_figures_option
@command
@_each_finding
def finetune(study: Any, **flags: Any) -> dict[str, Any]:
    """See ``_FINETUNE_HELP``."""
    from pipeline.errors import PartsError, PipelineError
    from pipeline.finetune.stage import finetune as run

    figures = _drawn_too({"figures": flags.pop("figures")})
    given = {name: flags.pop(name) for name in ("methods", "image_size", "limit", "device")}
    record = run(study, **given, options=_samples(flags), settings=flags)
    if not record["trial"]:
        draw = partial(_draw, "finetune", record, study) if figures else dict
        _publish("finetune", record, study, draw=draw)
    elif _first_process():  # tables and figures on disk are of the whole run
        _show("finetune", record)
    if failures := record["failures"]:
        raise PartsError({part: PipelineError(why) for part, why in failures.items()}, record)
    return record


@main.command()
@click.option("--head", help="One of the compared heads; default: the best on validation.")
@_effort_options
@_recipe_options
@_conflicts_option
@click.option("--allow-leaks", is_flag=True, help="Go on although two roles share images.")
@_figures_option
@command
@_each_finding
def shift(study: Any, **flags: Any) -> dict[str, Any]:
    """Compare the source with each target.

    Is there a shift, what does it cost the best head, what helps?

    Example: headrace shift study.toml
    """
    from pipeline.shift.stage import QUICK, THOROUGH, ShiftOptions, analyse

    effort = _effort(flags, QUICK, THOROUGH) or ShiftOptions()
    options = replace(effort, samples=_samples(flags), head=flags["head"])
    record = analyse(study, options)
    draw = partial(_draw, "shift", record, study) if _drawn_too(flags) else dict
    return _publish("shift", record, study, draw=draw)


@main.command()
@click.option(
    "--images",
    is_flag=True,
    help="Show images of patients: typical ones, uncertain ones, errors. For your eyes only.",
)
@command
@_each_finding
def report(study: Any, *, images: bool) -> dict[str, Any]:
    """Write one HTML page of all results.

    A stage that has not been run is named. The page is one file: it loads nothing and runs no
    script.

    Example: headrace report study.toml
    """
    from pipeline.report.page import write_page

    page = write_page(study, images=images)
    lines = [f"{page['file']}: {', '.join(page['stages'])} ({page['size'] / 1e6:.1f} MB)"]
    lines += [f"not on it: {line}" for line in page["missing"]]
    click.echo("\n".join([*lines, *(f"warning: {line}" for line in page["stale"])]))
    return page


@main.command()
@click.argument("images", type=_PATH, nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    type=_PATH,
    required=True,
    multiple=True,
    help="Folder results/STUDY/heads/BACKBONE/HEAD, or a file of headrace export; may be repeated, "
    "as for results/STUDY/FINDING/... of several findings.",
)
@_store_option
@click.option("--weights", type=_PATH, help="File of the backbone's weights, if it moved.")
@click.option("--csv", "table", type=_PATH, help="Also write the rows to this file.")
@_strict_option
@_engine_options
@command
def predict(images: tuple[Path, ...], **flags: Any) -> dict[str, Any]:
    """Classify new images with a saved model.

    Images are files, or folders that are searched. Research software, not a medical device.

    Example: headrace predict --model results/demo/heads/densenet121/linear new/1.png
    """
    from pipeline.errors import PartsError, go_on
    from pipeline.predict import predict as run

    models, table = flags.pop("models"), flags.pop("table")
    given = {name: flags.pop(name) for name in ("store", "weights", "strict")}
    records: dict[str, Any] = {}
    failures: dict[str, Exception] = {}
    for model in models:
        with go_on(str(model), failures, alone=len(models) == 1):
            records[str(model)] = run(model, images, engine=_engine(flags), **given)
    if not records:
        raise next(iter(failures.values()))
    if table is not None:
        from pipeline.report.stages import predictions
        from pipeline.report.table import to_csv
        from pipeline.results import write_file

        write_file(table, to_csv(*map(predictions, records.values())).encode())
    for record in records.values():
        _show("predict", record)
    if failures:
        raise PartsError(failures, records)
    return records if len(records) > 1 else record


@main.command("export")
@_study_argument
@click.argument("file", type=_PATH)
@click.option("--head", required=True, help="A head, or a method of fine-tuning.")
@_finding_option
@_backbone_option
@click.option("--int8", is_flag=True, help="Round to 8 bits; its loss on validation is measured.")
@click.option("--margin", default=0.01, show_default=True, help="What --int8 may lose, 0 to 1.")
@command
def export_onnx(study: Path, file: Path, *, head: str, **flags: Any) -> dict[str, Any]:
    """Write a trained model as one ONNX file.

    Its model card is inside.

    Example: headrace export study.toml model.onnx --head linear
    """
    from pipeline.export import export_model
    from pipeline.report.stages import exported

    card = export_model(_load_finding(study, flags), head, file, **flags)
    size = f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)"
    click.echo("\n".join([size, *exported(card)]))
    return card


@main.command()
@click.option(
    "--head",
    help="A head, or a method of fine-tuning; default: the best on validation that has layers.",
)
@click.option("--backbone", help="Needed when the study has several and a head is named.")
@click.option("--images", default=100, show_default=True, help="Of each class of each domain.")
@_device_option
@command
@_each_finding
def explain(study: Any, *, head: str | None, device: str, **flags: Any) -> dict[str, Any]:
    """Draw maps of what a model looks at.

    How much of them lies in the border is measured. The pictures are of the surest errors and of
    a random sample of each domain.

    Example: headrace explain study.toml --head linear
    """
    from pipeline.explain import explain as run
    from pipeline.features.engines import choose_device

    record = run(study, head, device=choose_device(device), **flags)
    _show("explain", record)
    return record


@main.group("cache")
def cache_group() -> None:
    """List, check and tidy the feature stores."""


@cache_group.command("ls")
@_store_option
@command
def list_stores(store: Path) -> dict[str, Any]:
    """List the stores with their rows, parts and sizes.

    Damaged parts that were set aside are counted.

    Example: headrace cache ls
    """
    from pipeline.features.maintain import describe
    from pipeline.report.stages import stores
    from pipeline.report.table import terminal_text

    rows = describe(store)
    click.echo(terminal_text(stores(rows)) if rows else f"no stores in {store}")
    return {"root": str(store), "stores": rows}


@cache_group.command()
@click.argument("study", type=_PATH, required=False)
@_store_option
@_count("--sample", "Recompute so many stored images.")
@_engine_options
@command
def verify(study: Path | None, *, store: Path, sample: int | None, **engine: Any) -> dict[str, Any]:
    """Check every byte of the stores, with a study of all that are in its folder of stores.

    With --sample, features of some of its images are computed again and compared.

    Example: headrace cache verify study.toml --sample 300
    """
    from pipeline.features.maintain import recompute, verify_stores

    if sample and not study:
        raise click.UsageError("--sample needs a STUDY: it knows where the images are")
    loaded: Any = study and _load(study, {})
    lines = verify_stores(loaded.store_root if loaded else store)
    if sample:
        lines += recompute(loaded, sample, _engine(engine))
    click.echo("\n".join(lines))
    return {"checks": lines}


@cache_group.command("compact")
@_store_option
@command
def compact_stores(store: Path) -> dict[str, Any]:
    """Merge the small parts of each store.

    Temporary files of dead processes are removed. Damaged parts that were set aside stay.

    Example: headrace cache compact
    """
    from cache.errors import CacheError
    from cache.store import compact, gc, stores_in
    from pipeline.report.stages import compacted

    done: dict[str, dict[str, Any]] = {}
    for name, each in stores_in(store).items():
        if isinstance(each, CacheError):
            done[name] = {"error": str(each)}
        else:
            done[name] = {"removed": gc(each), "parts_fewer": compact(each)}
    click.echo("\n".join(compacted(done) or [f"no stores in {store}"]))
    return {"root": str(store), "stores": done}


@cache_group.command()
@_study_argument
@click.argument("output", type=_PATH)
@_finding_option
@_backbone_option
@_recipe_options
@_conflicts_option
@command
def export(study: Path, output: Path, *, backbone: str | None, **flags: Any) -> dict[str, Any]:
    """Write features, labels, patients and splits as one HDF5 file.

    Example: headrace cache export study.toml out.h5 --backbone densenet121
    """
    from pipeline.features.maintain import export_study

    rows = export_study(_load_finding(study, flags), backbone, output, _samples(flags))
    click.echo(f"wrote {output}: {counted(rows, 'row')}; it names files and patients")
    return {"output": str(output), "rows": rows}


@main.command()
@command
def doctor() -> dict[str, Any]:
    """List versions, devices, engines and weights on this machine.

    Example: headrace doctor
    """
    from pipeline.features.maintain import describe_machine

    findings = describe_machine(_default_store())
    width = max(map(len, findings))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in findings.items()))
    return findings


if __name__ == "__main__":  # as torchrun calls it
    from pipeline.cli import main as importable  # no other process could call what is in __main__

    importable()
