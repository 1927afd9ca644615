"""The command line: parse the arguments, call one stage, print its results.

Our errors become one line and an exit code here and nowhere else; :func:`main` lists the codes.
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
            click.echo("interrupted: finished work is safe; run again to go on", err=True)
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
    """Print our log, each line once; logs and warnings of libraries (``foreign``) on request."""
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
    _choice(
        "--precision",
        PRECISIONS,
        "Number format of the network; default: the study's. Each has its own stores.",
    ),
    _choice(
        "--decode",
        ["cpu", "gpu"],
        "What decodes JPEG files; default: the study's. Each has its own stores.",
    ),
)
_sample_options = _all_of(
    click.option(
        "--allow-conflicts", is_flag=True, help="Keep identical images that are in two classes."
    ),
    click.option("--allow-leaks", is_flag=True, help="Go on even if two splits share images."),
)
_figures_option = click.option(
    "--figures/--no-figures", default=None, help="Draw figures; default: yes, but not with --quick."
)
_strict_option = click.option(
    "--strict", is_flag=True, help="End with an error if an image cannot be used."
)
_backbone_option = click.option("--backbone", help="Backbone; needed when the study has several.")
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
        "Whether torch compiles the network; auto: only if that saves time.",
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
    help="Folder of the feature stores; default: $HEADRACE_FEATURES, or features.",
)


def _load(file: Path, flags: dict[str, Any]) -> Any:
    """Load the study; ``--precision`` and ``--decode`` are removed from the flags and applied."""
    from pipeline.features.backbones import check_backbone_name
    from pipeline.study_file import load_study

    study = load_study(file)
    for choice in study.backbones:
        check_backbone_name(choice.name)
    if "decode" not in flags:
        return study
    return study.with_recipe(precision=flags.pop("precision"), decode=flags.pop("decode"))


def _studies_by_finding(study: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """One study for each wanted finding, by name (none wanted: all); else the study itself."""
    if unknown := sorted(set(wanted) - set(study.findings)):
        from pipeline.errors import StudyError, UnknownNameError

        if not study.findings:
            raise StudyError("the study has no findings: leave --finding out")
        raise UnknownNameError("finding", unknown[0], study.findings)
    findings = [name for name in study.findings if name in wanted or not wanted]
    return {name: study.of_finding(name) for name in findings} or {"": study}


_finding_option = click.option("--finding", help="Finding; needed when images can have several.")


def _load_finding(file: Path, flags: dict[str, Any]) -> Any:
    """Load the study, reduced to one finding if it has several; see :func:`_load`."""
    finding = flags.pop("finding")
    parts = _studies_by_finding(_load(file, flags), [finding] if finding else [])
    if len(parts) > 1:
        raise click.UsageError(f"choose one with --finding: {', '.join(parts)}")
    return next(iter(parts.values()))


def _each_finding(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a stage for a study, or for each of its findings and then print a table over them.

    If one finding fails the others still run, and the command fails at the end.
    """

    @_study_argument
    @click.option(
        "--finding", "findings", multiple=True, help="Finding, repeatable; default: all findings."
    )
    @wraps(function)
    def run(study: Path, *, findings: tuple[str, ...], **flags: Any) -> Any:
        from pipeline.errors import PartialFailureError, record_failure

        whole = _load(study, flags)
        parts = _studies_by_finding(whole, findings)
        if not whole.findings:
            return function(whole, **flags)
        if len(parts) > 1 and flags.get("write_exclude"):
            raise click.UsageError("--write-exclude needs exactly one --finding")
        records: dict[str, Any] = {}
        failures: dict[str, Exception] = {}
        for number, (finding, part) in enumerate(parts.items(), start=1):
            _LOG.info("finding %d of %d: %s", number, len(parts), finding)
            with record_failure(finding, failures):
                records[finding] = function(part, **flags)
            if record := getattr(failures.get(finding), "record", None):
                records[finding] = record
        # With only some findings p would be adjusted over too few, in the file of all of them.
        table = [] if findings else _over_findings(function.__name__, whole, records)
        result = {"findings": records, "table": table}
        # The others of torchrun's processes have the same failures: one prints them, at the end.
        if failures and _first_process():
            raise PartialFailureError(failures, result)
        return result

    return run


