"""The shift stage's report for a terminal; everything else is in its files."""

import textwrap
from collections.abc import Iterable, Sequence

from pipeline.report.shift_chapters import left_out, told_apart_in_words
from pipeline.report.shift_files import ShiftReport
from pipeline.report.shift_subgroups import subgroup_lines
from pipeline.report.text_tables import WIDTH, new_table, number, p_text, render
from pipeline.shift.adapt_eval import Row as LeaderboardRow
from pipeline.shift.calibrate import Carried, Soundness
from pipeline.shift.covariates import said
from pipeline.shift.detect import ControlledDetection
from pipeline.shift.error_table import RoleReport
from pipeline.shift.label_free import RANGED
from pipeline.shift.target import TargetReport
from pipeline.shift.unlabelled import NEEDS_LABELS, UnlabelledReport
from pipeline.shift.unlabelled import said as foretold
from pipeline.words import are, counted, printable, to_jsonable, zero_noise


def shift_text(report: ShiftReport) -> str:
    """For each target: how far apart the hospitals are, then what the fixes do."""
    blind = (_unlabelled_text(target, report.classes) for target in report.unlabelled)
    left = left_out({"not_compared": to_jsonable(report.not_compared)})
    return "\n\n".join(
        [
            *(_target_text(target, report.classes) for target in report.targets),
            *blind,
            *(textwrap.fill(sentence, WIDTH - 20) for sentence in left),
        ]
    )


def _unlabelled_text(target: UnlabelledReport, classes: Sequence[str]) -> str:
    lines = [
        f"{target.target}, {target.backbone}",
        *textwrap.wrap(foretold(target), WIDTH - 20),
        "",
        *_distance(target, classes),
        "",
        "accuracy as the scores foretell it, sampling alone in the intervals",
        _forecast_table(target),
        "",
        "share of each class, if a class looks the same in both; what the head calls in front",
        _prevalence_table(target, classes),
        "",
        *textwrap.wrap(f"needs labels, not given: {'; '.join(NEEDS_LABELS)}", WIDTH - 20),
    ]
    return "\n".join(lines)


def _distance(target: TargetReport | UnlabelledReport, classes: Sequence[str]) -> list[str]:
    """How far the target is away, whether its labels are known or not."""
    shared = target.shared_patients
    return [
        *textwrap.wrap(
            told_apart_in_words(to_jsonable(target.source_prediction), classes), WIDTH - 20
        ),
        f"{counted(shared, 'patient id')} {are(shared)} in both (the numbering may restart)",
        "",
        "tests, permuted by patient; controls: two halves of the source, and those with a shift",
        _detection_table(target.detection),
        *target.detection.observed.notes,
    ]


def _forecast_table(target: UnlabelledReport) -> str:
    table = new_table(["estimate", "accuracy, %", "95 % interval", "in the range"], left=1)
    for name, one in target.forecast.accuracy.items():
        ranged = "yes" if name in RANGED else "no"
        table.add_row(name, _percent(one.estimate), _span(one.low, one.high), ranged)
    return render(table)


def _prevalence_table(target: UnlabelledReport, classes: Sequence[str]) -> str:
    methods = target.forecast.prevalence
    table = new_table(["class", "called, %", *(f"{name}, %" for name in methods)], left=1)
    for k, (name, share) in enumerate(zip(classes, target.called, strict=True)):
        found = (shares[k] for shares in methods.values())
        table.add_row(
            printable(name),
            _percent(share),
            *(f"{_percent(one.estimate)} ({_span(one.low, one.high)})" for one in found),
        )
    return render(table)


