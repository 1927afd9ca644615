"""Target labels under seal: read once, at the end, under the plan they were sealed with."""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CheckFailedError, StudyError


class SealedLabels:
    """Labels of a target that only a declared plan can open.

    They live in memory only: neither printing nor pickling shows them.

    Args:
        labels: Shape (n,), integers; None if the target has no labels.
        plan_hash: Digest of the plan that was written before any number was seen.
    """

    __slots__ = ("__labels", "__plan_hash", "__reads")

    def __init__(self, labels: NDArray[np.integer] | None, plan_hash: str) -> None:
        self.__labels = None if labels is None else np.array(labels)
        self.__plan_hash = plan_hash
        self.__reads = 0

    @property
    def reads(self) -> int:
        """How often the labels were looked at."""
        return self.__reads

    def unseal(self, plan_hash: str) -> NDArray[np.integer]:
        """Return the labels, shape (n,), and count the reading.

        Args:
            plan_hash: Digest of the plan in hand.

        Raises:
            CheckFailedError: The plan was changed after the labels were sealed.
            StudyError: The target has no labels.
        """
        if plan_hash != self.__plan_hash:
            raise CheckFailedError(
                f"the labels were sealed under plan {self.__plan_hash[:12]}, not "
                f"{plan_hash[:12]}: run the declared plan, or seal anew and say so"
            )
        if self.__labels is None:
            raise StudyError("this target has no labels: its fixes can be run, not scored")
        self.__reads += 1
        return self.__labels.copy()

    def __repr__(self) -> str:
        return f"SealedLabels(reads={self.__reads})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("sealed labels are kept in memory only and cannot be pickled")

    def __getstate__(self) -> Any:
        raise TypeError("sealed labels are kept in memory only and cannot be copied")
