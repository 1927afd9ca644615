"""The command line: exit codes, one-line errors, JSON, and a quick start."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import pipeline.features.extract as extract_module
from cache import disk
from cache.errors import CacheError
from cache.recipe import Recipe, check_canaries
from cache.store import FeatureStore
from pipeline.cli import main
from pipeline.data.samples import load_samples
from pipeline.errors import PipelineError
from pipeline.features import cache_commands
from pipeline.study_file import load_study
from tests.image_files import pictures, with_stack
from tests.tiny import flip, forbid_writing, install_trainable_tiny, record_of, write_images

ENGINE = ("--engine", "torch", "--device", "cpu", "--batch-size", "4")


def run(*arguments, code=0):
    """Result of a command; an error of ours must be one line and never a traceback."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + result.stderr
    if code not in (0, 2, 130):
        assert isinstance(result.exception, SystemExit)
        assert len(re.findall(r"^Error: ", result.stderr, re.MULTILINE)) == 1
    assert "Traceback" not in result.output
    return result


HELP = """
from click.testing import CliRunner
from pipeline.cli import main
assert CliRunner().invoke(main, ["--help"]).exit_code == 0
"""
STAGES = """
import pipeline.compare, pipeline.report.page, pipeline.report.strips
from pipeline.features import cache_commands, extract, load
from pipeline.heads import HEADS
from pipeline.heads.base import Standardiser
from pipeline.heads.save import _from_bytes, _to_bytes
from pipeline.heads.search import HeadSearch
from tests.made_up import made_up_rows
rows = made_up_rows(n=40)
search = HeadSearch(rows, HEADS, seeds=(0,), preprocessing=Standardiser)
fits = search.fit(rows.features, rows.label)
assert len(fits) == len(HEADS), search.failures
for fit in fits.values():
    _from_bytes(_to_bytes(fit.models))
"""
#: What is run, and modules that it does not import.
LIGHT = {
    "help": (HELP, {"torch", "numpy", "h5py", "sklearn", "PIL", "rich"}),
    "a second run, and every head on the CPU": (STAGES, {"torch", "matplotlib", "baycomp"}),
}


@pytest.mark.parametrize("what", LIGHT)
def test_nothing_heavy_is_imported_where_it_is_not_needed(what):
    """Help takes under 0.3 s; heads are fitted, saved and read without torch and figures."""
    code, heavy = LIGHT[what]
    code += f"import sys\nassert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def commands(group=main, before=()):
    """Every command as it is typed."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name)


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_help_text_has_an_example_of_itself(command):
    """A user sees how a command is called, what each option does, and no other command's option."""
    text = run(*command, "--help").output
    assert f"Example: headrace {' '.join(command)}" in " ".join(text.split())
    options = " ".join(re.findall(r"^  (?:-\w, )?(--.*?)(?:  |$)", text, re.MULTILINE)).split()
    assert "--json" in options
    assert {*re.findall(r"--[a-z][a-z0-9-]*", text)} <= {*options}


def test_every_exit_code_is_explained():
    """Of the errors of ours, and those that the command line adds: by the help and the README."""

    def codes(error):
        return {error.exit_code}.union(*(codes(kind) for kind in error.__subclasses__()))

    text = run("--help").output.split("Exit codes:")[1].split("Options:")[0]
    explained = set(map(int, re.findall(r"^ *(\d+)  \w", text, re.MULTILINE)))
    assert explained == {0, *codes(PipelineError), *codes(CacheError), 2, 70, 130}
    text = (Path(__file__).parents[1] / "cache" / "README.md").read_text()
    assert explained == set(map(int, re.findall(r"^\| (\d+) \|", text, re.MULTILINE)))


def test_a_store_that_may_only_be_read_serves_what_it_holds(study_file, monkeypatch):
    """``features`` with nothing new, and ``heads``; a new image is one error."""
    first = run("features", study_file, *ENGINE).stdout
    assert re.search(
        r"tiny: 60 computed in .* 0 reused, 0 skipped of 60 images; 8 features each in", first
    )
    forbid_writing(monkeypatch, Path("features"))
    assert "nothing to do, 60 reused" in run("features", study_file, *ENGINE).stdout
    run("heads", study_file, "--only", "prior", "--no-figures")
    run("audit", study_file, "--no-shortcuts")
    write_images(Path("there"), 4, seed=9)
    text = run("features", study_file, *ENGINE, code=4).stderr
    assert "Read-only file system (errno 30)" in text
    assert "get the right to write there, or choose another place" in text


