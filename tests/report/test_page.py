"""The page: true to its records, inert whatever the names, plain about what is missing."""

import base64
import html
import json
import os
import re
import shutil
import stat
import subprocess
from contextlib import contextmanager
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MissingResultsError
from pipeline.evaluation.predictions import predictions_file, read_predictions
from pipeline.findings import compare_findings
from pipeline.report import parts_of
from pipeline.report.figures import FIGURES
from pipeline.report.figures.style import new_figure, png_of
from pipeline.report.page import FINDINGS_LAYOUT, STAGES, write_index, write_page
from pipeline.report.strips import error_sheet, strips
from pipeline.report.summary import page_head
from pipeline.report.table import Table, format_value
from pipeline.results import write_set
from pipeline.study_file import load_study
from pipeline.words import as_file_name, printable
from tests.report.conftest import HOSTILE
from tests.test_cli import run
from tests.tiny import install_trainable_tiny, record_of, rewrite

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ENDLESS = {"br", "meta", "img", "link", "hr", "input"}
SECTIONS = ["heads", "finetune", "shift", "audit"]


class Page(HTMLParser):
    """What a browser would make of it; tags that do not match are an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
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
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def drawn(original, tmp_path_factory):
    """A copy of the results; a figure that takes no time stands for those that stages draw."""
    folder = tmp_path_factory.mktemp("drawn") / "results"
    shutil.copytree(original / "results", folder)
    image = png_of(new_figure, 1.0)
    for stage in ("heads", "finetune", "shift"):
        images = {f"figures/{name}-tiny.png": image for name in FIGURES if name.startswith(stage)}
        rewrite(folder / "tiny" / f"{stage}.json", files=images)
    return folder


@pytest.fixture
def study(original, drawn, tmp_path, monkeypatch):
    """A copy of the results to do things to; the current folder holds it."""
    shutil.copytree(drawn, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    install_trainable_tiny(monkeypatch, tmp_path)
    return load_study(original / "study.toml")


def text_of(study, **how) -> str:
    return Path(write_page(study, **how)["file"]).read_text()


def page_of(study, **how) -> Page:
    return Page(text_of(study, **how))


def record(study, stage: str):
    return record_of(study.results / f"{stage}.json")


def change(study, stage: str, values):
    """Write a record as another run would."""
    rewrite(study.results / f"{stage}.json", values)


def test_the_page_begins_with_what_was_found_and_can_be_read_by_everybody(study):
    """A sentence, a status, a figure; then sections, figures before folded tables; texts."""
    page, text = page_of(study), text_of(study)
    assert Page(text).tags == page.tags  # nothing of the moment is in it
    tags = [tag for tag, _ in page.tags]
    assert tags.index("h1") < tags.index("strong") < tags.index("img") < tags.index("nav")
    (head,) = [b["best"] for b in record(study, "heads")["backbones"]]
    assert page.text.index("new patients of the source") < page.text.index(f"Accuracy of {head} on")
    assert re.search(r"Leaks none Shortcuts \w+( \w+)? Shift", page.text)
    assert [a["id"] for a in page.all("section")] == [*SECTIONS, "records"]
    assert [a["href"] for a in page.all("a")] == [f"#{name}" for name in (*SECTIONS, "records")]
    assert [a["width"] for a in page.all("img")] == ["496", *["850"] * len(FIGURES)]
    assert len(page.all("details")) >= 10
    assert "may not belong together" not in page.text
    assert "run headrace" not in page.text
    assert len(text) < 1_000_000
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    alts = [a["alt"] for a in page.all("img")]
    assert len(set(alts)) == len(alts)
    assert min(map(len, alts)) > 20
    assert re.search(r"validation \d+\.\d %", alts[0])
    assert page.all("html") == [{"lang": "en"}]
    assert "width=device-width" in page.all("meta")[1]["content"]
    assert '<th scope="row">linear</th>' in text
    assert re.search(r'<td class="n">\.\d\d\d \[\.\d\d\d, [.\d]+\]</td>', text)


def test_how_a_figure_is_read_is_said_once_and_where_the_others_are(study):
    """The first time that one of its kind occurs; those of other backbones are in a folder."""
    values = record(study, "shift")
    values["targets"] += [{**values["targets"][0], "backbone": "other"}]
    change(study, "shift", values)
    text = page_of(study).text
    said = [s for _, what, how in FIGURES.values() for s in (what, *re.split(r"(?<=\.) ", how))]
    for sentence in (*said, "The figures are of the backbone tiny. The folder figures has"):
        assert text.count(sentence) == 1, sentence


def test_two_sentences_stand_below_a_heading_and_the_others_are_folded(study):
    """The third one of a verdict is there too."""
    values = record(study, "shift")
    values["targets"][0]["verdict"] = ["The first.", "The second.", "The third."]
    change(study, "shift", values)
    text = text_of(study)
    assert "<p>The first. The second.</p>" in text
    assert text.index("<summary>More", text.index("The second.")) < text.index("<p>The third.</p>")


def test_every_number_and_sentence_of_a_stage_is_on_the_page(study):
    """The page has the tables that the terminal and the CSV files are made of."""
    text = " ".join(page_of(study).text.split())
    for part in (p for stage in STAGES for p in parts_of(stage, record(study, stage))):
        if isinstance(part, Table):
            assert printable(part.title) in text
            for row in part.rows:
                for column, value in zip(part.columns, row, strict=True):
                    if not column.csv_only:
                        assert format_value(value, column.kind) in text, (part.title, column)
        else:
            for sentence in re.split(r"(?<=\.) ", part):
                assert printable(sentence) in text


def test_names_cannot_become_markup(study):
    """No script, no handler, nothing loaded from elsewhere, and the name still to be read."""
    text = text_of(study)
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not {"srcset", "action", "style"} & set(attributes)
    assert all(a["src"].startswith("data:image/png") for a in page.all("img"))
    assert not re.search(r"https?:|@import|url\(", text)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert 'classes <script>alert(1), b" onmouseover="x\\u202e{{7*7}}' in page.text
    assert "\u202e" not in text


def test_no_file_and_no_patient_is_named(study, original):
    """Results on copies are shown, the copies are not."""
    values = record(study, "audit")
    assert any("_0.png" in result["examples"] for result in values["results"])
    text = text_of(study)
    assert "1 image is a copy of another, with equal pixels" in text
    names = {path.name for path in original.rglob("*.png") if "figures" not in path.parts}
    assert len(names) > 50
    assert not [name for name in names if name in text or name.split("_")[0] in text]


def test_a_stage_that_was_not_run_is_one_line(study, original):
    """The line names the command; one stage alone makes a page, none makes an error."""
    (study.results / "audit.json").unlink()
    said = run("report", original / "study.toml").stdout
    assert re.fullmatch(
        r"results/tiny/report.html: heads, finetune, shift, features \(0\.\d MB\)\n"
        r"not on the page: there is no results/tiny/audit.json: run headrace audit STUDY first\n",
        said,
    )
    shown = json.loads(run("report", original / "study.toml", "--json").stdout)
    assert shown["stages"] == ["heads", "finetune", "shift", "features"]
    for stage in ("heads", "finetune", "shift"):
        (study.results / f"{stage}.json").unlink()
    page = page_of(study)
    assert "there is no results/tiny/heads.json: run headrace heads STUDY first" in page.text
    assert [a["id"] for a in page.all("section")] == ["records"]
    assert len(re.findall(r"run headrace \w+ STUDY", page.text)) == len(STAGES) - 1
    (study.results / "features.json").unlink()
    with pytest.raises(MissingResultsError, match="nothing to report: .*run headrace features ST"):
        write_page(study)


def test_a_record_that_cannot_be_read_is_named(study):
    """Cut off, nested, of another layout, with a file of another run: one line, no section."""
    results = study.results
    (results / "heads.json").write_text('{"schema": 2, "rows"')
    (results / "audit.json").write_text("[" * 200_000)
    change(study, "shift", {"schema": 99})
    figure = results / "figures" / "finetune-forest-tiny.png"
    figure.write_bytes(figure.read_bytes() + b"x")
    page = page_of(study)
    for line in (
        f"{results / 'heads.json'} is not as headrace heads writes it",
        f"{results / 'audit.json'} is not as headrace audit writes it",
        "shift.json was written by another version; run headrace shift STUDY again",
        f"{figure} is not the file that finetune.json was written with",
        "Run headrace finetune STUDY again",
    ):
        assert line in page.text
    assert [a["id"] for a in page.all("section")] == ["records"]


def test_an_index_over_findings_has_a_first_screen_like_the_pages(study):
    """A sentence, the status, a figure; then the links, and tables or why there are none."""
    row = {"backbone": "tiny", "role": "target", "domain": "far", "images": 9, "positive": 4}
    row |= {"head": "lda", "p": 0.01, "p_adjusted": 0.01, "accuracy": None, "finding": "Edema"}
    row["auroc"] = {"estimate": 0.81, "low": 0.7, "high": None}
    table = {"schema": FINDINGS_LAYOUT, "stage": "heads", "rows": [row]}
    write_set(study.results / "findings_heads.json", table)
    write_set(study.results / "findings_shift.json", table | {"schema": 99})
    (study.results / "findings_audit.json").write_text("{")
    written = write_page(study)
    page = Page(Path(write_index(study, {"Edema": written})["file"]).read_text())
    tags = [tag for tag, _ in page.tags]
    assert tags.index("h1") < tags.index("strong") < tags.index("img") < tags.index("nav")
    assert "each with its own page. AUROC is 0.81 (Edema) on far." in page.text
    assert [a["alt"] for a in page.all("img")] == ["AUROC by finding. far: Edema 0.81"]
    assert all(word in page.text for _, _, word in written["status"])
    links = ["#findings", "#heads", "#shift", "#audit", "report.html"]
    assert [a["href"] for a in page.all("a")] == links
    assert f"Edema : {written['sentence']}" in page.text
    assert "Best head on validation for each finding" in page.text
    assert (
        "findings_shift.json was written by another version; run headrace shift STUDY" in page.text
    )
    assert "findings_audit.json is not as headrace audit writes it" in page.text


@contextmanager
def predictions(study, stage="shift", file="shift.h5"):
    """Of the tiny backbone, to be changed as another run would."""
    kept = read_predictions(study.results / file)
    yield kept["tiny"]
    rewrite(study.results / f"{stage}.json", files={file: predictions_file(kept)})


def test_records_that_do_not_belong_together_are_named_at_the_top(study):
    """Other features, other labels, another domain; the command names them too."""
    (row,) = record(study, "features")["backbones"]
    change(study, "features", {"backbones": [{**row, "fingerprint": "0" * 64}]})
    warning = "shift.json used other features of tiny than features.json describes"
    assert write_page(study)["stale"] == [warning]
    with predictions(study) as kept:
        kept.label[kept.domain == "far"] ^= 1
    labels = "heads.json and shift.json have different images, labels or classes for far"
    assert write_page(study)["stale"] == [labels, warning]
    with predictions(study) as kept:
        kept.domain[kept.domain == "far"] = "other"
    domains = ["far is not in shift.json", "other in shift.json is not in the study"]
    assert write_page(study)["stale"] == [*domains, warning]
    text = page_of(study).text
    assert text.index("These records may not belong together.") < text.index(domains[0])
    assert text.index(warning) < text.index("Accuracy")


def test_a_target_that_a_stage_left_out_is_no_contradiction(study):
    """Its section says why."""
    pair = {"target": "far", "backbone": "tiny", "reason": "it is empty"}
    for stage, file, left_out in (
        ("heads", "probabilities.h5", {"failed_targets": {"far": "it is empty"}}),
        ("shift", "shift.h5", {"not_compared": [pair]}),
    ):
        with predictions(study, stage, file) as kept:
            kept.domain[kept.domain == "far"] = "source"
        change(study, stage, left_out)
        assert "far is not in" not in str(write_page(study)["stale"])


def test_images_are_shown_to_the_owner_alone_and_only_when_asked_for(study, original):
    """Strips for each domain and class; the page says so on top and has the mode 0600."""
    before = os.umask(0o022)
    try:
        assert "data:image/jpeg" not in text_of(study)
        text = text_of(study, images=True)
    finally:
        os.umask(before)
    page = Page(text)
    assert text.index("This page shows images of patients.") < text.index("<h1>")
    assert stat.S_IMODE((study.results / "report.html").stat().st_mode) == 0o600
    assert f"validation: typical of {HOSTILE[0]}" in page.texts
    assert f"far: {printable(HOSTILE[1])}, uncertain" in page.texts
    images = [a for a in page.all("img") if a["src"].startswith("data:image/jpeg")]
    assert 4 * 6 <= len(images) <= 10 * 6
    assert all(re.search(r" \d\d %$", a["alt"]) for a in images)
    files = {path.name for path in original.rglob("*.png") if "figures" not in path.parts}
    assert not [file for file in files if file in text]


def test_errors_have_maps_where_they_were_drawn(study):
    """Until then the page says how; a sheet that was exchanged is not shown.

    Maps of the head take the place of its strip of errors, so these are shown once.
    """
    head = page_head(record(study, "heads"))
    assert "There are no maps of what moved the score: there is no" in text_of(study, images=True)
    files = {"far-target-errors.png": png_of(new_figure, 1.0), "far-target-sample.png": b""}
    best = {"backbone": head.backbone, "head": head.name, "reason": "it has no layers"}
    for name, instead_of, shown in (
        ("full", None, []),  # another model was asked for by its name
        ("knn", {**best, "head": "svm"}, []),
        ("ridge", best, ["ridge"]),
        (head.name, None, [head.name]),
    ):
        folder = study.results / "explain" / as_file_name(f"{head.backbone}-{name}")
        values = {"head": name, "backbone": head.backbone, "instead_of": instead_of}
        values["domains"] = [{"domain": "far", "role": "target"}]
        write_set(folder / "explain.json", values, files)
        page = page_of(study, images=True)
        maps = [image for image in page.all("img") if "the highest probability" in image["alt"]]
        alts = [image["alt"].split(" gives")[0] for image in maps]
        assert alts == [f"far: the errors to which {name}" for name in shown]
        strips = [text for text in page.texts if text.startswith("far: most confident errors")]
        assert len(strips) == (name != head.name)
        assert ("run headrace explain STUDY first" in page.text) == (not shown)
        assert ("has no maps: it has no layers. ridge on tiny" in page.text) == (name == "ridge")
    sheet = base64.b64encode(files["far-target-errors.png"]).decode()
    assert maps[0]["src"] == f"data:image/png;base64,{sheet}"
    (folder / "far-target-errors.png").write_bytes(b"another")
    assert "There are no maps of what moved the score" in text_of(study, images=True)


def test_strips_and_the_sheet_of_errors_show_what_they_say(study):
    """Typical: the median of the class; uncertain: no class is sure; errors: by confidence."""
    heads, (a, b) = record(study, "heads"), map(printable, HOSTILE)
    head = page_head(heads)
    with predictions(study, "heads", "probabilities.h5") as kept:
        rows = np.flatnonzero(kept.domain == "far")
        p = np.linspace(0.3, 0.9, len(rows))
        kept.proba[head.name, 0][rows] = np.c_[p, 1 - p]
        kept.label[rows], kept.patient[rows] = 0, rows  # no picture is passed over
    of_far = (strip for strip in strips(study, head, kept) if strip[0] == "far")
    shown = {title: [text for text, _ in pictures] for _, title, pictures in of_far}
    assert list(shown) == ["most confident errors", f"typical of {a}", f"{a}, uncertain"]
    assert [texts[0].split()[-2] for texts in shown.values()] == ["70", "60", "50"]
    errors = [f"{a}, called {b} {percent} %" for percent in (70, 69)]
    assert shown["most confident errors"][:2] == errors
    file = study.results / "probabilities.h5"
    assert list(error_sheet(study, heads, file.read_bytes())) == ["figures/heads-errors-tiny.png"]
    with predictions(study, "heads", "probabilities.h5") as kept:
        kept.proba[head.name, 0][:] = np.eye(2)[kept.label]
    assert not error_sheet(study, heads, file.read_bytes())


#: Opens everything, then measures; the title of the page is the result.
PROBE = """
for (const fold of document.querySelectorAll('details')) fold.open = true;
const rgba = text => { const v = text.match(/[\\d.]+/g).map(Number); return [...v, 1].slice(0, 4) };
const light = v => [.2126, .7152, .0722].reduce((sum, w, i) => { const c = v[i] / 255;
  return sum + w * (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4) }, 0);
