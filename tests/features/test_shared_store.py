"""A store that another user owns and that may only be read: tried as that other user."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.test_cli import ENGINE, run
from tests.tiny import install_tiny_backbone, write_images, write_tiny_study

NOBODY = 65534
#: What a colleague calls, from a folder of his own, and a text that it prints.
COMMANDS = {
    "features study.toml": "nothing to do, 60 reused",
    "heads study.toml --only prior,linear --quick": "linear",
    "audit study.toml --no-shortcuts": "No leak was found",
    "report study.toml": "report.html: ",
    "predict ../here --model results/tiny/heads/tiny/linear --store ../features":
        "0 computed, 40 from the store",
    "predict ../new --model ../results/tiny/heads/tiny/linear --store ../features --engine torch":
        "4 computed, 0 from the store",
    "cache ls --store ../features": "60",
    "cache verify --store ../features": "60 rows in 1 part, every byte checked",
    "cache verify study.toml --sample 4 --engine torch": "4 images recomputed",
    "cache export study.toml out.h5": "wrote out.h5: 60 rows",
    "doctor": "features",
}  # fmt: skip


@pytest.fixture
def shared(monkeypatch):
    """A folder of root's with a study that is done; nobody runs from now on, in his folder."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("only root can try it as another user")
    folder, groups = Path(tempfile.mkdtemp()), os.getgroups()  # pytest's may not be entered
    folder.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HEADRACE_SHARED", "1")
    own, before = folder / "colleague", os.umask(0o022)
    try:
        install_tiny_backbone(monkeypatch, folder)
        study_file = write_tiny_study(folder)
        run("features", study_file, *ENGINE)
        run("heads", study_file, "--only", "prior,linear", "--quick")
        run("report", study_file)  # imports modules that others may not read
        write_images(folder / "new", 4, seed=9)
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        monkeypatch.chdir(own)
        monkeypatch.setenv("HOME", str(own))
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        yield folder
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(before)
        shutil.rmtree(folder)


def files_in(folder: Path) -> dict[Path, float]:
    """Each with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_all_that_needs_no_new_row_works_and_nothing_is_written(shared):
    """And new images are classified, with a warning that their features are not kept."""
    text = (shared / "study.toml").read_text()
    for name in ("here", "there", "features"):
        text = text.replace(f'"{name}"', f'"{shared / name}"')
    Path("study.toml").write_text(text)
    before = files_in(shared / "features")
    for line, expected in COMMANDS.items():
        said = run(*line.split())
        assert expected in said.stdout
        unkept = "warning: the new features are not stored: cannot write" in said.stderr
        assert unkept == line.startswith("predict ../new")
    assert files_in(shared / "features") == before
