"""The summary of a study: the best head, its headline, and the status of four checks.

All of it is about the head that is best on validation among all backbones. Only the status
"Shift" also warns of a loss of another head that was analysed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.compare_heads import AUROC_PATIENTS
from pipeline.evaluation.heads_record import heads_by_validation
from pipeline.evaluation.intervals import ROUGH_BELOW
from pipeline.report.heads import name_of_domain
from pipeline.report.table import Record
from pipeline.words import counted

#: By stage.
_Records = Mapping[str, Record]
#: (estimate, low, high).
Interval = tuple[float, float | None, float | None]

#: Checks of the audit that find shortcuts: something other than the disease predicts the label.
_SHORTCUTS = ("file properties", "border", "corners")


@dataclass(frozen=True, kw_only=True)
class PageHead:
    """The head that a page is about; ``accuracy`` is by domain, validation first."""

    name: str
    backbone: str
    accuracy: Mapping[str, Interval]


def page_head(heads: Record | None) -> PageHead | None:
    """The best head on validation in the record of ``headrace heads``; None without a record."""
    if heads is None:
        return None
    backbone, name = heads_by_validation(heads["backbones"])[0]
    accuracy = _accuracy(heads, backbone, name, "head")
    return PageHead(name=name, backbone=backbone, accuracy=accuracy)


def _accuracy(record: Record, backbone: str, name: str, column: str) -> dict[str, Interval]:
    """Accuracy by domain of a head or a method; the first seed if there are several."""
    return {
        name_of_domain(domain): _interval(row["scores"]["accuracy"])
        for domain in _domains(record, backbone)
        for row in reversed(domain["rows"])
        if row[column] == name
    }


def _domains(record: Record, backbone: str) -> list[Record]:
    rows = (results for results in record["backbones"] if results["backbone"] == backbone)
    return [domain for results in rows for domain in results["domains"]]


def _interval(value: Record) -> Interval:
    return value["estimate"], value["low"], value["high"]


def models(records: _Records, head: PageHead) -> dict[str, Mapping[str, Interval]]:
    """Accuracy by domain of the page's head, the linear head and the best trained network."""
    series: dict[str, Mapping[str, Interval]] = {head.name: head.accuracy}
    if linear := _accuracy(records["heads"], head.backbone, "linear", "head"):
        series["linear"] = linear
    finetune = records.get("finetune", {"backbones": ()})
    rows = [row for domain in _domains(finetune, head.backbone) for row in domain["rows"]]
    trained = {
        f"{name}, fine-tuned": _accuracy(finetune, head.backbone, name, "method")
        for name in dict.fromkeys(row["method"] for row in rows if row["method"] != "lp")
    }
    best = max(trained, key=lambda name: trained[name].get("validation", (0.0,))[0], default="")
    return series | ({best: trained[best]} if best else {})


def headline(records: _Records, head: PageHead | None) -> str:
    """The result of a study in a few short sentences."""
    leaks, sentences = _count_leaks(records), ["No head has been compared yet."]
    if head is not None:
        analysed = _analysed(records.get("shift"), head)
        sentences = [*_accuracies(head, analysed), *_gain_of_training(analysed)]
    if leaks:
        sentences.insert(
            0,
            "Images or patients are in both training and test data: do not trust the numbers here.",
        )
    elif leaks == 0:
        sentences.append("No leak was found.")
    return " ".join(sentences)


def _analysed(shift: Record | None, head: PageHead) -> dict[str, Record]:
    """By target what was found about a loss of the page's head."""
    return {
        target["target"]: target
        for target in (shift["targets"] if shift else ())
        if (target["backbone"], target["head"]) == (head.backbone, head.name) and target["effects"]
    }


def _by_name(target: Record) -> dict[str, Record]:
    return {effect["name"]: effect for effect in target["effects"]}


