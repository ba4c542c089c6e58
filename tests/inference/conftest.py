"""Every test of this room runs in a Megatron world of one process."""

import pytest

from dsv3_plugin.distributed.world import single_process


@pytest.fixture(scope="module", autouse=True)
def world():
    """gloo, one rank, for one test file."""
    with single_process(seed=1):
        yield