def test_what_is_skipped_is_shown_and_what_is_new_is_not_quietly_left_out(study_file):
    """The others go on without a bad image; heads refuses until a new one has features."""
    Path("here/a/p1_x.png").write_text("<html>")
    out = run("features", study_file, *ENGINE).stdout
    assert "1 skipped of 61" in out
    assert re.search(r"source/a/p1_x.png +neither JPEG", out)
    result = run("features", study_file, *ENGINE, "--strict", code=1)
    assert "1 image was skipped and --strict is set" in result.stderr
    assert "1 unusable image is left out" in run("heads", study_file, "--only", "prior").stderr
    write_images(Path("there"), 4, seed=9)
    assert "4 of 65 images" in run("heads", study_file, "--only", "prior", code=5).stderr


#: Arguments after which a study file may follow, exit code, message.
REFUSED = [
    (["features", "none.toml"], 1, "no study file"),
    (["features", "STUDY", "--fast"], 2, "No such option"),
    (["features"], 2, "Missing argument"),
    (["heads", "STUDY", "--quick", "--thorough"], 2, "--quick and --thorough exclude each"),
    (["shift", "STUDY", "--quick", "--thorough"], 2, "--quick and --thorough exclude each"),
    (["features", "STUDY", "--device", "tpu"], 2, "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
    (["features", "STUDY", "--device", "cpu", "--precision", "tf32"], 1, "tf32 is a precision of"),
    (["heads", "STUDY", "--only", "lienar"], 1, "unknown head 'lienar'; allowed: mlp, linear"),
    (["heads", "STUDY", "--baseline", "x"], 1, "unknown head 'x'; allowed: "),
    (["heads", "STUDY", "--preprocessing", "l3"], 1, "unknown preprocessing 'l3'; allowed: stand"),
    (["heads", "STUDY", "--finding", "x"], 1, "the study has no findings: leave --finding out"),
    (["heads", "STUDY", "--only", "prior"], 5, "or go to the folder in which it was run"),
    (["cache", "verify", "--sample", "3"], 2, "--sample needs a STUDY"),
    (["cache", "export", "STUDY", "x", "--backbone", "x"], 1, "allowed: tiny"),
    (["init", "here", "--output", "o", "--backbone", "x"], 1, "allowed: densenet121"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_what_cannot_work_is_one_line(study_file, arguments, code, message):
    """Before anything is computed: what was got, what is allowed, what to do next."""
    filled = [study_file if argument == "STUDY" else argument for argument in arguments]
    assert message in run(*filled, code=code).stderr


def test_a_mistake_of_ours_is_one_line_of_bounded_length(study_file, monkeypatch):
    """A user sees a sentence that says what to do, with --debug the error itself.

    A long message keeps both its ends.
    """

    def broken(*_, **__):
        logging.getLogger("pipeline").warning("ours %s", "x" * 10**6)
        raise AssertionError("first" + "x" * 10**6)

    monkeypatch.setattr(extract_module, "extract", broken)
    text = run("features", study_file, code=70).stderr
    assert "warning: ours xxx" in text
    assert "a mistake in headrace: AssertionError: firstxxx" in text
    assert "Run again with --debug" in text
    assert len(text) < 4000
    result = CliRunner().invoke(main, ["features", str(study_file), "--debug"])
    assert isinstance(result.exception, AssertionError)


@pytest.mark.parametrize("flag", ["--json", "--debug"])
def test_what_libraries_warn_of_is_shown_only_where_asked_for(flag):
    """Neither their warnings nor their logs reach the terminal without --debug."""
    code = f"""
import logging, warnings
from pipeline import cli
@cli.main.command()
@cli.command
def speak():
    warnings.warn("foreign warning")
    logging.getLogger("foreign").warning("foreign log")
cli.main(["speak", "{flag}"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("foreign warning" in done.stderr) == (flag == "--debug")
    assert ("foreign log" in done.stderr) == (flag == "--debug")


#: What fails, how, exit code, message.
STOPPED = {
    "Ctrl-C": (extract_module, "extract", KeyboardInterrupt(), 130, "run again to go on"),
    "full disk": (
        disk, "write", OSError(28, "No space left on device"), 4,
        r"cannot write .*No space left on device \(errno 28\); needed .* bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", STOPPED)
def test_what_stops_a_run_is_one_line(study_file, monkeypatch, why):
    """With what to do next, and the exit code that shells expect."""
    module, function, error, code, message = STOPPED[why]

    def stopped(*_, **__):
        raise error

    monkeypatch.setattr(module, function, stopped)
    assert re.search(message, run("features", study_file, *ENGINE, code=code).stderr)


def test_a_target_and_a_backbone_that_cannot_be_used_are_named_by_every_stage(study_file):
    """The others are extracted, scored, compared and audited; the exit code is the target's, 2."""
    wrong = '[backbone.resnet50]\nweights = "tiny.pth"\n[target.gone]\npath = "gone"\n'
    study_file.write_text(study_file.read_text() + wrong)
    for file in write_images(Path("gone"), 2, seed=3).rglob("*.png"):
        file.write_text(f"no image {file}")

    def failing(stage, *options):
        said = run(stage, study_file, *options, code=2)
        error = r"^Error: target\.gone: .*resnet50: .* does not fit"
        assert re.search(error, said.stderr, re.MULTILINE)
        return said

    failed = failing("features", *ENGINE)
    assert "gone: none of its images can be used; first: " in failed.stderr
    assert "target.gone" in record_of(Path("results/tiny/features.json"))["failures"]
    shown = failing("heads", "--only", "linear", "--quick")
    assert "gone has no scores" in shown.stdout
    record = record_of(Path("results/tiny/heads.json"))
    assert "gone is left" in record["failed_targets"]["gone"]
    assert [d["domain"] for d in record["backbones"][0]["domains"]] == ["source", "there"]
    failing("finetune", "--method", "lp", "--epochs", "1", "--no-figures", "--device", "cpu")
    shown = failing("shift", "--quick", "--figures")
    assert "gone on tiny was not compared" in shown.stdout
    assert list(Path("results/tiny/figures").glob("shift-*"))
    record = record_of(Path("results/tiny/shift.json"))
    pairs = {(row["target"], row["backbone"]) for row in record["not_compared"]}
    assert pairs == {("gone", "tiny"), ("there", "resnet50"), ("gone", "resnet50")}
    audited = run("audit", study_file, "--no-shortcuts", *ENGINE)
    assert re.search(r"all checks +gone +not checked", audited.stdout)


def test_cache_ls_verify_compact(study_file):
    """Each says what it found, also as JSON."""
    run("features", study_file, *ENGINE)
    root = ("--store", "features")
    assert "60" in run("cache", "ls", *root).stdout
    row = json.loads(run("cache", "ls", *root, "--json").stdout)["stores"][0]
    assert (row["rows"], row["parts"], row["backbone"]) == (60, 1, "tiny")
    assert row["holds"] == "features"
    assert "60 rows in 1 part, every byte checked" in run("cache", "verify", *root).stdout
    left = Path("features") / row["store"] / f".tmp-elsewhere-1-{'0' * 32}"
    left.touch()
    os.utime(left, (0, 0))
    found = run("cache", "compact", *root).stdout
    assert ": 0 parts fewer, 1 temporary file removed" in found
    assert "no stores in nowhere" in run("cache", "ls", "--store", "nowhere").stdout


def test_verify_recomputes_a_sample_and_finds_a_wrong_row(study_file, monkeypatch):
    """Exit code 3 when what is stored is not what the network says."""
    run("features", study_file, *ENGINE)
    text = run("cache", "verify", study_file, "--sample", "20", "--engine", "torch").stdout
    assert re.search(r"20 images recomputed .* largest \d\.\de[+-]\d\d", text)
    real = cache_commands.compute_features
    wrong = np.float32(1.0001)
    monkeypatch.setattr(
        cache_commands, "compute_features", lambda *a: [(k, row * wrong) for k, row in real(*a)]
    )
    result = run("cache", "verify", study_file, "--sample", "20", "--engine", "torch", code=3)
    assert "allowed 1e-05; worst: " in result.stderr


def test_verify_finds_damage(study_file):
    """A flipped bit: exit code 3, the part is set aside, features computes it again.

    One bad store does not hide the others: ls shows it in its place, verify checks the rest.
    """
    run("features", study_file, *ENGINE)
    (part,) = Path("features").glob("*/parts/*")
    flip(part, part.stat().st_size // 2)
    text = run("cache", "verify", study_file, code=3).stderr
    assert "1 part is damaged or cannot be read" in text
    assert (part.parents[1] / "quarantine" / part.name).exists()
    assert "60 computed" in run("features", study_file, *ENGINE).stdout
    Path("features/broken-0").mkdir()
    Path("features/broken-0/meta.json").write_text("{")
    shown = run("cache", "ls", "--store", "features").stdout
    found = run("cache", "verify", "--store", "features", code=3).stderr
    for text, row in ((shown, "60"), (found, "60 rows in 1 part, every byte checked")):
        assert row in text
        assert "broken-0" in text


def test_export_is_one_file_that_plain_h5py_reads(study_file):
    """Features, labels, patients, splits and the recipe; it replaces nothing but an export."""
    run("features", study_file, *ENGINE)
    text, out = study_file.read_text(), study_file.parent / "sub" / "out.h5"
    result = run("cache", "export", study_file, study_file, code=1)
    assert "is not an export of headrace" in result.stderr
    assert study_file.read_text() == text
    for _ in range(2):
        assert "60 rows" in run("cache", "export", study_file, out).stdout
    with h5py.File(out) as file:
        assert set(file) == {
            "features", "label", "class_names", "key", "path", "group", "domain", "split"
        }  # fmt: skip
        assert (file["features"].shape, file["features"].dtype) == ((60, 8), np.float32)
        assert file["key"].shape == (60, 32)
        assert list(file["class_names"].asstr()) == ["a", "b"]
        assert set(file["split"].asstr()) == {"fit", "validation", "target"}
        assert file["path"].asstr()[0] == "a/p1000_0.png"
        assert file["group"].asstr()[0] == "p1000"
        assert file.attrs["backbone"] == "tiny"
        assert json.loads(file.attrs["preprocessing"])["size"] == 32
        assert len(file.attrs["fingerprint"]) == 64


#: Every command that takes images by role and label, and checks them.
CHECKED = {
    "heads": "heads STUDY --only linear --quick",
    "finetune": "finetune STUDY --method lp --epochs 1 --no-figures --device cpu",
    "shift": "shift STUDY --quick",
    "explain": "explain STUDY --head linear --images 2",
    "export": "export STUDY model.onnx --head linear",
    "cache export": "cache export STUDY out.h5",
}


def test_who_allows_leaks_and_conflicts_can_go_on_with_every_command(study_file, monkeypatch):
    """Each refuses an image in two splits, with exit code 3, until --allow-leaks says to go on."""
    install_trainable_tiny(monkeypatch, study_file.parent)
    options = {" ".join(name): run(*name, "--help").output for name in commands()}
    assert {name for name, text in options.items() if "--allow-leaks" in text} == {*CHECKED}
    assert {name for name, text in options.items() if "--allow-conflicts" in text} == {*CHECKED}
    Path("there/a/p9000_0.png").write_bytes(min(Path("here/a").iterdir()).read_bytes())
    run("features", study_file, *ENGINE)
    for name, line in CHECKED.items():
        typed = [study_file if word == "STUDY" else word for word in line.split()]
        refused = run(*typed, code=3).stderr
        assert re.search("also in the source.*--allow-leaks goes on all the same", refused)
        if name != "export" or find_spec("onnx"):
            out = run(*typed, "--allow-leaks")
            assert "also in the source" in out.stderr
            assert "fitted to other images" not in out.stdout
    run("cache", "verify", study_file, "--sample", "70", "--engine", "torch")


def test_init_writes_a_study_that_runs(study_file):
    """Folders to study file to features; patients by their names; equal names get a number."""
    for file in Path().glob("*here/*/*.png"):
        file.rename(file.with_name(f"patient{file.name[1:]}"))
    for number in (1, 2):
        write_images(Path(f"h{number}/xray"), 8, seed=number + 20)
    given = ("here", "there", "h1/xray", "h2/xray", "--output", "own.toml", "--backbone", "tiny")
    out = run("init", *given).stdout
    assert "[source] 40 images, classes: a, b" in out
    assert "two images of one patient may be in both parts of a split" in out
    text = Path("own.toml").read_text()
    for line in ("group = '^(patient\\d+)'", "# group = ", "[target.xray_3]"):
        assert line in text
    assert "76 computed" in run("features", "own.toml", *ENGINE).stdout
    assert "already there" in run("init", "here", "--output", "own.toml", code=1).stderr


def test_doctor_says_what_is_here(study_file):
    """Versions, engine, weights."""
    found = json.loads(run("doctor", "--json").stdout)
    assert {"python", "torch", "cuda", "engine", "weights of densenet121"} <= set(found)
    assert "efficientnet-lite0" in found["weights of efficientnet_lite0"]


def test_a_strange_name_goes_through_everything(study_file):
    """No UTF-8, a line break, 255 bytes: stored, exported; what drives a terminal is escaped."""
    names = (b"p1000_\xff.png", b"p1000_\n.png", b"p1000_" + b"n" * 245 + b".png")
    for file, name in zip(sorted(Path("here/a").iterdir()), names, strict=False):
        os.rename(file, b"here/a/" + name)
    for name in ("p1_bad\udcfe.png", "p1_\x1b[31m.png"):
        Path("here/a", name).write_text("no image")
    out = run("features", study_file, *ENGINE).stdout
    assert "60 computed" in out
    assert "\x1b" not in out
    for name in ("p1_bad\\udcfe.png", "p1_\\x1b[31m.png"):
        assert name in out
    assert "60 rows" in run("cache", "export", study_file, "out.h5").stdout


def test_a_damaged_memory_of_weights_founds_no_store(study_file):
    """The network in hand must be the one that the recipe names."""
    run("features", study_file, *ENGINE)
    memory = Path("features/index/weights.json")
    memory.write_text(json.dumps(dict.fromkeys(json.loads(memory.read_text()), "0" * 64)))
    text = run("features", study_file, *ENGINE, code=1).stderr
    assert "delete index/weights.json" in text


def test_weights_that_are_missing_are_said_first_and_cost_no_other_backbone(
    study_file, monkeypatch, tmp_path
):
    """An hour of the first backbone does not come before what is wrong with the second."""

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    study_file.write_text(study_file.read_text() + "[backbone.googlenet]\n")
    first = run("features", study_file, *ENGINE, code=1)
    lines = first.stderr
    warned = lines.index("warning: backbone.googlenet: the ImageNet weights of googlenet are not")
    assert warned < lines.index("tiny: torch") < lines.index("Error: backbone.googlenet: ")
    assert "60 computed" in first.stdout
    assert "60 reused" in run("features", study_file, *ENGINE, code=1).stdout


def in_archive(path: Path, parts: dict[str, np.ndarray]) -> Path:
    labels = {f"{part}_labels": np.arange(len(rows)) % 2 for part, rows in parts.items()}
    np.savez(path, **{f"{part}_images": rows for part, rows in parts.items()}, **labels)
    return path.with_suffix(".npz")


def in_stacks(path: Path, parts: dict[str, np.ndarray]) -> Path:
    for part, rows in parts.items():
        for label in (0, 1):
            with_stack(path, f"{part}_{label}.npy", rows[label::2])
    return path


@pytest.mark.parametrize("saved", [in_archive, in_stacks])
@pytest.mark.parametrize("has_validation", [True, False])
def test_init_divides_only_the_first_of_several_hospitals(study_file, saved, has_validation):
    """The test part of a second one is no test part of the source; it is a whole target."""
    counts = {"train": 20, **({"val": 8} if has_validation else {}), "test": 6}
    given = []
    for name, at in (("oslo", 0), ("bergen", 500)):
        parts = {part: pictures(n, seed=at + 9 * n) for part, n in counts.items()}
        given.append(saved(Path(name), parts))
    run("init", *given, "--output", "own.toml", "--backbone", "tiny")
    samples, _ = load_samples(load_study(Path("own.toml")))
    images = {str(name): int((samples.domain == name).sum()) for name in np.unique(samples.domain)}
    total = sum(counts.values())
    assert images == {"source": total - 6, "test": 6, "bergen": total}
    assert f"{2 * total} computed" in run("features", "own.toml", *ENGINE).stdout
    run("heads", "own.toml", "--quick", "--only", "linear,prior", "--no-figures")


def test_stores_of_one_backbone_are_told_apart(tmp_path):
    """Features, those of masked images, and activations differ in their recipe alone."""
    recipe = Recipe(
        backbone="tiny", cut="before the classifier", pooling="global average", weights="0" * 64,
        preprocessing={}, precision="fp32",
    )  # fmt: skip
    masked = replace(recipe, preprocessing={"mask": "centre"})
    for made in (recipe, masked, replace(recipe, cut="before the last stage", pooling="none")):
        store = FeatureStore(tmp_path, made)
        store.prepare()
        check_canaries(store.path, made, np.ones((4, 3), np.float32), provenance={})
    shown = {row["holds"] for row in cache_commands.describe(tmp_path)}
    assert shown == {"features", "features, mask centre", "activations before the last stage"}
