"""Features for tests of what is trained on them."""

import numpy as np
from sklearn.preprocessing import FunctionTransformer

from pipeline.heads.treated import TreatedRows


def untreated(X):
    """All rows of a float32 array ``(n, d)`` as they are."""
    return TreatedRows(X, np.arange(len(X)), FunctionTransformer().fit(X))
