"""What stage 2 found, for a terminal: a ranked table for each domain, then what it allows to say.

Each table stands under the question that it answers, because "which trained head is better
here" and "which kind of head is better for data like this" have different answers.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable

from pipeline.compare import CompareReport, Row, Table
from pipeline.data.patients import FIT
from pipeline.evaluation.compare_heads import AREA_PATIENTS, BASELINE, BEST, Pair
from pipeline.evaluation.intervals import ROUGH_BELOW
from pipeline.evaluation.predictions import PROBABILITIES
from pipeline.evaluation.scores import ENSEMBLE, place_in_words, unscored
from pipeline.report.text_tables import WIDTH, new_table, p_text, render
from pipeline.words import counted, printable, zero_noise

_METRICS = {"accuracy": "accuracy", "auroc": "AUROC"}
_WORDS = ("better", "worse", "equivalent", "inconclusive")
#: Splits from which on more would hardly change the answer: ten times five folds.
_FIRM = 50


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table, or lines that need none, under the question that it answers.

    Attributes:
        question: Empty where the question of the section before goes on.
        lines: Before the table; the first is its title.
        grid: None where the lines say all.
        after: Sentences after the table.
    """

    question: str = ""
    lines: tuple[str, ...]
    grid: RichTable | None = None
    after: tuple[str, ...] = ()


def heads_text(report: CompareReport) -> str:
    """All tables of a comparison, backbone by backbone."""
    parts = []
    for name, table in report.tables.items():
        positive = f"; positive class: {printable(report.positive)}" if report.positive else ""
        title = f"{report.study} on {name}; classes: {', '.join(map(printable, report.classes))}"
        parts += [f"{title}{positive}", *map(_text, sections(report, table))]
    failures = [f"{f.head} on {f.backbone} failed: {f.reason}" for f in report.failures]
    parts += [textwrap.fill(text, WIDTH) for text in unscored(report.unlabelled, PROBABILITIES)]
    return "\n\n".join([*parts, *(["\n".join(failures)] if failures else [])])


def sections(report: CompareReport, table: Table) -> Iterator[Section]:
    """All that is said of one backbone, in the order of the questions."""
    yield _question_of_trained(report, table)
    places = list(dict.fromkeys((r.domain, r.role) for r in table.rows if r.role != FIT))
    for domain, role in places:
        yield _place(table, domain, role)
    yield from _of_seeds(table, places)
    yield from _of_procedures(table)
    yield from _of_the_best(table)


def _text(section: Section) -> str:
    first = f"{section.question.upper()} {section.lines[0]}".strip()
    found = [
        line
        for text in (first, *section.lines[1:])
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    ]
    if section.grid is not None:
        found.append(render(section.grid).strip("\n"))
    for text in section.after:
        found += textwrap.wrap(text, WIDTH, initial_indent=" ", subsequent_indent="   ")
    return "\n".join(found)


def _question_of_trained(report: CompareReport, table: Table) -> Section:
    if report.baseline in {row.head.removesuffix(ENSEMBLE) for row in table.rows}:
        against = (
            f"points: accuracy against the baseline {report.baseline}; p: after Holm; "
            "better and worse need p < 0.05, equivalent: within 1 point"
        )
    else:
        against = f"the baseline {report.baseline} is not among the heads that were fitted"
    lines = [
        "The same images for all, 95 % intervals",
        against,
        "~ cannot be told from the best of its table (model confidence set, 90 %)",
    ]
    if table.best:
        lines.append(f"* best by validation: {head_name(table.best)}")
    return Section(question="Which trained head is better on these images?", lines=tuple(lines))


def _place(table: Table, domain: str, role: str) -> Section:
    """The heads of one domain, the most accurate first."""
    rows = {
        (r.head, r.metric): r for r in reversed(table.rows) if (r.domain, r.role) == (domain, role)
    }
    heads = _final([head for head, _ in reversed(rows)])
    heads.sort(key=lambda head: -rows[head, "accuracy"].value)
    against = {
        p.head: p
        for p in table.pairs
        if (p.domain, p.role, p.metric, p.reference) == (domain, role, "accuracy", BASELINE)
    }
    best = next(
        (s.members for s in table.best_sets
         if (s.domain, s.role, s.metric) == (domain, role, "accuracy")), ()
    )  # fmt: skip
    grid = new_table(["head", "accuracy", "AUROC", "points", "p", "it is", "fit s"], left=1)
    for head in heads:
        marks = ("*" if head == table.best else "") + ("~" if head in best else "")
        grid.add_row(
            f"{head_name(head)} {marks}".rstrip(),
            _with_interval(rows.get((head, "accuracy"))),
            _with_interval(rows.get((head, "auroc"))),
            *_against(against.get(head)),
            f"{rows[head, 'accuracy'].seconds:.1f}",
        )
    one = rows[heads[0], "accuracy"]
    where = place_in_words(domain, role)
    here = [p for p in table.pairs if (p.domain, p.role) == (domain, role)]
    by_auroc = verdicts("AUROC", [p for p in here if _is(p, "auroc", BASELINE)])
    against_best = verdicts("accuracy", [p for p in here if _is(p, "accuracy", BEST)], " *")
    return Section(
        lines=(f"{where}: {counted(one.n, 'image')} of {counted(one.groups, 'patient')}",),
        grid=grid,
        after=(
            *(line for line in (by_auroc, against_best) if line),
            *_reservations(one, here, area=any(metric == "auroc" for _, metric in rows)),
        ),
    )


