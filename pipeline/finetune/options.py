"""What the user may say of all methods at once, and how it meets each method's own word."""

from dataclasses import dataclass, replace

from pipeline.finetune.methods import PIXELS, Method
from pipeline.finetune.settings import LoopSettings


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
