"""What the fixes may do, written down and hashed before any target label is read."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from pipeline.shift.fixes import FIXES
from pipeline.shift.fixes.adaptation import FixSettings
from pipeline.shift.fixes.validators import DEFAULT, GRIDS

BASELINE = "source_only"
"""The fix that every other is compared with."""


@dataclass(frozen=True, kw_only=True)
class FixPlan:
    """Everything that could be chosen, written down before any target label is read."""

    fixes: tuple[str, ...] = tuple(FIXES)
    """Names of the fixes; the baseline ``source_only`` must be among them."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One cut of the target into halves per seed."""
    shots: tuple[int, ...] = (5, 10, 25, 50)
    """Labelled target images per class of the rows that do use labels."""
    draws: int = 2000
    """Bootstrap draws and sign flips per row."""
    confidence: float = 0.95
    """Of the intervals."""
    settings: FixSettings = field(default_factory=FixSettings)
    """Hyper-parameters of the fixes."""
    grids: tuple[tuple[str, str, tuple[float, ...]], ...] = tuple(
        (name, *grid) for name, grid in GRIDS.items()
    )
    """Fix, setting and values of the rows that are tuned."""
    validator: str = DEFAULT
    """Entry of ``VALIDATORS`` that chooses among them."""

    def digest(self) -> str:
        """Return the SHA-256 of the plan as canonical JSON, 64 hex digits."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
