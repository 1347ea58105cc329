"""The life of a run once more, its bus on a cluster with TLS, as a user with the access string."""

from __future__ import annotations

import pytest

from tests.integration.test_bus_on_three_nodes import cluster, way
from tests.integration.test_runs import *  # noqa: F403

pytestmark = pytest.mark.cluster

__all__ = ["cluster", "way"]
