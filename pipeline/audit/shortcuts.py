"""Shortcut tests: can the domain or the label be predicted from what should not show it?

The domain from the features; the label from properties of the file, from the border of the
picture and from its corners. What a classifier can predict is not yet what a head uses, but
nothing in the features keeps the head from using it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.leaks import NOTE, OK, WARNING, Finding, impossible, in_each_domain, patients_of
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.metrics import on_all_rows, weighted_auroc
from pipeline.evaluation.separability import Separability, domain_auc, separability
from pipeline.features.load import FeatureTable
from pipeline.study import SOURCE

DOMAIN, FACTS, DOMAIN_FROM_FACTS = "domain", "file properties", "domain from file properties"
#: Above this AUC, if its interval excludes one half, features may stand for the domain.
_HIGH_DOMAIN_AUC = 0.9
#: File properties predict a label: lower end of the AUC's interval.
_LOW_END_OF_FACTS = 0.55
#: A masked picture predicts a label: the AUC, if its interval excludes one half.
_HIGH_MASKED_AUC = 0.6
_FACTS = "size, greys, file size and quality"
#: Single facts that are named.
_STRONGEST = 2
_TOO_FEW = "; too few patients to say"
_LABEL_ADVICE = (
    "A head may be right without looking at the disease. See how the classes were collected, "
    "and whether the disease itself could show there (as in the mean grey)"
)

#: By mask: name of the check, and what is left of the picture.
MASKED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "centre": ("border", "the border alone (the middle 70 % of each side black)"),
        "corners": ("corners", "the four corners alone (20 % of each side)"),
    }
)


def check_domains(table: FeatureTable) -> list[Finding]:
    """How well each target is separated from the source, overall and inside each class."""
    return [_check_domain(table, target) for target in _targets(table.samples)]


def _check_domain(table: FeatureTable, name: str) -> Finding:
    where = f"{SOURCE} and {name}"
    target = table.domain(name)
    try:
        result = domain_auc(table.domain(SOURCE), target)
    except StudyError as reason:
        return impossible(DOMAIN, where, reason)
    by_class = dict(zip(table.samples.classes, result.by_class, strict=False))
    tested = {label: inside for label, inside in by_class.items() if inside is not None}
    if target.label is None:
        classes = f"{name} has no labels, so not by class"
    else:
        classes = "; ".join(f"{label} {_text(inside.auc)}" for label, inside in tested.items())
    warn = any(_domain_shows(inside.auc) for inside in (result.overall, *tested.values()))
    unsure = not warn and _undecided(result.overall.auc)
    return Finding(
        check=DOMAIN,
        severity=_severity(warn=warn, unsure=unsure),
        where=where,
        text=f"a classifier separates them by the features of {table.backbone} with AUC "
        f"{_text(result.overall.auc)}; inside the classes: {classes or 'too few patients'}"
        f"{_TOO_FEW if unsure else ''}",
        advice="The hospitals look different to the network; what a head learned may be about "
        "the hospital. headrace shift shows what it costs"
        if warn
        else "",
        values={
            "backbone": table.backbone,
            **asdict(result.overall),
            "by_class": {k: inside and asdict(inside) for k, inside in by_class.items()},
        },
    )


def check_facts(samples: Samples, facts: NDArray[Any]) -> list[Finding]:
    """Whether size, greys, file size and quality predict the label in a domain, or the domain.

    Args:
        samples: ``n`` samples.
        facts: Records of dtype ``FACTS``, shape ``(n,)``.
    """

    def predict_label(domain: str, rows: NDArray[np.bool_]) -> Finding:
        strongest = _strongest(facts[rows], samples.label[rows])
        return _shortcut_test(
            FACTS,
            domain,
            f"the label can be predicted from {_FACTS}{strongest}",
            (_matrix(facts[rows]), samples.label[rows], samples.group[rows]),
            shows=lambda auc: auc.low > _LOW_END_OF_FACTS,
        )

    findings = in_each_domain(samples, FACTS, predict_label)
    for target in _targets(samples):
        rows = np.isin(samples.domain, [SOURCE, target])
        is_target = (samples.domain[rows] == target).astype(int)
        findings.append(
            _shortcut_test(
                DOMAIN_FROM_FACTS,
                f"{SOURCE} and {target}",
                f"the domain can be predicted from {_FACTS}",
                (_matrix(facts[rows]), is_target, patients_of(samples)[rows]),
                shows=_domain_shows,
                advice="The pictures were made or stored differently; store them alike before "
                "comparing",
            )
        )
    return findings


def check_masked(samples: Samples, features: NDArray[np.floating], mask: str) -> list[Finding]:
    """Whether what a mask leaves of the pictures predicts the label, in each domain.

    Args:
        samples: ``n`` samples.
        features: Of the masked pictures, shape ``(n, d)``.
        mask: An entry of ``MASKED``.
    """
    check, rest = MASKED[mask]

    def predict_label(domain: str, rows: NDArray[np.bool_]) -> Finding:
        return _shortcut_test(
            check,
            domain,
            f"the label can be predicted from {rest}",
            (features[rows], samples.label[rows], samples.group[rows]),
            shows=lambda auc: auc.estimate > _HIGH_MASKED_AUC and auc.low > 1 / 2,
        )

    return in_each_domain(samples, check, predict_label)


def _shortcut_test(
    check: str,
    where: str,
    claim: str,
    data: tuple[NDArray[np.floating], NDArray[np.integer], NDArray[np.str_]],
    *,
    shows: Callable[[Interval], bool],
    advice: str = _LABEL_ADVICE,
) -> Finding:
    """One test in words; one that is not possible is a note.

    Args:
        check: Its name.
        where: The domain or domains.
        claim: The sentence that holds where the test is positive.
        data: Features, label and group of the rows.
        shows: Whether an AUC makes the claim.
        advice: What to do then.
    """
    try:
        result: Separability = separability(*data)
    except StudyError as reason:
        return impossible(check, where, reason)
    warn = shows(result.auc)
    unsure = not warn and _undecided(result.auc)
    hedge = "" if warn else "it is open whether " if unsure else "no sign that "
    return Finding(
        check=check,
        severity=_severity(warn=warn, unsure=unsure),
        where=where,
        text=f"{hedge}{claim}: AUC {_text(result.auc)}{_TOO_FEW if unsure else ''}",
        advice=advice if warn else "",
        values=asdict(result),
    )


def _domain_shows(auc: Interval) -> bool:
    return auc.estimate > _HIGH_DOMAIN_AUC and auc.low > 1 / 2


def _undecided(auc: Interval) -> bool:
    """Both chance and a high AUC are within the interval."""
    return auc.low <= 1 / 2 and auc.high > _HIGH_DOMAIN_AUC


def _severity(*, warn: bool, unsure: bool) -> str:
    return WARNING if warn else NOTE if unsure else OK


def fact_columns(facts: NDArray[Any]) -> Mapping[str, NDArray[np.float64]]:
    """The facts that a shortcut test may learn from, each of shape ``(n,)`` and finite.

    Sizes are logarithms, because a doubling means the same at any size. What does not
    vary is left out; a picture that is no JPEG has the mean quality of those that are.
    """
    is_jpeg = np.isfinite(facts["jpeg_quality"])
    quality = facts["jpeg_quality"].astype(np.float64)
    usual = quality[is_jpeg].mean() if is_jpeg.any() else 0.0
    columns = {
        "height": np.log(facts["height"]),
        "width": np.log(facts["width"]),
        "aspect": np.log(facts["width"] / facts["height"]),
        "mean grey": facts["mean"].astype(np.float64),
        "deviation of grey": facts["std"].astype(np.float64),
        "border grey": facts["border"].astype(np.float64),
        "file size": np.log(facts["file_bytes"]),
        "JPEG quality": np.where(is_jpeg, quality, usual),
        "is JPEG": is_jpeg.astype(np.float64),
    }
    return MappingProxyType({name: v for name, v in columns.items() if np.ptp(v) > 0})


def _text(auc: Interval) -> str:
    return f"{auc.estimate:.2f} ({auc.low:.2f} to {auc.high:.2f})"


def _strongest(facts: NDArray[Any], label: NDArray[np.int64]) -> str:
    """The single facts that separate a class best, in words; empty if nothing varies."""

    def strength(values: NDArray[np.float64], k: int) -> float:
        return abs(on_all_rows(weighted_auroc(label == k, values), len(label)) - 1 / 2)

    alone = {
        name: max(strength(values, k) for k in np.unique(label).tolist())
        for name, values in fact_columns(facts).items()
    }
    best = sorted(alone, key=lambda name: -alone[name])[:_STRONGEST]
    named = ", ".join(f"{name} {1 / 2 + alone[name]:.2f}" for name in best)
    # A single fact is given for the class that it separates best, all together for all classes.
    single = "of one class, alone" if np.unique(label).size > 2 else "alone"
    return f" ({single}: {named})" if named else ""


def _matrix(facts: NDArray[Any]) -> NDArray[np.float64]:
    varying = list(fact_columns(facts).values())
    return np.stack(varying, axis=1) if varying else np.zeros((len(facts), 1))


def _targets(samples: Samples) -> list[str]:
    return [name for name in dict.fromkeys(samples.domain.tolist()) if name != SOURCE]
