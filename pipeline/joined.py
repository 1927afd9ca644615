"""Samples joined to their features: what every stage after extraction starts from."""

import json
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache import FeatureStore
from pipeline.errors import MissingFeaturesError
from pipeline.recipes import store_for
from pipeline.samples import SampleOptions, Samples, load_samples
from pipeline.study import BackboneChoice, Study

_LOG = logging.getLogger(__name__)
#: Stage 1 reports here, below the study's results; later stages read it.
FEATURES_REPORT = "features.json"


@dataclass(frozen=True, kw_only=True)
class JoinedFeatures:
    """Samples of a study with the features of one backbone.

    Attributes:
        backbone: Name of the backbone.
        store: Where the features came from.
        samples: ``n`` samples, all with features.
        X: Float32 features of shape ``(n, d)``, as the backbone gave them.
    """

    backbone: str
    store: FeatureStore
    samples: Samples
    X: NDArray[np.float32]


def load_joined(
    study: Study, choice: BackboneChoice, options: SampleOptions | None = None
) -> JoinedFeatures:
    """Read the features of all usable samples of a study.

    Images that stage 1 reported as unusable are left out.

    Raises:
        MissingFeaturesError: Stage 1 has not been run, or not since images were added.
    """
    samples, _ = load_samples(study, options)
    store = store_for(study, choice)
    here = np.array([key in store for key in samples.key])
    unusable = _reported_unusable(study)
    lost = [
        i
        for i in np.flatnonzero(~here)
        if (str(samples.domain[i]), samples.items[i].path) not in unusable
    ]
    if lost:
        raise MissingFeaturesError(
            f"{len(lost)} of {len(samples)} images have no features of {choice.name} yet; "
            "first run: headrace features STUDY"
        )
    if not here.all():
        _LOG.warning("%d unusable images are left out", int((~here).sum()))
    samples = samples.where(here)
    return JoinedFeatures(
        backbone=choice.name, store=store, samples=samples, X=store.read(samples.key)
    )


def _reported_unusable(study: Study) -> set[tuple[str, str]]:
    try:
        report = json.loads((study.results / FEATURES_REPORT).read_bytes())
        return {(skip["domain"], skip["path"]) for skip in report["skipped"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
