"""Figures: drawn from the stages' files, true to their numbers, the same bytes each time."""

import json
import logging
import re
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import MissingPredictionsError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.report.figures import finetune, heads, shift
from pipeline.report.figures.album import draw_album
from pipeline.report.figures.finetune import read_comparison
from pipeline.report.figures.heads_data import read_heads
from pipeline.report.figures.labels import Label, name_points, spread
from pipeline.report.figures.shift_data import read_shift
from pipeline.report.figures.style import NothingToDrawError, image_bytes, new_figure, styled
from pipeline.study import load_study
from tests.figure_data import write_comparison, write_heads, write_shift
from tests.tiny import install_tiny_backbone, write_tiny_study

#: Stage, with the writer of a made-up result and the reader of what is drawn.
STAGES = {
    "heads": (heads, write_heads, read_heads),
    "shift": (shift, write_shift, read_shift),
    "finetune": (
        finetune,
        write_comparison,
        lambda folder: read_comparison(folder / "comparison.json"),
    ),
}
EVERY = [(stage, name) for stage, (module, *_) in STAGES.items() for name in module.FIGURES]


@pytest.fixture
def said(caplog, monkeypatch):
    """What is logged, also after a test that ran the command line, which keeps it to itself."""
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, logger="pipeline")
    return caplog


def data_of(stage, folder, **how):
    """The figures' data of a made-up result."""
    _, write, read = STAGES[stage]
    write(folder, **how)
    (data,) = read(folder)
    return data


@pytest.mark.parametrize(("stage", "name"), EVERY)
def test_every_figure_is_drawn_the_same_twice(stage, name, tmp_path):
    """Two draws of the same data give the same PNG and the same SVG, byte for byte."""
    data = data_of(stage, tmp_path)
    draw = styled(STAGES[stage][0].FIGURES[name])
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = (image_bytes(draw(data), kind) for _ in range(2))
        assert first.startswith(start)
        assert first == second
        assert mpl.__version__.encode() not in first


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_is_filled_with_both_kinds(stage, tmp_path):
    """Each figure appears as PNG and as SVG below the study's results."""
    module, write, _ = STAGES[stage]
    write(tmp_path)
    written = module.draw(tmp_path)
    wanted = {f"{name}-tiny.{kind}" for name in module.FIGURES for kind in ("png", "svg")}
    assert {path.name for path in written} == wanted
    assert {path.name for path in (tmp_path / "figures").iterdir()} == wanted


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("heads", {"heads": ("linear",), "K": 3}),
        ("heads", {"heads": ("linear", "mlp", *"abcdefghijklmnopqr"), "targets": ("x", "y", "z")}),
        ("shift", {"targets": ("x", "y", "z"), "K": 2}),
        ("shift", {"K": 3}),
        ("finetune", {"methods": ("lp", "full", "lp_ft", "wise_ft", "scratch_cnn", "bn_only")}),
    ],
)
def test_few_and_many_fit(stage, how, tmp_path, said):
    """One head or twenty, two classes or three, one target or three: nothing fails."""
    module, write, _ = STAGES[stage]
    write(tmp_path, **how)
    assert module.draw(tmp_path)
    assert "could not be drawn" not in said.text


def test_a_users_settings_are_left_alone_and_change_nothing(tmp_path):
    """Nothing global of matplotlib moves, and a user's own settings do not reach a figure."""
    write_heads(tmp_path)
    before = dict(mpl.rcParams)
    plain = {path.name: path.read_bytes() for path in heads.draw(tmp_path)}
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "own"}):
        other = {path.name: path.read_bytes() for path in heads.draw(tmp_path)}
    assert other == plain


def test_names_of_users_are_no_formulas(tmp_path):
    """A dollar sign in a name is a dollar sign."""
    write_heads(tmp_path, targets=("$\\frac{$", "a_b$c$"))
    names = [path.name for path in heads.draw(tmp_path)]
    assert len(names) == 2 * len(heads.FIGURES)


