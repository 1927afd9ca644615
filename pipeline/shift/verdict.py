"""Say in two to four sentences why a target is worse, and what may help.

Sentences come from the numbers by the rules below. A cause is named only where its effect
is a loss and the largest of its division in 95 % of the draws, a gain only where its
interval excludes 0; else the text says that nothing is shown, which is not the same as
"no difference".
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.data.leaks import OK, Finding
from pipeline.evaluation.intervals import ROUGH_BELOW, Interval
from pipeline.shift.decompose import Effect, dominant
from pipeline.words import are, counted, percent

#: A method helps if its adjusted p-value is at most this; the best of many always looks good.
LEVEL = 0.05

Effects = Mapping[str, Effect]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What an adaptation method regains.

    Attributes:
        difference: Accuracy with it minus accuracy without, on the target.
        p_adjusted: Its p-value among all methods tried.
    """

    difference: Interval
    p_adjusted: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be said of one target.

    Attributes:
        sentences: Most important first.
        causes: Keys of :data:`CAUSES` that the intervals allow to name; the first is the one
            that the sentences name.
        labels_needed: Whether estimates and thresholds made without labels must not be used.
    """

    sentences: tuple[str, ...]
    causes: tuple[str, ...] = ()
    labels_needed: bool = False


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One line of the interpretation table.

    Attributes:
        holds: Whether the effects allow to name it.
        effect: Whose number stands in the sentence.
        sentence: Ends in the number of points.
        advice: What to do.
        needs_stable_score: Whether the advice could be followed without labels, if the
            meaning of a score had not changed.
    """

    holds: Callable[[Effects], bool]
    effect: str
    sentence: str
    advice: str
    needs_stable_score: bool = False


def verdict(
    target: str,
    effects: Effects,
    *,
    accuracy: tuple[float, float],
    auroc: tuple[float, float] | None = None,
    gains: Mapping[str, Gain] | None = None,
) -> Verdict:
    """Turn the numbers of one labelled target into sentences.

    Args:
        target: Its name.
        effects: From :func:`pipeline.shift.decompose.decompose`, with the steps
            ``target_hardness`` and ``transfer_gap`` of the error table where there are any.
        accuracy: Of the head on the source, out of fold, and on the target.
        auroc: The same of its AUROC; None for more than two classes.
        gains: By adaptation method that uses no target labels, all that were tried.
    """
    total = effects["accuracy_loss"]
    causes = tuple(n for n, cause in CAUSES.items() if total.low > 0 and cause.holds(effects))
    changed = score_changed(effects)
    sentences = [_loss(target, total, accuracy, auroc)]
    if causes:
        sentences.append(_cause(CAUSES[causes[0]], effects, changed=changed))
    elif total.low > 0:
        sentences.append("No single cause is shown: no effect is surely the largest.")
    if gains:
        sentences.append(_best_gain(gains))
    if changed:
        sentences.append(
            "The same score means another risk than on the source, so estimates and thresholds "
            "made without labels of the target must not be used."
        )
    return Verdict(sentences=tuple(sentences), causes=causes, labels_needed=changed)


def verdict_without_labels(
    target: str,
    *,
    source_accuracy: float,
    low: float,
    high: float,
    shifted: Sequence[str],
) -> Verdict:
    """Turn what is known of a target without labels into sentences.

    Args:
        target: Its name.
        source_accuracy: Of the head, out of fold.
        low: Lowest estimate of the accuracy on the target.
        high: Highest.
        shifted: Tests that show a shift.
    """
    sentences = [
        f"{target} has no labels, so the accuracy there cannot be measured.",
        (
            f"Without labels it is estimated at {percent(low)} to {percent(high)} "
            f"({percent(source_accuracy)} on the source)."
        ),
        "The estimate holds only if a score means the same risk in both domains.",
    ]
    if shifted:
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


def _cause(cause: Cause, effects: Effects, *, changed: bool) -> str:
    blind = changed and cause.needs_stable_score
    advice = "Choose the threshold again with labelled images of the target" if blind else None
    return f"{cause.sentence}: {_points(effects[cause.effect])}. {advice or cause.advice}."


def _best_gain(gains: Mapping[str, Gain]) -> str:
    shown = {
        name: gain.difference
        for name, gain in gains.items()
        if gain.difference.low > 0 and gain.p_adjusted <= LEVEL
    }
    if not shown:
        return "No adaptation method without target labels is shown to help."
    name = max(shown, key=lambda method: shown[method].low)
    return f"Without target labels, {name} regains {_points(shown[name])}."


def _points(interval: Interval) -> str:
    estimate, low, high = (100 * v for v in (interval.estimate, interval.low, interval.high))
    return f"{estimate:.1f} points (95 % CI {low:.1f} to {high:.1f})"


def _dominates(division: str, name: str) -> Callable[[Effects], bool]:
    return lambda effects: dominant(effects.values(), division) == name


def _hard_target(effects: Effects) -> bool:
    """Hardness dominates, and the source's head is not shown to lose against the target's own."""
    return _dominates("transfer", "target_hardness")(effects) and effects["transfer_gap"].low <= 0


#: The interpretation table: the first line that holds is the cause that is named. To add a
#: line, give its rule, its sentence and its advice.
CAUSES: Mapping[str, Cause] = MappingProxyType(
    {
        "class_mix": Cause(
            holds=_dominates("class", "class_mix"),
            effect="class_mix",
            sentence="Most of the loss comes from other shares of the classes",
            advice="Correct the probabilities for the class shares of the target",
            needs_stable_score=True,
        ),
        "threshold": Cause(
            holds=_dominates("threshold", "threshold"),
            effect="threshold",
            sentence="Most of the loss comes from the threshold that was chosen on the source",
            advice="Choose the threshold again, or recalibrate",
            needs_stable_score=True,
        ),
        "target_hardness": Cause(
            holds=_hard_target,
            effect="target_hardness",
            sentence=(
                "Even a head that is trained on the target does worse there than this head on "
                "the source"
            ),
            advice="The images are harder: adaptation cannot help, better images or labels may",
        ),
        "transfer_gap": Cause(
            holds=_dominates("transfer", "transfer_gap"),
            effect="transfer_gap",
            sentence="A head that is trained on the target does better there",
            advice="Adapt the head, or train it with labelled images of the target",
        ),
        "y_given_score": Cause(
            holds=_dominates("score", "y_given_score"),
            effect="y_given_score",
            sentence="Most of the loss is that the same score means another risk on the target",
            advice=(
                "Look for another definition of the label, for a shortcut, or for another way "
                "of taking the images"
            ),
        ),
        "discrimination": Cause(
            holds=_dominates("threshold", "discrimination"),
            effect="discrimination",
            sentence="Most of the loss stays at the best threshold of the target",
            advice="The classes overlap more: another threshold does not help",
        ),
    }
)
