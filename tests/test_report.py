"""The page: true to its records, inert whatever the names, plain about what is not there."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.text import Text
from PIL import Image

from cache import disk
from cache.errors import WriteFailedError
from pipeline.audit.stage import SCHEMA as AUDIT_SCHEMA
from pipeline.audit.stage import AuditOptions, audit
from pipeline.cli import main
from pipeline.compare import SCHEMA as HEADS_SCHEMA
from pipeline.compare import CompareOptions, Table, compare, from_json, to_json
from pipeline.errors import MissingPredictionsError
from pipeline.features.engines import EngineChoice
from pipeline.features.extract import ExtractOptions, extract
from pipeline.finetune.methods import TrainingOptions
from pipeline.finetune.stage import SCHEMA as FINETUNE_SCHEMA
from pipeline.finetune.stage import FinetuneOptions, finetune
from pipeline.report.figures import finetune as finetune_figures
from pipeline.report.figures import heads as heads_figures
from pipeline.report.figures import shift as shift_figures
from pipeline.report.figures.shift_data import read_shift
from pipeline.report.figures.style import image_bytes, new_figure, styled
from pipeline.report.page_figures import FIGURES
from pipeline.report.records import STAGES
from pipeline.report.shift_subgroups import subgroup_parts
from pipeline.report.stage import write_page
from pipeline.shift.record import SCHEMA as SHIFT_SCHEMA
from pipeline.shift.stage import ShiftOptions, analyse
from pipeline.study import load_study
from pipeline.words import printable
from tests.figure_data import some_subgroups, write_shift
from tests.tiny import write_tiny_study
from tests.tiny_trainable import install_trainable_tiny

#: Figures of stage 4 that show targets without labels too.
EVERYWHERE = {name for name, (shows, _) in FIGURES.items() if "{everywhere}" in shows}
#: Class names that try to become markup, to leave an attribute, and to turn the text round.
HOSTILE = ("<script>alert(1)", 'b" onmouseover="x\u202e{{7*7}}')
ENDLESS = {"br", "meta", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What a browser would make of it; tags that do not match are an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        if tag not in ENDLESS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def within(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A study whose names are hostile, with a copied image and every stage run once."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        install_trainable_tiny(patch, folder)
        patch.chdir(folder)
        patch.delenv("HEADRACE_FEATURES", raising=False)
        file = write_tiny_study(folder, source=60, target=40)
        for domain in ("here", "there"):
            for plain, hostile in zip("ab", HOSTILE, strict=True):
                (folder / domain / plain).rename(folder / domain / hostile)
        image = min((folder / "here" / HOSTILE[0]).iterdir())
        shutil.copy(image, image.with_name(f"{image.stem}<img src=x onerror=y>.png"))
        study = load_study(file)
        engine = EngineChoice(engine="torch", device="cpu", batch_size=8)
        extract(study, ExtractOptions(engine=engine))
        audit(study, AuditOptions(probes=False))
        heads = ("linear", "prior", "mlp")
        compare(study, CompareOptions(heads=heads, seeds=2, repeats=1, draws=100))
        training = TrainingOptions(device="cpu", epochs=2)
        finetune(study, FinetuneOptions(methods=("lp", "last_block"), training=training))
        analyse(study, ShiftOptions(draws=99, seeds=2))
        _draw(study.results / "figures")
        yield folder


def _draw(folder: Path):
    """Stands for what the stages draw, in no time."""
    folder.mkdir()
    figure = new_figure(1.0)
    for kind in ("png", "svg"):
        for name in FIGURES:
            (folder / f"{name}-tiny.{kind}").write_bytes(image_bytes(figure, kind))


@pytest.fixture
def study(original, tmp_path, monkeypatch):
    """A copy of the results to do things to; the current folder holds it."""
    shutil.copytree(original / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    install_trainable_tiny(monkeypatch, tmp_path)
    return load_study(original / "study.toml")


def page_of(study) -> Page:
    return Page(write_page(study).file.read_text())


def record(study, stage: str):
    return json.loads((study.results / STAGES[stage].file).read_text())


def change(study, stage: str, values):
    """Write a record without making its figures older than it."""
    file = study.results / STAGES[stage].file
    time = file.stat().st_mtime
    file.write_text(json.dumps(values))
    os.utime(file, (time, time))


def test_every_stage_has_its_chapter_with_tables_and_figures(study):
    """What a reader asks is answered in order; every figure of the table is there."""
    page = page_of(study)
    chapters = [attributes["id"] for attributes in page.all("section")]
    assert chapters == ["study", "answer", "audit", "heads", "finetune", "shift"]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in chapters]
    assert len(page.all("img")) == len(FIGURES)
    captions = page.within("span")
    for wanted in ("Domains", "Records below", "validation: ", "there: ", "Accuracy, 95 %"):
        assert any(caption.startswith(wanted) for caption in captions), wanted
    assert "Fixes: there" in captions
    assert "may not belong together" not in page.text
    assert "run: headrace" not in page.text


def test_numbers_are_those_of_the_records(study):
    """Honest value, verdict, comparison with the frozen probe and findings, word for word."""
    text = page_of(study).text
    (honest, *_) = record(study, "heads")["honest"]
    assert f"honestly {honest['honest']:.3f}" in text
    (target,) = record(study, "shift")["targets"]
    for sentence in target["verdict"]["text"].split(". "):
        assert sentence.rstrip(".") in text
    assert target["forecast"]["warning"] in text
    for finding in record(study, "audit")["findings"]:
        assert finding["severity"] == "ok" or printable(finding["found"]) in text
    for pair in record(study, "finetune")["pairs"]:
        if pair["metric"] == "accuracy":
            low, high = 100 * pair["low"], 100 * pair["high"]
            points = f"{100 * pair['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            assert f"{points} {pair['verdict']}" in text
    for row in target["fixes"]:
        assert f"{row['name']} {row['accuracy']:.3f}" in text


def test_subgroups_are_on_the_page_without_a_figure(study):
    """The groups as a table and what follows from them as sentences, as in shift.md."""
    values = record(study, "shift")
    values["targets"][0]["subgroups"] = some_subgroups(2, np.random.default_rng(0))
    change(study, "shift", values)
    shutil.rmtree(study.results / "figures")
    page = page_of(study)
    assert not page.all("img")
    (first, *_, last) = subgroup_parts(values["targets"][0])
    assert "Subgroups by sex: source" in page.text
    assert "Subgroups by view: there" in page.text
    for part in (first, last):
        assert " ".join(cell for row in part.rows for cell in row) in page.text
        assert all(said in page.text for said in part.sentences)
    assert "worst in M with" in page.text


def test_captions_name_the_targets_that_are_drawn(study):
    """No figure that needs labels is said to show a target without; nor one not compared."""
    values = record(study, "shift")
    (one,) = values["targets"]
    one["subgroups"] = some_subgroups(2, np.random.default_rng(0))[2:]
    blind = one | {"target": "blind", "said": "?", "needs_labels": ["x"]}
    left = {"backbone": "tiny", "target": "gone", "images": 3, "reason": "one patient"}
    change(study, "shift", values | {"unlabelled": [blind], "not_compared": [left]})
    alts = {name: a["alt"] for name, a in zip(FIGURES, page_of(study).all("img"), strict=True)}
    of_shift = {name: alt for name, alt in alts.items() if name.startswith("shift-")}
    assert {name for name, alt in of_shift.items() if "there and blind" in alt} == EVERYWHERE
    assert all("blind" not in alt for name, alt in of_shift.items() if name not in EVERYWHERE)
    assert all("there" in alt and "gone" not in alt for alt in of_shift.values())
    assert "in each subgroup of there (tiny)" in of_shift["shift-subgroups"]


def test_figures_draw_the_targets_that_captions_name(tmp_path):
    """Those that show a target without labels, and no other, are captioned so."""
    report = write_shift(tmp_path, targets=("open",))
    kept = ("backbone", "detect", "forecast")
    blind = {name: report["targets"][0][name] for name in kept} | {"target": "blind"}
    (tmp_path / "shift.json").write_text(json.dumps(report | {"unlabelled": [blind]}))
    (data,) = read_shift(tmp_path)
    found = set()
    for name, draw in shift_figures.FIGURES.items():
        figure = styled(draw)(data)
        if any("blind" in text.get_text() for text in figure.findobj(Text)):
            found.add(name)
    assert found == EVERYWHERE


def test_names_cannot_become_markup(study):
    """No script, no handler, nothing loaded from elsewhere, and the name still to be read."""
    text = write_page(study).file.read_text()
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not {"srcset", "action", "style"} & set(attributes)
    assert all(
        a["src"].startswith(("data:image/svg+xml", "data:image/png")) for a in page.all("img")
    )
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert not re.search(r"https?:|@import|url\(", text)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert 'Classes: <script>alert(1), b" onmouseover="x\\u202e{{7*7}}' in page.text
    assert "\u202e" not in text


def test_no_file_and_no_patient_is_named(study, original):
    """Findings of copies are told, the copies are not."""
    values = record(study, "audit")
    assert any("_0.png" in finding["named"] for finding in values["findings"])
    doubt = {
        "check": "labels",
        "severity": "note",
        "where": "there",
        "found": "1 image is doubtful",
    }
    named = min(path.name for path in (original / "there").rglob("*.png"))
    doubt |= {"named": f"there/{named} (seems b, 0.99)", "advice": "", "values": {}}
    change(study, "audit", values | {"findings": [*values["findings"], doubt]})
    text = write_page(study).file.read_text()
    assert "1 image is a copy of another, to the pixel" in text
    assert "1 image is doubtful" in text
    names = {path.name for path in original.rglob("*.png") if "figures" not in path.parts}
    assert len(names) > 50
    assert not [name for name in names if name in text or name.split("_")[0] in text]


def test_the_page_can_be_read_by_everybody(study):
    """One h1, no level left out, captions, headings of rows and columns, alternative texts."""
    page = page_of(study)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    alts = [a["alt"] for a in page.all("img")]
    assert all(len(alt) > 20 for alt in alts)
    assert len(set(alts)) == len(alts)
    assert "Accuracy of 3 heads with 95 % intervals on validation and there (tiny)." in alts
    assert page.all("html") == [{"lang": "en"}]
    assert "width=device-width" in page.all("meta")[1]["content"]


def test_the_same_files_give_the_same_page(study):
    """Nothing of the moment is in it; and it is of a size that can be sent."""
    first = write_page(study)
    before = first.file.read_bytes()
    assert write_page(study).file.read_bytes() == before
    assert len(before) == first.size < 1_000_000


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_not_run_is_one_line(study, stage):
    """The line names the command; the other chapters are there."""
    (study.results / STAGES[stage].file).unlink()
    page = page_of(study)
    assert f"{stage} has not been run; run: headrace {stage} STUDY" in page.text
    chapters = {attributes["id"] for attributes in page.all("section")}
    assert chapters == {"study", "answer", "audit", "heads", "finetune", "shift"} - {stage}


def test_a_trial_of_finetune_is_not_called_nothing(study):
    """Its file is named, with the command for the whole; beside a whole run it is no matter."""
    file = study.results / STAGES["finetune"].file
    shutil.copy(file, file.with_name("comparison-limit40.json"))
    assert "trial" not in page_of(study).text
    file.unlink()
    said = (
        "of finetune only a trial was run, which is not on this page (comparison-limit40.json); "
        "for the whole run: headrace finetune STUDY"
    )
    assert said in page_of(study).text
    assert "finetune has not been run" not in page_of(study).text


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_alone_makes_a_page(study, stage):
    """Whichever it is."""
    for name in STAGES.keys() - {stage}:
        (study.results / STAGES[name].file).unlink()
    page = page_of(study)
    assert len(re.findall(r"run: headrace \w+ STUDY", page.text)) == len(STAGES) - 1


def test_without_any_stage_the_error_says_what_to_run(study):
    """An empty page would help nobody."""
    for stage in STAGES.values():
        (study.results / stage.file).unlink()
    with pytest.raises(MissingPredictionsError, match="headrace features STUDY, then headrace he"):
        write_page(study)
    assert not (study.results / "report.html").exists()


def test_a_record_that_cannot_be_read_is_named(study):
    """Cut off, or of another layout: one line, with the command that writes it again."""
    (study.results / "heads.json").write_text('{"schema": 2, "rows"')
    change(study, "shift", record(study, "shift") | {"schema": 99})
    change(study, "audit", [])
    change(study, "features", {})
    text = page_of(study).text
    assert "heads.json cannot be read; run again: headrace heads STUDY" in text
    ours = STAGES["shift"].layout
    said = f"shift.json has layout 99, this page reads {ours}; run again: headrace shift STUDY"
    assert said in text
    assert "audit.json has layout none" in text
    assert "features.json has layout none" in text


@pytest.mark.parametrize(
    ("stage", "key"), [("heads", "pairs"), ("shift", "trained"), ("heads", "rows")]
)
def test_a_record_that_lacks_something_is_an_error(study, stage, key):
    """Half a chapter would pass for a whole one."""
    values = record(study, stage)
    del values[key]
    change(study, stage, values)
    with pytest.raises(MissingPredictionsError, match=f"not what headrace {stage} writes.*{key}"):
        write_page(study)


def test_the_page_reads_the_layouts_that_are_written():
    """Where a layout rises, the page must be looked at."""
    written = {
        "features": None, "audit": AUDIT_SCHEMA, "heads": HEADS_SCHEMA,
        "finetune": FINETUNE_SCHEMA, "shift": SHIFT_SCHEMA,
    }  # fmt: skip
    assert {name: stage.layout for name, stage in STAGES.items()} == written


def test_every_figure_that_is_drawn_has_its_words():
    """A figure without a caption would be left out without a word."""
    drawn = {*heads_figures.FIGURES, *finetune_figures.FIGURES, *shift_figures.FIGURES}
    assert set(FIGURES) == drawn


def _other_study(study):
    change(study, "heads", record(study, "heads") | {"study": "other"})


def _other_classes(study):
    change(study, "finetune", record(study, "finetune") | {"classes": ["x", "y"]})


def _other_images(study):
    values = record(study, "shift")
    values["targets"][0]["inputs"]["target"] = "0" * 64
    change(study, "shift", values)


def _other_features(study):
    values = record(study, "features")
    values["backbones"][0]["fingerprint"] = "0" * 64
    change(study, "features", values)


def _other_target(study):
    values = record(study, "shift")
    values["targets"][0]["target"] = "elsewhere"
    change(study, "shift", values)


def _fewer_images(study):
    change(study, "audit", record(study, "audit") | {"images": 7})


def _later_record(study):
    os.utime(study.results / "heads.json", (2e9, 2e9))


STALE = [
    (_other_study, "heads.json is of the study other, not of tiny"),
    (_other_classes, "but x, y in comparison.json"),
    (_other_images, "heads.json and shift.json are about different images or labels of there"),
    (_other_features, "shift.json was made from other features of tiny than features.json"),
    (_other_target, "elsewhere is in shift.json but not in the study file"),
    (_other_target, "there is in the study file but not in shift.json"),
    (_fewer_images, "the number of images differs: 101 in heads.json, 7 in audit.json"),
    (_later_record, "figures of heads are older than heads.json"),
]


@pytest.mark.parametrize(("meddle", "said"), STALE)
def test_records_that_do_not_belong_together_are_told_first(study, meddle, said):
    """At the top of the page, and by the command."""
    meddle(study)
    report = write_page(study)
    assert [line for line in report.stale if said in line]
    text = Page(report.file.read_text()).text
    assert text.index("These records may not belong together.") < text.index(said)
    assert text.index(said) < text.index("What was studied")


def test_leaks_stand_before_every_answer(study):
    """Numbers of a study with a leak are not to be believed."""
    values = record(study, "audit")
    values["findings"][0] |= {"severity": "leak", "found": "3 patients are in both", "values": {}}
    values["counts"]["leak"] = 1
    change(study, "audit", values)
    text = page_of(study).text
    assert text.index("The audit found leaks") < text.index("Does a head hold in another hospital?")
    assert "No leak." not in text


def test_without_an_honest_value_the_page_says_so(study):
    """The best of many is not shown as if it were worth what it looks."""
    change(study, "heads", record(study, "heads") | {"honest": [], "procedures": []})
    assert "what the best is honestly worth was not asked" in page_of(study).text


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figures_keep_their_scale(study, kind):
    """Whichever of PNG and SVG is smaller and shown, an inch is an inch."""
    for file in (study.results / "figures").iterdir():
        if file.suffix != f".{kind}":
            file.unlink()
    assert {a["width"] for a in page_of(study).all("img")} == {"828"}


def test_a_figure_that_does_not_say_its_size_is_shown(study):
    """At the width of a page's text."""
    folder = study.results / "figures"
    Image.new("RGB", (3, 3)).save(folder / "heads-roc-tiny.png")
    (folder / "heads-path-tiny.svg").write_text("<svg></svg>")
    assert {a["width"] for a in page_of(study).all("img")} == {"828"}


