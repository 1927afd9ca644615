"""The comparison as text for a terminal: what each method can, and what it costs."""

import textwrap
from collections.abc import Iterator

from pipeline.evaluation.scores import place_in_words, unscored
from pipeline.finetune.evaluate import Domain, PairRow, Row
from pipeline.finetune.stage import ComparisonReport
from pipeline.report.text_tables import WIDTH, new_table, number, p_text, render
from pipeline.study import SOURCE
from pipeline.words import printable


def comparison_text(report: ComparisonReport) -> str:
    """Scores, then costs, then frozen against trained on the same images."""
    positive = (
        f"; positive class: {printable(report.classes[1])}" if len(report.classes) == 2 else ""
    )
    return "\n".join(
        [
            f"{report.study}: accuracy / AUROC{positive}",
            _scores(report),
            "",
            "what it cost to train",
            _costs(report),
            "",
            "what moved, and how the validation loss ended",
            _endings(report),
            *_pairs(report),
            *_other_heads(report),
            *_unscored(report),
            f"-> {report.file}",
        ]
    )


def _other_heads(report: ComparisonReport) -> Iterator[str]:
    for backbone in report.other_heads:
        text = (
            f"heads of stage 2 on {backbone} were fitted to other images than these methods: "
            "not compared"
        )
        yield f"\n{textwrap.fill(text, WIDTH)}"


def _unscored(report: ComparisonReport) -> Iterator[str]:
    for text in unscored(report.unlabelled, report.probabilities.name):
        yield f"\n{textwrap.fill(text, WIDTH)}"


def _scores(report: ComparisonReport) -> str:
    domains = dict.fromkeys((d.domain, d.role) for row in report.rows for d in row.domains)
    titles = [place_in_words(*place) for place in domains]
    found = new_table(["backbone", "method", *titles], left=2)
    for row in report.rows:
        by_place = {(d.domain, d.role): d for d in row.domains}
        cells = [_score(by_place.get(place)) for place in domains]
        found.add_row(row.record.backbone, _name(row), *cells)
    return render(found)


def _score(domain: Domain | None) -> str:
    metrics = {} if domain is None else domain.metrics
    values = [metrics.get(name) for name in ("accuracy", "auroc")]
    return " / ".join(number(None if v is None else v.value) for v in values)


def _name(row: Row) -> str:
    mixed = row.record.mixed
    alpha = "" if mixed is None else f" (alpha {mixed['alpha']:.1f} to {mixed['to']})"
    return row.record.method + alpha


def _costs(report: ComparisonReport) -> str:
    """Heads: how many could have been trained from the store in the same time."""
    columns = ["s", "epochs", "s/epoch", "images/s", "GFLOP/image", "heads"]
    found = new_table(["backbone", "method", *columns], left=2)
    for row in report.rows:
        r = row.record
        more = (
            ""
            if r.extrapolated is None
            else (f" ({r.extrapolated['epochs']} epochs: about {r.extrapolated['seconds']:.0f} s)")
        )
        found.add_row(
            r.backbone,
            r.method + more,
            f"{r.seconds:.1f}",
            str(r.epochs),
            "-" if row.seconds_per_epoch is None else f"{row.seconds_per_epoch:.2f}",
            "-" if r.images_per_second is None else f"{r.images_per_second:.1f}",
            f"{r.gflop_per_trained_image:.3f}",
            "-" if row.break_even is None else str(row.break_even["heads"]),
        )
    return render(found)


def _endings(report: ComparisonReport) -> str:
    """Epochs are counted from 1 here; the trend is that of the validation loss."""
    found = new_table(["backbone", "method", "moved", "parameters", "best", "trend"], left=3)
    for row in report.rows:
        r = row.record
        best = "-" if r.best_epoch is None else f"{r.best_epoch + 1} of {r.epochs}"
        found.add_row(
            r.backbone,
            r.method,
            r.moved,
            f"{r.trainable_parameters:,}",
            best,
            r.convergence.trend or ("too few epochs" if r.epochs else "-"),
        )
    return render(found)


def _pairs(report: ComparisonReport) -> list[str]:
    """What the intervals allow to be said about accuracy, for each baseline and domain."""
    lines: list[str] = []
    shown = [row for row in report.pairs if row.pair.metric == "accuracy"]
    for place in dict.fromkeys(map(_place, shown)):
        backbone, seed, baseline, domain = place
        found = new_table(["method", "points", "95 % interval", "p (Holm)", "so it is"], left=1)
        for pair in (row.pair for row in shown if _place(row) == place):
            found.add_row(
                pair.head,
                f"{100 * pair.difference:+.1f}",
                f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}",
                p_text(pair.p_holm),
                pair.verdict,
            )
        where = "validation" if domain == SOURCE else domain
        title = f"accuracy against {baseline} on {where}, {backbone}, seed {seed}"
        lines += ["", title, render(found)]
    return lines


def _place(row: PairRow) -> tuple[str, int, str, str]:
    return row.backbone, row.seed, row.pair.baseline, row.pair.domain