def _over_findings(stage: str, study: Any, records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Print and write the table over the findings, and return its rows.

    Only heads, shift and audit have such a table. For report, a page over all pages is written.
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
    """Options for conflicts and leaks; the flags are removed from ``flags``."""
    from pipeline.data.samples import SampleOptions

    return SampleOptions(**{name: flags.pop(name) for name in ("allow_conflicts", "allow_leaks")})


def _engine(flags: Mapping[str, Any]) -> Any:
    from pipeline.features.engines import EngineChoice

    return EngineChoice(**flags)


def _quick_or_thorough(flags: Mapping[str, Any], quick: Any, thorough: Any) -> Any:
    """The options for ``--quick`` or ``--thorough``; None without either."""
    if flags["quick"] and flags["thorough"]:
        raise click.UsageError("--quick and --thorough exclude each other")
    return quick if flags["quick"] else thorough if flags["thorough"] else None


def _run_and_show(
    stage: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a stage and show its record, also if it ends with the failure of a part."""
    from pipeline.errors import PartialFailureError

    try:
        record = stage()
    except PartialFailureError as failure:
        show(dict(failure.record or {}))
        raise
    show(record)
    return record


def _wants_figures(flags: Mapping[str, Any]) -> bool:
    """Whether to draw figures; with --quick they would take a third of the time."""
    drawn = flags["figures"]
    return not flags["quick"] if drawn is None else bool(drawn)


def _show(
    stage: str, record: Mapping[str, Any], *, before: Mapping[str, Any] | None = None
) -> None:
    if sys.stdout is None:  # as JSON
        return
    from pipeline import report

    if text := report.show(stage, record, before):
        click.echo(f"\n{text}" if before else text)


def _show_and_save(
    stage: str,
    record: dict[str, Any],
    study: Any,
    *,
    draw: Callable[[], Mapping[str, bytes]],
    before: Mapping[str, Any] | None = None,
) -> None:
    """Print the text of a stage, then write its tables and figures."""
    if not _first_process():
        return
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
    # Images of patients stay private even where a team shares the results.
    private = {name: image for name, image in drawn.items() if ERROR_SHEET in name}
    if private:
        from pipeline.report.strips import readable_by_owner_alone

        with readable_by_owner_alone():
            add_files(study.results / f"{stage}.json", record, private, stage)
    shared = {name: data for name, data in files.items() if name not in private}
    add_files(study.results / f"{stage}.json", record, shared, stage)
    if drawn:
        click.echo(f"\nfigures: {study.results / 'figures'} ({counted(len(drawn), 'file')})")


def _draw(
    stage: str, record: Mapping[str, Any], study: Any, file: bytes | None = None
) -> dict[str, bytes]:
    """Draw the figures of a stage from the arrays in ``file``; None: from the file on disk."""
    from pipeline.report import figures
    from pipeline.report.strips import error_sheet
    from pipeline.results import read_set

    if file is None:
        file = figures.stored_arrays(read_set(study.results / f"{stage}.json", stage))
    sheet = {"of the most confident errors": partial(error_sheet, study, record, file)}
    return figures.draw(stage, record, file, sheet if stage == "heads" else {})


def _prepare_to_draw() -> None:
    """Import the drawing code and read fonts, which takes as long as drawing itself."""
    from pipeline.report import strips  # noqa: F401
    from pipeline.report.figures import curves, forest, style  # noqa: F401

    style.png_of(style.new_figure, 1.0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headrace")
def main() -> None:
    """Run a frozen network once over every image, store the features, and compare heads.

    \b
    Try it:        headrace demo && headrace features demo/study.toml
                   headrace heads demo/study.toml
    Own images:    headrace init HOSPITAL_A HOSPITAL_B

    \b
    Exit codes:    0  all is well
                   1  the study or an option cannot be used
                   2  wrong usage, or no usable image
                   3  a check failed: a leak, damage, another network
                   4  the disk refused a write or a read
                   5  another command must be run first, or run again
                  70  a mistake in headrace
                 130  interrupted; finished work is safe
    """  # noqa: D301 - the real backspace makes click keep the lines


@main.command()
@click.argument("folder", type=_PATH, default=Path("demo"))
@command
def demo(folder: Path) -> dict[str, Any]:
    """Write generated chest X-rays of two hospitals, to try headrace.

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
@click.option(
    "--output",
    type=_PATH,
    default=Path("study.toml"),
    show_default=True,
    help="Study file to write.",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    default=("densenet121",),
    show_default=True,
    help="Frozen network; repeatable.",
)
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
@click.option("--rehash", is_flag=True, help="Read every file again, even if it looks unchanged.")
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Run on a Ray cluster. Without ADDRESS: the cluster in RAY_ADDRESS, one that runs on "
    "this machine, or this machine alone. All machines must see the images and the stores.",
)
@_strict_option
@command
def features(study: Path, **flags: Any) -> dict[str, Any]:
    """Run the frozen networks over images whose features are not stored yet.

    Example: headrace features study.toml
    """
    from pipeline.features import ray_extract
    from pipeline.features.extract import extract

    loaded = _load(study, flags)
    given = {name: flags.pop(name) for name in ("rehash", "strict")}
    address = flags.pop("ray")
    stage = extract if address is None else partial(ray_extract.extract, address=address)
    stage = partial(stage, loaded, _engine(flags), **given)
    record = _run_and_show(stage, partial(_show, "features"))
    return {"study": record["study"], "backbones": list(record["backbones"])}


@main.command()
@click.option("--only", help="Fit only these heads, separated by commas.")
@click.option(
    "--baseline", default="linear", show_default=True, help="The head to compare the others with."
)
@_effort_options
@click.option(
    "--preprocessing",
    default="standardise",
    show_default=True,
    help="Preprocessing of the features: none, standardise, l2 or pca_whiten.",
)
@_recipe_options
@_sample_options
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
    # The prior looks at no image, so it has no figures.
    figures = _wants_figures(flags) and only != ("prior",)
    with Processes(int(figures)) as processes:
        if figures and not (study.results / "heads.json").exists():
            processes.submit(_prepare_to_draw)  # a later run may have nothing to draw
        from pipeline.compare import QUICK, THOROUGH, CompareOptions, compare  # meanwhile

        options = replace(
            _quick_or_thorough(flags, QUICK, THOROUGH) or CompareOptions(),
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

        def finish(record: dict[str, Any]) -> None:
            _show_and_save("heads", record, study, draw=drawn, before=shown[-1])

        return _run_and_show(partial(compare, study, options, show_scores), finish)


@main.command()
@click.option(
    "--shortcuts/--no-shortcuts",
    default=True,
    help="Test whether border or corners alone predict the label. The first time, the first "
    "backbone runs twice more over all images; the features are stored.",
)
@click.option(
    "--write-exclude",
    type=_PATH,
    metavar="FILE",
    help="Write a list of images that should not be scored; the study's `exclude` takes it.",
)
@_engine_options
@_recipe_options
@command
@_each_finding
def audit(
    study: Any, *, shortcuts: bool, write_exclude: Path | None, **flags: Any
) -> dict[str, Any]:
    """Look for leaks and shortcuts before you believe any number. Exit code 3 means a leak.

    The audit looks for patients and images in two splits, near duplicates, and conflicting or
    doubtful labels. It tests whether features predict the hospital, and whether file size, grey
    values, border or corners predict the label.

    Example: headrace audit study.toml --write-exclude leave_out.txt
    """
    from cache import disk
    from pipeline.audit.stage import audit as run
    from pipeline.data.leaks import CheckResult, refuse_leaks
    from pipeline.data.samples import exclusions_text
    from pipeline.errors import CheckFailedError

    record = run(study, shortcuts=shortcuts, engine=_engine(flags))
    if write_exclude is not None:
        disk.make_dir(write_exclude.absolute().parent)
        disk.write_atomic(write_exclude, exclusions_text(record["leave_out"]).encode())
    _show("audit", record)
    try:
        refuse_leaks(CheckResult(**result) for result in record["results"])
    except CheckFailedError as leak:
        leak.record = record
        raise
    return record


_FINETUNE_HELP = f"""Train networks, in part or as a whole, and compare them.

    Without --method these run: {", ".join(QUICK)}. They take minutes without a GPU.
    A method that starts from another method trains that one first. Models that were trained
    before are not trained again.

    \b
{chr(10).join(f"    {name:<14} {method.about}" for name, method in METHODS.items())}

    Example: headrace finetune study.toml --method full --method last_block
    """


@main.command(help=_FINETUNE_HELP)
@click.option("--method", "methods", multiple=True, help="Method, repeatable; or all.")
@_count("--epochs", "Passes over the images, for the methods you name.")
@click.option(
    "--learning-rate",
    type=float,
    help="For the methods you name; default: the method's, times the square root of batch size / "
    "32.",
)
@_count(
    "--batch-size",
    "Images in one step; default 32, on CUDA 64 or 128 if an epoch still has 20 steps.",
)
@_count("--image-size", "Side of the images in pixels, for a trial.")
@_count("--limit", "Images of each split, at most, for a trial; one of each class stays.")
@_choice("--optimiser", OPTIMISERS, "Default adamw; the default learning rates are for it.")
@_choice("--augmentation", AUGMENTATIONS, "For methods that read pixels; default none.")
@click.option(
    "--patience",
    type=int,
    help="Stop after this many epochs without a better validation loss; default 0: never.",
)
@click.option("--seed", type=int, help="Random seed; default: the study's.")
@_device_option
@_choice("--precision", PRECISIONS, "Number format; default: the study's on CUDA, else fp32.")
@click.option("--deterministic", is_flag=True, help="On CUDA: equal results each time; slower.")
@click.option("--compile", is_flag=True, help="Use torch.compile: a slow start, faster steps.")
@_sample_options
@click.option("--figures/--no-figures", default=True, help="Draw figures; default: yes.")
@command
@_each_finding
def finetune(study: Any, **flags: Any) -> dict[str, Any]:
    """See ``_FINETUNE_HELP``."""
    from pipeline.finetune.stage import finetune as run

    figures = flags.pop("figures")
    given = {name: flags.pop(name) for name in ("methods", "image_size", "limit", "device")}
    stage = partial(run, study, **given, options=_samples(flags), settings=flags)

    def finish(record: dict[str, Any]) -> None:
        if not record["trial"]:
            draw = partial(_draw, "finetune", record, study) if figures else dict
            _show_and_save("finetune", record, study, draw=draw)
        elif _first_process():  # tables and figures on disk are of the whole run
            _show("finetune", record)

    return _run_and_show(stage, finish)


@main.command()
@click.option("--head", help="Head to analyse; default: the best on validation.")
@_effort_options
@_recipe_options
@_sample_options
@_figures_option
@command
@_each_finding
def shift(study: Any, **flags: Any) -> dict[str, Any]:
    """Compare the source with each target.

    Is there a shift? What does it cost the best head? What helps?

    Example: headrace shift study.toml
    """
    from pipeline.shift.stage import QUICK, THOROUGH, ShiftOptions, analyse

    effort = _quick_or_thorough(flags, QUICK, THOROUGH) or ShiftOptions()
    options = replace(effort, samples=_samples(flags), head=flags["head"])

    def finish(record: dict[str, Any]) -> None:
        draw = partial(_draw, "shift", record, study) if _wants_figures(flags) else dict
        _show_and_save("shift", record, study, draw=draw)

    return _run_and_show(partial(analyse, study, options), finish)


@main.command()
@click.option(
    "--images",
    is_flag=True,
    help="Show images of patients: typical ones, uncertain ones and errors. Keep such a page "
    "private.",
)
@command
@_each_finding
def report(study: Any, *, images: bool) -> dict[str, Any]:
    """Write one HTML page of all results.

    The page names the stages that have not been run. It is one file that loads nothing and runs
    no script.

    Example: headrace report study.toml
    """
    from pipeline.report.page import write_page

    page = write_page(study, images=images)
    lines = [f"{page['file']}: {', '.join(page['stages'])} ({page['size'] / 1e6:.1f} MB)"]
    lines += [f"not on the page: {line}" for line in page["missing"]]
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
    help="Folder results/STUDY/heads/BACKBONE/HEAD, or a file of headrace export. Repeatable, "
    "for example for one model per finding.",
)
@_store_option
@click.option("--weights", type=_PATH, help="File of the backbone's weights, if it has moved.")
@click.option("--csv", "table", type=_PATH, help="Also write the predictions to this file.")
@_strict_option
@_engine_options
@command
def predict(images: tuple[Path, ...], **flags: Any) -> dict[str, Any]:
    """Classify new images with a saved model.

    Give files or folders; folders are searched. Research software, not a medical device.

    Example: headrace predict --model results/demo/heads/densenet121/linear new/1.png
    """
    from pipeline.errors import PartialFailureError, record_failure
    from pipeline.predict import predict as run

    models, table = flags.pop("models"), flags.pop("table")
    given = {name: flags.pop(name) for name in ("store", "weights", "strict")}
    records: dict[str, Any] = {}
    failures: dict[str, Exception] = {}
    for model in models:
        with record_failure(str(model), failures, alone=len(models) == 1):
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
        raise PartialFailureError(failures, records)
    return records if len(records) > 1 else record


@main.command("export")
@_study_argument
@click.argument("file", type=_PATH)
@click.option("--head", required=True, help="Head, or method of fine-tuning.")
@_finding_option
@_backbone_option
@click.option("--int8", is_flag=True, help="Round to 8 bits, and measure the loss on validation.")
@click.option(
    "--margin",
    default=0.01,
    show_default=True,
    help="Largest loss of accuracy and of AUROC that --int8 may cause, 0 to 1.",
)
@_sample_options
@command
def export_onnx(study: Path, file: Path, *, head: str, **flags: Any) -> dict[str, Any]:
    """Write a trained model as one ONNX file, with its model card inside.

    Example: headrace export study.toml model.onnx --head linear
    """
    from pipeline.export import export_model
    from pipeline.report.stages import exported

    card = export_model(_load_finding(study, flags), head, file, options=_samples(flags), **flags)
    size = f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)"
    click.echo("\n".join([size, *exported(card)]))
    return card


