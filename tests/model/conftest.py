"""Every test of this room runs in a Megatron world of one process."""

import pytest

from dsv3_plugin.distributed.world import single_process


@pytest.fixture(scope="module", autouse=True)
def world():
    """gloo, one rank, for one test file."""
    with single_process(seed=1):
        yield


@pytest.fixture(autouse=True)
def fresh_trackers():
    """Upstream logs losses per layer in global tables, sized by the first model that logs."""
    yield
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    MTPLossLoggingHelper.tracker.clear()
    get_moe_metrics_tracker().metrics.clear()
