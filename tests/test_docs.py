"""The README does what it says: its commands run, and print what stands there."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import StudyError
from pipeline.study_file import load_study

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def sessions() -> list[tuple[str, str]]:
    """Command and printed output of each console block."""
    found = []
    for block in blocks("console"):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def masked(text: str) -> str:
    """A text without what differs from machine to machine: numbers, widths, where lines break."""
    return re.sub(r"[\s─]+", " ", re.sub(r"[-+<]?(\d+(\.\d+)?|\.\d+)", "0", text)).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The commands of the README, run once in an empty folder, with what each command printed."""
    path = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        # Without weights of its own and without a network, whatever this machine has.
        patch.setenv("TORCH_HOME", str(path / "torch"))
        patch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
        yield path, [CliRunner().invoke(main, command.split()[1:]) for command, _ in sessions()]


def _no_network(*_, **__):
    raise OSError("no network in this test")


def test_each_command_prints_the_lines_that_the_readme_shows(folder):
    """Whatever the numbers."""
    for (command, shown), result in zip(sessions(), folder[1], strict=True):
        assert result.exit_code == 0, command + result.stderr
        printed = masked(result.stdout)
        missing = [line for line in shown.splitlines() if masked(line) not in printed]
        assert not missing, f"{command}: {missing}\n{result.stdout}"


def test_the_python_example_runs(folder, monkeypatch):
    """On the demo that the commands above have made."""
    monkeypatch.chdir(folder[0])
    (code,) = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README", "exec"), {})  # noqa: S102 - our own text
    assert 0.5 < float(printed.getvalue()) <= 1


def test_every_key_of_a_study_file_stands_in_a_table_of_its_documentation(study_file):
    """The error for a key that is not known lists the same ones."""
    whole = study_file.read_text()
    text = (Path(__file__).parents[1] / "pipeline/data/README.md").read_text()
    for table in ("", "[source]", "[target.there]", "[backbone.tiny]", "[store]"):
        study_file.write_text(whole.replace(table, f"{table}\nunknown = 1\n", 1))
        with pytest.raises(StudyError, match="an unknown key 'unknown'; allowed: ") as error:
            load_study(study_file)
        keys = str(error.value).partition("allowed: ")[2].split(", ")
        rows = re.findall(r"^\| (.*`.*`.*) \| .* \|$", text, re.MULTILINE)
        assert {*keys} <= {*re.findall(r"\w+", " ".join(rows))}, table


def test_files_and_tests_that_the_readme_names_are_there():
    """A stranger who wants to change something finds the file."""
    root = Path(__file__).parents[1]
    names = re.findall(r"`((?:pipeline|cache|tests)/[\w/]+(?:\.py|/))`", README)
    assert len(names) > 10
    assert not [name for name in names if not (root / name).exists()]
