"""Detect domain shift: which measures say that two domains differ, and how sure are they.

The primary family (scores, classifier, kernel) carries the verdict, corrected by Holm.
All else is descriptive. Each measure is also computed where the answer is known: two
halves of the source (nothing to find) and the same halves with a small planted shift.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StudyError
from pipeline.shift.cohorts import Cohort, Comparison, compare, split_by_patient
from pipeline.shift.detection.findings import (
    ControlledDetection,
    Detection,
    DetectionSettings,
    FeatureShift,
    Finding,
)
from pipeline.shift.detection.measures import CONDITIONAL, FAST, NEEDS_PATIENTS, SLOW, Measure
from pipeline.stats import holm
from pipeline.text.counts import counted
from pipeline.two_samples.erasure import Alignment, TwoDomains, alignment
from pipeline.two_samples.marginals import FeatureDraws, feature_draws, westfall_young
from pipeline.two_samples.permute import p_value, standard_score

#: The family over which Holm's correction runs.
PRIMARY = ("bbsd_ks", "ridge_c2st", "mmd_aggregated")
_TOP_FEATURES = 20


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
    slow_plan = replace(settings.plan, draws=min(settings.slow_draws, settings.plan.draws))
    slow_pair = compare(source, target, slow_plan, settings.device)
    per_feature = feature_draws(slow_pair.pooled.features, slow_pair.labels)
    found = (
        _measured(pair, FAST, settings)
        | _measured(slow_pair, SLOW, settings)
        | {"per_feature": _finding("per_feature", per_feature.distance.max(axis=0))}
        | _inside_classes(source, target, settings)
    )
    return Detection(
        findings=_with_holm(found),
        features=_top_features(per_feature),
        alignment=_alignment(source, target, pair) if settings.aligned else None,
        n_source=pair.relabelings.n_source,
        n_target=pair.relabelings.n_target,
        notes=_notes(pair, target, settings),
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
    alone = replace(settings, aligned=False)
    return ControlledDetection(
        observed=detect(source, target, settings),
        null_control=detect(kept, other, alone),
        positive_control=detect(
            replace(kept, probabilities=predict(kept.features)),
            replace(other, features=planted, probabilities=predict(planted)),
            alone,
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


def _inside_classes(
    source: Cohort, target: Cohort, settings: DetectionSettings
) -> dict[str, Finding]:
    """Repeat classifier and kernel test inside each class (the shift of X given Y)."""
    found: dict[str, Finding] = {}
    measures = {kind: FAST[kind] for kind in NEEDS_PATIENTS}
    classes_s, classes_t = source.classes(), target.classes()
    for k in range(source.probabilities.shape[1]):
        rows_s, rows_t = classes_s == k, classes_t == k
        try:
            pair = compare(source.take(rows_s), target.take(rows_t), settings.plan, settings.device)
            inside = _measured(pair, measures, settings)
        except StudyError as error:
            inside = {name: _refusal(name, str(error)) for name in CONDITIONAL}
        for name in CONDITIONAL:
            label = f"{name}|class={k}"
            found[label] = replace(inside[name], name=label, primary=False)
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


def _top_features(draws: FeatureDraws) -> tuple[FeatureShift, ...]:
    observed, adjusted = draws.distance[:, 0], westfall_young(draws.distance)
    return tuple(
        FeatureShift(
            index=int(i),
            ks=float(observed[i]),
            cohen_d=float(draws.cohen_d[i]),
            p_adjusted=float(adjusted[i]),
        )
        for i in np.argsort(-observed, kind="stable")[:_TOP_FEATURES]
    )


def _alignment(source: Cohort, target: Cohort, pair: Comparison) -> Alignment:
    is_target = pair.labels[:, 0]
    return alignment(
        TwoDomains(
            features=pair.pooled.features,
            target=is_target,
            classes=np.concatenate([source.classes(), target.classes()]),
        ),
        pair.folds[~is_target],
        pair.where,
        pseudo_labels=target.labels is None,
    )


def _notes(pair: Comparison, target: Cohort, settings: DetectionSettings) -> tuple[str, ...]:
    notes = []
    smallest = min(pair.relabelings.n_source, pair.relabelings.n_target)
    if smallest < settings.few_patients:
        notes.append(
            f"only {counted(smallest, 'patient')} in a domain: a large p-value is absence of "
            "evidence, not evidence of absence"
        )
    if target.labels is None:
        notes.append(
            "rows inside a class use the head's predictions: tests see no label of the target"
        )
    return tuple(notes)
