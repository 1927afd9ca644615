"""What is refused before it reaches a store."""

import numpy as np
import pytest

from pipeline.data.images import PixelPolicy
from pipeline.errors import EngineError
from pipeline.features.guard import FeatureGuard

POLICY = PixelPolicy(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def test_a_dead_backbone_stops_the_run():
    """More than one row in a hundred equal to another image's, or none at all."""
    guard = FeatureGuard(POLICY)
    with pytest.raises(EngineError, match="the backbone does not work"):
        for _ in range(50):
            guard.objection(np.ones(4, np.float32))
    with pytest.raises(EngineError, match="not finite or all zero"):
        for value in [np.nan, np.inf, 0.0] * 20:
            assert "feature" in guard.objection(np.full(4, value, np.float32))
    guard = FeatureGuard(POLICY)
    for i in range(30):  # ten copies of one picture in a small set are no dead backbone
        row = np.full(4, 1.0 if i % 3 == 0 else i + 2.0, np.float32)
        assert guard.objection(row) is None
