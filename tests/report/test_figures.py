"""Figures: drawn from the stages' files, true to their numbers, the same bytes each time."""

import json
import logging
import os
import stat
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from unittest.mock import Mock

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from pipeline import cli
from pipeline.evaluation.predictions import predictions_in
from pipeline.report import figures, parts_of
from pipeline.report.figures import FIGURES, NothingToDrawError, Results, curves, forest
from pipeline.report.figures.style import BLUE, COLOURS, panels, png_of, styled
from pipeline.results import read_set
from tests.report.conftest import HOSTILE
from tests.test_cli import run
from tests.tiny import stored_tiny_study


def results_of(folder, stage, *, classes=2):
    """Of one stage; as if half of the second class were of a third one, where that is wanted."""
    results = read_set(folder / f"{stage}.json", stage)
    record, file = results.record, figures.stored_arrays(results)
    stored = predictions_in(file).get("tiny")
    if classes == 3:
        record["classes"].append("c")
        for domain in (d for entry in record.get("backbones", ()) for d in entry["domains"]):
            domain["class_patients"].append(10)
        third = (stored.label == 1) & (np.arange(len(stored.label)) % 4 < 2)
        parts = np.array([[0.6, 0.4]], np.float32)
        proba = {head: np.c_[p[:, :1], p[:, 1:] * parts] for head, p in stored.proba.items()}
        stored = replace(stored, classes=(*HOSTILE, "c"), label=stored.label + third, proba=proba)
    parts = tuple(parts_of(stage, record))
    return Results(file=file, backbone="tiny", record=record, parts=parts, predictions=stored)


def draw_one(name, results):
    with styled():
        return maker(name)(results)


def maker(name):
    module, function = FIGURES[name][0].split(".")
    return getattr({"forest": forest, "curves": curves}[module], function)


def points(axes):
    """The first point of each blue line of circles, top to bottom."""
    lines = [x for x in axes.lines if (x.get_color(), x.get_marker()) == (BLUE, "o")]
    return [float(line.get_xdata()[0]) for line in lines if len(line.get_xdata())]


def contrast_with_white(colour):
    """As WCAG 2 defines it: 1 to 21."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_the_same_twice(name, results):
    """Two draws give the same bytes; no title is cut off, and every text can be read on white."""
    classes = 3 if name == "heads-confusion" else 2
    of_stage = results_of(results, name.split("-")[0], classes=classes)
    image = png_of(maker(name), of_stage)
    assert image == png_of(maker(name), of_stage)
    assert mpl.__version__.encode() not in image
    figure = draw_one(name, of_stage)
    figure.set_dpi(200)  # as in the file: texts are wider than at 100
    figure.draw_without_rendering()
    for text in figure.texts:
        assert text.get_window_extent().x1 <= figure.bbox.x1, text
    for text in figure.findobj(Text):
        assert not text.get_text() or contrast_with_white(text.get_color()) >= 4.5, text


def test_a_users_settings_are_left_alone_and_change_nothing(results, records):
    """Nothing global of matplotlib moves, and a user's own settings do not reach a figure."""
    file = figures.stored_arrays(read_set(results / "heads.json", "heads"))
    draw = partial(figures.draw, "heads", records["heads"], file)
    before = dict(mpl.rcParams)
    plain = draw()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        assert draw() == plain


def test_a_figure_that_fails_is_named_and_costs_no_other(records, caplog, monkeypatch):
    """An error in one figure is a warning with its name; the next one is drawn."""
    makers = {
        "broken": Mock(side_effect=ZeroDivisionError("by hand")),
        "empty": Mock(side_effect=NothingToDrawError("nothing here")),
        "good": lambda _: panels(1, height=1)[0],
    }
    for name, make in makers.items():
        monkeypatch.setattr(forest, name, make, raising=False)
    table = {f"heads-{name}": (f"forest.{name}", "", "") for name in makers}
    monkeypatch.setattr(figures, "FIGURES", MappingProxyType(table))
    # A test that ran the command line may have left it to keep what is logged to itself.
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    written = figures.draw("heads", records["heads"], b"")
    assert list(written) == ["figures/heads-good-tiny.png"]
    (warning,) = {x.getMessage() for x in caplog.records if x.levelno >= logging.WARNING}
    assert "heads-broken of tiny is not drawn: ZeroDivisionError: by hand" in warning


def test_the_forest_shows_the_differences_of_the_table_best_validation_first(results):
    """Points are values in points of accuracy, whiskers their bounds; the prior is left out."""
    of_heads = results_of(results, "heads")
    validation, far = of_heads.tables("heads")
    first, axes = draw_one("heads-forest", of_heads).axes
    shown = [name for name in validation.values("head") if name not in ("linear", "prior")]
    assert [t.get_text() for t in first.get_yticklabels()] == shown == ["mlp"]
    gains = dict(zip(far.values("head"), far.values("points"), strict=True))
    assert points(axes) == pytest.approx([100 * gains["mlp"][0]])
    whisker = next(x.get_xdata() for x in axes.lines if x.get_color() == BLUE)
    assert whisker == pytest.approx([100 * bound for bound in gains["mlp"][1:]])
    assert axes.get_title(loc="left").startswith("far, linear ")


