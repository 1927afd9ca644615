"""The records of a study's stages: which are here, and whether they belong together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.errors import MissingPredictionsError
from pipeline.evaluation.predictions import PROBABILITIES, TRAINED_PROBABILITIES, read_predictions
from pipeline.report.figures.reports import read_report
from pipeline.report.page_figures import drawn
from pipeline.shift.provenance import digest_of_domain
from pipeline.study import SOURCE, Study


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command and the file that it writes below the study's results.

    Attributes:
        layout: The version of the file that the page understands; None has no number.
        probabilities: The file of probabilities beside it, if it keeps one.
        trials: Pattern of the files that runs with fewer or smaller images write instead.
    """

    file: str
    layout: int | None
    probabilities: str | None = None
    trials: str | None = None


#: By command, in the order in which they are run.
STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "features": Stage(file="features.json", layout=None),
        "audit": Stage(file="audit.json", layout=2),
        "heads": Stage(file="heads.json", layout=3, probabilities=PROBABILITIES),
        "finetune": Stage(
            file="comparison.json",
            layout=2,
            probabilities=TRAINED_PROBABILITIES,
            trials="comparison-*.json",
        ),
        "shift": Stage(file="shift.json", layout=5),
    }
)
#: (backbone, domain): digest of its images and labels.
_Digests = dict[tuple[str, str], str]


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the stages of a study have left.

    Attributes:
        results: The folder that they were read from.
        values: By stage, what its file says.
        written: By stage, when its file was.
        missing: A line for each stage without a file that can be read.
    """

    results: Path
    values: Mapping[str, Any]
    written: Mapping[str, datetime]
    missing: tuple[str, ...]


def read_records(results: Path) -> Records:
    """Read what is there.

    Raises:
        MissingPredictionsError: No stage has left anything.
    """
    values, missing = {}, []
    for name, stage in STAGES.items():
        file = results / stage.file
        again = f"headrace {name} STUDY"
        if not file.exists():
            missing.append(_not_run(results, name, again))
            continue
        try:
            found = read_report(file, name)
        except MissingPredictionsError:
            missing.append(f"{stage.file} cannot be read; run again: {again}")
            continue
        ours = isinstance(found, dict) and "study" in found
        layout = found.get("schema") if ours else "none"
        if layout == stage.layout:
            values[name] = found
        else:
            missing.append(
                f"{stage.file} has layout {layout}, this page reads {stage.layout}; "
                f"run again: {again}"
            )
    if not values:
        raise MissingPredictionsError(
            f"{results} holds nothing to report: {'; '.join(missing)}. "
            "Start with headrace features STUDY, then headrace heads STUDY"
        )
    return Records(
        results=results,
        values=values,
        written={name: file_time(results / STAGES[name].file) for name in values},
        missing=tuple(missing),
    )


def _not_run(results: Path, name: str, again: str) -> str:
    pattern = STAGES[name].trials
    if pattern and (trials := sorted(file.name for file in results.glob(pattern))):
        return (
            f"of {name} only a trial was run, which is not on this page ({', '.join(trials)}); "
            f"for the whole run: {again}"
        )
    return f"{name} has not been run; run: {again}"


def file_time(file: Path) -> datetime:
    """When a file was written last, UTC."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def places(records: Records) -> dict[tuple[str, str], tuple[int, int | str]]:
    """Images and patients by domain and role, from the first record that has them."""
    values = records.values
    if heads := values.get("heads"):
        rows = heads["rows"]
        return {(r["domain"], r["role"]): (r["n"], r["groups"]) for r in rows} | _blind(heads)
    if finetune := values.get("finetune"):
        rows = (d for row in finetune["rows"] for d in row["domains"])
        scored = {(d["domain"], d["role"]): (d["n"], d["groups"]) for d in rows}
        return scored | _blind(finetune)
    found: dict[tuple[str, str], tuple[int, int | str]] = {}
    for target in _shifted(records):
        for name, role in ((SOURCE, "S_fit"), (target["target"], "T_adapt")):
            one = target["roles"][role]
            found[name, "all" if name == SOURCE else "target"] = (one["images"], one["patients"])
    for left in values["shift"]["not_compared"] if "shift" in values else ():
        found[left["target"], "target"] = (left["images"], 1)
    return found


def _blind(scores: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int | str]]:
    """Of the targets that a table of scores cannot hold."""
    return {(d, "without labels"): (n, "-") for d, n in scores["unlabelled"].items()}


def contradictions(study: Study, records: Records) -> Iterator[str]:
    """A sentence for each sign that records are of different data, or older than the study."""
    for name, values in records.values.items():
        if values["study"] != study.name:
            yield f"{STAGES[name].file} is of the study {values['study']}, not of {study.name}"
    yield from _classes(study, records)
    yield from _domains(study, records)
    yield from _images(records)
    yield from _recipes(records)
    yield from _counts(records)


def _classes(study: Study, records: Records) -> Iterator[str]:
    found = {STAGES[n].file: v["classes"] for n, v in records.values.items() if "classes" in v}
    if study.classes:
        found = {"the study file": list(study.classes), **found}
    first = next(iter(found), "")
    for file, classes in found.items():
        if classes != found[first]:
            yield (
                f"classes are {', '.join(found[first])} in {first}, but "
                f"{', '.join(classes)} in {file}"
            )


