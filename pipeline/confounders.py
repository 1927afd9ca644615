"""Can the label, or the hospital, be told from what should not tell it?

From the features which hospital an image is of; from facts of the file, from the border
and from the corners which label it has. What can be told is not yet what a head uses,
but nothing in the features keeps it from using it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.facts import columns
from pipeline.finding import NOTE, OK, WARNING, Finding
from pipeline.leak_checks import people
from pipeline.samples import Samples
from pipeline.shift.probes import Probe, label_probe, source_prediction, weighted_auc
from pipeline.shift.products import place
from pipeline.study import SOURCE

HOSPITAL, FACTS_PROBE, FACTS_HOSPITAL = "hospital", "facts", "hospital from facts"
#: Above this AUC a hospital can be told so well that features may stand for it.
_TOLD = 0.9
#: A label that the facts tell: lower end of the AUC's interval.
_FACTS_TELL = 0.55
#: A label that a masked picture tells: the AUC, if its interval excludes one half.
_MASK_TELLS = 0.6
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
    return [
        finding
        for target in _targets(samples)
        for finding in _told_apart(samples, features, target, backbone)
    ]


def _told_apart(
    samples: Samples, features: NDArray[np.floating], target: str, backbone: str
) -> Iterator[Finding]:
    rows = np.isin(samples.domain, [SOURCE, target])
    where = f"{SOURCE} and {target}"
    try:
        told = source_prediction(
            features[rows],
            samples.domain[rows] == target,
            people(samples)[rows],
            samples.label[rows],
            place(None),
        )
    except StudyError as reason:
        yield _impossible(HOSPITAL, where, reason)
        return
    by_class = dict(zip(samples.classes, told.by_class, strict=False))
    classes = ", ".join(f"{name} {auc:.2f}" for name, auc in by_class.items() if auc is not None)
    if not samples.labelled[rows].all():
        classes = f"{target} has no labels, so not by class"
    worst = max([told.overall, *(auc for auc in told.by_class if auc is not None)])
    warn = worst > _TOLD
    yield Finding(
        check=HOSPITAL,
        severity=WARNING if warn else OK,
        where=where,
        found=f"the features of {backbone} tell them apart with AUC {told.overall:.2f} ({classes})",
        advice="The hospitals look different to the network; what a head learned may be about "
        "the hospital. headrace shift says what it costs"
        if warn
        else "",
        values={"backbone": backbone, "auc": told.overall, "auc_by_class": by_class},
    )


def check_facts(samples: Samples, facts: NDArray[Any]) -> list[Finding]:
    """Whether size, greys, file size and quality tell the label in a domain, or the hospital.

    Args:
        samples: ``n`` samples.
        facts: Records of dtype ``FACTS``, shape ``(n,)``.
    """
    findings: list[Finding] = []
    for domain in _domains(samples):
        rows = samples.domain == domain
        if not samples.labelled[rows].all():
            findings.append(_needs_labels(FACTS_PROBE, domain))
            continue
        strongest = _strongest(facts[rows], samples.label[rows])
        findings += _label_told(
            samples.where(rows),
            _matrix(facts[rows]),
            check=FACTS_PROBE,
            what=f"size, greys, file size and quality{strongest}",
            limit=_by_facts,
        )
    for target in _targets(samples):
        findings += _hospital_by_facts(samples, facts, target)
    return findings


def check_masked(samples: Samples, features: NDArray[np.floating], mask: str) -> list[Finding]:
    """Whether what a mask leaves of the pictures tells the label, in each domain.

    Args:
        samples: ``n`` samples.
        features: Of the masked pictures, shape ``(n, d)``.
        mask: An entry of ``MASKED``.
    """
    check, what = MASKED[mask]
    findings: list[Finding] = []
    for domain in _domains(samples):
        rows = samples.domain == domain
        if not samples.labelled[rows].all():
            findings.append(_needs_labels(check, domain))
            continue
        findings += _label_told(
            samples.where(rows), features[rows], check=check, what=what, limit=_by_mask
        )
    return findings


def _label_told(
    samples: Samples, evidence: NDArray[np.floating], *, check: str, what: str, limit: Any
) -> Iterator[Finding]:
    """One line about one domain; ``limit`` says of a probe whether it is too good."""
    where = str(samples.domain[0])
    present: NDArray[np.int64] = np.unique(samples.label, return_inverse=True)[1]
    try:
        probe = label_probe(evidence, present, samples.group)
    except StudyError as reason:
        yield _impossible(check, where, reason)
        return
    warn = limit(probe)
    yield Finding(
        check=check,
        severity=WARNING if warn else OK,
        where=where,
        found=f"the label can {'' if warn else 'hardly '}be told from {what}: {_auc(probe)}",
        advice="A head may be right without looking at the disease. See how the classes were "
        "collected, and whether the disease itself could show there (as in the mean grey)"
        if warn
        else "",
        values=vars(probe),
    )


def _hospital_by_facts(samples: Samples, facts: NDArray[Any], target: str) -> Iterator[Finding]:
    rows = np.isin(samples.domain, [SOURCE, target])
    where = f"{SOURCE} and {target}"
    is_target = (samples.domain[rows] == target).astype(np.int64)
    try:
        probe = label_probe(_matrix(facts[rows]), is_target, people(samples)[rows])
    except StudyError as reason:
        yield _impossible(FACTS_HOSPITAL, where, reason)
        return
    warn = probe.auc > _TOLD
    yield Finding(
        check=FACTS_HOSPITAL,
        severity=WARNING if warn else OK,
        where=where,
        found=f"told from size, greys, file size and quality: {_auc(probe)}",
        advice="The pictures were made or stored differently; store them alike before comparing"
        if warn
        else "",
        values=vars(probe),
    )


def _by_facts(probe: Probe) -> bool:
    return probe.low > _FACTS_TELL


def _by_mask(probe: Probe) -> bool:
    return probe.auc > _MASK_TELLS and probe.low > 1 / 2


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
    return f" (alone: {told})" if told else ""


def _matrix(facts: NDArray[Any]) -> NDArray[np.float64]:
    found = columns(facts)
    if not found:
        return np.zeros((len(facts), 1))
    return np.stack(list(found.values()), axis=1)


def _auc(probe: Probe) -> str:
    return f"AUC {probe.auc:.2f} ({probe.low:.2f} to {probe.high:.2f})"


def _impossible(check: str, where: str, reason: StudyError) -> Finding:
    return Finding(check=check, severity=NOTE, where=where, found=f"cannot be asked: {reason}")


def _needs_labels(check: str, where: str) -> Finding:
    return Finding(check=check, severity=NOTE, where=where, found="not asked: it has no labels")


def _domains(samples: Samples) -> list[str]:
    return list(dict.fromkeys(samples.domain.tolist()))


def _targets(samples: Samples) -> list[str]:
    return [name for name in _domains(samples) if name != SOURCE]