@main.command()
@click.option(
    "--head",
    help="Head, or method of fine-tuning; default: the best on validation that has maps.",
)
@click.option("--backbone", help="Backbone; needed with --head when the study has several.")
@click.option(
    "--images", default=100, show_default=True, help="Images of each class of each domain, at most."
)
@_device_option
@_sample_options
@command
@_each_finding
def explain(study: Any, *, head: str | None, device: str, **flags: Any) -> dict[str, Any]:
    """Draw maps of where a model looks.

    The tables say how much of the maps lies in the border of the image. Maps are drawn for the
    errors with the highest probability and for a random sample of each domain.

    Example: headrace explain study.toml --head linear
    """
    from pipeline.explain import explain as run
    from pipeline.features.engines import choose_device

    record = run(study, head, device=choose_device(device), options=_samples(flags), **flags)
    _show("explain", record)
    return record


@main.group("cache")
def cache_group() -> None:
    """List, check, merge and export the feature stores."""


@cache_group.command("ls")
@_store_option
@command
def list_stores(store: Path) -> dict[str, Any]:
    """List the stores with their rows, parts and sizes.

    The last column counts damaged parts that were set aside.

    Example: headrace cache ls
    """
    from pipeline.features.cache_commands import describe
    from pipeline.report.stages import stores
    from pipeline.report.table import terminal_text

    rows = describe(store)
    click.echo(terminal_text(stores(rows)) if rows else f"no stores in {store}")
    return {"root": str(store), "stores": rows}


