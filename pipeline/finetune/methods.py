"""The ways to train a network, and every setting of a training.

Each setting has its default in ``TrainingSettings``. A method may override it, and the user may
override both: :func:`resolve_settings` combines the three.
Nothing here imports torch, so the command line can list everything at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pipeline.errors import StudyError, UnknownNameError

#: Numbers to compute in. Weights are float32 in all of them; tf32 needs CUDA.
PRECISIONS = ("fp32", "tf32", "bf16")
OPTIMISERS = ("adamw", "sgd")
#: Random changes of training images; see :func:`pipeline.finetune.data.augment_lightly`.
AUGMENTATIONS = ("none", "light")
#: Images per step for which the learning rates below are set.
_REFERENCE_BATCH = 32
#: On CUDA the largest of these with which an epoch has ``FEWEST_STEPS`` steps: few images need
#: more steps; many images train faster in large batches.
_CUDA_BATCHES, FEWEST_STEPS = (128, 64), 20


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One training.

    Attributes:
        epochs: Passes over the images, at most.
        batch_size: Images per step, over all processes together.
        learning_rate: The highest rate, reached at the end of the warm-up.
        optimiser: Entry of ``OPTIMISERS``; SGD has Nesterov momentum of 0.9.
        patience: Epochs without a better validation loss before training stops and the best
            weights are restored; 0: never stop early, keep the last weights.
        augmentation: Entry of ``AUGMENTATIONS``.
        keep_statistics: BatchNorm uses its running statistics without updating them; its scale
            and shift are trained.
        seed: Seed of order, augmentation and dropout; initial weights are part of the model.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        precision: Entry of ``PRECISIONS``.
        deterministic: On CUDA: the same seed gives the same bits, as it always does on a CPU.
        compile: Whether steps of full batches use ``torch.compile``.

    Raises:
        UnknownNameError: A name is in no table.
        StudyError: A number is out of its range.
    """

    epochs: int = 10
    batch_size: int = _REFERENCE_BATCH
    learning_rate: float = 1e-3
    optimiser: str = "adamw"
    patience: int = 0
    augmentation: str = "none"
    keep_statistics: bool = False
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    deterministic: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for kind, table in (
            ("optimiser", OPTIMISERS),
            ("augmentation", AUGMENTATIONS),
            ("precision", PRECISIONS),
        ):
            if (name := getattr(self, kind)) not in table:
                raise UnknownNameError(kind, name, table)
        for name, allowed, is_allowed in (
            ("epochs", "1 or more", self.epochs >= 1),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "more than 0", self.learning_rate > 0),
            ("patience", "0 (never stop early) or more", self.patience >= 0),
            ("seed", "0 or more", self.seed >= 0),
        ):
            if not is_allowed:
                raise StudyError(f"{name} {getattr(self, name)}: allowed is {allowed}")


