"""An empty store, ready to be written to."""

import pytest

from cache.store import FeatureStore
from tests import cache_jobs as jobs


@pytest.fixture
def store(tmp_path):
    ready = FeatureStore(tmp_path, jobs.RECIPE)
    ready.prepare()
    return ready
