"""`dsv3 serve` under many clients: what it answers, how fast, and what is left of it afterwards.

    python benchmarks/soak.py [--requests 2000] [--at-once 32] [--threads 2]

It asks a server of a small random model (3 layers, hidden 64, multi-token prediction
guessing ahead) random things: completions and chats, whole and streamed, of text and of ids, with
shared beginnings, several answers, log-probabilities, echo, a third of them drawn and half with
more than 200 tokens. The clients of a third go away before they have their answer; with every
fifth request goes one that has to be refused. Then the pages that are held have to be none, and
each answer is made again by an engine that does nothing else, without guessing ahead. Where a
token differs, the two best of its place (logits, with the noise that it is drawn with) have to lie
within 1e-5 of each other; such places are counted.

It ends with a line of JSON.
"""

import argparse
import asyncio
import contextlib
import inspect
import json
import logging
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from rich.console import Console
from rich.table import Table
from soak_requests import Asked, malformed, random_requests
from train_step import model_config, write_hf

import dsv3_plugin
from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.data.tokenizer import train_bpe
from dsv3_plugin.distributed.world import single_process

NEAR = 1e-5
"""Between the two best of a place where another token is no fault."""
REFUSED_EVERY = 5


@dataclass
class Got:
    """What a client got.

    Attributes:
        status: of the reply.
        tokens, prompts: of each choice.
        first, whole: seconds to the first piece and to the end.
        error: what went wrong.
    """

    status: int = 0
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    prompts: dict[int, list[int]] = field(default_factory=dict)
    first: float = math.nan
    whole: float = math.nan
    error: str | None = None


def soak_model() -> Any:
    """A small model that guesses ahead."""
    small = {
        "name": "soak", "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 128,
        "vocab_size": 512, "max_position_embeddings": 1024,
        "original_max_position_embeddings": 1024, "num_attention_heads": 4, "q_lora_rank": 32,
        "kv_lora_rank": 32, "moe_layer_freq": "[0]*1+[1]*2", "moe_ffn_hidden_size": 32,
        "moe_shared_expert_intermediate_size": 32, "mtp_num_layers": 1,
    }  # fmt: skip
    return type(model_config(1)).model_validate(model_config(1).model_dump() | small)


def write_checkpoint(config: Any, folder: Path) -> Path:
    """Random weights of a model with a tokenizer, as a checkpoint."""
    from dsv3_plugin.model.build import build_model

    hf, checkpoint = folder / config.name, folder / f"{config.name}-checkpoint"
    hf.mkdir()
    torch.manual_seed(0)
    built = build_model(config)
    with torch.no_grad():  # far enough apart that answers are not one token again and again
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / parameter.shape[-1] ** 0.5)
    write_hf(built, config, hf)
    train_bpe([inspect.getsource(argparse)], config.vocab_size, hf)
    import_hf(hf, checkpoint)
    return checkpoint


