"""Figures: drawn from the stages' files, true to their numbers, the same bytes each time."""

import json
import logging
import os
import stat
from functools import partial
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from sklearn.metrics import roc_auc_score

from pipeline import cli
from pipeline.cli import main
from pipeline.data.domain import DomainData
from pipeline.data.patients import draw_patients
from pipeline.evaluation.clinical import clinical
from pipeline.evaluation.predictions import read_predictions
from pipeline.report import figures, parts_of
from pipeline.report.figures import FIGURES, NothingToDrawError, Results, curves, forest, roc, shift
from pipeline.report.figures.style import COLOURS, image_bytes, new_figure, styled
from tests.report.made_up import write_comparison, write_heads, write_shift
from tests.tiny import stored_tiny_study

#: Stage, with the writer of a made-up result.
STAGES = {"heads": write_heads, "shift": write_shift, "finetune": write_comparison}
FUNCTIONS = {"forest": forest, "roc": roc, "curves": curves, "shift": shift}


def results_of(stage, folder, **how):
    """A made-up result as figures take it, and its record."""
    record = STAGES[stage](folder, **how)
    file = folder / figures.PROBABILITIES[stage]
    results = Results(
        file=file.read_bytes(),
        backbone="tiny",
        record=record,
        parts=tuple(parts_of(stage, record)),
        predictions=read_predictions(file).get("tiny"),
    )
    return results, record


def draw_one(name, results):
    module, function = FIGURES[name][0].split(".")
    return styled(getattr(FUNCTIONS[module], function))(results)


def points(axes, colour, marker="o"):
    """The first point of each line of a colour and a marker, top to bottom."""
    lines = [x for x in axes.lines if (x.get_color(), x.get_marker()) == (colour, marker)]
    return [float(line.get_xdata()[0]) for line in lines if len(line.get_xdata())]


def contrast(colour, background="white"):
    """Of two colours, as WCAG 2 defines it: 1 to 21."""

    def luminance(value):
        rgb = np.array(to_rgb(value))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ WEIGHTS

    dark, light = sorted((luminance(colour), luminance(background)))
    return (light + 0.05) / (dark + 0.05)


WEIGHTS = np.array([0.2126, 0.7152, 0.0722])
#: ``heads-confusion`` is of more than two classes.
CLASSES = {"heads-confusion": 3}


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
    """Two draws of the same data give the same bytes; every text can be read on white."""
    how = {"K": CLASSES[name]} if name in CLASSES else {}
    results, _ = results_of(name.split("-")[0], tmp_path, **how)
    first, second = draw_one(name, results), draw_one(name, results)
    image = image_bytes(first, "svg")
    assert image == image_bytes(second, "svg")
    assert mpl.__version__.encode() not in image
    for text in first.findobj(lambda artist: isinstance(artist, Text) and artist.get_text()):
        assert contrast(text.get_color()) >= 4.5, text


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("heads", {"heads": ("linear", "mlp", *"abcdefghijklmnopqr"), "targets": ("x", "y", "z")}),
        ("shift", {"targets": ("x", "y", "z"), "K": 2}),
        ("shift", {"K": 3}),
        ("finetune", {"methods": ("lp", "full", "lp_ft", "wise_ft", "scratch_cnn", "bn_only")}),
        ("heads", {"targets": ("$\\frac{$", "a_b$c$"), "heads": ("mlp", "linear"), "K": 2}),
    ],
)
def test_few_and_many_fit(stage, how, tmp_path, logged, svg_only):
    """One head or twenty, two classes or three, one target or three, names of any kind."""
    record = STAGES[stage](tmp_path, **how)
    images = figures.draw(stage, record, figures.stored_arrays(stage, tmp_path))
    assert len(images) == sum(name.startswith(stage) for name in FIGURES) - (stage == "heads")
    assert not [entry for entry in logged.records if entry.levelno >= logging.WARNING]


def test_a_users_settings_are_left_alone_and_change_nothing(tmp_path, svg_only):
    """Nothing global of matplotlib moves, and a user's own settings do not reach a figure."""
    record = write_heads(tmp_path)
    draw = partial(figures.draw, "heads", record, figures.stored_arrays("heads", tmp_path))
    before = dict(mpl.rcParams)
    plain = draw()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "own"}):
        assert draw() == plain


def test_what_is_not_in_the_files_is_left_out(tmp_path, logged, svg_only):
    """No empty figure; the reason is in the log."""
    record = write_heads(tmp_path, heads=("linear", "prior"))
    images = figures.draw("heads", record, figures.stored_arrays("heads", tmp_path))
    assert "figures/heads-roc-tiny.svg" in images
    assert "figures/heads-curves-tiny.svg" not in images
    assert "heads-curves of tiny is not drawn: NothingToDrawError: there are no" in logged.text


