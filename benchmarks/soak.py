"""`dsv3 serve` under many clients: what it answers, how fast, and what is left of it afterwards.

    python benchmarks/soak.py [--requests 2000] [--at-once 32] [--threads 1] [--processes 2]

It asks a server of a small random model (3 layers, hidden 64, multi-token prediction guessing
ahead) random things: completions and chats, whole and streamed, of text and of ids, of one prompt
and of several, with shared beginnings, several answers, stop strings and tokens, tools, thinking,
log-probabilities and echo, a third of them drawn and half with more than 200 tokens. The clients of
a third go away before they have their answer; with every fifth request goes one that has to be
refused, and nine times other weights are loaded, two sets of them by turns. Then the pages that are
held have to be none, and each answer is made again by an engine that does nothing else, without
guessing ahead, with the weights that each of its tokens was told to be of: token ids, text,
thinking, the reason of its end, usage, echo, experts and log-probabilities have to be the same,
these to 1e-5. Where a token differs, the two best of its place (logits, with the noise that it is
drawn with) have to lie within 1e-5 of each other, and where it went to other experts, the scores of
those; such answers are counted, and not compared behind that place. A second server, whose requests
have five seconds, is asked for more than there is time for.

It ends with a line of JSON, and with exit code 1 where anything was not as it should be.
"""

import argparse
import asyncio
import json
import logging
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from rich.console import Console
from rich.table import Table
from soak_got import Got
from soak_replay import Compared, replay
from soak_requests import Asked, Vocabulary, late_requests, malformed, random_requests
from soak_server import served, soak_model, write_checkpoint

import dsv3_plugin
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.distributed.world import single_process

REFUSED_EVERY = 5
LOADS = 9
"""Of other weights, at even distances."""
KEY = "soak"
SECONDS = 5
"""That a request has at the second server."""
LATE_SHARE = 0.02
"""Of the requests are those that the second server is asked."""
LATE = (408, 504)
_Refused = list[tuple[bytes, tuple[int, ...]]]


async def ask(client: httpx2.AsyncClient, asked: Asked, draw: random.Random) -> Got:
    """Send a request, and read its answer, or go away while it is made."""
    got, begin = Got(), time.perf_counter()
    patience = draw.uniform(0.0, 1.0) if asked.leaves else None
    try:
        async with asyncio.timeout(patience):
            if asked.streams:
                async with client.stream("POST", f"/{asked.route}", json=asked.body) as reply:
                    got.status = reply.status_code
                    if reply.status_code != 200:
                        take(got, json.loads(await reply.aread()), begin)
                    async for line in reply.aiter_lines():
                        if line.startswith("data: {"):
                            take(got, json.loads(line.removeprefix("data: ")), begin)
            else:
                reply = await client.post(f"/{asked.route}", json=asked.body)
                got.status = reply.status_code
                take(got, reply.json(), begin)
        got.whole = time.perf_counter() - begin
    except TimeoutError:
        if not asked.leaves:
            got.error = "no answer in time"
    except httpx2.HTTPError as error:
        got.error = f"{type(error).__name__}: {error}"
    return got


def take(got: Got, said: dict[str, Any], begin: float) -> None:
    """A reply, or a piece of one."""
    if "error" in said:
        got.error, got.status = said["error"]["message"], said["error"]["code"]
        return
    if math.isnan(got.first):
        got.first = time.perf_counter() - begin
    got.usage = said.get("usage", got.usage)
    for choice in said["choices"]:
        got.choices[choice["index"]].take(choice)


async def at_rest(client: httpx2.AsyncClient, address: str) -> dict[str, float]:
    """The server's counters once nobody is answered any more."""
    while True:  # those who left a moment ago are told by their connections
        reply = await client.get(f"{address.removesuffix('/v1')}/metrics")
        lines = [line.rsplit(" ", 1) for line in reply.text.splitlines() if line[0] != "#"]
        counters = {name: float(value) for name, value in lines}
        if counters["dsv3_running"] + counters["dsv3_waiting"] == 0:
            return counters
        await asyncio.sleep(0.1)


def client_of(address: str) -> httpx2.AsyncClient:
    """One with as many connections as it needs."""
    limits = httpx2.Limits(max_connections=None)
    head = {"Authorization": f"Bearer {KEY}"}
    return httpx2.AsyncClient(base_url=address, timeout=3600, limits=limits, headers=head)