def test_what_is_not_in_the_files_is_left_out_with_the_reason(tmp_path, said):
    """No empty figure and none of an earlier run: a line says which is missing and why."""
    report = write_heads(tmp_path)
    heads.draw(tmp_path)
    del report["details"]
    (tmp_path / "heads.json").write_text(json.dumps(report))
    names = {path.stem for path in heads.draw(tmp_path)}
    assert names.isdisjoint({"heads-curves-tiny", "heads-path-tiny"})
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == names
    assert "figure heads-path of tiny is not drawn: heads.json has no reg" in said.text
    write_shift(tmp_path / "s", ng=False, K=3)
    names = {path.stem for path in shift.draw(tmp_path / "s")}
    assert names.isdisjoint({"shift-waterfall-tiny", "shift-roc-tiny"})
    assert "operating points need two classes" in said.text


def test_a_figure_that_fails_is_named_and_costs_no_other(tmp_path, said):
    """An error in one figure is a warning with its name; the next one is drawn."""

    def broken(_data):
        raise ZeroDivisionError("by hand")

    def empty(_data):
        raise NothingToDrawError("nothing here")

    figures = MappingProxyType({"bad": broken, "none": empty, "good": lambda _: new_figure(1.0)})
    written = draw_album(tmp_path / "figures", figures, None, "x/y")
    assert [path.name for path in written] == ["good-x_y.png", "good-x_y.svg"]
    assert "figure bad of x/y could not be drawn: ZeroDivisionError: by hand" in said.text


@pytest.mark.parametrize("stage", STAGES)
def test_without_results_the_message_names_the_command(stage, tmp_path):
    """Figures are drawn after their stage, never instead of it."""
    with pytest.raises(MissingPredictionsError, match=f"headrace {stage} STUDY"):
        STAGES[stage][0].draw(tmp_path)


def test_names_are_spread_without_changing_their_order():
    """At least the gap apart, and untouched where they are far apart already."""
    wanted = np.array([0.5, 0.0, 0.52, 0.51, 2.0])
    placed = spread(wanted, 0.1)
    order = np.argsort(wanted)
    assert np.diff(placed[order]).min() >= 0.1 - 1e-12
    assert (np.argsort(placed) == order).all()
    assert placed[[1, 4]] == pytest.approx([0.0, 2.0])


def test_names_of_points_do_not_cover_each_other():
    """Crowded points get names that overlap neither each other nor the frame."""
    figure = new_figure(4.0)
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    rng = np.random.default_rng(0)
    labels = [Label(text=f"head {i}", x=x, y=y) for i, (x, y) in enumerate(rng.random((15, 2)))]
    name_points(axes, labels)
    boxes = [text.get_window_extent() for text in axes.texts]
    bare = [type(text).__mro__[1].get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 15
    assert not [(i, j) for i in range(15) for j in range(i) if bare[i].overlaps(bare[j])]


def test_a_trial_has_figures_of_its_own(tmp_path):
    """Those of a comparison of fewer images stand beside those of all."""
    write_comparison(tmp_path)
    (tmp_path / "comparison.json").rename(tmp_path / "comparison-limit8.json")
    write_comparison(tmp_path)
    names = {path.stem for path in finetune.draw(tmp_path)}
    assert {"finetune-forest-tiny", "finetune-forest-tiny-limit8"} <= names


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """A tiny study whose features are stored; the current folder is its folder."""
    install_tiny_backbone(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    file = write_tiny_study(tmp_path)
    engine = EngineChoice(engine="torch", device="cpu", batch_size=4)
    extract(load_study(file), ExtractOptions(engine=engine))
    return file


def test_the_command_draws_unless_told_not_to(study_file):
    """One line says where the figures are; with --no-figures there are none."""
    arguments = ["heads", str(study_file), "--only", "prior,linear"]
    assert CliRunner().invoke(main, [*arguments, "--no-figures"]).exit_code == 0
    folder = study_file.parent / "results" / "tiny" / "figures"
    assert not folder.exists()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert re.search(r"^figures: results/tiny/figures \(\d+ files\)$", result.stdout, re.MULTILINE)
    assert (folder / "heads-forest-tiny.svg").is_file()


def test_figures_that_fail_do_not_fail_the_stage(study_file, monkeypatch):
    """A warning on stderr, the result as JSON on stdout, exit code 0."""

    def broken(_results):
        raise OSError("no space")

    monkeypatch.setattr(heads, "draw", broken)
    result = CliRunner().invoke(main, ["heads", str(study_file), "--only", "prior", "--json"])
    assert result.exit_code == 0
    assert "warning: no figures of heads: OSError: no space" in result.stderr
    assert json.loads(result.stdout)["rows"]