def test_a_figure_that_fails_is_named_and_costs_no_other(tmp_path, logged, monkeypatch):
    """An error in one figure is a warning with its name; the next one is drawn."""

    def broken(_found):
        raise ZeroDivisionError("by hand")

    def empty(_found):
        raise NothingToDrawError("nothing here")

    for name, make in (("broken", broken), ("empty", empty), ("good", lambda _: new_figure(1.0))):
        monkeypatch.setattr(forest, name, make, raising=False)
    table = {f"heads-{name}": (f"forest.{name}", "", "") for name in ("broken", "empty", "good")}
    monkeypatch.setattr(figures, "FIGURES", MappingProxyType(table))
    written = figures.draw("heads", write_heads(tmp_path), figures.stored_arrays("heads", tmp_path))
    assert list(written) == ["figures/heads-good-tiny.png", "figures/heads-good-tiny.svg"]
    (warning,) = [entry for entry in logged.records if entry.levelno >= logging.WARNING]
    assert "heads-broken of tiny is not drawn: ZeroDivisionError: by hand" in warning.getMessage()


def test_the_forest_shows_the_differences_of_the_table_best_validation_first(tmp_path):
    """Points are values in points of accuracy, whiskers their bounds; the prior is left out."""
    results, _ = results_of("heads", tmp_path, heads=("linear", "a", "b", "prior"))
    validation, far = results.tables("heads")
    first, axes = draw_one("heads-forest", results).axes
    learned = [v for n, v in zip(far.values("head"), far.values("points"), strict=True) if v]
    shown = [name for name in validation.values("head") if name not in ("linear", "prior")]
    assert len(shown) == 2
    assert [t.get_text() for t in first.get_yticklabels()] == shown
    wanted = [100 * v[0] for v in learned[: len(shown)]]
    assert points(axes, "#0072B2") == pytest.approx(wanted)
    whiskers = [tuple(x.get_xdata()) for x in axes.lines if x.get_color() == "#0072B2"][::2]
    assert np.allclose(whiskers, [[100 * bound for bound in v[1:]] for v in learned[: len(shown)]])
    assert axes.get_title(loc="left").startswith("far, linear ")


def test_the_roc_is_of_the_best_head_with_the_auroc_of_each_domain(tmp_path):
    """A mark where the most probable class is chosen; beside it the reliability of both."""
    results, record = results_of("heads", tmp_path)
    figure = draw_one("heads-roc", results)
    best = record["backbones"][0]["best"]
    assert figure.get_suptitle() == f"ROC and reliability of {best}"
    kept = results.predictions
    roc, reliability = figure.axes
    for k, (domain, split) in enumerate((("source", "validation"), ("far", "target"))):
        rows = (kept.domain == domain) & (kept.split == split)
        positive, score = kept.label[rows] == 1, kept.proba[best, 0][rows, 1]
        text = roc.get_legend().texts[k].get_text()
        assert text.startswith(f"{roc_auc_score(positive, score):.3f}  ")
        (mark,) = [x for x in roc.lines if x.get_marker() == "o" and x.get_color() == COLOURS[k]]
        assert mark.get_ydata() == [np.mean(score[positive] > 0.5)]
    assert len(reliability.lines) == 3
    many, _ = results_of("heads", tmp_path / "many", K=3)
    assert [axes.get_title(loc="left") for axes in draw_one("heads-roc", many).axes] == [
        *("ROC, validation", "ROC, far", "Reliability")
    ]


def test_the_net_benefit_is_that_of_the_table(tmp_path):
    """At the stated thresholds, in each domain; of more classes there is none."""
    results, _ = results_of("heads", tmp_path, heads=("linear",))
    kept = results.predictions
    for axes, domain in zip(
        draw_one("heads-benefit", results).axes, ("source", "far"), strict=True
    ):
        rows = (kept.domain == domain) & (kept.split != "fit")
        data = DomainData(
            name=domain, role="target", group=kept.patient[rows], label=kept.label[rows],
            proba=kept.proba["linear", 0][rows],
        )  # fmt: skip
        expected = clinical(data, draw_patients(data.group, np.random.default_rng(0), draws=9))
        head, treat_all = (x.get_ydata() for x in axes.lines if x.get_marker() == "o")
        curve = expected["net_benefit"]
        np.testing.assert_allclose(head, [point["head"] for point in curve])
        np.testing.assert_allclose(treat_all, [point["treat_all"] for point in curve])
    with pytest.raises(NothingToDrawError):
        draw_one("heads-benefit", results_of("heads", tmp_path / "many", K=3)[0])


