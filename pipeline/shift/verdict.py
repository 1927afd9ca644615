"""Say in a few sentences why a target is worse, and what may help.

A cause is named only where the loss is shown and so is the effect that stands for it; else
the text says that nothing is shown, which is not the same as "no difference". Numbers show
which terms a loss has and whether the images differ. Causes that leave the same numbers are
named together.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.data.leaks import OK, Finding
from pipeline.evaluation.intervals import ROUGH_BELOW, Interval
from pipeline.shift.adapt_eval import BestMethod
from pipeline.shift.decompose import Effect, dominant
from pipeline.words import are, counted, percent

Effects = Mapping[str, Effect]

#: Causes that are named in the sentences at most.
_MOST = 2


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be said of one target.

    Attributes:
        sentences: Most important first.
        causes: Keys of :data:`CAUSES` that the numbers allow to name, the likeliest first.
        labels_needed: Whether estimates and thresholds made without labels must not be used.
    """

    sentences: tuple[str, ...]
    causes: tuple[str, ...] = ()
    labels_needed: bool = False


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the causes are read from.

    Attributes:
        effects: From :func:`pipeline.shift.decompose.decompose`, with the steps
            ``target_hardness`` and ``transfer_gap`` of the error table where there are any.
        images_differ: See :func:`pipeline.shift.detect.images_differ`.
        adaptable: Whether a method without labels of the target surely helps.
    """

    effects: Effects
    images_differ: bool | None
    adaptable: bool = False


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One line of the interpretation table.

    Attributes:
        effect_of: The effect that stands for it; None where the numbers do not allow to name it.
        sentence: Ends in the number of points; ``{}`` is the attribute of the effect.
        fits: What it may be, and what to do.
        of_images: Whether measures of the images may tell more.
    """

    effect_of: Callable[[Evidence], Effect | None]
    sentence: str
    fits: str
    of_images: bool = False


def verdict(
    target: str,
    evidence: Evidence,
    *,
    accuracy: tuple[float, float],
    auroc: tuple[float, float] | None = None,
    best: BestMethod | None = None,
    measured: str | None = None,
) -> Verdict:
    """Turn the numbers of one labelled target into sentences.

    Args:
        target: Its name.
        evidence: What was found.
        accuracy: Of the head on the source, out of fold, and on the target.
        auroc: The same of its AUROC; None for more than two classes.
        best: The best adaptation method that uses no target labels.
        measured: A sentence on how the images differ; None where nothing is shown.
    """
    effects = evidence.effects
    total, changed = effects["accuracy_loss"], score_changed(effects)
    causes = causes_of(evidence)
    sentences = [_loss(target, total, accuracy, auroc)]
    for name in list(causes)[:_MOST]:
        cause, effect = CAUSES[name], causes[name]
        of = cause.sentence.format(effect.division.removeprefix("by "))
        sentences.append(f"{of}: {_points(effect)}. {cause.fits}.")
    if measured and any(CAUSES[name].of_images for name in causes):
        sentences.append(measured)
    if not causes and total.low > 0:
        sentences.append("No cause is shown: no part of the loss is surely above zero.")
    if best is not None:
        sentences.append(_gain(best))
    if changed:
        sentences.append(
            "The same score means another risk than on the source, so estimates and thresholds "
            "made without labels of the target must not be used."
        )
    return Verdict(sentences=tuple(sentences), causes=tuple(causes), labels_needed=changed)


def causes_of(evidence: Evidence) -> dict[str, Effect]:
    """The causes that may be named, each with the effect that stands for it.

    Another mix of classes or groups comes first; others follow by the size of the effect.
    """
    if evidence.effects["accuracy_loss"].low <= 0:
        return {}
    found = {name: cause.effect_of(evidence) for name, cause in CAUSES.items()}
    named = [(name, effect) for name, effect in found.items() if effect is not None]
    named.sort(key=lambda pair: (not pair[0].endswith("_mix"), -pair[1].estimate))
    return dict(named)


def verdict_without_labels(
    target: str,
    *,
    source_accuracy: float,
    known: tuple[float, float] | None,
    shifted: Sequence[str],
) -> Verdict:
    """Turn what is known of a target without labels into sentences.

    Args:
        target: Its name.
        source_accuracy: Of the head, out of fold.
        known: Where the accuracy on the target may lie; None where nothing can be said.
        shifted: Tests that show a shift.
    """
    sentences = [f"{target} has no labels, so the accuracy there cannot be measured."]
    if known is None:
        sentences.append(
            "It is not estimated either: hardly any image of the source looks like these. Label "
            "some of them."
        )
    else:
        sentences.append(
            f"It is estimated at {percent(known[0])} to {percent(known[1])} "
            f"({percent(source_accuracy)} on the source), if only the class shares or the kinds of "
            "patients changed: label errors, another definition of the label, noise and blur go "
            "unseen."
        )
    if shifted and known:
        sentences.append(
            f"The domains are shown to differ ({', '.join(shifted)}): label some images of the "
            "target before you rely on the estimate."
        )
    return Verdict(sentences=tuple(sentences), labels_needed=bool(shifted))


def score_changed(effects: Effects) -> bool:
    """Whether the meaning of a score is shown to have changed, for the better or the worse."""
    effect = effects["y_given_score"]
    return effect.low > 0 or effect.high < 0


