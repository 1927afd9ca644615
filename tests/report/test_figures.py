"""Figures: drawn from the stages' files, true to their numbers, the same bytes each time."""

import json
import logging
from functools import partial
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.evaluation.predictions import read_predictions
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.report import figures, parts_of
from pipeline.report.figures import FIGURES, NothingToDrawError, Results, curves, forest, roc, shift
from pipeline.report.figures.style import image_bytes, new_figure, styled
from pipeline.results import read_set, write_set
from pipeline.study import load_study
from tests.report.made_up import write_comparison, write_heads, write_shift
from tests.tiny import install_tiny_backbone, write_tiny_study

#: Stage, with the writer of a made-up result.
STAGES = {"heads": write_heads, "shift": write_shift, "finetune": write_comparison}
FUNCTIONS = {"forest": forest, "roc": roc, "curves": curves, "shift": shift}


def results_of(stage, folder, **how):
    """A made-up result as figures take it, and its record."""
    record = STAGES[stage](folder, **how)
    file = folder / figures.PROBABILITIES[stage]
    found = Results(
        file=file.read_bytes(),
        backbone="tiny",
        record=record,
        parts=tuple(parts_of(stage, record)),
        predictions=read_predictions(file).get("tiny"),
    )
    return found, record


def draw_one(name, found):
    module, function = FIGURES[name][0].split(".")
    return styled(getattr(FUNCTIONS[module], function))(found)


def points(axes, colour, marker="o"):
    """The first point of each line of a colour and a marker, top to bottom."""
    found = [x for x in axes.lines if (x.get_color(), x.get_marker()) == (colour, marker)]
    return [float(line.get_xdata()[0]) for line in found if len(line.get_xdata())]


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged, also after a test that ran the command line, which keeps it to itself."""
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.DEBUG, logger="pipeline")
    return caplog


@pytest.fixture
def svg_only(monkeypatch):
    """One kind of file, for speed."""
    monkeypatch.setattr(figures, "KINDS", ("svg",))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_the_same_twice(name, tmp_path):
    """Two draws of the same data give the same PNG and the same SVG, byte for byte."""
    found, _ = results_of(name.split("-")[0], tmp_path)
    one, other = draw_one(name, found), draw_one(name, found)
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        image = image_bytes(one, kind)
        assert image.startswith(start)
        assert image == image_bytes(other, kind)
        assert mpl.__version__.encode() not in image


@pytest.mark.parametrize("stage", STAGES)
def test_each_figure_is_there_in_both_kinds(stage, tmp_path):
    """Each figure appears as PNG and as SVG below the study's results."""
    record = STAGES[stage](tmp_path)
    images = figures.draw(stage, record, tmp_path)
    wanted = {
        f"figures/{name}-tiny.{kind}"
        for name in FIGURES
        for kind in ("png", "svg")
        if name.startswith(f"{stage}-")
    }
    assert images.keys() == wanted
    write_set(tmp_path / "set.json", {}, images)
    drawn = list(figures.drawn(read_set(tmp_path / "set.json", stage), "tiny"))
    assert [caption for caption, _, _ in drawn] == [
        caption for name, (_, caption) in FIGURES.items() if f"figures/{name}-tiny.png" in wanted
    ]
    assert {image for _, _, image in drawn} < set(images.values())


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("heads", {"heads": ("linear",), "K": 3}),
        ("heads", {"heads": ("linear", "mlp", *"abcdefghijklmnopqr"), "targets": ("x", "y", "z")}),
        ("shift", {"targets": ("x", "y", "z"), "K": 2}),
        ("shift", {"K": 3}),
        ("finetune", {"methods": ("lp", "full", "lp_ft", "wise_ft", "scratch_cnn", "bn_only")}),
        ("heads", {"targets": ("$\\frac{$", "a_b$c$")}),
    ],
)
def test_few_and_many_fit(stage, how, tmp_path, logged, svg_only):
    """One head or twenty, two classes or three, one target or three, names of any kind."""
    record = STAGES[stage](tmp_path, **how)
    assert figures.draw(stage, record, tmp_path)
    assert not [one for one in logged.records if one.levelno >= logging.WARNING]


def test_a_users_settings_are_left_alone_and_change_nothing(tmp_path, svg_only):
    """Nothing global of matplotlib moves, and a user's own settings do not reach a figure."""
    record = write_heads(tmp_path)
    draw = partial(figures.draw, "heads", record, tmp_path)
    before = dict(mpl.rcParams)
    plain = draw()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "own"}):
        assert draw() == plain


