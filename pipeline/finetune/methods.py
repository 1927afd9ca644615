"""The ways to train, from a head on frozen features to all weights: one table.

Which weights move, where a method starts, what it reads and how fast it learns stand
here and nowhere else. Nothing here imports torch, so the command line can list them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from pipeline.errors import UnknownNameError
from pipeline.finetune.settings import LoopSettings

#: What a method reads in every epoch.
FEATURES, ACTIVATIONS, PIXELS = "features", "activations", "pixels"
#: What moves besides the head.
NOTHING, ALL, TAIL, BATCH_NORM, FIRST_BLOCK = "nothing", "all", "tail", "batch_norm", "first_block"
#: Fine-tuning moves pretrained weights a little; a new head or network learns faster.
_GENTLE, _NEW = 1e-4, 1e-3


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        about: A line for people, with the paper.
        moved: Which weights move, in words.
        moves: What moves besides the head.
        reads: ``features`` and ``activations`` come from the store, ``pixels`` do not.
        epochs: Passes over the images, unless the user says otherwise.
        learning_rate: The highest, unless the user says otherwise.
        starts_from: Methods whose trained models this one is made of; with none, the
            backbone's pretrained weights and a new head.
        keeps_statistics: BatchNorm keeps the running statistics that it comes with.
        pretrained: False for a network of its own, trained from nothing.
        trains: False where models of others are only mixed.
    """

    about: str
    moved: str
    moves: str = NOTHING
    reads: str = PIXELS
    epochs: int = 10
    learning_rate: float = _GENTLE
    starts_from: tuple[str, ...] = ()
    keeps_statistics: bool = False
    pretrained: bool = True
    trains: bool = True


#: In the order in which they run. To add one: a line here; if it moves something new, a
#: line in ``pipeline.finetune.networks``.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lp": Method(
            about="linear probe: the head alone, from the stored features",
            moved="head",
            reads=FEATURES,
            epochs=30,
            learning_rate=_NEW,
        ),
        "frozen_online": Method(
            about="the same head, the frozen backbone run in every epoch; exists to be timed",
            moved="head",
            epochs=1,
            learning_rate=_NEW,
        ),
        "last_block": Method(
            about="the last stage, from stored activations of the frozen prefix",
            moved="last stage, head",
            moves=TAIL,
            reads=ACTIVATIONS,
        ),
        "bn_only": Method(
            about="BatchNorm alone, surgical fine-tuning (Lee et al. 2023)",
            moved="BatchNorm and its statistics, head",
            moves=BATCH_NORM,
            learning_rate=_NEW,
        ),
        "first_block": Method(
            about="stem and first stage alone, surgical fine-tuning (Lee et al. 2023)",
            moved="stem, first stage, head",
            moves=FIRST_BLOCK,
        ),
        "full": Method(
            about="all weights, end to end, with a new head",
            moved="all",
            moves=ALL,
        ),
        # The head of lp knows features under the running statistics. Under those of a batch of
        # radiographs the features are others: the start would be lost at the first step.
        "lp_ft": Method(
            about="all weights, beginning with the head of lp (Kumar et al. 2022)",
            moved="all but the statistics of BatchNorm",
            moves=ALL,
            starts_from=("lp",),
            keeps_statistics=True,
        ),
        "wise_ft": Method(
            about="the straight line from lp to lp_ft, or to full (Wortsman et al. 2022)",
            moved="all, by mixing",
            moves=ALL,
            starts_from=("lp", "lp_ft"),
            trains=False,
        ),
        "scratch_cnn": Method(
            about="a small convolutional network, from nothing",
            moved="all of a network of its own",
            moves=ALL,
            epochs=30,
            learning_rate=_NEW,
            pretrained=False,
        ),
        "scratch_ann": Method(
            about="a fully connected network on small pixels, from nothing",
            moved="all of a network of its own",
            moves=ALL,
            epochs=30,
            learning_rate=_NEW,
            pretrained=False,
        ),
    }
)
#: What runs when no method is asked for: minutes, also without a GPU.
QUICK = ("lp", "last_block", "scratch_cnn")
EVERY = "all"
#: Method that the others are compared with.
BASELINE = "lp"
#: Share of the way from the first model to the second.
ALPHAS = tuple(step / 10 for step in range(11))


def asked(names: Sequence[str]) -> set[str]:
    """The methods that names stand for, without those that they start from.

    Raises:
        UnknownNameError: A name is in no table.
    """
    wanted: set[str] = set()
    for name in names or QUICK:
        if name not in (*METHODS, EVERY):
            raise UnknownNameError("method", name, [*METHODS, EVERY])
        wanted |= set(METHODS) if name == EVERY else {name}
    return wanted


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The methods to run, those that others start from among them, in the table's order.

    Args:
        names: Entries of ``METHODS``, or ``all``; none means ``QUICK``.

    Raises:
        UnknownNameError: A name is in no table.
    """
    wanted = asked(names)
    for name in reversed(list(METHODS)):  # a method starts from earlier ones only
        if name in wanted:
            # The line of wise_ft may as well end at full, where that is trained anyway.
            spared = {"lp_ft"} if name == "wise_ft" and "full" in wanted else set()
            wanted |= set(METHODS[name].starts_from) - spared
    return tuple(name for name in METHODS if name in wanted)


def end_of_line(names: Sequence[str]) -> str:
    """Where the line of ``wise_ft`` ends, of the methods to run."""
    return "lp_ft" if "lp_ft" in names else "full"


# What the user may say of all methods at once, and how it meets each method's own word.


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What the user may change for all methods at once; None takes the method's own.

    Attributes:
        epochs: Passes over the images, of the methods in ``asked``.
        learning_rate: The highest, of the methods in ``asked``.
        batch_size: Images a step.
        image_size: Side of the images, pixels; None takes the backbone's.
        augmentation: For methods that read pixels; stored activations have none.
        patience: Epochs without a better validation loss; 0: train to the end.
        seed: None takes the study's.
        device: ``auto``, ``cpu`` or ``cuda``.
        asked: The methods that were named; those that they start from keep their own
            epochs and rate. None: all.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int = LoopSettings.batch_size
    image_size: int | None = None
    augmentation: str = LoopSettings.augmentation
    patience: int = LoopSettings.patience
    seed: int | None = None
    device: str = "auto"
    asked: frozenset[str] | None = None

    def of(self, name: str) -> "TrainingOptions":
        """As they hold for one method."""
        return self if self.asks_for(name) else replace(self, epochs=None, learning_rate=None)

    def asks_for(self, name: str) -> bool:
        """Whether a method was named, and is not only what another starts from."""
        return self.asked is None or name in self.asked


def settings_of(method: Method, options: TrainingOptions, *, seed: int) -> LoopSettings:
    """The loop's settings: the user's word before the method's, on the CPU.

    Raises:
        UnknownNameError: A name is in no table.
        StudyError: A number is out of its range.
    """
    o = options
    return LoopSettings(
        epochs=method.epochs if o.epochs is None else o.epochs,
        learning_rate=method.learning_rate if o.learning_rate is None else o.learning_rate,
        batch_size=o.batch_size,
        augmentation=o.augmentation if method.reads == PIXELS else "none",
        patience=o.patience,
        keep_statistics=method.keeps_statistics,
        seed=seed if o.seed is None else o.seed,
    )
