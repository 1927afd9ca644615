"""The feature store: rows of float32 under content keys, in immutable HDF5 parts.

It knows nothing of images, networks or labels. Start reading at ``cache.store``.
"""
