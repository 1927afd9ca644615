"""What was learned about a head, kept beside its saved model so that it is not fitted again.

A fit is used again only if everything that it depends on is the same: features, labels,
patients, splits, settings, and the code and libraries that fitted it. All of these are in
its key. A file that cannot be read is no error: the head is fitted again.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import disk
from pipeline.data.samples import Samples
from pipeline.heads import HeadSpec
from pipeline.heads.save import DESCRIPTION
from pipeline.heads.search import Fit

FILE = "fit.npz"
_META = ("seeds", "chosen", "path", "curves", "seconds")


def data_digest(samples: Samples, X: NDArray[np.float32]) -> str:
    """SHA-256 of features, labels, patients, domains and splits."""
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


def write_fit(folder: Path, key: str, fit: Fit) -> None:
    """Put a fit beside its saved head.

    Raises:
        WriteFailedError: The disk refused.
    """
    meta = {name: getattr(fit, name) for name in _META} | {"key": key}
    none = np.zeros((0, 0, 0))
    file = io.BytesIO()
    np.savez(
        file,
        meta=np.frombuffer(json.dumps(meta, default=float).encode(), np.uint8),
        proba=fit.proba,
        out_of_fold=none if fit.out_of_fold is None else fit.out_of_fold,
    )
    disk.publish(folder / FILE, file.getvalue())


def read_fit(folder: Path, key: str, *, repeats: int) -> Fit | None:
    """The fit of that key, without its models; None where there is none.

    Args:
        folder: Of the saved head.
        key: See :func:`fit_key`.
        repeats: Divisions in folds that it must have; 0: it need not have any.
    """
    if not (folder / DESCRIPTION).exists():
        return None
    try:
        with np.load(io.BytesIO(disk.read_all(folder / FILE)), allow_pickle=False) as file:
            meta: dict[str, Any] = json.loads(file["meta"].tobytes())
            if meta.pop("key") != key:
                return None
            fit = Fit(models=(), proba=file["proba"], **meta | {"seeds": tuple(meta["seeds"])})
            out_of_fold = file["out_of_fold"][:repeats]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if len(out_of_fold) < repeats:
        return None
    return replace(fit, out_of_fold=out_of_fold) if repeats else fit


@cache
def _code_version() -> str:
    """Hash of the room's source and of the libraries' versions."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        digest.update(f"{name} {version(name)} ".encode())
    return digest.hexdigest()