@contextlib.contextmanager
def served(checkpoint: Path, threads: int, *options: str) -> Iterator[tuple[str, str]]:
    """A server of a checkpoint: the model's name and the address of its routes."""
    command = [sys.executable, "-m", "dsv3_plugin.cli", "serve", "--checkpoint", str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            name, _, address = process.stdout.readline().split()
            yield name, address
        finally:
            process.terminate()


async def ask(client: httpx2.AsyncClient, asked: Asked, draw: random.Random) -> Got:
    """Send a request, and read its answer, or go away while it is made."""
    got, begin = Got(), time.perf_counter()
    patience = draw.uniform(0.0, 1.0) if asked.leaves else None
    try:
        async with asyncio.timeout(patience):
            if asked.streams:
                async with client.stream("POST", f"/{asked.route}", json=asked.body) as reply:
                    got.status = reply.status_code
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
        got.error = said["error"]["message"]
        return
    if math.isnan(got.first):
        got.first = time.perf_counter() - begin
    for choice in said["choices"]:
        got.tokens[choice["index"]] += choice.get("token_ids", [])
        if "prompt_token_ids" in choice:
            got.prompts[choice["index"]] = choice["prompt_token_ids"]


async def ask_all(
    address: str, requests: list[Asked], at_once: int, refused: list[tuple[bytes, tuple[int, ...]]]
) -> tuple[list[Got], list[str], dict[str, float]]:
    """All answers, what was not refused as it should be, and the server's counters at the end."""
    slots, wrong = asyncio.Semaphore(at_once), []
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def one(asked: Asked) -> Got:
            async with slots:
                if asked.number % REFUSED_EVERY == 0:
                    body, statuses = refused[asked.number // REFUSED_EVERY % len(refused)]
                    reply = await client.post("/completions", content=body)
                    if reply.status_code not in statuses:
                        wrong.append(f"{body[:60]!r}: {reply.status_code}")
                return await ask(client, asked, random.Random(asked.number))

        got = await asyncio.gather(*map(one, requests))
        metrics = f"{address.removesuffix('/v1')}/metrics"
        while True:  # those who left a moment ago are told by their connections
            lines = (await client.get(metrics)).text.splitlines()
            counters = {
                name: float(value)
                for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
            }
            if counters["dsv3_running"] + counters["dsv3_waiting"] == 0:
                return list(got), wrong, counters
            await asyncio.sleep(0.1)


def sampling_of(asked: Asked, ends: frozenset[int]) -> Any:
    """What the engine is asked by a request."""
    from dsv3_plugin.inference.requests import SamplingParameters

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "seed")
    said = {name: asked.body[name] for name in names if name in asked.body}
    bias = {int(token): value for token, value in asked.body.get("logit_bias", {}).items()}
    return SamplingParameters(
        max_tokens=asked.body["max_tokens"], logit_bias=bias, stop_tokens=ends, **said
    )


def replay(work: tuple[Path, list[tuple[Asked, Got]]]) -> tuple[int, int, list[str]]:
    """Make answers again, each alone: tokens, places where two were as good, and faults."""
    from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
    from dsv3_plugin.checkpoint.load import load_for_inference
    from dsv3_plugin.data.chat.conversation import Conversation
    from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
    from dsv3_plugin.inference.engine import Engine, EngineSettings
    from dsv3_plugin.inference.requests import Request
    from dsv3_plugin.inference.server.words import words_of

    checkpoint, answers = work
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    tokens, near, faults = 0, 0, []
    with single_process():
        model, _ = load_for_inference(checkpoint)
        tokenizer = tokenizer_of_checkpoint(checkpoint)
        words, ends = words_of(tokenizer), end_ids(tokenizer.folder, tokenizer.eos_id)
        for asked, got in answers:
            if "messages" in asked.body:
                text = words.prompt(Conversation(asked.body["messages"]))
                prompt = words.encode(text, False)
            elif isinstance(asked.body["prompt"], str):
                prompt = words.encode(asked.body["prompt"], True)
            else:
                prompt = asked.body["prompt"]
            if any(ids != prompt for ids in got.prompts.values()):
                faults.append(f"request {asked.number}: another prompt")
            sampling = sampling_of(asked, ends)
            engine = Engine(model, EngineSettings(2**25))
            for alone in engine.run([Request(tuple(prompt), sampling)]):
                served_tokens = got.tokens[alone.number]
                tokens += len(served_tokens)
                if served_tokens == alone.tokens:
                    continue
                gap = gap_at_difference(model, alone, served_tokens, sampling)
                near += gap <= NEAR
                if gap > NEAR:
                    faults.append(f"request {asked.number}, answer {alone.number}: {gap:.2e}")
    return tokens, near, faults


def gap_at_difference(model: Any, alone: Any, other: list[int], sampling: Any) -> float:
    """By how much the best of a place is better than the next, where two answers part; infinite
    where one of them is neither, or ended for no reason."""
    from dsv3_plugin.inference.logits import main_logits
    from dsv3_plugin.inference.sampling import gumbel_noise, shaped

    pairs = zip(alone.tokens, other, strict=False)
    place = next((p for p, (one, two) in enumerate(pairs) if one != two), None)
    if place is None:
        return math.inf
    text = [*alone.prompt, *alone.tokens[:place]]
    row = shaped(main_logits(model, torch.tensor([text]))[0, -1].float(), sampling, text)
    if not sampling.greedy:
        key = (sampling.seed, 0, alone.number, place)  # of the one prompt that a request has
        row = row + gumbel_noise([key], len(row))[0]
    values, best = row.topk(2)
    if {alone.tokens[place], other[place]} != {*best.tolist()}:
        return math.inf
    return (values[0] - values[1]).item()


def soak(requests: int, at_once: int, threads: int) -> dict[str, Any]:
    """Ask, look at what is left, and make all answers again: the result."""
    with tempfile.TemporaryDirectory() as folder:
        with single_process():
            dsv3_plugin.register()
            config = soak_model()
            checkpoint = write_checkpoint(config, Path(folder))
        with served(checkpoint, threads, "--drafts", "1", "--cache-gib", "0.05") as (name, address):
            wanted = random_requests(requests, name, config.vocab_size, seed=0)
            bad = malformed(name, config.vocab_size, config.max_position_embeddings)
            begin = time.perf_counter()
            got, wrong, counters = asyncio.run(ask_all(address, wanted, at_once, bad))
            took = time.perf_counter() - begin
        whole = [
            (asked, one)
            for asked, one in zip(wanted, got, strict=True)
            if not math.isnan(one.whole) and one.error is None and one.status == 200
        ]
        begin = time.perf_counter()
        spawned = multiprocessing.get_context("spawn")
        with spawned.Pool(threads) as pool:
            shares = [(checkpoint, whole[share::threads]) for share in range(threads)]
            parts = pool.map(replay, shares)
        replayed = time.perf_counter() - begin
    faults = [fault for part in parts for fault in part[2]]
    faults += [
        f"request {a.number}: {g.error}" for a, g in zip(wanted, got, strict=True) if g.error
    ]
    table = Table(title=f"{requests} requests, {at_once} at once, {took:.0f} s")
    for heading in ("kind", "answered", "first p50", "p90", "p99", "whole p50", "p90", "p99"):
        table.add_column(heading, justify="right")
    latencies = {}
    for kind in sorted({asked.kind for asked, _ in whole}):
        of_kind = [one for asked, one in whole if asked.kind == kind]
        first, last = ([getattr(o, name) for o in of_kind] for name in ("first", "whole"))
        latencies[kind] = {"first": percentiles(first), "whole": percentiles(last)}
        cells = [f"{value:.2f}" for value in (*percentiles(first), *percentiles(last))]
        table.add_row(kind, str(len(of_kind)), *cells)
    Console().print(table)
    result = {
        "requests": requests,
        "left": sum(
            asked.leaves and math.isnan(g.whole) for asked, g in zip(wanted, got, strict=True)
        ),
        "replayed": len(whole),
        "tokens": sum(part[0] for part in parts),
        "near": sum(part[1] for part in parts),
        "faults": len(faults),
        "not refused as they should": len(wrong),
        "pages held": counters["dsv3_pages_held"],
        "put back": counters["dsv3_put_back_total"],
        "seconds": took,
        "replay seconds": replayed,
        "latencies": latencies,
    }
    for line in [*faults[:20], *wrong[:20]]:
        print(line)
    return result


def percentiles(seconds: list[float]) -> list[float]:
    """The 50th, 90th and 99th, by nearest rank."""
    ordered = sorted(seconds)
    return [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    wanted = parser.parse_args()
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    result = soak(wanted.requests, wanted.at_once, wanted.threads)
    good = not any(result[name] for name in ("faults", "not refused as they should", "pages held"))
    print(json.dumps(result))
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