def test_a_write_that_fails_leaves_the_page_before(study, monkeypatch):
    """A page that is there is whole."""
    before = write_page(study).file.read_bytes()
    change(study, "audit", record(study, "audit") | {"images": 7})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(WriteFailedError):
        write_page(study)
    assert (study.results / "report.html").read_bytes() == before
    assert [path.name for path in study.results.glob(".tmp-*")] == []


def test_heads_json_is_read_back_as_it_was_written(study):
    """Every list, with its backbone."""
    values = record(study, "heads")
    assert to_json(from_json(values)) == values
    lists = {f.name for f in fields(Table)} - {"rows", "best"}
    assert lists <= values.keys()
    assert all(values[name] for name in lists)


def test_the_command_says_where_the_page_is(study, original):
    """A line, and one for each stage that is not on it; --json has the same."""
    (study.results / "audit.json").unlink()
    result = CliRunner().invoke(main, ["report", str(original / "study.toml")])
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"results/tiny/report.html: features, heads, .* \(0\.\d MB\)", first)
    assert second == "not on it: audit has not been run; run: headrace audit STUDY"
    result = CliRunner().invoke(main, ["report", str(original / "study.toml"), "--json"])
    values = json.loads(result.stdout)
    assert values["file"] == "results/tiny/report.html"
    assert values["stages"] == ["features", "heads", "finetune", "shift"]
    shutil.rmtree(study.results)
    result = CliRunner().invoke(main, ["report", str(original / "study.toml")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: results/tiny holds nothing to report")


def test_the_page_needs_no_torch(study, original):
    """Nor matplotlib: it only puts together what is there."""
    code = (
        "import sys; from pathlib import Path; import pipeline.features.backbones as b;"
        "b.BACKBONES = {**b.BACKBONES, 'tiny': None};"
        "from pipeline.study import load_study; from pipeline.report.stage import write_page;"
        f"write_page(load_study(Path({str(original / 'study.toml')!r})));"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