def _accuracies(head: PageHead, analysed: Mapping[str, Record]) -> Iterator[str]:
    """Sentences on the accuracy on the source and on each target.

    That on the source is the one that a loss is measured from, where a loss was analysed: on
    validation the best head is a little too good, because it was chosen there.
    """
    (domain, on_source), *targets = head.accuracy.items()
    before = on_source[0]
    if domain in _PATIENTS:
        before = next((target["accuracy"]["source"] for target in analysed.values()), before)
    level = f"{_percent(before)} on {_PATIENTS.get(domain, domain)}"
    falls: list[str] = []
    no_loss: list[str] = []
    untested: list[str] = []
    for target, value in targets:
        loss = _loss_is_shown(analysed[target]) if target in analysed else None
        lower = value[0] < before and (_disjoint(value, on_source) if loss is None else loss)
        kind = falls if lower else no_loss if loss is False else untested
        kind.append(f"{_percent(value[0])} on {target}")
    yield f"Accuracy falls from {level} to {_list(falls)}." if falls else f"Accuracy is {level}."
    if no_loss:
        yield f"It is {_list(no_loss)}, where no loss is shown."
    if untested:
        yield f"It is {_list(untested)}."


_PATIENTS = {"validation": "new patients of the source"}


def _loss_is_shown(target: Record) -> bool:
    return bool(_by_name(target)["accuracy_loss"]["low"] > 0)


def _disjoint(lower: Interval, upper: Interval) -> bool:
    return lower[2] is not None and upper[1] is not None and lower[2] < upper[1]


def _gain_of_training(analysed: Mapping[str, Record]) -> Iterator[str]:
    """How much of each loss a head trained on the target would regain."""
    regained: dict[str, list[str]] = {}
    not_shown = []
    for target, found in analysed.items():
        effects = _by_name(found)
        loss, gap = effects["accuracy_loss"], effects.get("transfer_gap")
        if gap is None or loss["low"] <= 0:
            continue
        share = gap["estimate"] / loss["estimate"]
        how = "most" if share >= 2 / 3 else "part" if share >= 1 / 3 else "little"
        if gap["low"] > 0:
            regained.setdefault(how, []).append(target)
        else:
            not_shown.append(target)
    if regained:
        text = _list([f"{how} of the loss on {_list(of)}" for how, of in regained.items()])
        yield f"Training on the target would regain {text}."
    if not_shown:
        yield f"Training on {_list(not_shown)} is not shown to regain the loss."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _list(values: Sequence[str]) -> str:
    return " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


#: Name; ``good``, ``warn``, ``bad`` or ``unknown``; the same in words, for readers who see no
#: colours.
_Status = tuple[str, str, str]


def status(records: _Records, head: PageHead | None) -> list[_Status]:
    """Four checks: what must be right before the numbers are believed."""
    return [
        ("Leaks", *_leaks(_count_leaks(records))),
        ("Shortcuts", *_shortcuts(records.get("audit"))),
        ("Shift", *_shift(records.get("shift"), head)),
        ("Enough patients", *_patients(records.get("heads"))),
    ]


def _count_leaks(records: _Records) -> int | None:
    """Leaks that the audit found, or else those that ``heads`` warned of; None: not checked."""
    in_heads = len(records["heads"].get("leaks", ())) if "heads" in records else 0
    return int(records["audit"]["counts"]["leak"]) if "audit" in records else in_heads or None


def _leaks(count: int | None) -> tuple[str, str]:
    if count is None:
        return "unknown", "not checked"
    return ("bad", "found") if count else ("good", "none")


def _shortcuts(audit: Record | None) -> tuple[str, str]:
    results = [r for r in audit["results"] if r["check"] in _SHORTCUTS] if audit else []
    severities = {result["severity"] for result in results}
    if severities & {"leak", "warning"}:
        return "warn", "possible"
    if severities == {"ok"}:
        return "good", "no sign"
    return "unknown", "inconclusive" if results else "not tested"


