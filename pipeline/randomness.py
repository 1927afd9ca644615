"""Random generators by purpose: draws for one purpose do not change those for another."""

import numpy as np


def stream(purpose: str, *seed: int) -> np.random.Generator:
    """A generator for one purpose; the seed may have several parts."""
    return np.random.default_rng([*seed, *purpose.encode()])
