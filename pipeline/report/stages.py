"""Reports on features, audit, explain, predict, and a comparison of findings."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluation.compare_heads import AUROC_PATIENTS
from pipeline.report.heads import name_of_domain
from pipeline.report.table import Column, Detail, Heading, Part, Record, Table
from pipeline.words import counted, percent

_SKIPPED = 10
_PAIRS = 5
_OK = "ok"


def features(record: Record) -> Iterator[Part]:
    """A sentence for each backbone of ``features.json``, then the images that were skipped."""
    for row in record["backbones"]:
        rate = f"{row['seconds']:.1f} s ({row['images_per_second']:.1f}/s)"
        done = f"{row['computed']} computed in {rate}" if row["computed"] else "nothing to do"
        yield (
            f"{row['backbone']}: {done}, {row['reused']} reused, {row['skipped']} skipped of "
            f"{counted(row['images_in'], 'image')}; {row['dim']} features each in {row['store']}"
        )
    yield from _skipped(record["skipped"], "features.json")
    yield from (Detail(f"{part} failed: {why}") for part, why in record["failures"].items())


def _skipped(images: Sequence[Record], file: str) -> Iterator[Table]:
    """The first images that could not be used, with reasons; ``file`` has all of them."""
    rows = [
        {**image, "image": "/".join(image[k] for k in ("domain", "path") if k in image)}
        for image in images[:_SKIPPED]
    ]
    more = len(images) - _SKIPPED
    notes = (f"{more} more are in {file}.",) if more > 0 else ()
    if rows:
        yield Table("Skipped images", (Column("image"), Column("reason")), rows, notes=notes)


def stores(rows: Sequence[Record]) -> Iterator[Part]:
    """The table of ``headrace cache ls``, then the stores that cannot be read."""
    yield Table(
        "",
        (
            *(Column(name) for name in ("store", "holds", "precision")),
            *(Column(name, "count") for name in ("rows", "parts")),
            Column("MB", "seconds"),
            Column("set aside", "count", field="quarantined"),
        ),
        [{**row, "MB": row["size"] / 1e6} for row in rows],
    )
    yield from (f"{row['store']}: {row['error']}" for row in rows if row["error"])


def compacted(stores: Mapping[str, Record]) -> list[str]:
    """A line for each store that ``headrace cache compact`` went through."""
    return [
        f"{name}: {store['error']}"
        if "error" in store
        else f"{name}: {counted(store['parts_fewer'], 'part')} fewer, "
        f"{counted(len(store['removed']), 'temporary file')} removed"
        for name, store in stores.items()
    ]


def audit(record: Record) -> Iterator[Part]:
    """The parts of a report on ``audit.json``: results, the worst first, then advice."""
    results, counts = record["results"], {s: n for s, n in record["counts"].items() if n}
    for severity in (severity for severity in counts if severity != _OK):
        rows = [result for result in results if result["severity"] == severity]
        images = any(result["examples"] for result in rows)
        yield Table(
            counted(len(rows), severity),
            (Column("check"), Column("where"), Column("found", field="text")),
            rows,
            notes=("The images are named in audit.json.",) if images else (),
        )
    checks_of: dict[str, dict[str, None]] = {}  # each advice is printed once
    for result in results:
        checks_of.setdefault(result["advice"], {})[result["check"]] = None
    yield from (f"{', '.join(checks)}: {text}." for text, checks in checks_of.items() if text)
    if fine := [f"{r['check']} ({r['where']})" for r in results if r["severity"] == _OK]:
        yield f"These checks found nothing: {'; '.join(fine)}."
    yield from _near_duplicates(record)
    leaks = "" if "leak" in counts else "No leak was found. "
    kinds = [
        counted(n, "check passed" if s == _OK else s, "checks passed" if s == _OK else "")
        for s, n in counts.items()
    ]
    yield f"{leaks}{counted(record['images'], 'image')}: {', '.join(kinds)}."


def _near_duplicates(record: Record) -> Iterator[Table]:
    pairs = record["near_duplicates"]
    names = [
        [f"{image['path']} ({image['role']}, {image['label']})" for image in pair["images"]]
        for pair in pairs[:_PAIRS]
    ]
    shown = zip(pairs, names, strict=False)
    rows = [{**pair, "image": name, "other image": other} for pair, (name, other) in shown]
    more = len(pairs) - _PAIRS
    notes = [f"{more} more pairs are in audit.json."] if more > 0 else []
    sheet = f"The file results/{record['study']}/near_duplicates.png shows them side by side."
    if rows:
        yield Table(
            "Near duplicates in different splits, most similar first",
            (Column("image"), Column("other image"), Column("how"), Column("similarity", "number")),
            rows,
            notes=(*notes, sheet),
        )


def explain(record: Record) -> Iterator[Part]:
    """The parts of a report on ``explain.json``; see :func:`pipeline.explain.explain`."""
    yield Heading(f"{record['study']}: where {record['head']} on {record['backbone']} looks")
    yield from better_head(record)
    yield (
        "The tables show how much of a map lies in the border of the image (outside the middle "
        "70 % of each side) and in its corners (20 % of each side), by predicted class. Intervals "
        "are 95 %, by patient."
    )
    yield (
        f"An even map has {record['even']['border']:.2f} in the border and "
        f"{record['even']['corners']:.2f} in the corners. Look at the maps if a share is above "
        "that, and above the share of a linear head that was fitted to shuffled labels."
    )
    for domain in record["domains"]:
        yield Table(
            name_of_domain(domain),
            (
                Column("predicted", field="class"),
                Column("images", "count"),
                Column("border", "share", interval=True, field="border"),
                Column("corners", "share", interval=True, field="corners"),
                Column("border, shuffled", "share", interval=True, field="shuffled_border"),
                Column("corners, shuffled", "share", interval=True, field="shuffled_corners"),
            ),
            domain["rows"],
            key="explain",
            about={"backbone": record["backbone"], "domain": domain["domain"]},
            notes=(_shortcut_test(domain["audit"]),),
        )
    yield f"Images with their maps are in {record['folder']}. They are patient data."


def better_head(record: Record) -> Iterator[str]:
    """Why the maps are not those of the head that is best on validation."""
    if best := record["instead_of"]:
        yield (
            f"The best head on validation, {best['head']} on {best['backbone']}, has no maps: "
            f"{best['reason']}. {record['head']} on {record['backbone']} is the best head that has "
            "maps."
        )


def _shortcut_test(auc: Record) -> str:
    """The audit's result for the same regions."""
    if not auc:
        return "Run headrace audit STUDY to test what the border alone predicts."
    regions = [
        f"{value['estimate']:.2f} ({value['low']:.2f} to {value['high']:.2f}) from the {region}"
        for region, value in auc.items()
    ]
    return f"The audit predicts the class from one region alone; AUC {', '.join(regions)}."


