"""A store that another user owns and that may only be read: tried as that other user."""

import os
import shutil
import site
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

import tests
from pipeline.compare import CompareOptions, compare
from pipeline.features.extract import extract
from pipeline.study_file import load_study
from tests.tiny import TORCH, install_tiny_backbone, write_images, write_tiny_study

NOBODY = 65534
#: What a colleague calls, from a folder of his own, and a text that it prints.
COMMANDS = {
    "features study.toml": "nothing to do, 60 reused",
    "heads study.toml --only prior,linear --quick": "linear",
    "audit study.toml --no-shortcuts": "No leak was found",
    "report study.toml": "report.html: ",
    "predict ../here --model results/tiny/heads/tiny/linear --store ../features":
        "0 computed, 40 from the store",
    "predict ../new --model ../results/tiny/heads/tiny/linear --store ../features":
        "4 computed, 0 from the store",
    "cache ls --store ../features": "60",
    "cache verify --store ../features": "60 rows in 1 part, every byte checked",
    "cache verify study.toml --sample 4": "4 images recomputed",
    "cache export study.toml out.h5": "wrote out.h5: 60 rows",
    "doctor": "features",
}  # fmt: skip
SCRIPT = """
import sys
from pathlib import Path
from pipeline.cli import main
from pipeline.features import backbones
from tests.tiny import table_with_tiny

backbones.BACKBONES = table_with_tiny(Path("../tiny.pth"))
for line in sys.argv[1:]:
    print(f"$ {line}", flush=True)
    main(line.split(), standalone_mode=False)
"""


def run_as_nobody(*arguments: str, python: str, folder: Path) -> str:
    """What Python prints in a process of another user, on both streams."""
    packages = [str(Path(tests.__file__).parents[1]), *site.getsitepackages()]
    done = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(packages), "HOME": str(folder)},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def python_for_all(folder: Path) -> str:
    """One that other users may run, if there is one."""
    for python in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
        with suppress(OSError, AssertionError):
            run_as_nobody("-c", "import torch", python=python, folder=folder)
            return python
    pytest.skip("other users may not run this Python")


@pytest.fixture
def shared(monkeypatch):
    """A folder of root's with a study that is done, in it one of nobody's; and his Python."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root can try it as another user")
    # Other users may not enter the folders of pytest.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HEADRACE_SHARED", "1")
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    (folder / "colleague").mkdir()
    os.chown(folder / "colleague", NOBODY, NOBODY)
    before = os.umask(0o022)
    try:
        python = python_for_all(folder / "colleague")
        install_tiny_backbone(monkeypatch, folder)
        study = load_study(write_tiny_study(folder))
        extract(study, TORCH)
        compare(study, CompareOptions(heads=("prior", "linear"), repeats=0, draws=20))
        write_images(folder / "new", 4, seed=9)
        yield folder, python
    finally:
        os.umask(before)
        shutil.rmtree(folder)


def files_in(folder: Path) -> dict[Path, float]:
    """Each with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_all_that_needs_no_new_row_works_and_nothing_is_written(shared):
    """And new images are classified, with a warning that their features are not kept."""
    team, python = shared
    text = (team / "study.toml").read_text()
    for name in ("here", "there", "features"):
        text = text.replace(f'"{name}"', f'"{team / name}"')
    (team / "colleague" / "study.toml").write_text(text)
    before = files_in(team / "features")
    said = run_as_nobody("-c", SCRIPT, *COMMANDS, python=python, folder=team / "colleague")
    answers = dict(zip(COMMANDS, said.split("$ ")[1:], strict=True))
    for line, expected in COMMANDS.items():
        assert expected in answers[line], answers[line]
        unkept = "warning: the new features are not stored: cannot write" in answers[line]
        assert unkept == line.startswith("predict ../new")
    assert files_in(team / "features") == before
