"""What a detection of domain shift is asked for, and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.paired_tests import holm
from pipeline.shift.domains import Cohort, Comparison, compare, split_by_patient
from pipeline.shift.kernels import aggregate, global_scale, kernel_draws
from pipeline.shift.marginals import (
    ks_of_scores,
)
from pipeline.shift.permute import PermutationPlan, p_value, standard_score
from pipeline.shift.ridge_test import ridge_draws
from pipeline.words import counted


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """Settings of the detection."""

    plan: PermutationPlan = field(default_factory=PermutationPlan)
    """Relabellings of the primary family and of the cheap measures."""
    min_patients: int = 20
    """Below this many patients in a domain, classifier and kernel tests are refused."""
    few_patients: int = 100
    """Below this many, a silent test is called absence of evidence."""
    control_shift: float = 0.25
    """Planted shift of the positive control, in sd of the feature."""
    control_share: float = 0.05
    """Share of features that the positive control shifts."""
    device: str | None = None
    """torch device of heavy products; None for numpy."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measure of the difference between two domains."""

    name: str
    """Measure; ``measure|class=k`` inside one class."""
    primary: bool
    """Whether it belongs to the family that carries the verdict."""
    statistic: float | None
    """Observed value; None if refused."""
    effect: float | None
    """(observed - mean of the null) / sd of the null."""
    p: float | None
    """Permutation p-value."""
    p_holm: float | None = None
    """Holm-adjusted p-value, primary family only."""
    null: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Shape (B,): values under relabelling, for the histogram."""
    refused: str | None = None
    """Why there is no value."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Everything the measures say about one pair of domains."""

    findings: Mapping[str, Finding]
    """By name, primary family first."""
    n_source: int
    """Patients in the source."""
    n_target: int
    """Patients in the target."""
    notes: tuple[str, ...]
    """What a reader must know beside the numbers."""


@dataclass(frozen=True, kw_only=True)
class ControlledDetection:
    """A detection with its two controls."""

    observed: Detection
    """Source against target."""
    null_control: Detection
    """One half of the source against the other: small p-values here discredit a measure."""
    positive_control: Detection
    """The same with a planted shift: large p-values here mean it cannot see that much."""

    def rows(self) -> tuple[tuple[Finding, Finding | None, Finding | None], ...]:
        """Return each finding with its null and positive control (None if not computable)."""
        controls = (self.null_control.findings, self.positive_control.findings)
        return tuple(
            (finding, *(control.get(name) for control in controls))  # type: ignore[misc]
            for name, finding in self.observed.findings.items()
        )


# The measures of domain shift: one pair of domains in, statistics per relabelling out.


#: Statistics by name, each of shape (B + 1,), the observed value first.
Draws = Mapping[str, NDArray[np.float64]]
Measure = Callable[[Comparison], Draws]


def _scores(pair: Comparison) -> Draws:
    probabilities = pair.pooled.probabilities
    return {
        "bbsd_ks": ks_of_scores(probabilities, pair.labels),
    }


def _ridge(pair: Comparison) -> Draws:
    draws = ridge_draws(pair.pooled.features, pair.labels, pair.folds, pair.where)
    return {"ridge_c2st": draws.auc}


def _kernels(pair: Comparison) -> Draws:
    draws = kernel_draws(global_scale(pair.pooled.features), pair.labels, pair.where)
    return {"mmd_aggregated": aggregate(draws.mmd)}


#: Cheap for each relabelling.
FAST: Mapping[str, Measure] = MappingProxyType(
    {"scores": _scores, "ridge": _ridge, "kernels": _kernels}
)
#: Refused in domains with few patients, and what they would have returned.
NEEDS_PATIENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ridge": ("ridge_c2st",),
        "kernels": ("mmd_aggregated",),
    }
)


# Detect domain shift: which measures say that two domains differ, and how sure are they.


#: The family over which Holm's correction runs.
PRIMARY = ("bbsd_ks", "ridge_c2st", "mmd_aggregated")


def detect(source: Cohort, target: Cohort, settings: DetectionSettings | None = None) -> Detection:
    """Compute every measure of the difference between two domains.

    Args:
        source: The labelled domain.
        target: The other one; its labels may be sealed (None).
        settings: Relabellings, minimum sizes, device.

    Returns:
        All findings; those that would mislead are refused with their reason.

    Raises:
        StudyError: The cohorts do not fit, or have too few patients for any p-value.
        EngineError: The device is not there.
    """
    settings = settings or DetectionSettings()
    pair = compare(source, target, settings.plan, settings.device)
    found = _measured(pair, FAST, settings)
    return Detection(
        findings=_with_holm(found),
        n_source=pair.relabelings.n_source,
        n_target=pair.relabelings.n_target,
        notes=_notes(pair, settings),
    )


