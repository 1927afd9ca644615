"""Shortcut tests: can the domain or the label be predicted from what should not show it?

The domain is predicted from the features; the label from properties of the file, from the border
of the image and from its corners. What a classifier can predict, a head may use.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.data.leaks import (
    NOTE,
    OK,
    WARNING,
    CheckResult,
    impossible,
    labelled_domains,
    patients_of,
)
from pipeline.data.samples import Samples
from pipeline.errors import StudyError
from pipeline.evaluation.intervals import Interval
from pipeline.evaluation.paired_tests import ALPHA, holm
from pipeline.evaluation.separability import Separability, domain_auc, separability
from pipeline.features.load import FeatureTable
from pipeline.study import SOURCE
from pipeline.words import counted

MEASURES = "file properties"
#: AUC above which features may reveal the domain.
_HIGH_DOMAIN_AUC = 0.9
#: AUC above which something that should not show the label is a shortcut.
_HIGH_LABEL_AUC = 0.6
_MEASURES = "image size, grey values, file size and JPEG quality"
#: Permutations of a test, at least, and for each test of an audit: with fewer no p could be
#: below 5 % once it is adjusted. Inside a class an interval is made of them, but no p.
_DRAWS, _DRAWS_A_TEST, _CLASS_DRAWS = 499, 40, 199
#: Single measures that are named.
_STRONGEST = 2
_LABEL_ADVICE = (
    "A head may be right without looking at the disease. Check how the classes were collected, "
    "and whether the disease itself causes the difference (it can change mean grey and file size)"
)
_DOMAIN_ADVICE = (
    "The features differ between the domains, so a head may fail on the target. "
    "`headrace shift STUDY` shows what this costs"
)
_STORE_ALIKE = "The images were taken or stored differently; store them in one way before comparing"
#: Words of class names that are parts of the body or kinds of examination: the whole image
#: differs between them, so its border may show the class.
_WHOLE_IMAGE = frozenset(
    re.findall(
        r"\w+",
        "abdomen ankle bladder bone brain breast chest ct cxr elbow femur finger foot forearm "
        "hand head heart hip humerus kidney knee liver lung mri neck pancreas pelvis shoulder "
        "skull spine spleen stomach ultrasound wrist xray",
    )
)

#: By mask: name of the check, and what is left of the image.
MASKED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "centre": ("border", "the border alone (the middle 70 % of each side is hidden)"),
        "corners": ("corners", "the four corners alone (20 % of each side)"),
    }
)


@dataclass(frozen=True, kw_only=True)
class ShortcutTest:
    """One test, before its p is adjusted.

    A positive test supports its ``hypothesis``. It is a warning with ``advice`` if the AUC of all
    images, or the ``strongest`` inside a class, reaches ``high``, unless that is ``expected``.
    """

    check: str
    where: str
    hypothesis: str
    result: Separability | StudyError
    high: float = _HIGH_LABEL_AUC
    advice: str = _LABEL_ADVICE
    details: str = ""
    strongest: float = 0.0
    expected: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def results_of(tests: Sequence[ShortcutTest]) -> list[CheckResult]:
    """Results of all tests of an audit; p is adjusted over them (Holm)."""
    values = [test.result.p for test in tests if isinstance(test.result, Separability)]
    adjusted = iter(holm(values).tolist())
    return [
        impossible(test.check, test.where, test.result)
        if isinstance(test.result, StudyError)
        else _check_result(test, test.result, next(adjusted), len(values))
        for test in tests
    ]


def _check_result(test: ShortcutTest, result: Separability, p: float, tests: int) -> CheckResult:
    auc, text = result.auc, f"AUC {_auc_text(result.auc)}{test.details}"
    shown = p < ALPHA and auc.low > 1 / 2
    strong = shown and max(auc.estimate, test.strongest) > test.high and not test.expected
    unsure = not shown and auc.low <= 1 / 2 and auc.high > _HIGH_DOMAIN_AUC
    if shown:
        sentence = f"{test.hypothesis}: {text}{test.expected and f'; {test.expected}'}"
    elif unsure:
        sentence = f"there are too few patients to say whether {test.hypothesis}: {text}"
    elif auc.low > 1 / 2:
        sentence = f"it is not shown that {test.hypothesis}: {text}; p {p:.2f}, adjusted for "
        sentence += counted(tests, "test")
    else:
        sentence = f"there is no sign that {test.hypothesis}: {text}"
    return CheckResult(
        check=test.check,
        severity=WARNING if strong else NOTE if shown or unsure else OK,
        where=test.where,
        text=sentence,
        advice=test.advice if strong else "",
        share=max(0.0, 2 * max(auc.estimate, test.strongest) - 1),
        values={**asdict(result), "p_adjusted": p, **test.values},
    )


Job = Callable[..., ShortcutTest]
"""A test that is still to be run; takes ``draws``, the number of permutations."""


def with_permutations(jobs: Sequence[Job]) -> list[Job]:
    """The tests of an audit, with enough permutations that each can be positive."""
    draws = max(_DRAWS, _DRAWS_A_TEST * len(jobs))
    return [partial(job, draws=draws) for job in jobs]


def domain_tests(table: FeatureTable) -> list[Job]:
    """Tests of how well a classifier separates each target from the source, also by class."""
    return [partial(_domain_test, table, name) for name in _targets(table.samples)]


def _domain_test(table: FeatureTable, name: str, *, draws: int = _DRAWS) -> ShortcutTest:
    common: dict[str, Any] = {
        "check": "domain",
        "where": f"{SOURCE} and {name}",
        "hypothesis": f"a classifier separates the two domains by the features of {table.backbone}",
    }
    target = table.domain(name)
    try:
        overall, classes = domain_auc(
            table.domain(SOURCE), target, draws=draws, class_draws=_CLASS_DRAWS
        )
    except StudyError as reason:
        return ShortcutTest(**common, result=reason)
    by_class = dict(zip(table.samples.classes, classes, strict=False))
    tested = {label: inside.auc for label, inside in by_class.items() if inside is not None}
    inside = "; ".join(f"{label} {_auc_text(auc)}" for label, auc in tested.items())
    if target.label is None:
        details = f"; inside the classes: {name} has no labels, so not by class"
    else:
        details = f"; inside the classes: {inside or 'too few patients'}"
    return ShortcutTest(
        **common,
        result=overall,
        high=_HIGH_DOMAIN_AUC,
        advice=_DOMAIN_ADVICE,
        details=details,
        strongest=max((auc.estimate for auc in tested.values() if auc.low > 1 / 2), default=0.0),
        values={
            "backbone": table.backbone,
            "by_class": {label: inside and asdict(inside) for label, inside in by_class.items()},
        },
    )


def measure_tests(samples: Samples, measures: NDArray[Any]) -> list[Job]:
    """Tests of whether size, grey values, file size and JPEG quality predict label or domain.

    Args:
        samples: ``n`` samples.
        measures: Records of dtype ``MEASURES``, shape ``(n,)``.
    """
    jobs: list[Job] = []
    for name, rows in labelled_domains(samples):
        hypothesis = f"the label can be predicted from {_MEASURES}"
        hypothesis += _strongest_measures(measures[rows], samples.label[rows])
        data = _measure_matrix(measures[rows]), samples.label[rows], samples.group[rows]
        jobs.append(
            partial(_shortcut_test, _label_test(samples, MEASURES, name, hypothesis), *data)
        )
    for name in _targets(samples):
        about = {
            "check": "domain from file properties",
            "where": f"{SOURCE} and {name}",
            "hypothesis": f"the domain can be predicted from {_MEASURES}",
            "high": _HIGH_DOMAIN_AUC,
            "advice": _STORE_ALIKE,
        }
        rows = np.isin(samples.domain, [SOURCE, name])
        is_target = (samples.domain[rows] == name).astype(int)
        data = _measure_matrix(measures[rows]), is_target, patients_of(samples)[rows]
        jobs.append(partial(_shortcut_test, about, *data))
    return jobs


def mask_tests(samples: Samples, features: NDArray[np.floating], mask: str) -> list[Job]:
    """Tests of whether what a mask leaves of the images predicts the label, in each domain.

    Args:
        samples: ``n`` samples.
        features: Features of the masked images, shape ``(n, d)``.
        mask: An entry of ``MASKED``.
    """
    check, rest = MASKED[mask]
    hypothesis = f"the label can be predicted from {rest}"
    return [
        partial(
            _shortcut_test,
            _label_test(samples, check, domain, hypothesis),
            *(features[rows], samples.label[rows], samples.group[rows]),
        )
        for domain, rows in labelled_domains(samples)
    ]


def untested(samples: Samples, checks: Sequence[str]) -> list[CheckResult]:
    """A note for each domain without labels, on each check that needs labels."""
    return [
        CheckResult(check=check, severity=NOTE, where=name, text="not tested: it has no labels")
        for name in samples.unlabelled
        for check in checks
    ]


def _label_test(samples: Samples, check: str, domain: str, hypothesis: str) -> dict[str, str]:
    words = (re.split(r"[\s_-]+", name.lower()) for name in samples.classes)
    parts = sum(not _WHOLE_IMAGE.isdisjoint(name) for name in words)
    expected = "expected of classes that are parts of the body" if parts > 1 else ""
    return {"check": check, "where": domain, "hypothesis": hypothesis, "expected": expected}


def _shortcut_test(
    about: Mapping[str, Any], *data: NDArray[Any], draws: int = _DRAWS
) -> ShortcutTest:
    """A test of rows of features; ``about`` holds the other fields of :class:`ShortcutTest`."""
    try:
        result = separability(*data, draws=draws)
    except StudyError as reason:
        return ShortcutTest(**about, result=reason)
    of, images = len(data[0]), result.auc.images
    drawn = f", from {images} of {counted(of, 'image')}, drawn by patient"
    return ShortcutTest(**about, result=result, details=drawn if images < of else "")


def _measure_columns(measures: NDArray[Any]) -> Mapping[str, NDArray[np.float64]]:
    """The measures that a shortcut test may use, each ``(n,)``, finite and not constant.

    An image that is no JPEG gets the mean quality of those that are.
    """
    is_jpeg = np.isfinite(measures["jpeg_quality"])
    quality = measures["jpeg_quality"].astype(np.float64)
    usual = quality[is_jpeg].mean() if is_jpeg.any() else 0.0
    columns = {
        "height": np.log(measures["height"]),
        "width": np.log(measures["width"]),
        "aspect": np.log(measures["width"] / measures["height"]),
        "mean grey": measures["mean"].astype(np.float64),
        "deviation of grey": measures["std"].astype(np.float64),
        "border grey": measures["border"].astype(np.float64),
        "file size": np.log(measures["file_bytes"]),
        "JPEG quality": np.where(is_jpeg, quality, usual),
        "is JPEG": is_jpeg.astype(np.float64),
    }
    return {name: values for name, values in columns.items() if np.ptp(values) > 0}


def _auc_text(auc: Interval) -> str:
    return f"{auc.estimate:.2f} ({auc.low:.2f} to {auc.high:.2f})"


def _strongest_measures(measures: NDArray[Any], label: NDArray[np.int64]) -> str:
    """The single measures that separate a class best, in words; empty if all are constant."""
    images = np.bincount(label)
    present = (images > 0) & (images < len(label))
    n = images[present]

    def strength(values: NDArray[np.float64]) -> float:
        """Distance of the AUC from 1/2 for the class that the measure separates best."""
        ranks = np.bincount(label, weights=rankdata(values))[present]
        auc = (ranks - n * (n + 1) / 2) / (n * (len(label) - n))
        return float(np.abs(auc - 1 / 2).max(initial=0))

    alone = {name: strength(values) for name, values in _measure_columns(measures).items()}
    best = sorted(alone, key=alone.__getitem__, reverse=True)[:_STRONGEST]
    named = ", ".join(f"{name} {1 / 2 + alone[name]:.2f}" for name in best)
    # A single measure is given for the class that it separates best, all together for all classes.
    single = "of one class, alone" if np.unique(label).size > 2 else "alone"
    return f" ({single}: {named})" if named else ""


def _measure_matrix(measures: NDArray[Any]) -> NDArray[np.float64]:
    varying = list(_measure_columns(measures).values())
    return np.stack(varying, axis=1) if varying else np.zeros((len(measures), 1))


def _targets(samples: Samples) -> list[str]:
    return [name for name in dict.fromkeys(samples.domain.tolist()) if name != SOURCE]