def _domains(study: Study, records: Records) -> Iterator[str]:
    wanted = {domain.name: domain.labelled for domain in study.domains}
    for name, known in _domains_of(records).items():
        file, both = STAGES[name].file, sorted(known.keys() & wanted.keys())
        lost, more = wanted.keys() - known.keys(), known.keys() - wanted.keys()
        yield from (f"{d} is in the study file but not in {file}" for d in sorted(lost))
        yield from (f"{d} is in {file} but not in the study file" for d in sorted(more))
        yield from (
            f"{d} has {'' if wanted[d] else 'no '}labels in the study file, but "
            f"{'none' if wanted[d] else 'some'} in {file}"
            for d in both
            if known[d] not in (None, wanted[d])
        )


def _domains_of(records: Records) -> dict[str, dict[str, bool | None]]:
    """By stage, its domains, and whether they had labels; None where that is not said."""
    values, found = records.values, {}
    if "heads" in values:
        found["heads"] = {row["domain"]: True for row in values["heads"]["rows"]}
    if "finetune" in values:
        rows = (d for row in values["finetune"]["rows"] for d in row["domains"])
        found["finetune"] = {d["domain"]: True for d in rows}
    domains: dict[str, dict[str, bool | None]] = {
        name: {**scored, **dict.fromkeys(values[name]["unlabelled"], False)}
        for name, scored in found.items()
    }
    if "shift" in values:
        kinds = (("targets", True), ("unlabelled", False), ("not_compared", None))
        told = {t["target"]: kind for name, kind in kinds for t in values["shift"][name]}
        domains["shift"] = {**told, SOURCE: True}
    return {name: of_stage for name, of_stage in domains.items() if of_stage}


def _images(records: Records) -> Iterator[str]:
    """Digests of images and labels, compared with those of the first stage that has them."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for name in records.values:
        for where, digest in sorted(_digests(records, name).items()):
            stage, known = first.setdefault(where, (name, digest))
            if known != digest:
                backbone, domain = where
                yield (
                    f"{STAGES[stage].file} and {STAGES[name].file} are about different images "
                    f"or labels of {domain} ({backbone})"
                )


def _digests(records: Records, name: str) -> _Digests:
    """Of a stage; empty where it keeps nothing to make them of."""
    found: _Digests = {}
    if name == "shift":
        for target in _shifted(records):
            found[target["backbone"], SOURCE] = target["inputs"]["source"]
            found[target["backbone"], target["target"]] = target["inputs"]["target"]
    file = STAGES[name].probabilities
    if file is None or not (records.results / file).exists():
        return found
    for backbone, kept in read_predictions(records.results / file).items():
        for domain in dict.fromkeys(kept.domain.tolist()):
            found[backbone, domain] = digest_of_domain(kept, domain)
    return found


def _recipes(records: Records) -> Iterator[str]:
    """Fingerprints of the features that shift was computed from, against those stored last."""
    stored = records.values.get("features", {}).get("backbones", ())
    last = {row["backbone"]: row["fingerprint"] for row in stored}
    pairs = {
        part: fingerprint
        for target in _shifted(records)
        for part, fingerprint in zip(
            target["backbone"].split("+"), target["inputs"]["recipes"], strict=False
        )
    }
    for backbone, fingerprint in pairs.items():
        if fingerprint != last.get(backbone, fingerprint):
            yield f"shift.json was made from other features of {backbone} than features.json names"


def _shifted(records: Records) -> list[Any]:
    """The targets that shift has looked at, with labels and without."""
    shift = records.values.get("shift")
    return [] if shift is None else [*shift["targets"], *shift["unlabelled"]]


def _counts(records: Records) -> Iterator[str]:
    """Images, where there is no digest to compare."""
    values, found = records.values, {}
    if total := sum(n for n, _ in places(records).values()):
        told = next(name for name in ("heads", "finetune", "shift") if name in values)
        found[STAGES[told].file] = total
    if "audit" in values:
        found[STAGES["audit"].file] = values["audit"]["images"]
    for row in values.get("features", {}).get("backbones", ()):
        found[f"{STAGES['features'].file} ({row['backbone']})"] = row["images_in"] - row["skipped"]
    if len(set(found.values())) > 1:
        counts = ", ".join(f"{count} in {file}" for file, count in found.items())
        yield f"the number of images differs: {counts}"


def older_figures(records: Records) -> Iterator[str]:
    """A sentence for each stage whose figures were drawn before its record."""
    for name, values in records.values.items():
        rows = _shifted(records) if name == "shift" else values.get("rows", ())
        backbones = dict.fromkeys(row["backbone"] for row in rows)
        files = [f for b in backbones for _, f in drawn(records.results, name, b)]
        if any(file_time(file) < records.written[name] for file in files):
            yield (
                f"figures of {name} are older than {STAGES[name].file} and may show an earlier "
                f"run; headrace {name} STUDY draws them again"
            )
