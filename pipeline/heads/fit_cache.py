"""What was learned about a head, kept beside its saved model so that it is not fitted again.

A fit is used again only if everything that it depends on is the same: features, labels,
patients, splits, settings, and the code and libraries that fitted it. All of these are in
its key, and what is saved with the head beside: the names of the classes, where the weights
are, how files are read. A saved head that is not whole is no error: the head is fitted again.
"""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import randomness
from pipeline.data import patients
from pipeline.data.samples import Samples
from pipeline.errors import MissingResultsError, ResultsError
from pipeline.heads import HeadSpec
from pipeline.heads.save import DESCRIPTION, Network
from pipeline.heads.search import Fit
from pipeline.results import read_set

_LOG = logging.getLogger(__name__)
FILE = "fit.npz"
#: The code that a fit depends on: folders and files.
CODE = (
    Path(__file__).parent,
    Path(patients.__file__),  # deals the folds
    Path(randomness.__file__),
)
_META = ("seeds", "chosen", "path", "curves", "seconds")


def fit_keys(
    samples: Samples,
    X: NDArray[np.float32],
    specs: Mapping[str, HeadSpec],
    *,
    seeds: Sequence[int],
    preprocessing: str,
    networks: Sequence[Network],
) -> dict[str, str]:
    """For each head, a hash of all that its fit and its ``model.json`` depend on.

    Args:
        samples: ``n`` images.
        X: Their features, ``(n, d)``, or those of ``k`` views, ``(n, k, d)``.
        specs: By name.
        seeds: That a stochastic head is fitted for.
        preprocessing: Name in the table.
        networks: That the features are of.
    """
    data = hashlib.sha256(np.ascontiguousarray(X).data)
    for array in (samples.label, samples.group, samples.domain, samples.split):
        data.update(json.dumps(array.tolist()).encode())
    reading = samples.items[0].reading  # the source comes first
    saved = {
        "classes": samples.classes,
        "networks": [network.to_json() for network in networks],
        "reading": [reading.window, reading.frame],
    }
    common = [data.hexdigest(), preprocessing, code_version(*CODE), saved]
    return {
        name: digest_of(
            [*common, spec.about, repr(dict(spec.grid)), seeds if spec.stochastic else seeds[:1]]
        )
        for name, spec in specs.items()
    }


def digest_of(values: Sequence[Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


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


def read_fit(folder: Path, key: str) -> tuple[Fit, dict[str, str]] | None:
    """The fit of that key, without its models; None where there is none, or none is whole.

    Args:
        folder: Of the saved head.
        key: See :func:`fit_keys`.

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
    if meta.pop("key") != key:
        return None
    meta["seeds"], out_of_fold = tuple(meta["seeds"]), file["out_of_fold"]
    fit = Fit(
        models=(),
        proba=file["proba"],
        out_of_fold=out_of_fold if len(out_of_fold) else None,
        **meta,
    )
    return fit, {**saved.digests, DESCRIPTION: saved.sha256}


@cache
def code_version(*places: Path) -> str:
    """Hash of source files, of those below folders, and of the libraries' versions."""
    digest = hashlib.sha256()
    for place in places:
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        digest.update(f"{name} {version(name)} ".encode())
    return digest.hexdigest()