def _target_text(target: TargetReport, classes: Sequence[str]) -> str:
    verdict = target.story.verdict
    lines = [
        f"{target.target}, {target.backbone}",
        *textwrap.wrap(" ".join([verdict.text, *verdict.advice]), WIDTH - 20),
        *textwrap.wrap(said(target.differences), WIDTH - 20),
        "",
        *_distance(target, classes),
        "",
        "errors by role; what a step is when the head is fitted to other patients: refitted",
        _roles_table(target.story.roles),
        *(f"{step}: not identifiable, {why}" for step, why in _unknown(target)),
        "",
        *operating_lines(target.story.soundness),
        *subgroup_lines({"subgroups": to_jsonable(target.subgroups)}),
        "fixes that see no label of the target, adapted on one half and scored on the other",
        _fixes_table(target.fixes.rows),
        "",
        *_with_labels(target.fixes.k_shot),
    ]
    return "\n".join(lines)


def _detection_table(detection: ControlledDetection) -> str:
    table = new_table(["test", "statistic", "p", "p (Holm)", "p halves", "p planted"], left=1)
    for finding, null, positive in detection.rows():
        if finding.primary:
            table.add_row(
                finding.name,
                number(finding.statistic),
                p_text(finding.p),
                p_text(finding.p_holm),
                p_text(null.p if null else None),
                p_text(positive.p if positive else None),
            )
    return render(table)


def _roles_table(roles: RoleReport) -> str:
    table = new_table(["", "points", "95 % interval", "refitted", "largest in"], left=1)
    if roles.human is not None:
        table.add_row("error human, as given", _percent(roles.human))
    for role, error in roles.table.errors.items():
        table.add_row(f"error {role}", _percent(error.estimate), _span(error.low, error.high))
    for step, gap in roles.table.steps.items():
        again = roles.ci_retrain.get(step)
        share = "-" if gap.p_largest is None else f"{100 * gap.p_largest:.0f} %"
        refitted = "-" if again is None else _span(*again)
        table.add_row(step, _points(gap.estimate), _span(gap.low, gap.high), refitted, share)
    return render(table)


def _unknown(target: TargetReport) -> Iterable[tuple[str, str]]:
    return target.story.roles.table.not_identifiable.items()


def operating_lines(found: Soundness) -> list[str]:
    """Calibration of both domains, and the rule of Youden carried over; all are in the files."""
    rows = [use for use in found.operating if use.rule == "youden"]
    briers = {name: report.brier.score for name, report in found.calibration.items()}
    lines = [
        f"Brier score {briers['source']:.3f} on the source, {briers['target']:.3f} on the target"
    ]
    if not rows:
        return [*lines, ""]
    table = new_table(
        ["Youden's threshold", "", "sensitivity, %", "", "specificity, %", ""], left=2
    )
    for use in rows:
        point = use.point
        table.add_row(
            _way(use),
            number(point.threshold),
            _percent(point.sensitivity.estimate),
            _span(point.sensitivity.low, point.sensitivity.high),
            _percent(point.specificity.estimate),
            _span(point.specificity.low, point.specificity.high),
        )
    if not all(use.reliable for use in rows):
        lines.append("* not to be relied on: moved without labels, and Y given the score changed")
    return [*lines, render(table), ""]


def _way(use: Carried) -> str:
    if use.domain == "source":
        return f"{use.way} on the {use.domain}"
    return use.way if use.reliable else f"{use.way} *"


def _percent(share: float) -> str:
    return f"{100 * zero_noise(share):.1f}"


def _points(share: float) -> str:
    return f"{100 * zero_noise(share):+.1f}"


def _span(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def _with_labels(rows: Sequence[LeaderboardRow]) -> list[str]:
    title = "with some labels of the target"
    if not rows:
        return [f"{title}: not given, a half of it has too few images of a class to learn from"]
    return [title, _fixes_table(rows)]


def _fixes_table(rows: Sequence[LeaderboardRow]) -> str:
    table = new_table(["fix", "accuracy", "AUROC", "points", "95 % interval", "p (Holm)"], left=1)
    for row in rows:
        d = row.difference
        table.add_row(
            row.name,
            number(row.accuracy),
            number(row.auroc),
            _points(d.estimate),
            f"{_points(d.low)} to {_points(d.high)}",
            p_text(row.p_holm),
        )
    return render(table)