def _without_curves(record):
    (backbone,) = record["backbones"]
    return record | {"backbones": [backbone | {"heads": []}]}


def test_what_is_not_in_the_files_is_left_out(tmp_path, logged, svg_only):
    """No empty figure; the reason is in the log."""
    record = write_heads(tmp_path)
    images = figures.draw("heads", _without_curves(record), tmp_path)
    assert "figures/heads-roc-tiny.svg" in images
    assert "figures/heads-curves-tiny.svg" not in images
    assert "figure heads-curves of tiny is not drawn: there are no curves" in logged.text
    other = tmp_path / "other"
    images = figures.draw("shift", write_shift(other, K=3), other)
    assert "figures/shift-roc-tiny.svg" not in images


def test_a_figure_that_fails_is_named_and_costs_no_other(tmp_path, logged, monkeypatch):
    """An error in one figure is a warning with its name; the next one is drawn."""

    def broken(_found):
        raise ZeroDivisionError("by hand")

    def empty(_found):
        raise NothingToDrawError("nothing here")

    for name, make in (("broken", broken), ("empty", empty), ("good", lambda _: new_figure(1.0))):
        monkeypatch.setattr(forest, name, make, raising=False)
    table = {f"heads-{name}": (f"forest.{name}", "") for name in ("broken", "empty", "good")}
    monkeypatch.setattr(figures, "FIGURES", MappingProxyType(table))
    written = figures.draw("heads", write_heads(tmp_path), tmp_path)
    assert list(written) == ["figures/heads-good-tiny.png", "figures/heads-good-tiny.svg"]
    (warning,) = [one for one in logged.records if one.levelno >= logging.WARNING]
    assert "heads-broken of tiny is not drawn: ZeroDivisionError: by hand" in warning.getMessage()


def test_the_forest_shows_the_accuracies_of_the_table_best_validation_first(tmp_path):
    """Points are values, whiskers bounds; targets rank nothing."""
    found, _ = results_of("heads", tmp_path, heads=("linear", "a", "b", "c"))
    validation, far = found.tables("heads")
    first, axes = draw_one("heads-forest", found).axes
    assert points(axes, "#0072B2") == [value[0] for value in far.values("accuracy")]
    whiskers = [tuple(x.get_xdata()) for x in axes.lines if x.get_marker() == "None"]
    assert whiskers == [value[1:] for value in far.values("accuracy")]
    ranked = [value[0] for value in validation.values("accuracy")]
    assert ranked == sorted(ranked, reverse=True)
    assert [t.get_text() for t in first.get_yticklabels()] == validation.values("head")


def test_confusions_count_the_images_of_the_file(tmp_path):
    """Each cell is the number of images of one true and one predicted class."""
    found, _ = results_of("heads", tmp_path, heads=("linear",), K=3)
    label, proba = found.scored("linear", "far", "target")
    texts = [int(t.get_text()) for t in draw_one("heads-confusion", found).axes[1].texts]
    called = proba.argmax(axis=1)
    assert texts == [((label == i) & (called == j)).sum() for i in range(3) for j in range(3)]


def test_curves_are_those_of_the_file(tmp_path):
    """The strong line is the mean of the seeds."""
    found, record = results_of("heads", tmp_path)
    runs = [head["curves"] for head in record["backbones"][0]["heads"] if head["curves"]]
    axes = draw_one("heads-curves", found).axes[0]
    strong = [line for line in axes.lines if line.get_linewidth() > 1]
    for line, split in zip(strong, ("fit", "validation"), strict=True):
        mean = np.mean([run[f"{split}_loss"] for run in runs], axis=0)
        np.testing.assert_allclose(line.get_ydata(), mean)


@pytest.mark.parametrize(
    ("epochs", "ticks"), [(1, {1}), (3, {1, 2, 3}), (30, {5, 10, 15, 20, 25, 30})]
)
def test_epochs_are_whole_and_counted_from_one(epochs, ticks):
    """There is no epoch 0, and nothing between two of them."""
    run = {"fit_loss": [0.5] * epochs, "fit_accuracy": [0.5] * epochs}
    axes = styled(curves.learning_curves)({"full": [run]}).axes[0]
    assert set(axes.get_xticks()) == ticks


