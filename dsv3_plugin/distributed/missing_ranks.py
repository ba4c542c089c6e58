"""Which rank is missing: asked through the rendezvous store after a collective has failed.

A collective that fails because a peer died or stopped answering says "connection closed" or "timed
out", and not which peer. Every process therefore keeps a thread that looks into the store now and
then whether somebody searches, and answers: it does so even while its main thread waits in a
collective. From the answers, who searches can tell:

* a rank that does not answer is dead;
* one that answers, and whose own collective failed too, has the cause at first hand: we wait for
  whom it names;
* one that answers, and goes on as if nothing had happened, is stuck: it is the one.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import torch.distributed as dist
from torch.distributed import distributed_c10d

# How often every process looks for a search: a request of a few bytes to the store each time.
_LOOK_EVERY_S = 2.0
SEARCH_S = 10.0
"""How long a search may take in all."""
# By which part of it who lives has answered, and whose own collective failed has said so; the rest
# is for the names that others give, who may have begun to search a little later.
_ALIVE_BY, _FAILED_BY = 0.6, 0.8

_KEY = "dsv3_plugin/missing_ranks"
_SEARCH = f"{_KEY}/search"
_ALIVE = (_KEY + "/alive/{}").format
_FAILED = (_KEY + "/failed/{}").format
_NAMED = (_KEY + "/named/{}").format


def answer_searches() -> None:
    """Let this process answer whoever searches in its world. Twice is harmless."""
    store = distributed_c10d._get_default_store()
    threads = (thread for thread in threading.enumerate() if isinstance(thread, _Answering))
    if all(thread.world is not store for thread in threads):
        _Answering(store).start()


class _Answering(threading.Thread):
    """Says that this rank lives, once somebody searches; ends then, or with the world's store.

    Attributes:
        world: the store of the world it answers in.
    """

    def __init__(self, world: dist.Store) -> None:
        super().__init__(name="answers searches for missing ranks", daemon=True)
        self.world = world
        self._store = world.clone()  # of its own, since the main thread may be waiting in the other
        self._rank = dist.get_rank()
        self._over = threading.Event()
        # A thread that is inside the store when the interpreter goes takes the process with it.
        atexit.register(self._end)

    def run(self) -> None:
        # An error means that the store went with its keeper: nobody is left to answer.
        with contextlib.suppress(RuntimeError):
            while not self._over.wait(_LOOK_EVERY_S):
                if self._store.check([_SEARCH]):
                    self._store.set(_ALIVE(self._rank), "")
                    return

    def _end(self) -> None:
        self._over.set()
        self.join(SEARCH_S)


def find_missing(peers: Sequence[int]) -> list[int]:
    """Which ranks of the world the failure of a collective with `peers` (global ranks) is due to.

    All peers where that cannot be told. Takes seconds, at most `SEARCH_S`; for the way out of a run
    only.
    """
    start = time.monotonic()
    rank = dist.get_rank()
    peers = [peer for peer in peers if peer != rank]
    try:
        store = distributed_c10d._get_default_store()
        store.set(_FAILED(rank), "")
        store.set(_SEARCH, "")
        missing = _without(store, peers, start + _ALIVE_BY * SEARCH_S, _ALIVE, _FAILED)
        if not missing:
            missing = _stuck_or_named(store, peers, start)
        store.set(_NAMED(rank), " ".join(map(str, missing)))
    except RuntimeError:
        # The store's keeper is gone: rank 0, unless it is torchrun's agent.
        return [0] if 0 in peers else peers
    return missing or peers


def _stuck_or_named(store: dist.Store, peers: Iterable[int], start: float) -> list[int]:
    """Of peers that all live: those whose collective has not failed, or whom the others name."""
    stuck = _without(store, peers, start + _FAILED_BY * SEARCH_S, _FAILED)
    if stuck:
        return stuck
    _without(store, peers, start + SEARCH_S, _NAMED)
    named = {
        int(name)
        for peer in peers
        if store.check([_NAMED(peer)])
        for name in store.get(_NAMED(peer)).decode().split()
    }
    return sorted(named)


def _without(
    store: dist.Store,
    peers: Iterable[int],
    deadline: float,
    *keys: Callable[[int], str],
) -> list[int]:
    """Those who have set none of their keys by the deadline (of the monotonic clock)."""
    missing = list(peers)
    while missing and time.monotonic() < deadline:
        missing = [peer for peer in missing if not any(store.check([key(peer)]) for key in keys)]
        time.sleep(0.05)
    return missing
