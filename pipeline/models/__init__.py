"""Fitted heads as files: numpy arrays and JSON, nothing pickled.

``portable`` turns what scikit-learn and this project fit into parts, ``kinds`` has the
table of parts and computes with them, ``files`` writes and reads them, ``saving`` keeps
the heads of a comparison. Reading a model file never runs anything that it contains.
"""

from pipeline.models.files import Model, load_model, save_model
from pipeline.models.kinds import KINDS, predict_proba
from pipeline.models.part import Part
from pipeline.models.portable import PORTABLE, NotPortableError, to_part

__all__ = [
    "KINDS",
    "PORTABLE",
    "Model",
    "NotPortableError",
    "Part",
    "load_model",
    "predict_proba",
    "save_model",
    "to_part",
]
