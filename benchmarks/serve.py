"""Tokens a second of `dsv3 serve` under many streams, beside those of an engine alone.

    python benchmarks/serve.py [--streams 32] [--new 64] [--rounds 9] [--threads 1]

The engine gets all prompts at once (the model of `generate.py`, prompts of 32 tokens, greedy); the
server is asked for each by a client of its own, and tells each token as an event of a stream. They
take turns, a round each. Clients of a server are elsewhere, and here they share its processors: so
they take what comes as it comes, and read it when the time was taken.

It ends with a line of JSON.
"""

import argparse
import contextlib
import json
import logging
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from rich.console import Console
from rich.table import Table
from soak_server import served, write_checkpoint
from train_step import model_config

import dsv3_plugin
from dsv3_plugin.distributed.world import single_process

PROMPT = 32
"""Tokens of a prompt."""
NEVER_ENDS = {1: -100.0}
"""The bias that has every answer grow to its greatest length."""


def streams_of(address: str, bodies: Iterable[dict[str, Any]]) -> list[bytes]:
    """What comes of as many streams as bodies, which are asked for at once."""
    place = urlsplit(address)
    came: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as waiting, contextlib.ExitStack() as stack:
        for body in bodies:
            data = json.dumps(body).encode()
            head = (
                f"POST {place.path}/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            )
            client = stack.enter_context(socket.create_connection((place.hostname, place.port)))
            client.sendall(head.encode() + data)
            client.setblocking(False)
            came[client] = bytearray()
            waiting.register(client, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                data = key.fileobj.recv(2**16)
                came[key.fileobj] += data
                if not data:
                    waiting.unregister(key.fileobj)
    return [bytes(one) for one in came.values()]


def tokens_in(stream: bytes) -> int:
    """Tokens of a stream's events, each of which the server told as one piece."""
    beginning = b"data: {"
    events = [line[6:] for line in stream.splitlines() if line.startswith(beginning)]
    return sum(len(json.loads(event)["choices"][0]["token_ids"]) for event in events)


def throughput(streams: int, new: int, rounds: int, threads: int) -> dict[str, Any]:
    """Tokens a second of a server and of an engine, by turns."""
    from dsv3_plugin.checkpoint.load import load_for_inference
    from dsv3_plugin.inference.cache import CacheShape
    from dsv3_plugin.inference.engine import Engine, EngineSettings
    from dsv3_plugin.inference.requests import Request, SamplingParameters

    torch.set_num_threads(threads)
    rates: dict[str, list[float]] = {"engine": [], "server": []}
    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, single_process():
        dsv3_plugin.register()
        checkpoint = write_checkpoint(model_config(1), Path(folder))
        model, config = load_for_inference(checkpoint)
        budget = CacheShape.of(model.config).bytes_for([PROMPT + new] * streams)
        sampling = SamplingParameters(max_tokens=new, temperature=0.0, logit_bias=NEVER_ENDS)
        with served(checkpoint, threads) as (name, address):
            asked = {"model": name, "max_tokens": new, "temperature": 0, "stream": True}
            asked |= {"return_token_ids": True, "logit_bias": NEVER_ENDS}
            for round_ in range(rounds + 1):
                size = (streams, PROMPT)
                prompts = torch.randint(5, config.vocab_size, size, generator=draw).tolist()
                begin = time.perf_counter()
                engine = Engine(model, EngineSettings(budget))
                engine.run([Request(tuple(prompt), sampling) for prompt in prompts])
                between = time.perf_counter()
                came = streams_of(address, (asked | {"prompt": prompt} for prompt in prompts))
                end = time.perf_counter()
                if (tokens := sum(map(tokens_in, came))) != streams * new:
                    raise SystemExit(f"the server gave {tokens} tokens, not {streams * new}")
                if round_:  # the first is for both to get going
                    rates["engine"].append(tokens / (between - begin))
                    rates["server"].append(tokens / (end - between))
    ratios = [b / a for a, b in zip(rates["engine"], rates["server"], strict=True)]
    table = Table(title=f"{streams} streams of {new} tokens, tokens/s, medians of {rounds}")
    for heading in ("engine", "server", "server / engine", "in a round"):
        table.add_column(heading, justify="right")
    medians = [statistics.median(values) for values in rates.values()]
    low, high = min(ratios), max(ratios)
    table.add_row(
        *(f"{rate:.0f}" for rate in medians),
        f"{medians[1] / medians[0]:.2f}",
        f"{low:.2f} to {high:.2f}",
    )
    Console().print(table)
    return {"streams": streams, "new": new, "rates": rates, "ratio": medians[1] / medians[0]}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    result = throughput(wanted.streams, wanted.new, wanted.rounds, wanted.threads)
    print(json.dumps(result))
    if result["ratio"] < 0.9:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
