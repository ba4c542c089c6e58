"""Workers have their share of torch's threads, and the caller gets all of them back."""

import pytest
import torch

from dsv3_plugin.checkpoint.conversion.workers import worker_threads


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "share"), [(1, 4), (2, 2), (3, 1), (8, 1)])
def test_a_worker_computes_with_its_share(workers, share):
    with worker_threads(workers) as pool:
        assert pool.submit(torch.get_num_threads).result() == share
    assert torch.get_num_threads() == 4


def test_a_failure_gives_them_back_too():
    with pytest.raises(KeyError), worker_threads(2) as pool:
        pool.submit({}.pop, "nothing").result()
    with worker_threads(1) as pool:  # what a thread that is made later begins with
        assert pool.submit(torch.get_num_threads).result() == 4
