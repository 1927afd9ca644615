"""Reports on ``heads`` and ``finetune``: a table for each domain, then sentences about the best."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.compare_heads import AUROC_PATIENTS
from pipeline.evaluation.intervals import TOO_FEW
from pipeline.report.table import (
    Column,
    Detail,
    Heading,
    Part,
    Record,
    Table,
    about,
    format_value,
)
from pipeline.words import counted

_CLINICAL_NOTES = (
    "Net benefit, per image: true positives minus false positives times the odds of the threshold.",
    "Treating nobody has a net benefit of 0.",
    "LR is the likelihood ratio. An interval that ends in - has no upper bound.",
)
_NAMES = {"accuracy": "accuracy", "auroc": "AUROC"}
_AUROC = (
    "How often an image of a class scores higher for it than one of another class; 1 is always, "
    "0.5 is chance. Of three or more classes it is the mean."
)
#: Columns of :func:`_row_of_scores` rows.
_SCORES = (
    Column("accuracy", "share", interval=True, field="accuracy"),
    Column("AUROC", "share", _AUROC, interval=True, field="auroc"),
    Column("points", "points", interval=True, field="points"),
    Column("p", "p"),
)


def name_of_domain(domain: Record) -> str:
    """``validation`` for the validation rows of the source, else the name of the domain."""
    return "validation" if domain["role"] == "validation" else str(domain["domain"])


def heads(record: Record) -> Iterator[Part]:
    """The parts of a report on ``heads.json``."""
    if leaks := record["leaks"]:
        seen = "; ".join(f"{leak['where']}: {leak['text']}" for leak in leaks)
        advice = ". ".join(dict.fromkeys(leak["advice"] for leak in leaks))
        yield f"Do not trust these numbers. {seen}. {advice}."
    for results in record["backbones"]:
        yield from about(_of_backbone(record, results), backbone=results["backbone"])
    yield from _not_scored(record)
    for failure in record["failures"]:
        yield f"{failure['head']} on {failure['backbone']} failed: {failure['reason']}"
    for head in record["not_saved"]:
        yield Detail(f"{head['head']} on {head['backbone']} has no model file: {head['reason']}")


def _not_scored(record: Record) -> Iterator[str]:
    """Sentences on targets without a table: those without labels, and those that failed."""
    for target, images in record["unlabelled"].items():
        yield (
            f"{target} has {counted(images, 'image')} without labels. The probabilities are stored,"
            " but no score can be computed."
        )
    for target, reason in record["failed_targets"].items():
        yield f"{target} has no scores: {reason}"


def _of_backbone(record: Record, results: Record) -> Iterator[Part]:
    classes = ", ".join(record["classes"])
    yield Heading(f"{record['study']} on {results['backbone']}, classes {classes}")
    if results["reused"]:
        reused = counted(results["reused"], "head")
        yield f"{reused} reused from an earlier run, {results['fitted']} fitted."
    legend = "Intervals are 95 %, by patient. * marks the best head on validation."
    if any(row["differences"] for domain in results["domains"] for row in domain["rows"]):
        legend = (
            f"Points: accuracy minus that of the baseline {record['baseline']}, in percentage "
            f"points. Only p is adjusted for the number of heads (Holm). {legend}"
        )
    for number, domain in enumerate(results["domains"]):
        notes = *_rare_class(record["classes"], domain), *(() if number else (legend,))
        scores = _scores(results["best"], domain, notes)
        of_domain = scores, *_clinical(domain)
        yield from about(of_domain, domain=domain["domain"], role=domain["role"])
    yield from _selection_corrected(results["selection_corrected"])
    yield from _seeds(results["seed_spread"])
    yield from _algorithms(record["baseline"], results["algorithms"])
    for candidates in results["confidence_sets"]:
        yield (
            f"{name_of_domain(candidates)}: the best head is one of these "
            f"({100 * (1 - candidates['alpha']):.0f} % confidence): "
            f"{', '.join(candidates['members'])}."
        )


def _row_of_scores(row: Record, difference: Record) -> Record:
    """A row for :data:`_SCORES`; ``difference`` from the baseline's accuracy may be empty."""
    return {**row, **row["scores"], "points": difference, "p": difference.get("p_adjusted")}


def _domain_title(domain: Record) -> str:
    images, patients = counted(domain["images"], "image"), counted(domain["patients"], "patient")
    return f"{name_of_domain(domain)}: {images} of {patients}"


