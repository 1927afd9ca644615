"""The feature store: rows of float32 under content keys, in immutable HDF5 parts.

Knows nothing of images, networks or labels. ``cache.store`` is where to begin.
"""
