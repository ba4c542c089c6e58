"""Starting a child for every rank and step to rehearse, as many at once as there are cores."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import takewhile

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.rehearsal.gpu import gpu_of
from dsv3_plugin.rehearsal.report import (
    Answered,
    Finding,
    Issued,
    Messages,
    Operations,
    RankReport,
    Request,
)
from dsv3_plugin.rehearsal.sentence import sentence_of
from dsv3_plugin.rehearsal.shim.build import built_shim

_CHILD = "dsv3_plugin.rehearsal.child"
_ERROR = re.compile(r"(?P<rank>(?:\[rank\d+\]: )?)[\w.]+(?:Error|Exception)(?::|$)")
"""The line on which an error says itself."""


@dataclass(frozen=True)
class Devices:
    """What stands for the ranks' devices.

    Attributes:
        environment: of a child.
        kind: what it is, for people.
        lacking: why no CUDA runtime answers for them; empty where one does, or none is asked.
    """

    environment: dict[str, str]
    kind: str
    lacking: str = ""


def devices(cluster: Cluster, on_gpu: bool) -> Devices:
    """What can stand for the devices of a cluster on this machine.

    Raises:
        UserError: nothing can.
    """
    inherited = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    if not on_gpu:
        return Devices(inherited, "the CPU host")
    gpu = gpu_of(cluster)
    try:
        shim = built_shim()
    except UserError as error:
        return Devices(inherited, f"{cluster.gpu}, a device written in Python", str(error))
    environment = shim.environment(gpu, inherited)
    return Devices(inherited | environment, f"{cluster.gpu}, with a CUDA runtime that only answers")


def rehearsed(
    requests: Sequence[Request],
    devices: Devices,
    done: Callable[[], None] = lambda: None,
    within_s: float | None = None,
) -> list[RankReport]:
    """The reports on requests, in their order.

    Whoever is interrupted here leaves no process behind.

    Args:
        requests: each gets a process of its own.
        devices: what the processes run on.
        done: called after each.
        within_s: seconds that each may take; None: any number.
    """
    running: set[subprocess.Popen[str]] = set()
    interrupted = threading.Event()

    def one(request: Request) -> RankReport:
        report = _asked(request, devices, running, interrupted, within_s)
        done()
        return report

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            return list(pool.map(one, requests))
        except BaseException:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running):
                child.kill()
            raise


def _asked(
    request: Request,
    devices: Devices,
    running: set[subprocess.Popen[str]],
    interrupted: threading.Event,
    within_s: float | None,
) -> RankReport:
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", _CHILD],
            env=devices.environment | {"TMPDIR": scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        running.add(child)
        if interrupted.is_set():  # since it was begun, and nobody has seen it
            child.kill()
        try:
            answer, log = child.communicate(json.dumps(asdict(request)), within_s)
        except subprocess.TimeoutExpired:
            child.kill()
            return _without_end(request, _too_slow(request.rank, within_s))
        finally:
            running.remove(child)
    if child.returncode == 0:
        return _report(json.loads(answer))
    if os.environ.get("DSV3_DEBUG") == "1":
        sys.stderr.write(log)
    return broken_off(request, child.returncode, log)


def broken_off(request: Request, code: int, log: str) -> RankReport:
    """The report on a request whose child ended by itself, with its exit code and what it said."""
    return _without_end(request, _why_it_ended(request.rank, code, log))


def _without_end(request: Request, why: Finding) -> RankReport:
    return RankReport(request.rank, 0, (why,), broke_off=True)


def _too_slow(rank: int, seconds: float | None) -> Finding:
    return Finding(f"rank {rank} came to no end within {seconds:,} s", of_run=False)


def _why_it_ended(rank: int, code: int, log: str) -> Finding:
    if code < 0:
        name = signal.Signals(-code).name
        return Finding(
            f"rank {rank} was ended by {name}", "a rehearsed rank takes 1.3 GB", of_run=False
        )
    words = _last_words(log)
    sentence = sentence_of(words) or "no word of why"
    return Finding(
        f"rank {rank} ends with {sentence}",
        "leave out what megatron_args adds; without any it is a fault of dsv3, and DSV3_DEBUG=1 "
        "shows where",
        whole=words,
    )


def _last_words(log: str) -> str:
    """What Python said last: the error with all that it says, not what torch says of it afterwards.

    Once a process is in a world, torch begins each line of an error with the rank.
    """
    lines = log.splitlines()
    errors = [(place, found) for place, line in enumerate(lines) if (found := _ERROR.match(line))]
    if not errors:
        return ""
    place, found = errors[-1]
    rank = found["rank"]
    further = takewhile(lambda line: _goes_on(line, rank), lines[place + 1 :])
    return "\n".join(line.removeprefix(rank) for line in (lines[place], *further))


def _goes_on(line: str, rank: str) -> bool:
    return line.startswith(rank) if rank else not line.startswith("[")


def _report(said: dict) -> RankReport:
    operations, messages = said["operations"], said["messages"]
    engine = said["answered"]
    return RankReport(
        **said
        | {
            "findings": _findings(said),
            "messages": None if messages is None else _messages(messages),
            "kept": tuple(said["kept"]),
            "sums": {name: list(map(tuple, groups)) for name, groups in said["sums"].items()},
            "without_gradient": tuple(said["without_gradient"]),
            "overwritten": tuple(said["overwritten"]),
            "rounded": tuple(said["rounded"]),
            "forms": tuple(said["forms"]),
            "made_together": tuple(said["made_together"]),
            "built_with": tuple(_issued(said["built_with"])),
            "collectives": tuple(_issued(said["collectives"])),
            "answered": None if engine is None else Answered(**engine),
            "operations": None if operations is None else Operations(**operations),
        }
    )


def _findings(said: dict) -> tuple[Finding, ...]:
    return tuple(Finding(**finding) for finding in said["findings"])


def _messages(said: dict) -> Messages:
    return Messages(**said | {"findings": _findings(said), "waiting": tuple(said["waiting"])})


def _issued(said: list[dict]) -> Iterator[Issued]:
    for collective in said:
        yield Issued(**collective | {"group": tuple(collective["group"])})
