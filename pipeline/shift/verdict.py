"""Say in a few sentences why a target is worse, and what may help.

Sentences come from numbers by the rules below, one function each. A cause is named only
where its term is the largest in 95 % of the draws, a loss or a gain only where its
interval excludes 0; else the text says that nothing is shown, which is not the same as
"no difference".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipeline.shift.effects import Gap, dominant
from pipeline.words import percent

#: An interval of a difference of AUROCs inside +- this is called holding.
AUROC_MARGIN = 0.02
#: A fix helps if its adjusted p-value is at most this; the best of many always looks good.
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Called:
    """How often the head says positive, against how often it is."""

    called: float
    """Share of target images called positive."""
    positive: float
    """Share that is."""


@dataclass(frozen=True, kw_only=True)
class Auroc:
    """The head's AUROC in both domains."""

    source: float
    """Out of fold."""
    target: float
    """On the target."""
    loss: Gap
    """Source minus target."""


@dataclass(frozen=True, kw_only=True)
class FixGain:
    """What a fix without target labels wins."""

    gain: Gap
    """Accuracy with it minus accuracy without, on the target."""
    p_holm: float
    """Its p-value among all fixes tried, Holm-adjusted."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Everything a verdict looks at."""

    target: str
    """Name of the target, as printed."""
    source_error: float
    """e_S, out of fold."""
    target_error: float
    """e_T."""
    total: Gap
    """e_T - e_S."""
    kitagawa: Mapping[str, Gap]
    """``mix``, ``rate``."""
    score: Mapping[str, Gap]
    """``confidence_shift``, ``y_given_score``."""
    threshold: Mapping[str, Gap] = field(default_factory=lambda: MappingProxyType({}))
    """``transfer``, ``discrimination``; empty for more than two classes."""
    transfer: Mapping[str, Gap] = field(default_factory=lambda: MappingProxyType({}))
    """``target_hardness``, ``transfer_gap`` of Ng's table; empty without an oracle."""
    auroc: Auroc | None = None
    """None for more than two classes."""
    called: Called | None = None
    """None for more than two classes."""
    foretold: tuple[float, float] | None = None
    """Lowest and highest label-free estimate of the accuracy."""
    fixes: Mapping[str, FixGain] = field(default_factory=lambda: MappingProxyType({}))
    """By name, all that were tried."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be said of one target."""

    text: str
    """Some sentences, most important first."""
    causes: tuple[str, ...]
    """Keys of :data:`CAUSES` that the intervals allow to name."""
    advice: tuple[str, ...]
    """What each of them suggests, in the same order, and what it forbids."""
    labels_needed: bool
    """Whether label-free estimates and thresholds must not be relied on."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One line of the interpretation table."""

    holds: Callable[[Numbers], bool]
    """Whether the numbers allow to name it."""
    sentence: Callable[[Numbers], str]
    """How it is said."""
    advice: str
    """What to do."""


def judge(numbers: Numbers) -> Verdict:
    """Turn the numbers of one target into text.

    Args:
        numbers: Of one head on one target.

    Returns:
        The verdict. Causes are looked for only where a loss is shown.
    """
    loss = numbers.total.low > 0
    causes = tuple(name for name, cause in CAUSES.items() if loss and cause.holds(numbers))
    unstable = _stable_score_refuted(numbers)
    said = [CAUSES[name].sentence(numbers) for name in causes]
    if loss and not causes:
        said = ["No single cause is shown: no term is surely the largest."]
    return Verdict(
        text=" ".join([_loss(numbers), *said, *_beside(numbers)]),
        causes=causes,
        advice=tuple(
            _LABELS_FIRST if unstable and name in _LABEL_FREE else CAUSES[name].advice
            for name in causes
        ),
        labels_needed=unstable,
    )


def _loss(numbers: Numbers) -> str:
    total = numbers.total
    levels = f"{percent(1 - numbers.source_error)} to {percent(1 - numbers.target_error)}"
    if total.low > 0:
        return f"{numbers.target}: accuracy falls from {levels}, by {_points(total)}."
    if total.high < 0:
        return f"{numbers.target}: accuracy rises from {levels}; the loss is {_points(total)}."
    return (
        f"{numbers.target}: no loss of accuracy is shown ({levels}; the loss is {_points(total)}). "
        "That is not proof of none."
    )


def _beside(numbers: Numbers) -> list[str]:
    """Sentences that are no causes."""
    rules = (_auroc, _calls, _foretold, _fixes)
    return [sentence for rule in rules if (sentence := rule(numbers))]