#: What a method reads in every epoch.
FEATURES, ACTIVATIONS, PIXELS = "features", "activations", "pixels"
#: The trained part, as it is called in tables; the head is always trained.
HEAD, ALL, TAIL = "head", "all", "last stage, head"
BATCH_NORM, FIRST_BLOCK = "BatchNorm, head", "first stage, head"
#: Pretrained weights need a lower rate than new ones, which have the default rate.
_PRETRAINED = MappingProxyType({"learning_rate": 1e-4})


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train.

    Attributes:
        about: One line for users, with the article.
        trainable: Which weights are trained.
        reads: Its inputs: ``pixels``, or ``features`` or ``activations`` from the store.
        settings: Values of :class:`TrainingSettings` that are not the defaults.
        starts_from: Methods whose trained models this one starts from; empty: the backbone's
            pretrained weights and a new head.
        pretrained: False for a network that is trained from scratch.
        trains: False if models of other methods are only interpolated.
    """

    about: str
    trainable: str
    reads: str = PIXELS
    settings: Mapping[str, Any] = field(default_factory=dict)
    starts_from: tuple[str, ...] = ()
    pretrained: bool = True
    trains: bool = True


#: In the order in which they run. To add a method: a line here; if it trains another part of the
#: network, also a line in ``pipeline.finetune.networks``.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lp": Method(
            about="linear probe: only the head, on the stored features",
            trainable=HEAD,
            reads=FEATURES,
            settings={"epochs": 30},
        ),
        "frozen_online": Method(
            about="the same head, but the frozen backbone runs in every epoch; for timing only",
            trainable=HEAD,
            settings={"epochs": 1},
        ),
        "last_block": Method(
            about="the last stage, on stored activations of the frozen layers before it",
            trainable=TAIL,
            reads=ACTIVATIONS,
            settings=_PRETRAINED,
        ),
        "bn_only": Method(
            about="only BatchNorm: surgical fine-tuning (Lee et al. 2023)", trainable=BATCH_NORM
        ),
        "first_block": Method(
            about="only stem and first stage: surgical fine-tuning (Lee et al. 2023)",
            trainable=FIRST_BLOCK,
            settings=_PRETRAINED,
        ),
        "full": Method(
            about="all weights, end to end, with a new head",
            trainable=ALL,
            settings=_PRETRAINED,
        ),
        # The head of lp was fitted to features with the running statistics. With the statistics
        # of a batch of radiographs the features differ, and the good start would be lost.
        "lp_ft": Method(
            about="all weights, starting with the head of lp (Kumar et al. 2022)",
            trainable=ALL,
            settings={**_PRETRAINED, "keep_statistics": True},
            starts_from=("lp",),
        ),
        "wise_ft": Method(
            about="weights interpolated between lp and lp_ft (Wortsman et al. 2022)",
            trainable=ALL,
            starts_from=("lp", "lp_ft"),
            trains=False,
        ),
        "scratch_cnn": Method(
            about="a small convolutional network, trained from scratch",
            trainable=ALL,
            settings={"epochs": 30},
            pretrained=False,
        ),
        "scratch_mlp": Method(
            about="a fully connected network on small images, trained from scratch",
            trainable=ALL,
            settings={"epochs": 30},
            pretrained=False,
        ),
    }
)
#: Default methods: they take minutes without a GPU.
QUICK = ("lp", "last_block", "scratch_cnn")
_ALL_METHODS = "all"
#: Method that the others are compared with.
BASELINE = "lp"


def select_methods(names: Sequence[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The methods to run, in the table's order, and those of them that the user named.

    Args:
        names: Entries of ``METHODS``, or ``all``; empty means ``QUICK``.

    Returns:
        All methods, including those that others start from; and only the named methods.

    Raises:
        UnknownNameError: A name is in no table.
    """
    for name in names:
        if name not in (*METHODS, _ALL_METHODS):
            raise UnknownNameError("method", name, [*METHODS, _ALL_METHODS])
    named = frozenset(METHODS if _ALL_METHODS in names else names or QUICK)
    wanted = set(named)
    for name in reversed(list(METHODS)):  # a method starts from earlier ones only
        if name in wanted:
            wanted |= set(METHODS[name].starts_from)
    return tuple(name for name in METHODS if name in wanted), named


def resolve_settings(
    name: str,
    given: Mapping[str, Any],
    *,
    named: bool = True,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    images: int = 0,
) -> TrainingSettings:
    """The settings of one training: the user's, else the method's, else the defaults.

    Learning rates are for AdamW and 32 images per step. Unless the user gives a rate, it is scaled
    with the batch size: with its square root for Adam (Malladi et al. 2022, "On the SDEs and
    scaling rules for adaptive gradient algorithms"), in proportion for SGD (Goyal et al. 2017,
    "Accurate, large minibatch SGD").

    Args:
        name: Entry of ``METHODS``.
        given: The user's settings, by name; None means not given.
        named: Whether the user named this method; a method that only others start from keeps
            its epochs and learning rate.
        seed: The study's seed.
        device: Where it runs.
        precision: The study's, used on CUDA; otherwise fp32 unless the user chooses another.
        images: Number of training images; the batch size on CUDA depends on it.

    Raises:
        UnknownNameError: A name is in no table.
        StudyError: A number is out of its range.
    """
    on_cuda, fixed = device.startswith("cuda"), () if named else ("epochs", "learning_rate")
    user = {key: value for key, value in given.items() if value is not None and key not in fixed}
    if METHODS[name].reads != PIXELS:
        user["augmentation"] = "none"
    sizes = [size for size in _CUDA_BATCHES if on_cuda and images >= FEWEST_STEPS * size]
    defaults = {
        "seed": seed,
        "device": device,
        "precision": precision if on_cuda else "fp32",
        "batch_size": max(sizes, default=_REFERENCE_BATCH),
    }
    settings = TrainingSettings(**{**defaults, **METHODS[name].settings, **user})
    if "learning_rate" in user:
        return settings
    ratio = settings.batch_size / _REFERENCE_BATCH
    factor = ratio if settings.optimiser == "sgd" else math.sqrt(ratio)
    return replace(settings, learning_rate=factor * settings.learning_rate)
