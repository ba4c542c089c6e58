"""Worker threads that share torch's own threads instead of each having all of them."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def worker_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `number` threads, in each of which torch computes with its share of the cores.

    Workers that each had all cores would wait for one another, spinning: on two cores two workers
    dequantise a third faster this way.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            number,
            thread_name_prefix="convert",
            initializer=torch.set_num_threads,
            initargs=(max(1, threads // number),),
        ) as pool:
            yield pool
    finally:
        # OpenMP keeps the number per thread, but gives a new thread the one that was set last.
        torch.set_num_threads(threads)
