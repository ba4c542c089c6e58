"""Who is gone: after a failed collective the survivors call the roll through the rendezvous store.

A collective that fails because a peer died or stopped answering says "connection closed" or "timed
out", and not of whom. Every process keeps a thread that looks into the store now and then whether
an alarm is raised, and then signs: it does so even while its main thread waits in a collective. Who
raised the alarm knows then:

* a suspect that does not sign is dead;
* one that signs, and whose own collective failed too, knows the cause at first hand: we wait for
  whom it names;
* one that signs, and goes on as if nothing had happened, is stuck: it is the one.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import torch.distributed as dist
from torch.distributed import distributed_c10d

# How often every process looks for an alarm: a request of a few bytes to the store each time.
_LOOK_EVERY_S = 2.0
SEARCH_S = 10.0
"""How long a search may take in all."""
# By which part of it who lives has signed, and whose own collective failed has said so; the rest
# is for the names that others give, who may have begun to search a little later.
_ALIVE_BY, _FAILED_BY = 0.6, 0.8

_KEY = "dsv3_plugin/lost_peers"
_ALARM = f"{_KEY}/alarm"
_ALIVE = (_KEY + "/alive/{}").format
_FAILED = (_KEY + "/failed/{}").format
_NAMED = (_KEY + "/named/{}").format

_watched: dist.Store | None = None


def watch() -> None:
    """Starts this process's thread, once per world."""
    global _watched
    store = distributed_c10d._get_default_store()
    if store is _watched:
        return
    _watched = store
    over = threading.Event()
    thread = threading.Thread(
        target=_sign_when_called, args=(store.clone(), dist.get_rank(), over), daemon=True
    )
    thread.start()

    # A thread that is inside the store when the interpreter goes takes the process down with it.
    @atexit.register
    def end() -> None:
        over.set()
        thread.join(SEARCH_S)


def _sign_when_called(store: dist.Store, rank: int, over: threading.Event) -> None:
    # An error means that the store went with its keeper: nobody is left to sign for.
    with contextlib.suppress(RuntimeError):
        while not over.wait(_LOOK_EVERY_S):
            if store.check([_ALARM]):
                store.set(_ALIVE(rank), "")
                return


def find_missing(suspects: Sequence[int]) -> list[int]:
    """Whom of the world the failure of a collective with `suspects` (global ranks) is due to.

    All suspects where that cannot be told. Takes seconds, at most `SEARCH_S`; for the way out of a
    run only.
    """
    start = time.monotonic()
    rank = dist.get_rank()
    suspects = [suspect for suspect in suspects if suspect != rank]
    try:
        store = distributed_c10d._get_default_store()
        store.set(_FAILED(rank), "")
        store.set(_ALARM, "")
        missing = _unsigned(store, suspects, start + _ALIVE_BY * SEARCH_S, _ALIVE, _FAILED)
        if not missing:
            missing = _named_by_others(store, suspects, start)
        store.set(_NAMED(rank), " ".join(map(str, missing)))
    except RuntimeError:
        # The store's keeper is gone: rank 0, unless it is torchrun's agent.
        return [0] if 0 in suspects else suspects
    return missing or suspects


def _named_by_others(store: dist.Store, suspects: Iterable[int], start: float) -> list[int]:
    stuck = _unsigned(store, suspects, start + _FAILED_BY * SEARCH_S, _FAILED)
    if stuck:
        return stuck
    _unsigned(store, suspects, start + SEARCH_S, _NAMED)
    named = {
        int(name)
        for suspect in suspects
        if store.check([_NAMED(suspect)])
        for name in store.get(_NAMED(suspect)).decode().split()
    }
    return sorted(named)


def _unsigned(
    store: dist.Store,
    suspects: Iterable[int],
    deadline: float,
    *keys: Callable[[int], str],
) -> list[int]:
    """Those who have set none of their keys by the deadline (of the monotonic clock)."""
    missing = list(suspects)
    while missing and time.monotonic() < deadline:
        missing = [s for s in missing if not any(store.check([key(s)]) for key in keys)]
        time.sleep(0.05)
    return missing