def _shift(shift: Record | None, head: PageHead | None) -> tuple[str, str]:
    targets = shift["targets"] if shift else ()
    if not targets:
        return "unknown", "not analysed"
    explained = [target for target in targets if target["effects"]]
    if any(map(_loss_is_shown, explained)):
        return "bad", "accuracy falls"
    tests = [test for target in targets for test in target["detection"]]
    if any(test["p_adjusted"] is not None and test["p_adjusted"] <= 0.05 for test in tests):
        return "warn", "images differ"
    if head and {target["target"] for target in explained} - _analysed(shift, head).keys():
        return "unknown", "another head analysed"
    return "good", "none shown"


def _patients(heads: Record | None) -> tuple[str, str]:
    domains = [d for b in (heads["backbones"] if heads else ()) for d in b["domains"]]
    if not domains:
        return "unknown", "not counted"
    rarest, where = min((min(d["class_patients"]), name_of_domain(d)) for d in domains)
    if rarest < AUROC_PATIENTS:
        return "warn", f"only {rarest} of a class in {where}"
    fewest, where = min((d["patients"], name_of_domain(d)) for d in domains)
    return ("good", "yes") if fewest >= ROUGH_BELOW else ("warn", f"only {fewest} in {where}")


# Over several findings an image.


def aurocs_of_findings(rows: Sequence[Record]) -> dict[str, dict[str, Interval]]:
    """The AUROC of each finding, by domain, validation first.

    Args:
        rows: Rows of ``headrace heads``'s table over the findings. If there are several
            backbones, each finding uses the one that is best on validation.
    """
    series: dict[str, dict[str, Interval]] = {}
    for row in _of_best_backbones(rows):
        series.setdefault(name_of_domain(row), {})[row["finding"]] = _interval(row["auroc"])
    return series


def headline_of_findings(count: int, rows: Sequence[Record]) -> str:
    """How many findings a study has, and their lowest and highest AUROC in each domain.

    Where a class has too few patients for a test, the AUROC says little and is left out.
    """
    scored = _of_best_backbones(rows)
    tested = [row for row in scored if row["p"] is not None]
    ranges = []
    for domain, values in aurocs_of_findings(tested).items():
        ordered = sorted(values, key=lambda name: values[name][0])
        ends = dict.fromkeys((ordered[0], ordered[-1]))
        span = " to ".join(f"{values[name][0]:.2f} ({name})" for name in ends)
        ranges.append(f"{span} on {_PATIENTS.get(domain, domain)}")
    sentences = [f"The study has {counted(count, 'finding')}, each with its own page."]
    if ranges:
        sentences.append(f"AUROC is {_list(ranges)}.")
    if len(tested) < len(scored):
        few = f"fewer than {AUROC_PATIENTS} patients of a class"
        sentences.append(f"A finding with {few} has no AUROC here.")
    return " ".join(sentences)


def _of_best_backbones(rows: Sequence[Record]) -> list[Record]:
    """The rows with an AUROC of the backbone that is best on validation for their finding."""
    on_validation = [row for row in reversed(rows) if row["role"] == "validation"]
    on_validation.sort(key=lambda row: row["accuracy"]["estimate"])
    best = {row["finding"]: row["backbone"] for row in on_validation}
    return [
        r for r in rows if r["auroc"] and r["backbone"] == best.get(r["finding"], r["backbone"])
    ]


def status_of_findings(pages: Iterable[Sequence[_Status]]) -> list[_Status]:
    """The worst state of each check among the findings, and how many findings have it."""
    checks = []
    for same in zip(*pages, strict=True):
        name, state, word = min(same, key=lambda check: _WORST.index(check[1]))
        alike = sum(check[1] == state for check in same)
        whole = word if alike == len(same) else f"{word} ({alike} of {len(same)} findings)"
        checks.append((name, state, whole))
    return checks


_WORST = ("bad", "warn", "unknown", "good")
