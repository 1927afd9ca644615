"""Can the label, or the hospital, be told from what should not tell it?

From the features which hospital an image is of; from facts of the file, from the border
and from the corners which label it has. What can be told is not yet what a head uses,
but nothing in the features keeps it from using it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.facts import columns
from pipeline.data.leaks import NOTE, OK, WARNING, Finding, cannot_ask, in_each_domain, people
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.shift.probes import Probe, label_probe, source_prediction, weighted_auc
from pipeline.study import SOURCE

HOSPITAL, FACTS_PROBE, FACTS_HOSPITAL = "hospital", "facts", "hospital from facts"
#: Above this AUC, if its interval excludes one half, a hospital can be told so well that
#: features may stand for it.
_TOLD = 0.9
_TOO_FEW = "; too few patients to say"
#: A label that the facts tell: lower end of the AUC's interval.
_FACTS_TELL = 0.55
#: A label that a masked picture tells: the AUC, if its interval excludes one half.
_MASK_TELLS = 0.6
_FACTS = "size, greys, file size and quality"
#: Single facts that are named.
_STRONGEST = 2

#: By mask: name of the check, and what is left of the picture.
MASKED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "centre": ("border", "the border alone (the middle 70 % of each side black)"),
        "corners": ("corners", "the four corners alone (20 % of each side)"),
    }
)


def check_hospital(
    samples: Samples, features: NDArray[np.floating], backbone: str
) -> list[Finding]:
    """How well each target can be told from the source, overall and inside each class.

    Args:
        samples: ``n`` samples.
        features: Shape ``(n, d)``.
        backbone: Whose features they are.
    """
    return [_told_apart(samples, features, target, backbone) for target in _targets(samples)]


def _told_apart(
    samples: Samples, features: NDArray[np.floating], target: str, backbone: str
) -> Finding:
    rows = np.isin(samples.domain, [SOURCE, target])
    where = f"{SOURCE} and {target}"
    try:
        told = source_prediction(
            features[rows], samples.domain[rows] == target, samples.group[rows], samples.label[rows]
        )
    except StudyError as reason:
        return cannot_ask(HOSPITAL, where, reason)
    by_class = dict(zip(samples.classes, told.by_class, strict=False))
    inside = {name: probe for name, probe in by_class.items() if probe is not None}
    classes = "; ".join(f"{name} {probe.text}" for name, probe in inside.items())
    if not samples.labelled[rows].all():
        classes = f"{target} has no labels, so not by class"
    probes = (told.overall, *inside.values())
    warn = any(_well(probe) for probe in probes)
    unsure = not warn and _open(told.overall)
    return Finding(
        check=HOSPITAL,
        severity=_severity(warn=warn, unsure=unsure),
        where=where,
        found=f"the features of {backbone} tell them apart with AUC {told.overall.text}; inside "
        f"the classes: {classes or 'too few patients'}{_TOO_FEW if unsure else ''}",
        advice="The hospitals look different to the network; what a head learned may be about "
        "the hospital. headrace shift says what it costs"
        if warn
        else "",
        values={
            "backbone": backbone,
            **vars(told.overall),
            "by_class": {name: probe and vars(probe) for name, probe in by_class.items()},
        },
    )


def check_facts(samples: Samples, facts: NDArray[Any]) -> list[Finding]:
    """Whether size, greys, file size and quality tell the label in a domain, or the hospital.

    Args:
        samples: ``n`` samples.
        facts: Records of dtype ``FACTS``, shape ``(n,)``.
    """

    def label_told(domain: str, rows: NDArray[np.bool_]) -> Finding:
        strongest = _strongest(facts[rows], samples.label[rows])
        question = Question(
            check=FACTS_PROBE, where=domain, evidence=f"{_FACTS}{strongest}", too_well=_by_facts
        )
        return _answer(question, _matrix(facts[rows]), samples.label[rows], samples.group[rows])

    findings = in_each_domain(samples, FACTS_PROBE, label_told)
    for target in _targets(samples):
        rows = np.isin(samples.domain, [SOURCE, target])
        question = Question(
            check=FACTS_HOSPITAL,
            where=f"{SOURCE} and {target}",
            told="the hospital",
            evidence=_FACTS,
            too_well=_well,
            advice="The pictures were made or stored differently; store them alike before "
            "comparing",
        )
        evidence, is_target = _matrix(facts[rows]), (samples.domain[rows] == target).astype(int)
        findings.append(_answer(question, evidence, is_target, people(samples)[rows]))
    return findings


def check_masked(samples: Samples, features: NDArray[np.floating], mask: str) -> list[Finding]:
    """Whether what a mask leaves of the pictures tells the label, in each domain.

    Args:
        samples: ``n`` samples.
        features: Of the masked pictures, shape ``(n, d)``.
        mask: An entry of ``MASKED``.
    """
    check, evidence = MASKED[mask]

    def label_told(domain: str, rows: NDArray[np.bool_]) -> Finding:
        question = Question(check=check, where=domain, evidence=evidence, too_well=_by_mask)
        return _answer(question, features[rows], samples.label[rows], samples.group[rows])

    return in_each_domain(samples, check, label_told)


def _well(probe: Probe) -> bool:
    return probe.auc > _TOLD and probe.low > 1 / 2


def _open(probe: Probe) -> bool:
    """Both that nothing is told and that it is told well are within the interval."""
    return probe.low <= 1 / 2 and probe.high > _TOLD


def _severity(*, warn: bool, unsure: bool) -> str:
    return WARNING if warn else NOTE if unsure else OK


def _by_facts(probe: Probe) -> bool:
    return probe.low > _FACTS_TELL


def _by_mask(probe: Probe) -> bool:
    return probe.auc > _MASK_TELLS and probe.low > 1 / 2


@dataclass(frozen=True, kw_only=True)
class Question:
    """Whether something can be told from what should not tell it, and what to say then."""

    check: str
    where: str
    evidence: str
    too_well: Callable[[Probe], bool]
    told: str = "the label"
    advice: str = (
        "A head may be right without looking at the disease. See how the classes were "
        "collected, and whether the disease itself could show there (as in the mean grey)"
    )


def _answer(
    question: Question,
    evidence: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.str_],
) -> Finding:
    """Probe; what cannot be asked is a note."""
    try:
        probe = label_probe(evidence, labels, groups)
    except StudyError as reason:
        return cannot_ask(question.check, question.where, reason)
    warn = question.too_well(probe)
    unsure = not warn and _open(probe)
    can = "can" if warn else "may or may not" if unsure else "is not shown to"
    return Finding(
        check=question.check,
        severity=_severity(warn=warn, unsure=unsure),
        where=question.where,
        found=f"{question.told} {can} be told from {question.evidence}: AUC {probe.text}"
        f"{_TOO_FEW if unsure else ''}",
        advice=question.advice if warn else "",
        values=vars(probe),
    )


def _strongest(facts: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """The single facts that tell most of a class, in words; empty if nothing varies."""
    ones = np.ones((len(labels), 1), np.int64)

    def apart(values: NDArray[np.float64], k: int) -> float:
        return float(abs(weighted_auc(values, labels == k, ones)[0] - 1 / 2))

    alone = {
        name: max(apart(values, k) for k in np.unique(labels).tolist())
        for name, values in columns(facts).items()
    }
    best = sorted(alone, key=lambda name: -alone[name])[:_STRONGEST]
    told = ", ".join(f"{name} {1 / 2 + alone[name]:.2f}" for name in best)
    # A fact alone is judged by the class that it tells best, all together by all classes.
    of_one = "of one class, alone" if np.unique(labels).size > 2 else "alone"
    return f" ({of_one}: {told})" if told else ""


def _matrix(facts: NDArray[Any]) -> NDArray[np.float64]:
    found = columns(facts)
    if not found:
        return np.zeros((len(facts), 1))
    return np.stack(list(found.values()), axis=1)


def _targets(samples: Samples) -> list[str]:
    return [name for name in dict.fromkeys(samples.domain.tolist()) if name != SOURCE]
