"""Say in a few sentences why a target is worse, and what may help.

A cause is named only if both the loss and the effect behind the cause are shown. Otherwise the
text says that nothing is shown, which does not mean "no difference". Causes that lead to the same
numbers are named together.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from pipeline.data.attributes import Grouping
from pipeline.data.domain import DomainData
from pipeline.data.leaks import OK, CheckResult
from pipeline.evaluation.intervals import ROUGH_BELOW
from pipeline.shift.adapt import BestMethod
from pipeline.shift.decompose import FEW_PATIENTS, Effect, unseen_groups
from pipeline.words import counted, percent

_Effects = Mapping[str, Effect]

#: Most causes that are named in the sentences.
_MOST_CAUSES = 2
#: A term is called the cause only if it is the largest in this share of the draws.
_DOMINANT = 0.9


class Verdict(NamedTuple):
    """The sentences about one labelled target, the most important first.

    Causes are keys of :data:`CAUSES`. If ``labels_needed``, estimates and thresholds that were
    made without labels must not be used.
    """

    sentences: list[str]
    causes: tuple[str, ...]
    labels_needed: bool


class Cause(NamedTuple):
    """The sentence about a cause, what fits it, and whether measures of the images are added."""

    sentence: str
    fits: str
    adds_measures: bool = False


_GAP = "A head trained on {target} would err less there, by {points}"
_HARD = (
    "Even a head trained on {target} errs more there than a head trained on the source does on the "
    "source, by {points}"
)
_ALIKE = "though the images are not shown to differ"
#: A marker of one class on the source looks like another scanner or label on the target.
_SHORTCUT = "a shortcut that the head learnt on the source (see headrace audit)"
_NO_DISTINCTION = "These numbers do not say which."
#: The interpretation table; :func:`causes_of` has its rules. The README says which kinds of
#: shift fit each line.
CAUSES: Mapping[str, Cause] = MappingProxyType(
    {
        "class_mix": Cause(
            "Most of the loss, {points}, comes from another mix of the classes.",
            "Correct the probabilities for the class mix of the target.",
        ),
        "subgroup_mix": Cause(
            "Most of the loss, {points}, comes from another mix of patients by {attribute}.",
            "Groups in which the head errs more are more frequent: train with more of them.",
        ),
        "acquisition": Cause(
            f"{_GAP}, and the images differ.",
            "Possible reasons: images taken in another way (exposure, contrast, device), other "
            f"kinds of patients, or {_SHORTCUT}.",
            adds_measures=True,
        ),
        "acquisition_or_labels": Cause(
            f"{_GAP}.",
            "Possible reasons: images taken in another way, other kinds of patients, another "
            f"definition of the label, or {_SHORTCUT}. {_NO_DISTINCTION}",
            adds_measures=True,
        ),
        "label_definition": Cause(
            f"{_GAP}, {_ALIKE}.",
            f"Possible reasons: another definition of the label, or {_SHORTCUT}.",
        ),
        "label_errors": Cause(
            f"{_HARD}, {_ALIKE}.",
            "Possible reasons: label errors, another definition of the label, or a disease that is "
            "harder to see.",
        ),
        "harder_images_or_label_errors": Cause(
            f"{_HARD}.",
            "Possible reasons: noise, blur, harder patients, label errors, or another definition "
            f"of the label. {_NO_DISTINCTION}",
            adds_measures=True,
        ),
    }
)
#: The cause of each effect if the images may differ, and if nothing hints at a difference. Images
#: that differ may also have wrong labels, so a difference does not exclude label errors.
_OF_EFFECT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "transfer_gap": ("acquisition_or_labels", "label_definition"),
        "target_hardness": ("harder_images_or_label_errors", "label_errors"),
    }
)


def causes_of(
    effects: _Effects, *, images_differ: bool | None, adaptation_helps: bool
) -> dict[str, Effect]:
    """The causes that may be named, each with its effect.

    Another mix of classes or groups comes first; others follow by the size of the effect. These
    also need a loss within all groups, because another mix alone can make the target harder, or
    the source's head worse.

    Args:
        effects: From :func:`pipeline.shift.decompose.decompose`, with the steps
            ``target_hardness`` and ``transfer_gap`` of the error table where there are any.
        images_differ: See :func:`pipeline.shift.detect.images_differ`.
        adaptation_helps: Whether a method without target labels is shown to help.
    """
    if effects["accuracy_loss"].low <= 0:
        return {}
    mixes: dict[str, Effect] = {}
    for decomposition in dict.fromkeys(effect.decomposition for effect in effects.values()):
        term = dominant(effects.values(), decomposition)
        if term is not None and term.endswith("_mix"):
            name = "class_mix" if decomposition == "class" else "subgroup_mix"
            pair = (effects[term], mixes.get(name, effects[term]))
            mixes[name] = max(pair, key=lambda effect: effect.estimate)
    inside = [effect for effect in effects.values() if effect.name.startswith("within_")]
    rest = {}
    if all(effect.low > 0 for effect in inside):
        for name, (differing, alike) in _OF_EFFECT.items():
            if name in effects and effects[name].low > 0:
                rest[alike if images_differ is False else differing] = effects[name]
    if images_differ and adaptation_helps and "acquisition_or_labels" in rest:
        rest["acquisition"] = rest.pop("acquisition_or_labels")
    return {
        name: effect
        for group in (mixes, rest)
        for name, effect in sorted(group.items(), key=lambda pair: -pair[1].estimate)
    }


def dominant(effects: Iterable[Effect], decomposition: str) -> str | None:
    """Name of the term that is surely a loss and surely the largest; None if none is."""
    for effect in effects:
        share = effect.largest or 0.0
        if effect.decomposition == decomposition and share >= _DOMINANT and effect.low > 0:
            return effect.name
    return None


def verdict(
    target: str,
    effects: _Effects,
    *,
    accuracy: Mapping[str, float],
    auroc: Mapping[str, float | None],
    images_differ: bool | None = None,
    best: BestMethod | None = None,
    measured: str | None = None,
) -> Verdict:
    """Turn the numbers of one labelled target into sentences.

    Args:
        target: Its name.
        effects: See :func:`causes_of`.
        accuracy: Accuracy of the head on the ``source``, out of fold, and on the ``target``.
        auroc: Its AUROC on both.
        images_differ: See :func:`causes_of`.
        best: The best adaptation method that uses no target labels.
        measured: A sentence on how the images differ; None where nothing is shown.
    """
    loss = effects["accuracy_loss"]
    adaptation_helps = best is not None and best.shown
    causes = causes_of(effects, images_differ=images_differ, adaptation_helps=adaptation_helps)
    sentences = [_loss_sentence(target, loss, accuracy)]
    if "auroc_loss" in effects:
        before, after = auroc["source"], auroc["target"]
        sentences.append(f"AUROC is {before:.3f} on the source and {after:.3f} on {target}.")
    for name, effect in list(causes.items())[:_MOST_CAUSES]:
        attribute = effect.decomposition.removeprefix("by ")
        sentence = CAUSES[name].sentence.format(
            target=target, points=_points_text(effect), attribute=attribute
        )
        sentences.append(f"{sentence} {CAUSES[name].fits}")
    if measured and any(CAUSES[name].adds_measures for name in causes):
        sentences.append(measured)
    if not causes and loss.low > 0:
        sentences.append("No cause is shown: the effects do not single one out.")
    if best is not None:
        sentences.append(_gain_sentence(best))
    # The meaning of a score may have changed for the better or the worse.
    changed = effects["y_given_score"].low > 0 or effects["y_given_score"].high < 0
    if changed:
        # Another class mix changes it by itself, and its correction needs no labels.
        but = ". Do"
        if "class_mix" in causes:
            but = ", as with any other class mix. Apart from that correction, do"
        sentences.append(
            f"The same score means another risk on {target} than on the source{but} not use "
            f"estimates or thresholds that were made without labels of {target}."
        )
    return Verdict(sentences, tuple(causes), changed)


def _loss_sentence(target: str, loss: Effect, accuracy: Mapping[str, float]) -> str:
    before, after = percent(accuracy["source"]), percent(accuracy["target"])
    if not (loss.low > 0 or loss.high < 0):
        return (
            f"No loss of accuracy is shown: {before} on the source, {after} on {target}; the loss "
            f"is {_points_text(loss)}."
        )
    change, sign = ("falls", 1) if loss.low > 0 else ("rises", -1)
    points = _points_text(loss, sign)
    return f"Accuracy {change} from {before} on the source to {after} on {target}, by {points}."


def _gain_sentence(best: BestMethod) -> str:
    method = best.method.replace("_", " ")
    if best.shown:
        return (
            f"Without target labels, adaptation by {method} raises the accuracy of a linear head "
            f"from {percent(best.before)}, by {_points_text(best)}, corrected for the choice of "
            "the best method."
        )
    return (
        "Without target labels, no adaptation method is shown to help a linear head: the best, "
        f"{method}, changes its accuracy of {percent(best.before)} by {_points_text(best)}, "
        "corrected for the choice of the best method; p is "
        f"{best.p:.3f}, adjusted for the number of methods."
    )


def _points_text(value: Effect | BestMethod, sign: int = 1) -> str:
    low, high = sorted((100 * sign * value.low, 100 * sign * value.high))
    return f"{100 * sign * value.estimate:.1f} points (95 % CI {low:.1f} to {high:.1f})"


def verdict_without_labels(
    target: str,
    *,
    source_accuracy: float,
    accuracy_range: tuple[float | None, float | None],
    shifted: bool,
) -> list[str]:
    """Sentences about a target without labels.

    Args:
        target: Its name.
        source_accuracy: Accuracy of the head, out of fold.
        accuracy_range: Range of the accuracy on the target; None if it is not estimated.
        shifted: Whether a test shows a shift.
    """
    sentences = [f"The accuracy on {target} cannot be measured: it has no labels."]
    low, high = accuracy_range
    if low is None or high is None:
        sentences.append(
            "It is not estimated either: hardly any image of the source looks like these. Label "
            "some of them."
        )
        return sentences
    sentences.append(
        f"It is estimated at {percent(low)} to {percent(high)} ({percent(source_accuracy)} on the "
        "source), but this estimate cannot see label errors, another definition of the label, "
        "noise or blur."
    )
    if shifted:
        sentences.append(
            f"The source and {target} are shown to differ: label some images of {target} "
            "before you rely on the estimate."
        )
    return sentences


def caveats(
    source: DomainData,
    target: DomainData,
    results: Iterable[CheckResult],
    groupings: Iterable[tuple[Grouping, Grouping]] = (),
) -> list[str]:
    """Sentences on what limits the numbers of one target.

    That is few patients, groups that the source lacks, and failed checks.
    """
    few = [
        f"The {data.role} has {counted(data.patients, 'patient')}. With so few, intervals are "
        "rough, and a test that finds nothing proves nothing."
        for data in (source, target)
        if data.patients < ROUGH_BELOW
    ]
    for of_source, of_target in groupings:
        if unseen := unseen_groups(source, of_source, of_target):
            few.append(
                f"By {of_target.attribute}, the source has under {FEW_PATIENTS} patients of "
                f"{', '.join(unseen)}, so what another mix of these groups costs is not computed."
            )
    # Which images, the audit says.
    return few + [f"{r.where}: {r.text}." for r in results if r.severity != OK]
