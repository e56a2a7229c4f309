"""A run with every feature that all tests of the report share."""

import copy
from typing import Any

import pytest

from pipeline.execution.pipeline_graph import PipelineGraph
from pipeline.graph import runner
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.report_data import make_full_feature_config


@pytest.fixture(scope="session")
def full_feature_run(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> PipelineGraph:
    """Return a run with two specialists, filters, near-duplicates, held-out text, hostile text and rewrites, and its page."""
    with FakeEndpoint() as fake:
        return runner.curate(copy.deepcopy(make_full_feature_config(tmp_path_factory.mktemp("everything"), fake)))