def test_confusions_count_the_images_of_the_file(tmp_path):
    """Each cell is the number of images of one true and one predicted class; 0 is left empty."""
    results, _ = results_of("heads", tmp_path, heads=("linear",), K=3)
    kept = results.predictions
    rows = kept.domain == "far"
    label, called = kept.label[rows], kept.proba["linear", 0][rows].argmax(axis=1)
    counts = [((label == i) & (called == j)).sum() for i in range(3) for j in range(3)]
    texts = [int(text.get_text()) for text in draw_one("heads-confusion", results).axes[1].texts]
    assert texts == [count for count in counts if count]


@pytest.mark.parametrize(
    ("epochs", "ticks"), [(1, {1}), (3, {1, 2, 3}), (30, {5, 10, 15, 20, 25, 30})]
)
def test_epochs_are_whole_and_counted_from_one(epochs, ticks):
    """There is no epoch 0, and nothing between two of them."""
    loss = [1 / k for k in range(1, epochs + 1)]
    run = {"fit_loss": loss, "fit_accuracy": [0.5] * epochs, "validation_loss": loss[::-1]}
    axes = styled(curves.learning_curves)({"full": run}).axes[0]
    assert set(axes.get_xticks()) == ticks
    assert [list(line.get_ydata()) for line in axes.lines] == [loss, loss[::-1]]


def test_steps_lead_from_training_images_to_the_target(tmp_path):
    """Bars are errors from 0 and steps from one error to the next, in percent."""
    results, _ = results_of("shift", tmp_path)
    axes = draw_one("shift-errors", results).axes[0]
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
    results, _ = results_of("shift", tmp_path)
    totals: dict = {}
    for bar in draw_one("shift-effects", results).axes[0].patches:
        totals.setdefault(bar.get_facecolor(), []).append(bar.get_width())
    assert [sum(widths) for widths in totals.values()] == pytest.approx([10] * 6)


def test_methods_that_use_labels_of_the_target_stand_apart(tmp_path):
    """Gains in points; the unadapted head is the line at 0."""
    results, _ = results_of("shift", tmp_path)
    axes = draw_one("shift-adaptation", results).axes[0]
    assert points(axes, "#0072B2") == pytest.approx([5, -2])
    assert points(axes, "#E69F00", "s") == pytest.approx([9])
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == "50 labels per class"


def test_subgroups_show_the_groups_that_have_numbers(tmp_path):
    """A mark for each, at its value."""
    results, _ = results_of("shift", tmp_path)
    panels = {x.get_title(loc="left"): x for x in draw_one("shift-subgroups", results).axes}
    assert list(panels) == ["accuracy", "AUROC", "sensitivity", "specificity"]
    assert points(panels["AUROC"], "#0072B2") == pytest.approx([0.85, 0.75])
    names = [t.get_text() for t in panels["accuracy"].get_yticklabels()]
    assert names == ["sex: $F$", "sex: M", "sex: unknown"]


def test_the_figure_of_the_page_shows_every_model_in_every_domain():
    """A point and a number for each."""
    series = {"mlp": {"validation": (0.9, 0.8, 0.95), "b": (0.7, None, None)}, "linear": {}}
    axes = styled(forest.summary)(series).axes[0]
    assert points(axes, "#0072B2") == [90, 70]
    assert [text.get_text() for text in axes.texts] == ["90.0", "70.0"]
    with pytest.raises(NothingToDrawError):
        forest.summary({})


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """A tiny study whose features are stored; the current folder is its folder."""
    monkeypatch.delenv("HEADRACE_FEATURES", raising=False)
    return stored_tiny_study(tmp_path, monkeypatch, source=40, target=20)


def test_the_command_draws_unless_told_not_to(study_file, monkeypatch):
    """One line says where figures are; one that fails is a warning and does not fail the stage."""
    monkeypatch.setenv("HEADRACE_SHARED", "1")  # images of patients are private all the same
    arguments = ["heads", str(study_file), "--only", "prior", "--quick"]
    folder = study_file.parent / "results" / "tiny" / "figures"
    assert CliRunner().invoke(main, [*arguments, "--no-figures"]).exit_code == 0
    assert not folder.exists()
    before = os.umask(0o022)
    result = CliRunner().invoke(main, arguments)
    os.umask(before)
    assert result.exit_code == 0
    assert "\nfigures: results/tiny/figures (" in result.stdout
    names = ("heads-roc-tiny.svg", "heads-errors-tiny.png")
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in names]
    assert modes == [0o644, 0o600]

    def broken(*_):
        raise OSError("no space")

    monkeypatch.setattr(cli, "_draw", broken)
    result = CliRunner().invoke(main, [*arguments, "--preprocessing", "none", "--json"])
    assert result.exit_code == 0
    assert "warning: figures of heads are missing: " in result.stderr
    assert json.loads(result.stdout)["backbones"]