def _scores(best: str | None, domain: Record, more: Sequence[str]) -> Table:
    rows = [
        {**_row_of_scores(row, row["differences"].get("accuracy", {})), "best": row["head"] == best}
        for row in domain["rows"]
    ]
    others = dict.fromkeys(m for row in domain["rows"] for m in row["scores"] if m not in _NAMES)
    columns = (
        Column("head"),
        Column("best", "mark"),
        *_SCORES,
        Column("fit s", "seconds", field="fit_seconds"),
        *(Column(m, "number", interval=True, field=m, csv_only=True) for m in others),
    )
    notes = *_too_few(domain["rows"]), *_patients_needed(domain["rows"]), *more
    return Table(_domain_title(domain), columns, rows, key="heads", notes=notes)


def _too_few(rows: Sequence[Record]) -> Iterator[str]:
    """Which of the shown scores have no interval, and how many patients would be needed."""
    without = [
        name
        for m, name in _NAMES.items()
        if any(row["scores"].get(m, {}).get("method") == TOO_FEW for row in rows)
    ]
    if without:
        yield (
            f"There are too few patients for an interval of {' and '.join(without)}. An interval "
            "needs at least 2 patients, for AUROC 2 of each class. It takes about 100 for an "
            "interval of 10 points to either side."
        )


def _rare_class(classes: Sequence[str], domain: Record) -> Iterator[str]:
    """The class with the fewest patients, if these are too few for a test of an AUROC."""
    patients, name = min(zip(domain["class_patients"], classes, strict=True))
    if patients < AUROC_PATIENTS:
        yield (
            f"Class {name} has only {counted(patients, 'patient')}: below {AUROC_PATIENTS}, AUROC "
            "and accuracy say little."
        )


def _patients_needed(rows: Sequence[Record]) -> Iterator[str]:
    """How many patients would decide the differences in accuracy that are inconclusive."""
    needed = [
        f"{row['head']} {patients:,}"
        for row in rows
        if (patients := row["differences"].get("accuracy", {}).get("patients_needed"))
    ]
    if needed:
        yield (
            "Patients needed to show that a head differs from the baseline, or by less than one "
            f"point: {', '.join(needed)}."
        )


def _clinical(domain: Record) -> Iterator[Table]:
    """Net benefit, likelihood ratios and calibration in the large, one row for each head."""
    clinical = {row["head"]: row["clinical"] for row in domain["rows"] if row["clinical"]}
    if not clinical:
        return
    rows: list[Record] = []
    for head, values in clinical.items():
        treat = {f"at {point['threshold']}": point["head"] for point in values["net_benefit"]}
        rows.append({"head": head, **values, **treat})
    points = next(iter(clinical.values()))["net_benefit"]
    treat_all = {f"at {point['threshold']}": point["treat_all"] for point in points}
    yield Table(
        f"{name_of_domain(domain)}: net benefit at each treatment threshold, likelihood ratios, "
        "and calibration in the large",
        (
            Column("head"),
            *(Column(name, "number") for name in treat_all),
            Column("LR positive", "ratio", interval=True, field="lr_positive"),
            Column("LR negative", "ratio", interval=True, field="lr_negative"),
            Column(
                "observed - predicted", "number", interval=True, field="observed_minus_predicted"
            ),
        ),
        [*rows, {"head": "treat all", **treat_all}],
        key="heads_clinical",
        notes=_CLINICAL_NOTES,
        detail=True,
    )


def _selection_corrected(by_metric: Mapping[str, Record]) -> Iterator[str]:
    values = [
        f"{_NAMES[metric]} {format_value((best['estimate'], best['low'], best['high']), 'share')}"
        for metric, best in by_metric.items()
    ]
    if values:
        candidates = next(iter(by_metric.values()))["candidates"]
        which, how = "The head", ""
        if candidates > 1:
            which, how = f"The best of {candidates} heads", ", corrected for the selection"
        yield f"{which} on new patients of the source{how}: {', '.join(values)}."


# Of ``--thorough``.


def _seeds(spread: Sequence[Record]) -> Iterator[Table]:
    rows = [{**row, "where": name_of_domain(row)} for row in spread if row["metric"] == "accuracy"]
    if rows:
        yield Table(
            f"Does the seed matter? Accuracy over {spread[0]['seeds']} seeds",
            (
                Column("head"),
                Column("where"),
                Column("mean accuracy", "share", interval=True),
                Column("sd", "number"),
            ),
            rows,
            key="heads_seeds",
        )