def _reservations(one: Row, pairs: Sequence[Pair], *, area: bool) -> Iterator[str]:
    """What these images are too few for."""
    if one.groups < ROUGH_BELOW:
        yield f"intervals by patient are rough: {counted(one.groups, 'patient')}"
    if any(0 in (p.only_head, p.only_baseline) for p in pairs):
        yield (
            "an interval is long on a side on which no image is seen to differ: so few patients "
            "cannot show that none would"
        )
    if area and pairs and not any(p.metric == "auroc" for p in pairs):
        yield f"AUROC is not compared: that takes {AREA_PATIENTS} patients of each of two classes"


def _is(pair: Pair, metric: str, reference: str) -> bool:
    return (pair.metric, pair.reference) == (metric, reference)


def verdicts(what: str, pairs: Sequence[Pair], mark: str = "") -> str:
    """Who is better, worse, equivalent or inconclusive against one head; empty without pairs.

    Args:
        what: They are compared by.
        pairs: All against the same head.
        mark: Stands after that head's name.
    """
    if not pairs:
        return ""
    words: dict[str, list[str]] = {}
    for pair in pairs:
        words.setdefault(pair.verdict, []).append(head_name(pair.head))
    order = [word for word in _WORDS if word in words]
    told = "; ".join(f"{word}: {', '.join(words[word])}" for word in order)
    return f"{what} against {head_name(pairs[0].baseline)}{mark}: {told}"


def _final(heads: Sequence[str]) -> list[str]:
    """The ensemble in place of the seeds, where there are several."""
    return list({head.removesuffix(ENSEMBLE): head for head in heads}.values())


def head_name(head: str) -> str:
    """Of a head as tables call it."""
    kind = head.removesuffix(ENSEMBLE)
    return kind if kind == head else f"{kind} ensemble"


def _with_interval(row: Row | None) -> str:
    return "-" if row is None else with_interval(row.value, row.low, row.high)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A share with its bounds, where it has them."""
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} {_bounds(low, high)}"


def _bounds(low: float, high: float) -> str:
    """Of shares, four characters each: the leading zero says nothing, nor does 1's last."""
    return f"[{_short(low)}, {_short(high)}]"


def _short(share: float) -> str:
    text = f"{share:.3f}"
    return text.removeprefix("0") if text.startswith("0.") else text[:4]


def _against(pair: Pair | None) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    return points_text(pair.difference, pair.low, pair.high), p_text(pair.p_holm), pair.verdict


def points_text(difference: float, low: float, high: float) -> str:
    """A difference of shares in points, with its interval."""
    points, low, high = (100 * zero_noise(share) for share in (difference, low, high))
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def _of_seeds(table: Table, places: Sequence[tuple[str, str]]) -> Iterator[Section]:
    """How far trainings of one kind of head lie apart."""
    rows = [s for s in table.seed_spread if s.metric == "accuracy"]
    if not rows:
        return
    grid = new_table(["head", "on", "mean", "sd", "beats the baseline"], left=2)
    for s in sorted(rows, key=lambda s: places.index((s.domain, s.role))):
        wins = "" if s.wins is None else f"{s.wins:.2f} [{s.wins_low:.2f}, {s.wins_high:.2f}]"
        where = place_in_words(s.domain, s.role)
        grid.add_row(s.head, where, f"{s.mean:.3f} {_bounds(s.low, s.high)}", f"{s.sd:.3f}", wins)
    title = (
        f"Accuracy over {rows[0].seeds} trainings; intervals over seeds and patients, "
        "of wins over seeds"
    )
    yield Section(question="How much does the seed matter?", lines=(title,), grid=grid)


def _of_procedures(table: Table) -> Iterator[Section]:
    rows = [p for p in table.procedures if p.metric == "accuracy"]
    if not rows:
        return
    grid = new_table(["head", "points", "P(worse)", "P(equal)", "P(better)", "p"], left=1)
    for p in sorted(rows, key=lambda p: -p.difference):
        chances = (f"{one:.2f}" for one in (p.worse, p.equal, p.better))
        grid.add_row(p.head, f"{100 * p.difference:+.1f}", *chances, p_text(p.p_holm))
    few = "" if rows[0].splits >= _FIRM else "; --repeats 10 makes it firmer"
    legend = (
        f"points: accuracy against {rows[0].baseline}; equal: within {100 * rows[0].rope:.0f} "
        f"point; p: Nadeau and Bengio's, after Holm{few}"
    )
    yield Section(
        question="Which kind of head is better for data like this?",
        lines=(f"Trained again on each of {rows[0].splits} folds of the fit split", legend),
        grid=grid,
    )


def _of_the_best(table: Table) -> Iterator[Section]:
    if table.honest:
        yield Section(
            question="What is the best of them worth on new patients?",
            lines=("Out of fold on the fit split, BBC-CV", *honest_lines(table)),
        )


def honest_lines(table: Table) -> list[str]:
    """What the best of the heads is worth where it was not chosen, a line for each metric."""
    return [
        f"{_METRICS[h.metric]}: honestly {h.honest:.3f} {_bounds(h.low, h.high)}; {h.head} "
        f"looks best of {h.among} with {h.apparent:.3f}, optimism {h.optimism:+.4f}"
        for h in table.honest
    ]
