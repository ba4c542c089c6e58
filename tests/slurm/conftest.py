"""A Slurm of two nodes on this machine, where Debian's is installed and it is root who asks."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.two_nodes import TwoNodes, two_nodes, why_not

REQUIRED = "DSV3_TEST_SLURM"
"""Environment variable: where it is `required`, a test that would skip for want of Slurm fails."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """The two nodes, up; Slurm's commands of this process ask them."""
    if reason := why_not():
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with two_nodes(tmp_path_factory.mktemp("slurm")) as there:
        yield there