def test_the_roc_is_of_the_best_head_with_the_auroc_of_each_domain(results):
    """A mark where the most probable class is chosen; beside it the reliability of both."""
    of_heads = results_of(results, "heads")
    figure = draw_one("heads-roc", of_heads)
    best = of_heads.record["backbones"][0]["best"]
    assert figure.get_suptitle() == f"ROC and reliability of {best}"
    kept = of_heads.predictions
    roc, reliability = figure.axes
    for k, (domain, name) in enumerate((("source", "validation"), ("far", "far"))):
        rows = (kept.domain == domain) & (kept.split != "fit")
        positive, score = kept.label[rows] == 1, kept.proba[best, 0][rows, 1]
        auroc, shown = roc.get_legend().texts[k].get_text().split()
        assert float(auroc) == pytest.approx(roc_auc_score(positive, score), abs=0.000501)
        assert shown == name
        (mark,) = [x for x in roc.lines if x.get_marker() == "o" and x.get_color() == COLOURS[k]]
        assert mark.get_ydata() == [np.mean(score[positive] > 0.5)]
        line = reliability.lines[k]
        values = np.unique(score)
        expected = IsotonicRegression().fit(score, positive).predict(values)
        np.testing.assert_array_equal(line.get_xdata(), values)
        np.testing.assert_allclose(line.get_ydata(), expected, atol=1e-12)
    assert len(reliability.lines) == 3
    several = draw_one("heads-roc", results_of(results, "heads", classes=3))
    titles = [axes.get_title(loc="left") for axes in several.axes]
    assert titles == ["ROC, validation", "ROC, far", "Reliability"]


def test_the_net_benefit_is_that_of_the_table(results):
    """At the stated thresholds, in each domain; of more classes there is none."""
    of_heads = results_of(results, "heads")
    domains = of_heads.record["backbones"][0]["domains"]
    for axes, domain in zip(draw_one("heads-benefit", of_heads).axes, domains, strict=True):
        head, treat_all = (x.get_ydata() for x in axes.lines if x.get_marker() == "o")
        curve = domain["rows"][0]["clinical"]["net_benefit"]
        np.testing.assert_allclose(head, [point["head"] for point in curve])
        np.testing.assert_allclose(treat_all, [point["treat_all"] for point in curve])
    with pytest.raises(NothingToDrawError):
        draw_one("heads-benefit", results_of(results, "heads", classes=3))


def test_confusions_count_the_images_of_the_file(results):
    """Each cell is the number of images of one true and one predicted class; 0 is left empty."""
    of_heads = results_of(results, "heads", classes=3)
    kept = of_heads.predictions
    rows = kept.domain == "far"
    called = kept.proba[of_heads.record["backbones"][0]["best"], 0][rows].argmax(axis=1)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (kept.label[rows], called), 1)
    texts = [int(text.get_text()) for text in draw_one("heads-confusion", of_heads).axes[1].texts]
    assert texts == [count for count in counts.flat if count]


def test_effects_of_one_colour_add_up_to_the_loss(results):
    """Bars have the estimates as widths."""
    of_shift = results_of(results, "shift")
    totals: dict = {}
    for bar in draw_one("shift-effects", of_shift).axes[0].patches:
        totals.setdefault(bar.get_facecolor(), []).append(bar.get_width())
    loss = 100 * of_shift.record["targets"][0]["effects"][0]["estimate"]
    assert len(totals) >= 4
    assert [sum(widths) for widths in totals.values()] == pytest.approx([loss] * len(totals))


def test_the_figures_of_the_first_screens_show_every_value():
    """Each model with its number; each finding at its height, though a domain lacks one."""
    models = {"mlp": {"validation": (0.9, 0.8, 0.95), "b": (0.7, None, None)}, "linear": {}}
    axes = forest.summary(models).axes[0]
    assert points(axes) == [90, 70]
    assert [text.get_text() for text in axes.texts] == ["90.0", "70.0"]
    series = {"validation": {"Edema": (0.9, 0.8, 1.0)}, "b": {"Mass": (0.7, None, None)}}
    for axes, value, height in zip(forest.aurocs(series).axes, (0.9, 0.7), (1, 0), strict=True):
        line, *_, point = axes.lines
        assert list(line.get_xdata()) == [0.5, 0.5]  # chance
        assert (*axes.get_xlim(),) == pytest.approx((0.475, 1.025))
        assert (*point.get_xdata(), *point.get_ydata()) == (value, height)


def test_the_command_draws_unless_told_not_to(tmp_path, monkeypatch):
    """One line says where figures are; one that fails is a warning and does not fail the stage."""
    study_file = stored_tiny_study(tmp_path, monkeypatch, source=40, target=20)
    monkeypatch.setenv("HEADRACE_SHARED", "1")  # images of patients are private all the same
    arguments = ["heads", study_file, "--only", "prior,naive_bayes", "--quick"]
    folder = study_file.parent / "results" / "tiny" / "figures"
    for flags in ([], ["--no-figures"], ["--only", "prior", "--figures"]):  # it looks at no image
        run(*arguments, *flags)
        assert not folder.exists()
    arguments.append("--figures")
    before = os.umask(0o022)
    said = run(*arguments).stdout
    os.umask(before)
    assert "\nfigures: results/tiny/figures (" in said
    names = ("heads-roc-tiny.png", "heads-errors-tiny.png")
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in names]
    assert modes == [0o644, 0o600]
    monkeypatch.setattr(cli, "_draw", Mock(side_effect=OSError("no space")))
    result = run(*arguments, "--preprocessing", "none", "--json")
    assert "warning: figures of heads are missing: " in result.stderr
    written = read_set(study_file.parent / "results/tiny/heads.json", "heads").record
    assert json.loads(result.stdout) == written