def caveats(
    shared_patients: int,
    patients: Mapping[str, int],
    leaks: Iterable[Finding],
    *,
    others: Collection[str] = (),
) -> tuple[str, ...]:
    """Sentences on what limits the numbers of one target.

    Args:
        shared_patients: Ids that both domains have.
        patients: By domain, how many.
        leaks: Findings of the checks.
        others: The other targets, whose findings are not of this one.
    """
    sentences = []
    if shared_patients:
        sentences.append(
            f"{counted(shared_patients, 'patient id')} {are(shared_patients)} in both domains: the "
            "numbering may restart, or the domains share patients, and then the loss is too small."
        )
    sentences += [
        f"The {domain} has {counted(count, 'patient')}: intervals by patient are rough, and a test "
        "that finds nothing shows nothing."
        for domain, count in patients.items()
        if count < ROUGH_BELOW
    ]
    sentences += [
        f"{finding.where}: {finding.text}."  # which images, the audit says
        for finding in leaks
        if finding.severity != OK and not set(others) & set(finding.where.split(" and "))
    ]
    return tuple(sentences)


def _loss(
    target: str,
    total: Effect,
    accuracy: tuple[float, float],
    auroc: tuple[float, float] | None,
) -> str:
    levels = f"from {percent(accuracy[0])} on the source to {percent(accuracy[1])} on {target}"
    areas = "" if auroc is None else f"; AUROC is {auroc[0]:.3f} and {auroc[1]:.3f}"
    if total.low > 0:
        return f"Accuracy falls {levels}, by {_points(total)}{areas}."
    if total.high < 0:
        return f"Accuracy rises {levels}; the loss is {_points(total)}{areas}."
    return (
        f"No loss of accuracy is shown: {percent(accuracy[0])} on the source, "
        f"{percent(accuracy[1])} on {target}; the loss is {_points(total)}{areas}."
    )


def _gain(best: BestMethod) -> str:
    if best.shown:
        return (
            f"Without target labels, {best.method} regains {_points(best.gain)}, corrected for "
            "the choice."
        )
    return (
        "No adaptation method without target labels is shown to help; the best, "
        f"{best.method}, gains {_points(best.gain)}."
    )


def _points(interval: Interval) -> str:
    estimate, low, high = (100 * v for v in (interval.estimate, interval.low, interval.high))
    return f"{estimate:.1f} points (95 % CI {low:.1f} to {high:.1f})"


# The rules.


def _class_mix(evidence: Evidence) -> Effect | None:
    shown = dominant(evidence.effects.values(), "class") == "class_mix"
    return evidence.effects["class_mix"] if shown else None


def _subgroup_mix(evidence: Evidence) -> Effect | None:
    """The largest of the mixes that are surely most of the loss."""
    mixes = [
        effect
        for effect in evidence.effects.values()
        if effect.name == f"{effect.division.removeprefix('by ')}_mix"
        and effect.division.startswith("by ")
        and dominant(evidence.effects.values(), effect.division) == effect.name
    ]
    return max(mixes, key=lambda effect: effect.estimate, default=None)


def _rest(evidence: Evidence, name: str) -> Effect | None:
    """A part of the mismatch that is surely a loss, where some is surely within all groups.

    Another mix alone makes the target harder too, or the source's head unfit.
    """
    effects = evidence.effects
    if name not in effects or effects[name].low <= 0:
        return None
    within = [e for e in effects.values() if e.name.startswith("within_")]
    return effects[name] if all(effect.low > 0 for effect in within) else None


def _when(name: str, holds: Callable[[Evidence], bool]) -> Callable[[Evidence], Effect | None]:
    return lambda evidence: _rest(evidence, name) if holds(evidence) else None


_GAP = "A head trained on the target would do better there"
_HARD = "Even a head trained on the target does worse than on the source"
#: The interpretation table. To add a line, give its rule and its sentences, and say in the
#: README which kinds of shift fit it.
CAUSES: Mapping[str, Cause] = MappingProxyType(
    {
        "class_mix": Cause(
            effect_of=_class_mix,
            sentence="Most of the loss comes from other shares of the classes",
            fits="Correct the probabilities for the class shares of the target",
        ),
        "subgroup_mix": Cause(
            effect_of=_subgroup_mix,
            sentence="Most of the loss comes from another mix of patients by {}",
            fits="Groups in which the head errs more are more frequent: train with more of them",
        ),
        "acquisition": Cause(
            effect_of=_when("transfer_gap", lambda e: bool(e.images_differ) and e.adaptable),
            sentence=f"{_GAP}, and the images differ",
            fits=(
                "Another way of taking the images fits, such as exposure, contrast or device, and "
                "so do other kinds of patients"
            ),
            of_images=True,
        ),
        "acquisition_or_labels": Cause(
            effect_of=_when("transfer_gap", lambda e: e.images_differ is None or (
                e.images_differ and not e.adaptable
            )),
            sentence=_GAP,
            fits=(
                "Another way of taking the images, other kinds of patients and another definition "
                "of the label all fit; the numbers cannot tell them apart"
            ),
            of_images=True,
        ),
        "label_definition": Cause(
            effect_of=_when("transfer_gap", lambda e: e.images_differ is False),
            sentence=f"{_GAP}, though the images are not shown to differ",
            fits="Another definition of the label fits",
        ),
        "harder_images": Cause(
            effect_of=_when("target_hardness", lambda e: bool(e.images_differ)),
            sentence=f"{_HARD}, and the images differ",
            fits="Noise, blur and harder patients fit; the numbers cannot tell them apart",
            of_images=True,
        ),
        "label_errors": Cause(
            effect_of=_when("target_hardness", lambda e: e.images_differ is False),
            sentence=f"{_HARD}, though the images are not shown to differ",
            fits="Label errors fit, or a disease that is harder to see",
        ),
        "harder_images_or_label_errors": Cause(
            effect_of=_when("target_hardness", lambda e: e.images_differ is None),
            sentence=_HARD,
            fits="Noise, blur, harder patients and label errors all fit",
            of_images=True,
        ),
    }
)  # fmt: skip