def predict(record: Record) -> Iterator[Part]:
    """The parts of a report on a record of ``headrace predict --json``."""
    rows = [{**row, "probability": max(row["probability"])} for row in record["rows"]]
    columns = (Column("image", field="path"), Column("predicted"), Column("probability", "share"))
    yield Table("", columns, rows)
    yield from _skipped(record["skipped"], "the output of --json")
    folders: Mapping[str, Mapping[str, int]] = record["class_folders"]
    images, right = (sum(c[what] for c in folders.values()) for what in ("images", "right"))
    if images:
        of = [f"class {name}: {c['right']} of {c['images']}" for name, c in folders.items()]
        yield (
            f"The prediction agrees with the class folder for {right} of {images} images "
            f"({percent(right / images)}); {', '.join(of)}."
        )
    yield (
        f"The head is {record['head']} on {record['backbone']}, fitted to "
        f"{counted(record['images'], 'image')} of {record['study']}. Features: "
        f"{record['computed']} computed, {max(len(rows) - record['computed'], 0)} from the store."
    )
    if record["contains_training_features"]:
        yield "The model file holds features of its training images. Treat it as patient data."
    yield "Research software, not a medical device: no diagnosis may rest on this."


def predictions(record: Record) -> Table:
    """The table of ``--csv``: each image, the study of the head, the probability of each class."""
    fields = [f"probability of {name}" for name in record["classes"]]
    columns = (
        *map(Column, ("path", "key", "predicted")),
        *(Column(c, "share", field=f) for c, f in zip(record["classes"], fields, strict=True)),
    )
    rows = [{**row, **dict(zip(fields, row["probability"], strict=True))} for row in record["rows"]]
    return Table("", columns, rows, about={"study": record["study"]})


def exported(card: Record) -> Iterator[str]:
    """The lines of ``headrace export``: how close the file is to the model, and its limits."""
    largest = card["compared"]["largest_difference"]
    yield f"Its probabilities differ from those of the model by {largest:.0e} at most."
    for metric, name in (("accuracy", "Accuracy"), ("auroc", "AUROC")):
        if both := card.get("int8", {}).get(metric):
            values = f"{both['float32']:.3f} before and {both['int8']:.3f} after"
            yield f"{name} on validation is {values} rounding to 8 bits."
    yield from card["limits"]


#: Tables over findings, by stage: title, and the columns between the finding and p.
_FINDINGS = {
    "heads": (
        "Best head on validation for each finding; p tests AUROC against 0.5",
        (
            Column("backbone"),
            Column("domain"),
            Column("images", "count"),
            Column("positive", "count"),
            Column("head"),
            Column("accuracy", "share", interval=True, field="accuracy"),
            Column("AUROC", "share", interval=True, field="auroc"),
        ),
    ),
    "shift": (
        "AUROC of each finding on the source and on a target; p tests the loss against 0",
        (
            Column("backbone"),
            Column("target"),
            Column("head"),
            Column("source", "share", field="source_auroc"),
            Column("on target", "share", field="target_auroc"),
            Column("loss", "points", interval=True, field="loss"),
        ),
    ),
    "audit": (
        "Shortcut tests of each finding; p tests AUC against 0.5",
        (Column("where"), Column("check"), Column("AUC", "share", interval=True, field="auc")),
    ),
}


def findings(record: Record) -> Iterator[Table]:
    """The table of ``findings_<stage>.json``, after a stage has run for each finding."""
    title, columns = _FINDINGS[record["stage"]]
    rows = [
        {**row, "domain": name_of_domain(row)} if "role" in row else row for row in record["rows"]
    ]
    untested = record["stage"] != "audit" and any(row["p"] is None for row in rows)
    few = f"Without p, a class has fewer than {AUROC_PATIENTS} patients: its AUROC says little."
    if rows:
        yield Table(
            f"{title} and is adjusted for all rows (Holm)",
            (Column("finding"), *columns, Column("p", "p", field="p_adjusted")),
            rows,
            key=f"findings_{record['stage']}",
            notes=(few,) if untested else (),
        )