@cache_group.command()
@click.argument("study", type=_PATH, required=False)
@_store_option
@_count("--sample", "Compute this many stored images again.")
@_engine_options
@command
def verify(study: Path | None, *, store: Path, sample: int | None, **engine: Any) -> dict[str, Any]:
    """Check every byte of all stores.

    With a STUDY its folder of stores is checked. With --sample, the features of some of its
    images are computed again and compared.

    Example: headrace cache verify study.toml --sample 300
    """
    from pipeline.features.cache_commands import recompute, verify_stores

    if sample and not study:
        raise click.UsageError("--sample needs a STUDY: it says where the images are")
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

    This also removes temporary files of dead processes. Damaged parts that were set aside stay.

    Example: headrace cache compact
    """
    from cache.errors import CacheError
    from cache.maintenance import compact, gc
    from cache.store import stores_in
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
@_sample_options
@command
def export(study: Path, output: Path, *, backbone: str | None, **flags: Any) -> dict[str, Any]:
    """Write features, labels, patients and splits as one HDF5 file.

    Example: headrace cache export study.toml out.h5 --backbone densenet121
    """
    from pipeline.features.cache_commands import export_study

    rows = export_study(_load_finding(study, flags), backbone, output, _samples(flags))
    click.echo(f"wrote {output}: {counted(rows, 'row')}. It names files and patients.")
    return {"output": str(output), "rows": rows}


@main.command()
@command
def doctor() -> dict[str, Any]:
    """List versions, devices, engines and weights on this machine.

    Example: headrace doctor
    """
    from pipeline.features.cache_commands import describe_machine

    findings = describe_machine(_default_store())
    width = max(map(len, findings))
    click.echo("\n".join(f"{name:<{width}}  {value}" for name, value in findings.items()))
    return findings


if __name__ == "__main__":  # as torchrun calls it
    from pipeline.cli import main as importable  # no other process could call what is in __main__

    importable()