def _algorithms(baseline: str, compared: Sequence[Record]) -> Iterator[Table]:
    rows = [row for row in compared if row["metric"] == "accuracy"]
    if rows:
        equal = f"The accuracies differ by less than {100 * rows[0]['rope']:.0f} point."
        yield Table(
            f"Which kind of head is better for such data? Accuracy against {baseline}, refitted on "
            f"{rows[0]['splits']} folds",
            (
                Column("head"),
                Column("points", "points", field="difference"),
                Column("P(worse)", "share", field="worse"),
                Column("P(equal)", "share", equal, field="equal"),
                Column("P(better)", "share", field="better"),
            ),
            sorted(rows, key=lambda row: -row["difference"]),
            key="heads_algorithms",
        )


# Fine-tuning.


def finetune(record: Record) -> Iterator[Part]:
    """The parts of a report on ``finetune.json``: each domain, then the cost of each method."""
    if not record["backbones"]:
        yield "No method has been trained yet."
        return
    for results in record["backbones"]:
        backbone, classes = results["backbone"], ", ".join(record["classes"])
        yield Heading(f"{record['study']} on {backbone}, fine-tuned, classes {classes}")
        yield from about(_methods(record["classes"], results), backbone=backbone)
    yield from _not_scored(record)
    yield from (f"{part} failed: {reason}" for part, reason in record["failures"].items())


def _methods(classes: Sequence[str], results: Record) -> Iterator[Part]:
    seconds = {(model["method"], model["seed"]): model["seconds"] for model in results["models"]}
    several = len({seed for _, seed in seconds}) > 1
    columns = (
        Column("method"),
        Column("seed", "count", csv_only=not several),
        *_SCORES,
        Column("train s", "seconds"),
    )
    legend = "Intervals are 95 %, by patient."
    if any("lp" in row["differences"] for d in results["domains"] for row in d["rows"]):
        legend = (
            "Points: accuracy minus that of lp, the head on frozen features, in percentage points. "
            f"Only p is adjusted for the number of methods (Holm). {legend}"
        )
    for domain in results["domains"]:
        rows = [
            {
                **_row_of_scores(row, row["differences"].get("lp", {})),
                "train s": seconds[row["method"], row["seed"]],
            }
            for row in domain["rows"]
        ]
        yield Table(
            _domain_title(domain),
            columns,
            rows,
            key="finetune",
            about={"domain": domain["domain"], "role": domain["role"]},
            notes=(
                *_rare_class(classes, domain),
                *((legend,) if domain is results["domains"][0] else ()),
            ),
        )
    yield from _compared_with_heads(results["domains"])
    yield _costs(results["models"])
    if not several:
        yield Detail("Only one seed was trained: methods may differ because of the seed alone.")
    for model in results["models"]:
        if line := model["interpolated"]:
            yield (
                f"{model['method']} lies between {line['from']} (alpha 0) and {line['to']} (alpha "
                f"1); validation chose alpha {line['alpha']:.1f}."
            )
    if results["heads_fitted_to_others"]:
        yield (
            f"The heads on {results['backbone']} were fitted to other images, so these methods are "
            "not compared with them."
        )


def _compared_with_heads(domains: Sequence[Record]) -> Iterator[Table]:
    """Methods compared with the best head of stage 2, on the same images."""
    rows = [
        {
            **difference,
            "method": row["method"],  # the training method, not the method of the interval
            "head": name.removeprefix("heads/"),
            "where": name_of_domain(domain),
        }
        for domain in domains
        for row in domain["rows"]
        for name, difference in row["differences"].items()
        if name.startswith("heads/")
    ]
    if rows:
        yield Table(
            "Accuracy against the best head on stored features",
            (
                Column("method"),
                Column("head"),
                Column("where"),
                Column("points", "points", interval=True),
                Column("p", "p", field="p_adjusted"),
            ),
            rows,
            key="finetune_heads",
        )


def _costs(models: Sequence[Record]) -> Table:
    rows = [{**m, "trend": m["trend"] or ("too few epochs" if m["epochs"] else "")} for m in models]
    in_the_same_time = "How many heads could be fitted on stored features in the same time."
    return Table(
        "What each method trained, and what it cost",
        (
            Column("method"),
            Column("trained part", field="trainable"),
            Column("parameters", "count", field="trainable_parameters"),
            Column("epochs", "count"),
            Column("train s", "seconds", field="seconds"),
            Column("images/s", "seconds", field="images_per_second"),
            Column("heads", "count", in_the_same_time, field="heads_in_the_same_time"),
            Column("loss at the end", field="trend"),
        ),
        rows,
        key="finetune_costs",
    )
