"""Keep the fitted heads of a comparison as model files; say which cannot be kept, and why.

A head that was fitted with several seeds is kept as their ensemble: its file has every
member, and gives the mean that the row ``NAME_ensemble`` of the comparison was scored on.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cache import disk
from pipeline.data.patients import FIT
from pipeline.data.samples import Samples
from pipeline.errors import ModelError
from pipeline.features.backbones import spec_of
from pipeline.features.load import store_for
from pipeline.heads.save_files import DESCRIPTION, Model, Network, save_model
from pipeline.heads.save_part import Part
from pipeline.heads.save_portable import NotPortableError, to_part
from pipeline.study import Study
from pipeline.words import printable

_LOG = logging.getLogger(__name__)
FOLDER = "heads"


class FittedHead(Protocol):
    """What is needed of :class:`pipeline.compare.Fitted`."""

    @property
    def head(self) -> str:
        """Its name."""

    @property
    def seed(self) -> int:
        """What it was fitted with."""

    @property
    def model(self) -> Any:
        """From features to ``predict_proba``; None for an ensemble."""


def save_heads(
    study: Study, fitted: Mapping[str, tuple[Samples, Sequence[FittedHead]]]
) -> list[dict[str, str]]:
    """Write ``results/<study>/heads/<backbone>/<head>/`` for every head that was fitted.

    Args:
        study: Whose heads they are.
        fitted: By backbone, or backbones with ``+`` between them.

    Returns:
        Backbone, head and reason of each head that is not kept. A file that an earlier
        comparison left of it is removed.

    Raises:
        WriteFailedError: The disk refused.
    """
    unsaved = []
    for backbone, (samples, heads) in fitted.items():
        networks = _networks(study, backbone)
        for name in dict.fromkeys(one.head for one in heads if one.model is not None):
            members = [one for one in heads if one.head == name]
            folder = folder_of(study.results, backbone, name)
            try:
                save_model(folder, _model(study, samples, networks, members))
            except (NotPortableError, ModelError) as reason:
                _LOG.warning("%s on %s is not saved: %s", name, backbone, reason)
                unsaved.append({"backbone": backbone, "head": name, "reason": str(reason)})
                if (folder / DESCRIPTION).exists():
                    disk.remove(folder, [DESCRIPTION])
    return unsaved


def folder_of(results: Path, backbone: str, head: str) -> Path:
    """Where a head of a study is kept."""
    return results / FOLDER / _plain(backbone) / _plain(head)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._+-@" else "_" for c in name)


def _networks(study: Study, backbone: str) -> tuple[Network, ...]:
    by_name = {choice.name: choice for choice in study.backbones}
    names = [backbone] if backbone in by_name else backbone.split("+")
    found = []
    for choice in (by_name[name] for name in names):
        own = (
            choice.weights if choice.weights == "imagenet" else str(Path(choice.weights).resolve())
        )
        recipe, dim = store_for(study, choice).recipe, spec_of(choice.name).dim
        found.append(Network(recipe=recipe, dim=dim, weights=own))
    return tuple(found)


def _model(
    study: Study, samples: Samples, networks: tuple[Network, ...], members: Sequence[FittedHead]
) -> Model:
    parts = tuple(to_part(one.model) for one in members)
    return Model(
        head=members[0].head,
        study=study.name,
        classes=tuple(printable(name) for name in samples.classes),
        networks=networks,
        part=parts[0] if len(parts) == 1 else Part(kind="mean", parts=parts),
        seeds=tuple(one.seed for one in members),
        parameters=tuple(_parameters(one.model) for one in members),
        images=int(np.sum(samples.split == FIT)),
        version=version("headrace"),
    )


def _parameters(estimator: Any) -> dict[str, Any]:
    """What was set or chosen, as far as it is a number, a word or a list of such."""
    steps = getattr(estimator, "steps", None)
    if steps is not None:
        return {name: _parameters(step) for name, step in steps}
    found = {n: v for n, v in estimator.get_params(deep=False).items() if _is_plain(v)}
    return found | getattr(estimator, "best_params_", {})


def _is_plain(value: Any) -> bool:
    finite = not isinstance(value, float) or np.isfinite(value)
    return value is None or (isinstance(value, bool | int | float | str) and bool(finite))