def test_steps_lead_from_training_images_to_the_target(tmp_path):
    """Bars are errors from 0 and steps from one error to the next, in percent."""
    found, _ = results_of("shift", tmp_path)
    axes = draw_one("shift-errors", found).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    bars = {n: (b.get_x(), b.get_width()) for n, b in zip(names, axes.patches, strict=True)}
    assert bars["source, training images"] == pytest.approx((0, 1))
    assert bars["variance"] == pytest.approx((1, 4))
    assert bars["domain mismatch"] == pytest.approx((5, 15))
    assert bars["target"] == pytest.approx((0, 20))
    assert bars["target hardness"] == pytest.approx((5, 10))
    assert bars["transfer gap"] == pytest.approx((15, 5))


def test_effects_of_one_colour_add_up_to_the_loss(tmp_path):
    """Bars have the estimates as widths."""
    found, _ = results_of("shift", tmp_path)
    totals: dict = {}
    for bar in draw_one("shift-effects", found).axes[0].patches:
        totals.setdefault(bar.get_facecolor(), []).append(bar.get_width())
    assert [sum(widths) for widths in totals.values()] == pytest.approx([10] * 5)


def test_methods_that_use_labels_of_the_target_stand_apart(tmp_path):
    """Gains in points; the unadapted head is the line at 0."""
    found, _ = results_of("shift", tmp_path)
    axes = draw_one("shift-adaptation", found).axes[0]
    assert points(axes, "#0072B2") == pytest.approx([5, -2])
    assert points(axes, "#E69F00", "s") == pytest.approx([-1, 9])
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == "50 labels per class"


def test_marks_of_thresholds_are_the_rates_of_the_table(tmp_path):
    """One on the curve of the source, one on that of the target."""
    found, _ = results_of("shift", tmp_path)
    axes = draw_one("shift-roc", found).axes[0]
    marks = [(x.get_xdata()[0], x.get_ydata()[0]) for x in axes.lines if x.get_marker() == "o"]
    assert marks == [pytest.approx((0.2, 0.9)), pytest.approx((0.3, 0.8))]


def test_subgroups_show_the_groups_that_have_numbers(tmp_path):
    """A mark for each, at its value."""
    found, _ = results_of("shift", tmp_path)
    panels = {x.get_title(loc="left"): x for x in draw_one("shift-subgroups", found).axes}
    assert list(panels) == ["accuracy", "AUROC", "sensitivity", "specificity"]
    assert points(panels["AUROC"], "#0072B2") == pytest.approx([0.85, 0.75])
    names = [t.get_text() for t in panels["accuracy"].get_yticklabels()]
    assert names == ["sex: $F$", "sex: M", "sex: unknown"]


def test_the_line_between_two_networks_is_the_files(tmp_path):
    """Accuracy at every alpha for each domain, and the alpha that validation chose."""
    found, record = results_of("finetune", tmp_path)
    axes = draw_one("finetune-alpha", found).axes[0]
    line = record["backbones"][0]["models"][2]["interpolated"]
    wanted = [step["domains"][1]["accuracy"] for step in line["curve"]]
    assert list(axes.lines[1].get_ydata()) == wanted
    assert points(axes, "#777777", "None") == [line["alpha"]]


def test_the_figure_of_the_page_shows_every_model_in_every_domain():
    """A point and a number for each."""
    series = {"mlp": {"validation": (0.9, 0.8, 0.95), "b": (0.7, None, None)}, "linear": {}}
    axes = styled(forest.summary)(series).axes[0]
    assert points(axes, "#0072B2") == [0.9, 0.7]
    assert [text.get_text() for text in axes.texts] == ["90.0 %", "70.0 %"]
    with pytest.raises(NothingToDrawError):
        forest.summary({})


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
    arguments = ["heads", str(study_file), "--only", "prior,linear", "--quick"]
    folder = study_file.parent / "results" / "tiny" / "figures"
    assert CliRunner().invoke(main, [*arguments, "--no-figures"]).exit_code == 0
    assert not folder.exists()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "\nfigures: results/tiny/figures (" in result.stdout
    assert (folder / "heads-forest-tiny.svg").is_file()


def test_figures_that_fail_do_not_fail_the_stage(study_file, monkeypatch):
    """A warning on stderr, the result as JSON on stdout, exit code 0."""

    def broken(*_):
        raise OSError("no space")

    monkeypatch.setattr(figures, "draw", broken)
    arguments = ["heads", str(study_file), "--only", "prior", "--quick", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "warning: no figures of heads: OSError: no space" in result.stderr
    assert json.loads(result.stdout)["backbones"]
