"""What was learned about a head, kept beside its saved model so that it is not fitted again.

A fit is used again only if everything that it depends on is the same: features, labels,
patients, splits, settings, and the code and libraries that fitted it. All of these are in
its key. A saved head that is not whole is no error: the head is fitted again.
"""

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ResultsError
from pipeline.heads import HeadSpec
from pipeline.heads.save import DESCRIPTION
from pipeline.heads.search import Fit
from pipeline.results import read_set

_LOG = logging.getLogger(__name__)
FILE = "fit.npz"
_META = ("seeds", "chosen", "path", "curves", "seconds")


def data_digest(samples: Samples, X: NDArray[np.float32]) -> str:
    """SHA-256 of features (of all views), labels, patients, domains and splits."""
    digest = hashlib.sha256(np.ascontiguousarray(X).data)
    for array in (samples.label, samples.group, samples.domain, samples.split):
        digest.update(json.dumps(array.tolist()).encode())
    return digest.hexdigest()


def fit_key(data: str, spec: HeadSpec, *, seeds: Sequence[int], preprocessing: str) -> str:
    """Hash of all that a fit depends on.

    Args:
        data: See :func:`data_digest`.
        spec: Of the head.
        seeds: That a stochastic head is fitted for.
        preprocessing: Name in the table.
    """
    settings = {
        "data": data,
        "head": repr(spec.make(0)) + repr(sorted(spec.make(0).get_params().items(), key=str)),
        "grid": repr(dict(spec.grid)),
        "seeds": list(seeds if spec.stochastic else seeds[:1]),
        "preprocessing": preprocessing,
        "code": _code_version(),
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def fit_file(key: str, fit: Fit) -> dict[str, bytes]:
    """Name and content of the file of a fit, which is saved beside its head."""
    meta = {name: getattr(fit, name) for name in _META} | {"key": key}
    none = np.zeros((0, 0, 0))
    file = io.BytesIO()
    np.savez(
        file,
        meta=np.frombuffer(json.dumps(meta, default=float).encode(), np.uint8),
        proba=fit.proba,
        out_of_fold=none if fit.out_of_fold is None else fit.out_of_fold,
    )
    return {FILE: file.getvalue()}


def read_fit(folder: Path, key: str, *, repeats: int) -> tuple[Fit, dict[str, str]] | None:
    """The fit of that key, without its models; None where there is none, or none is whole.

    Args:
        folder: Of the saved head.
        key: See :func:`fit_key`.
        repeats: Divisions in folds that it must have; 0: it need not have any.

    Returns:
        The fit, and the SHA-256 of each file of the saved head.
    """
    try:
        saved = read_set(folder / DESCRIPTION, "heads")
        saved.check()
        file = np.load(io.BytesIO(saved.read(FILE)), allow_pickle=False)
    except MissingResultsError:
        return None
    except ResultsError as cause:
        _LOG.warning("%s. It is fitted again now", cause)
        return None
    meta: dict[str, Any] = json.loads(file["meta"].tobytes())
    out_of_fold = file["out_of_fold"][:repeats]
    if meta.pop("key") != key or len(out_of_fold) < repeats:
        return None
    fit = Fit(models=(), proba=file["proba"], **meta | {"seeds": tuple(meta["seeds"])})
    digests = {**saved.digests, DESCRIPTION: saved.sha256}
    return (replace(fit, out_of_fold=out_of_fold) if repeats else fit), digests


@cache
def _code_version() -> str:
    """Hash of the room's source and of the libraries' versions."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        digest.update(f"{name} {version(name)} ".encode())
    return digest.hexdigest()
