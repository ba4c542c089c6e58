"""Forked processes have imported what is slow when they begin; none computes on many threads."""

import os
import sys
from multiprocessing.connection import Connection

from tests.forked import IMPORTED, forked


def _answer(result: Connection) -> None:
    # This module imports nothing slow itself.
    result.send([name for name in ("torch", "megatron.core", *IMPORTED) if name not in sys.modules])


def test_the_server_has_imported_it_all():
    reader, writer = forked().Pipe(duplex=False)
    process = forked().Process(target=_answer, args=(writer,))
    process.start()
    assert reader.poll(120)
    assert reader.recv() == []
    process.join()


def test_this_process_computes_on_one_thread():
    import torch

    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
