"""The feature store: rows of float32 under content keys, in immutable HDF5 parts.

Knows nothing of images, networks or labels.
"""

from cache.errors import (
    BadFeaturesError,
    CacheError,
    CanaryError,
    DamagedPartError,
    MissingRowsError,
    NotPlainFileError,
    StoreFormatError,
    WriteFailedError,
)
from cache.recipe import Recipe, check_canaries, relative_l2
from cache.store import FeatureStore, Writer, stores_in

__all__ = [
    "BadFeaturesError",
    "CacheError",
    "CanaryError",
    "DamagedPartError",
    "FeatureStore",
    "MissingRowsError",
    "NotPlainFileError",
    "Recipe",
    "StoreFormatError",
    "WriteFailedError",
    "Writer",
    "check_canaries",
    "relative_l2",
    "stores_in",
]
