"""Say where the heavy matrix products run: numpy, or torch on a device.

numpy and torch spell alike what the tests need (``@``, ``exp``, ``sqrt``, ``clip``,
``linalg.solve``), so one code serves both. torch is imported only when a device is
named: the tests of a small study need numpy alone.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from pipeline.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Place:
    """An array library and the device its arrays live on."""

    xp: Any
    """The module: numpy or torch."""
    device: str | None = None
    """torch device, None for numpy."""

    def put(self, array: NDArray[Any]) -> Any:
        """Bring an array here as float64: the statistics are small differences of large sums."""
        doubles = np.ascontiguousarray(array, dtype=np.float64)
        return doubles if self.device is None else self.xp.from_numpy(doubles).to(self.device)

    def get(self, array: Any) -> NDArray[np.float64]:
        """Bring an array back to numpy, float64."""
        return np.asarray(array if self.device is None else array.cpu().numpy(), dtype=np.float64)

    def solve_positive(self, matrix: Any, right: Any) -> Any:
        """Solve for a symmetric positive definite matrix: half the work of a general one."""
        if self.device is None:
            return solve(matrix, right, assume_a="pos", check_finite=False)
        return self.xp.cholesky_solve(right, self.xp.linalg.cholesky(matrix))


def place(device: str | None = None) -> Place:
    """Return where products run.

    Args:
        device: None for numpy, or a torch device such as ``"cpu"`` or ``"cuda"``.

    Raises:
        EngineError: torch is not there, or does not have the device in float64.
    """
    if device is None:
        return Place(xp=np)
    try:
        torch = importlib.import_module("torch")
        torch.zeros(1, dtype=torch.float64, device=device)
    except (ImportError, RuntimeError, TypeError, AssertionError) as error:
        raise EngineError(
            f"cannot compute in float64 on device {device!r} ({error}); "
            "leave the device out for numpy, or name a torch device: cpu, cuda"
        ) from error
    return Place(xp=torch, device=device)
