"""What a detection of domain shift is asked for, and what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.two_samples.erasure import Alignment
from pipeline.two_samples.permute import PermutationPlan


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """Settings of the detection."""

    plan: PermutationPlan = field(default_factory=PermutationPlan)
    """Relabellings of the primary family and of the cheap measures."""
    slow_draws: int = 199
    """Relabellings of measures that redo much work for each (Frechet, sliced, per feature)."""
    min_patients: int = 20
    """Below this many patients in a domain, classifier and kernel tests are refused."""
    few_patients: int = 100
    """Below this many, a silent test is called absence of evidence."""
    control_shift: float = 0.25
    """Planted shift of the positive control, in sd of the feature."""
    control_share: float = 0.05
    """Share of features that the positive control shifts."""
    aligned: bool = True
    """Whether to compare the domain's direction with the task's; the controls need not."""
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
class FeatureShift:
    """How one feature differs between the domains."""

    index: int
    """Column of the feature."""
    ks: float
    """Kolmogorov-Smirnov distance, in [0, 1]."""
    cohen_d: float
    """Difference of means, target - source, in pooled sd."""
    p_adjusted: float
    """Westfall-Young p-value, adjusted for all features."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Everything the measures say about one pair of domains."""

    findings: Mapping[str, Finding]
    """By name, primary family first."""
    features: tuple[FeatureShift, ...]
    """The 20 features that differ most, largest KS distance first."""
    alignment: Alignment | None
    """Whether the domains differ along the task; None if not asked for."""
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