def _auroc(numbers: Numbers) -> str:
    if numbers.auroc is None:
        return ""
    area, loss = numbers.auroc, numbers.auroc.loss
    if loss.low > 0:
        word = "AUROC falls"
    elif max(abs(loss.low), abs(loss.high)) <= AUROC_MARGIN:
        word = "AUROC holds"
    elif loss.high < 0:
        word = "AUROC rises"
    else:
        word = "A change of AUROC is not shown"
    return (
        f"{word}: {area.source:.3f} on the source, {area.target:.3f} on the target "
        f"(loss 95 % CI {loss.low:.3f} to {loss.high:.3f})."
    )


def _calls(numbers: Numbers) -> str:
    if numbers.called is None:
        return ""
    return (
        f"{percent(numbers.called.called)} are called positive, "
        f"{percent(numbers.called.positive)} are."
    )


def _foretold(numbers: Numbers) -> str:
    if numbers.foretold is None:
        return ""
    low, high = numbers.foretold
    text = f"Without labels the accuracy would be put at {percent(low)} to {percent(high)}"
    if _stable_score_refuted(numbers):
        return f"{text}; those estimates are invalid here, because Y given the score has changed."
    return f"{text}, assuming stable Y|score."


def _fixes(numbers: Numbers) -> str:
    shown = {
        name: one.gain
        for name, one in numbers.fixes.items()
        if one.gain.low > 0 and one.p_holm <= LEVEL
    }
    if shown:
        name = max(shown, key=lambda one: shown[one].low)
        return f"Without target labels, {name} gives {_points(shown[name])}."
    return "No fix without target labels is shown to help." if numbers.fixes else ""


def _names(family: str, term: str) -> Callable[[Numbers], bool]:
    return lambda numbers: dominant(getattr(numbers, family)) == term


def _hard_target(numbers: Numbers) -> bool:
    """Hardness dominates, and the head trained elsewhere is not shown to lose by it."""
    return (
        dominant(numbers.transfer) == "target_hardness"
        and numbers.transfer["transfer_gap"].low <= 0
    )


def _stable_score_refuted(numbers: Numbers) -> bool:
    """Whether the interval of the Y|score term excludes 0, on either side."""
    gap = numbers.score["y_given_score"]
    return gap.low > 0 or gap.high < 0


#: The interpretation table. Views of one loss do not add up, so each sentence opens with
#: the view it is of; two of them may both call a term the most. To add a line, give its
#: rule, its sentence and its advice.
CAUSES: Mapping[str, Cause] = MappingProxyType(
    {
        "hard_target": Cause(
            holds=_hard_target,
            sentence=lambda n: (
                "By transfer: this is not shown to be a shift problem, even a head trained on the "
                "target is worse there than on the source, by "
                f"{_points(n.transfer['target_hardness'])}."
            ),
            advice="Better images, features or labels of the target; adaptation cannot win this.",
        ),
        "transfer_gap": Cause(
            holds=_names("transfer", "transfer_gap"),
            sentence=lambda n: (
                "By transfer: most of the loss goes where a head is trained on the target, which "
                f"does better by {_points(n.transfer['transfer_gap'])}."
            ),
            advice="Adapt the head, or train it with labels of the target.",
        ),
        "y_given_score": Cause(
            holds=_names("score", "y_given_score"),
            sentence=lambda n: (
                "By score: most of the loss is that a score no longer means what it meant on the "
                f"source: {_points(n.score['y_given_score'])}."
            ),
            advice=(
                "Label-free estimates are invalid. Look for another definition of the label, for a "
                "shortcut, or for another way of taking the images."
            ),
        ),
        "threshold": Cause(
            holds=_names("threshold", "transfer"),
            sentence=lambda n: (
                "By threshold: most of the loss is that it was chosen elsewhere: "
                f"{_points(n.threshold['transfer'])}."
            ),
            advice="Choose the threshold anew, or recalibrate.",
        ),
        "discrimination": Cause(
            holds=_names("threshold", "discrimination"),
            sentence=lambda n: (
                "By threshold: most of the loss stays at the target's own best one: "
                f"{_points(n.threshold['discrimination'])}."
            ),
            advice="Another threshold will not mend this.",
        ),
        "mix": Cause(
            holds=_names("kitagawa", "mix"),
            sentence=lambda n: (
                f"By class: most of the loss is the class mix: {_points(n.kitagawa['mix'])}."
            ),
            advice="Correct the probabilities for the target's class mix.",
        ),
    }
)
#: Causes whose advice could be followed without labels, were Y given the score stable.
_LABEL_FREE = frozenset({"threshold", "mix"})
_LABELS_FIRST = (
    "Choose the threshold anew with labelled images of the target: Y given the score has "
    "changed, so a threshold or a class mix found without labels is not to be relied on."
)


def _points(gap: Gap) -> str:
    return f"{100 * gap.estimate:.1f} points (95 % CI {100 * gap.low:.1f} to {100 * gap.high:.1f})"
