"""The feature store: rows of float32 under content keys, in immutable HDF5 parts.

Knows nothing of images, networks or labels.
"""

from cache.errors import (
    BadFeaturesError,
    CacheError,
    CanaryError,
    DamagedPartError,
    MissingRowsError,
    StoreFormatError,
    WriteFailedError,
)
from cache.meta import check_canaries, relative_l2
from cache.recipe import Recipe
from cache.store import FeatureStore, stores_in
from cache.writer import Writer

__all__ = [
    "BadFeaturesError",
    "CacheError",
    "CanaryError",
    "DamagedPartError",
    "FeatureStore",
    "MissingRowsError",
    "Recipe",
    "StoreFormatError",
    "WriteFailedError",
    "Writer",
    "check_canaries",
    "relative_l2",
    "stores_in",
]