def detect_with_controls(
    source: Cohort,
    target: Cohort,
    predict: Callable[[NDArray[np.floating]], NDArray[np.floating]],
    settings: DetectionSettings | None = None,
) -> ControlledDetection:
    """Detect shift, and show what the same measures say where the answer is known.

    The source's patients are halved; where the target has fewer patients than a half,
    the second part shrinks to as many, so that the controls are no more powerful than
    the comparison they stand beside.

    Args:
        source: The labelled domain, with labels and out-of-fold probabilities.
        target: The other one.
        predict: Features (n, d) -> probabilities (n, K) of the head, to see the planted
            shift with the head's eyes.
        settings: Relabellings, minimum sizes, planted shift, device.

    Returns:
        The detection and both controls.

    Raises:
        StudyError: The cohorts do not fit, or have too few patients for any p-value.
        EngineError: The device is not there.
    """
    settings = settings or DetectionSettings()
    n_source = np.unique(source.groups).size
    n_target = np.unique(target.groups).size
    rng = np.random.default_rng([settings.plan.seed, 3])
    share = min(0.5, n_target / n_source)
    held_out = split_by_patient(source.groups, rng, share)
    kept, other = source.take(~held_out), source.take(held_out)
    planted = _planted(other.features, rng, settings)
    return ControlledDetection(
        observed=detect(source, target, settings),
        null_control=detect(kept, other, settings),
        positive_control=detect(
            replace(kept, probabilities=predict(kept.features)),
            replace(other, features=planted, probabilities=predict(planted)),
            settings,
        ),
    )


def _planted(
    features: NDArray[np.floating], rng: np.random.Generator, settings: DetectionSettings
) -> NDArray[np.floating]:
    """Shift a few random features by a fraction of their standard deviation."""
    width = features.shape[1]
    count = max(1, round(settings.control_share * width))
    shift = np.zeros(width, dtype=features.dtype)
    chosen = rng.permutation(width)[:count]
    shift[chosen] = settings.control_shift * features[:, chosen].std(axis=0)
    return np.asarray(features + shift)


def _finding(name: str, draws: NDArray[np.float64]) -> Finding:
    return Finding(
        name=name,
        primary=name in PRIMARY,
        statistic=float(draws[0]),
        effect=standard_score(draws),
        p=p_value(draws),
        null=draws[1:],
    )


def _refusal(name: str, reason: str) -> Finding:
    return Finding(
        name=name, primary=name in PRIMARY, statistic=None, effect=None, p=None, refused=reason
    )


def _measured(
    pair: Comparison, measures: Mapping[str, Measure], settings: DetectionSettings
) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    smallest = min(pair.relabelings.n_source, pair.relabelings.n_target)
    for kind, measure in measures.items():
        if kind in NEEDS_PATIENTS and smallest < settings.min_patients:
            reason = f"{counted(smallest, 'patient')} in a domain, needs {settings.min_patients}"
            found |= {name: _refusal(name, reason) for name in NEEDS_PATIENTS[kind]}
        else:
            found |= {name: _finding(name, draws) for name, draws in measure(pair).items()}
    return found


def _with_holm(found: Mapping[str, Finding]) -> dict[str, Finding]:
    """Put the primary family first, its p-values adjusted for one another."""
    tested = [name for name in PRIMARY if found[name].p is not None]
    adjusted = holm(np.array([found[name].p for name in tested], dtype=np.float64))
    family = {name: found[name] for name in PRIMARY} | {
        name: replace(found[name], p_holm=float(p))
        for name, p in zip(tested, adjusted, strict=True)
    }
    return family | {name: finding for name, finding in found.items() if name not in family}


def _notes(pair: Comparison, settings: DetectionSettings) -> tuple[str, ...]:
    notes = []
    smallest = min(pair.relabelings.n_source, pair.relabelings.n_target)
    if smallest < settings.few_patients:
        notes.append(
            f"only {counted(smallest, 'patient')} in a domain: a large p-value is absence of "
            "evidence, not evidence of absence"
        )
    return tuple(notes)
