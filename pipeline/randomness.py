"""Randomness by purpose: what is drawn for another moves no number of this one."""

import numpy as np


def stream(purpose: str, *seed: int) -> np.random.Generator:
    """A generator for one purpose under a seed, which may have several parts."""
    return np.random.default_rng([*seed, *purpose.encode()])