async def ask_all(
    address: str, requests: list[Asked], at_once: int, refused: _Refused, folders: list[Path]
) -> tuple[list[Got], list[str], dict[str, float]]:
    """All answers, what was not refused or loaded as it should be, and the counters at the end."""
    slots, wrong = asyncio.Semaphore(at_once), []
    finished, enough = 0, asyncio.Condition()

    async with client_of(address) as client:

        async def one(asked: Asked) -> Got:
            nonlocal finished
            async with slots:
                if asked.number % REFUSED_EVERY == 0:
                    body, statuses = refused[asked.number // REFUSED_EVERY % len(refused)]
                    reply = await client.post("/completions", content=body)
                    if reply.status_code not in statuses:
                        wrong.append(f"{body[:60]!r}: {reply.status_code}")
                got = await ask(client, asked, random.Random(asked.number))
            async with enough:
                finished += 1
                enough.notify_all()
            return got

        async def load() -> None:
            for version in range(1, LOADS + 1):
                at = version * len(requests) // (LOADS + 1)
                async with enough:
                    await enough.wait_for(lambda at=at: finished >= at)
                folder = folders[version % len(folders)]
                reply = await client.post("/weights", json={"path": folder.name})
                if reply.status_code != 200 or reply.json()["version"] != version:
                    wrong.append(f"weights {version}: {reply.status_code} {reply.text}")

        loading = asyncio.create_task(load())
        got = await asyncio.gather(*map(one, requests))
        await loading
        return list(got), wrong, await at_rest(client, address)


async def ask_for_more_than_there_is_time_for(
    address: str, requests: list[Asked]
) -> tuple[list[Got], list[str], dict[str, float]]:
    """The same of the second server; one of the clients does not send all of its body."""
    place, wrong = urlsplit(address), []

    async def half_a_body() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        if (status := (await reader.readline()).split()[1]) != b"408":
            wrong.append(f"half a body: {status!r}")
        writer.close()

    async with client_of(address) as client:
        slow = asyncio.create_task(half_a_body())
        got = await asyncio.gather(*(ask(client, one, random.Random(0)) for one in requests))
        await slow
        for asked, one in zip(requests, got, strict=True):
            if asked.late and one.status not in LATE:
                wrong.append(f"{asked.kind}: {one.status} {one.error}")
        return list(got), wrong, await at_rest(client, address)


def soak(requests: int, at_once: int, threads: int, processes: int) -> dict[str, Any]:
    """Ask, look at what is left, and make all answers again: the result."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with single_process():
            dsv3_plugin.register()
            config = soak_model()
            checkpoints = [
                write_checkpoint(config, root, name, seed) for seed, name in enumerate("ab")
            ]
            tokenizer = open_tokenizer(root / "a-hf")
        thought = tokenizer.backend.token_to_id("</think>")
        tokens = Vocabulary(config.vocab_size, tokenizer.eos_id, thought)
        options = ("--drafts", "1", "--cache-gib", "0.01", "--weights-root", folder)
        with served(checkpoints[0], threads, *options, key=KEY) as (name, address):
            wanted = random_requests(requests, name, tokens, seed=0)
            bad = malformed(name, config.vocab_size, config.max_position_embeddings)
            begin = time.perf_counter()
            asking = ask_all(address, wanted, at_once, bad, checkpoints)
            got, wrong, counters = asyncio.run(asking)
            took = time.perf_counter() - begin
        options = ("--drafts", "1", "--request-seconds", str(SECONDS))
        with served(checkpoints[0], threads, *options, key=KEY) as (name, address):
            late = late_requests(max(8, int(requests * LATE_SHARE)), name, tokens, seed=1)
            asking = ask_for_more_than_there_is_time_for(address, late)
            got_late, wrong_late, counters_late = asyncio.run(asking)
        pairs = [*zip(wanted, got, strict=True)]
        late_pairs = [*zip(late, got_late, strict=True)]
        whole = [(asked, one) for asked, one in [*pairs, *late_pairs] if one.answered]
        begin = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            shares = [(checkpoints, whole[share::processes]) for share in range(processes)]
            compared = Compared()
            for part in pool.map(replay, shares):
                compared.add(part)
        replayed = time.perf_counter() - begin
    faults = compared.faults
    faults += [f"request {a.number}: {one.status} {one.error}" for a, one in pairs if one.error]
    faults += [
        f"request {a.number}, {SECONDS} s: {one.status} {one.error}"
        for a, one in late_pairs
        if one.error and one.status not in LATE
    ]
    latencies = print_latencies(whole, f"{requests} requests, {at_once} at once, {took:.0f} s")
    for line in [*faults[:20], *wrong[:20], *wrong_late]:
        print(line)
    return {
        "requests": requests,
        "left": sum(asked.leaves and math.isnan(one.whole) for asked, one in pairs),
        "refused": sum(asked.number % REFUSED_EVERY == 0 for asked in wanted),
        "replayed": len(whole),
        **compared.counts,
        "largest difference of log-probabilities": compared.apart,
        "faults": len(faults),
        "wrong": len(wrong) + len(wrong_late),
        "out of time": sum(one.status in LATE for one in got_late),
        "weights loaded": counters["dsv3_weights_version"],
        "pages held": counters["dsv3_pages_held"] + counters_late["dsv3_pages_held"],
        "put back": counters["dsv3_put_back_total"],
        "seconds": took,
        "replay seconds": replayed,
        "processor seconds": sum(os.times()[:4]),
        "latencies": latencies,
    }


def print_latencies(whole: Iterable[tuple[Asked, Got]], title: str) -> dict[str, Any]:
    """A table of them by kinds."""
    table = Table(title=title)
    for heading in ("kind", "answered", "first p50", "p90", "p99", "whole p50", "p90", "p99"):
        table.add_column(heading, justify="right")
    latencies = {}
    of_kind: dict[str, list[Got]] = {}
    for asked, one in whole:
        of_kind.setdefault(asked.kind, []).append(one)
    for kind, got in sorted(of_kind.items()):
        first, last = (percentiles([getattr(one, name) for one in got]) for name in TIMES)
        latencies[kind] = {"answered": len(got), "first": first, "whole": last}
        table.add_row(kind, str(len(got)), *(f"{value:.2f}" for value in (*first, *last)))
    Console(width=110).print(table)
    return latencies


TIMES = ("first", "whole")


def percentiles(seconds: list[float]) -> list[float]:
    """The 50th, 90th and 99th, by nearest rank."""
    ordered = sorted(seconds)
    return [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the servers' engines")
    parser.add_argument("--processes", type=int, default=2, help="that make answers again")
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    result = soak(wanted.requests, wanted.at_once, wanted.threads, wanted.processes)
    good = not any(result[name] for name in ("faults", "wrong", "pages held"))
    for name, value in result.items():
        if name != "latencies":
            print(f"{name}: {value}")
    print(json.dumps(result))
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
