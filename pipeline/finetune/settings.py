"""How a network is trained: every setting of the loop, each default written once.

Nothing here imports torch, so the command line can show the defaults at once.
"""

from dataclasses import dataclass

from pipeline.errors import StudyError, UnknownNameError

#: What may be computed in; ``bf16`` and ``tf32`` need CUDA. Weights are as the model has them.
PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """One training.

    Attributes:
        epochs: Passes over the images, at most; 1 or more.
        batch_size: Images a step, over all processes together; the last step of an
            epoch takes what is left.
        learning_rate: The highest, reached at the end of the warm-up; more than 0.
        weight_decay: Of weights; biases and the parameters of norms have none.
        optimiser: Entry of ``OPTIMISERS``.
        warmup: Share of all steps in which the rate rises from 0, in [0, 1); a cosine
            takes it back to 0 afterwards.
        clip: Largest norm of the gradient of all parameters together; 0: no limit.
        patience: Epochs without a better validation loss before it stops, and the model
            goes back to the best; 0: never, and it keeps the last weights.
        augmentation: Entry of ``AUGMENTATIONS``.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        keep_statistics: BatchNorm uses its running statistics and leaves them as they are,
            while its scale and shift are trained.
        seed: Of order, augmentation and dropout; 0 or more. Not of the initial weights,
            which the model brings along.
        device: ``cpu``, ``cuda`` or ``cuda:<n>``.
        precision: Entry of ``PRECISIONS``.

    Raises:
        UnknownNameError: A name is in no table.
        StudyError: A number is out of its range.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    optimiser: str = "adamw"
    warmup: float = 0.1
    clip: float = 1.0
    patience: int = 0
    augmentation: str = "none"
    label_smoothing: float = 0.0
    keep_statistics: bool = False
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        # Here, because they need numpy, and the command line shows defaults without it.
        from pipeline.finetune.data import AUGMENTATIONS
        from pipeline.finetune.loop import OPTIMISERS

        for kind, table in (
            ("optimiser", OPTIMISERS),
            ("augmentation", AUGMENTATIONS),
            ("precision", PRECISIONS),
        ):
            if (name := getattr(self, kind)) not in table:
                raise UnknownNameError(kind, name, table)
        for field, fine, allowed in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "from 0 to below 1"),
            ("clip", self.clip >= 0, "0 (no limit) or more"),
            ("patience", self.patience >= 0, "0 (never stop early) or more"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not fine:
                raise StudyError(f"{field} {getattr(self, field)}: allowed is {allowed}")