const behind = node => { for (let at = node; at; at = at.parentElement) {
  const v = rgba(getComputedStyle(at).backgroundColor); if (v[3]) return v }
  return [255, 255, 255] };
let worst = 99;
for (const node of document.querySelectorAll('body *')) {
  if (![...node.childNodes].some(c => c.nodeType == 3 && c.data.trim())) continue;
  const [a, b] = [rgba(getComputedStyle(node).color), behind(node)].map(light).sort();
  worst = Math.min(worst, (b + .05) / (a + .05)) }
parent.document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, inner: innerWidth, contrast: worst,
  dark: light(rgba(getComputedStyle(document.body).backgroundColor)) < .2,
  lead: document.querySelector('.lead').getBoundingClientRect().bottom,
  figure: document.querySelector('img').getBoundingClientRect().bottom })
"""


def browse(page: Path, scheme: str) -> subprocess.CompletedProcess:
    """Standard output is the document, standard error has the messages of the console."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    arguments += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"]
    arguments += ["--dump-dom", "--window-size=1400,900", page.as_uri()]
    return subprocess.run(
        [CHROMIUM, *arguments], capture_output=True, text=True, check=True, timeout=60
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look with")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_browser_shows_all_of_it(study, width, scheme, tmp_path):
    """No sideways scrolling, no message, contrast of text, and the figure on the first screen."""
    page = Path(write_page(study, images=True)["file"]).resolve()
    assert "CONSOLE" not in browse(page, scheme).stderr
    text = page.read_text().replace("default-src 'none'; ", "")
    text = html.escape(text.replace("</body>", f"<script>{PROBE}</script></body>"))
    # A window is 500 pixels wide at least, a frame is not.
    frame = f'<iframe style="width:{width}px; height:800px; border:0" srcdoc="{text}"></iframe>'
    around = tmp_path / "around.html"
    around.write_text(f'<meta name="color-scheme" content="light dark"><title></title>{frame}')
    done = browse(around, scheme).stdout
    measured = json.loads(html.unescape(re.search("<title>(.*?)</title>", done)[1]))
    assert measured["wide"] <= measured["inner"] == width
    assert measured["contrast"] >= 4.5
    assert measured["dark"] == (scheme == "dark")
    if width == 1280:
        assert measured["lead"] < measured["figure"] <= 800


def test_the_page_reads_the_layouts_that_are_written(study):
    """Where a layout rises, its tables must be looked at."""
    written = {name: record(study, name).get("schema") for name in STAGES}
    assert {name: layout for name, (layout, _) in STAGES.items()} == written
    assert compare_findings("heads", study, {})["schema"] == FINDINGS_LAYOUT
