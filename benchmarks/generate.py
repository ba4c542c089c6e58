"""Text made by the engine and by transformers, side by side: same model, prompts, threads.

    python benchmarks/generate.py [--batch 1 8 32] [--prompt 32 1024] [--new 64] [--rounds 3]
    python benchmarks/generate.py --checkpoint runs/tiny/checkpoints [--drafts 1 2 3]

The first form compares with transformers' DeepseekV3ForCausalLM from the same random weights (the
smaller model of `train_step.py`: 6 layers, hidden 256, 16 experts, 12.3M parameters), greedy, FP32,
on the CPU, a batch of prompts of one length, prompts included in the time. transformers has its
dynamic and its static cache, with its grouped and its eager experts; the best of them in each row
is what counts. First tokens have to be the same.

The second form compares the engine with itself on a trained model: with multi-token prediction
guessing ahead and without, one text after another, from pieces of Python's argparse. a is how many
guesses came true in a step, d by how much longer a step takes than one without guesses, and
(1 + a) / (1 + d) what follows from the two.

All take turns within one run, a round each; printed are medians over the rounds.
"""

import argparse
import inspect
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from train_step import model_config, write_hf
from transformers import DeepseekV3ForCausalLM

import dsv3_plugin
from dsv3_plugin.distributed.world import single_process

PROMPTS = 8
"""Texts that are continued from a checkpoint."""

Contender = Callable[[torch.Tensor, int], torch.Tensor]
"""From prompts [b, s] and a number of new tokens to whole texts [b, s + new]."""


def engine_texts(
    model: torch.nn.Module, prompts: torch.Tensor, new: int, **settings: int
) -> tuple[torch.Tensor, Any]:
    """Whole texts by an engine whose cache is as large as they are, and that engine."""
    from dsv3_plugin.inference.cache import CacheShape
    from dsv3_plugin.inference.engine import Engine, EngineSettings
    from dsv3_plugin.inference.requests import Request, SamplingParameters

    drafts = settings.get("drafts", 0)
    shape = CacheShape.of(model.config, predictors=len(model.mtp.layers) if drafts else 0)
    budget = shape.bytes_for([prompts.shape[1] + new + 2 * drafts] * len(prompts))
    engine = Engine(model, EngineSettings(budget, **settings))
    sampling = SamplingParameters(max_tokens=new, temperature=0.0)
    answers = engine.run(Request(tuple(prompt), sampling) for prompt in prompts.tolist())
    if engine.cache_bytes != budget:
        raise SystemExit(f"the cache takes {engine.cache_bytes} bytes, not {budget}")
    return torch.tensor([[*answer.prompt, *answer.tokens] for answer in answers]), engine


def ours(model: torch.nn.Module, prompts: torch.Tensor, new: int) -> torch.Tensor:
    """The engine's."""
    return engine_texts(model, prompts, new)[0]


def theirs(
    model: DeepseekV3ForCausalLM, cache: str, experts: str, prompts: torch.Tensor, new: int
) -> torch.Tensor:
    """transformers' generate."""
    model.set_experts_implementation(experts)
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
        pad_token_id=0,
    )


def seconds_of(
    contenders: dict[str, Contender], prompts: torch.Tensor, new: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each contender in every round, and the texts it made."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    texts: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for name, make in contenders.items():
            begin = time.perf_counter()
            texts[name] = make(prompts, new)
            seconds[name].append(time.perf_counter() - begin)
    return seconds, texts


def compare(batches: list[int], lengths: list[int], new: int, rounds: int) -> None:
    """Against transformers: the table and a JSON line."""
    from dsv3_plugin.model.build import build_model
    from dsv3_plugin.recipe.model import ModelConfig

    longest = {"max_position_embeddings": 2048, "original_max_position_embeddings": 2048}
    config = ModelConfig.model_validate(model_config(1).model_dump() | longest)
    dsv3_plugin.register()
    built = build_model(config)
    with tempfile.TemporaryDirectory() as folder:
        write_hf(built, config, Path(folder))
        other = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    contenders: dict[str, Contender] = {"ours": partial(ours, built)}
    for cache, experts in (("dynamic", "grouped_mm"), ("dynamic", "eager"), ("static", "eager")):
        contenders[f"transformers {cache} {experts}"] = partial(theirs, other, cache, experts)
    table = Table(title=f"{new} new tokens, greedy, tokens/s")
    for heading in (
        "batch",
        "prompt",
        "ours",
        "transformers' best",
        "which",
        "ratio",
        "in a round",
    ):
        table.add_column(heading, justify="right")
    rows = []
    draw = torch.Generator().manual_seed(0)
    for length in lengths:
        for batch in batches:
            prompts = torch.randint(config.vocab_size, (batch, length), generator=draw)
            seconds, texts = seconds_of(contenders, prompts, new, rounds)
            first = {name: text[:, : length + 1] for name, text in texts.items()}
            if any(not torch.equal(text, first["ours"]) for text in first.values()):
                raise SystemExit(f"other tokens, batch {batch}, prompt {length}: {first}")
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            mine = medians.pop("ours")
            best = min(medians, key=medians.__getitem__)
            rates = [batch * new / value for value in (mine, medians[best])]
            pairs = zip(seconds[best], seconds["ours"], strict=True)
            ratios = [other_took / we_took for other_took, we_took in pairs]
            which = best.removeprefix("transformers ")
            table.add_row(
                f"{batch}", f"{length}", *(f"{rate:.0f}" for rate in rates), which,
                f"{rates[0] / rates[1]:.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
            )  # fmt: skip
            row = {"batch": batch, "prompt": length, "ours": rates[0], "theirs": rates[1]}
            rows.append(row | {"ratios": ratios})
            print(json.dumps(rows[-1]), flush=True)
    Console().print(table)
    print(json.dumps({"new": new, "rows": rows}))


def prompts_of(folder: Path, count: int, length: int) -> torch.Tensor:
    """Pieces of Python's argparse, [count, length]."""
    from dsv3_plugin.inference.from_checkpoint import tokenizer_of_checkpoint

    ids = tokenizer_of_checkpoint(folder).backend.encode(inspect.getsource(argparse)).ids
    starts = torch.linspace(0, len(ids) - length, count).long()
    return torch.stack([torch.tensor(ids[start : start + length]) for start in starts])


def guessing(checkpoint: Path, drafts: list[int], new: int, rounds: int) -> None:
    """With multi-token prediction and without, batch 1: the table and a JSON line."""
    from dsv3_plugin.checkpoint.load import load_for_inference

    model, config = load_for_inference(checkpoint)
    prompts = prompts_of(checkpoint, PROMPTS, 32)
    seconds: dict[int, list[float]] = {count: [] for count in (0, *drafts)}
    in_step: dict[int, list[float]] = {count: [] for count in seconds}
    results: dict[int, tuple[Any, Any]] = {}
    for _ in range(rounds):
        for count in seconds:
            begin = time.perf_counter()
            texts, engine = engine_texts(model, prompts, new, drafts=count, most_running=1)
            seconds[count].append(time.perf_counter() - begin)
            in_step[count].append(seconds[count][-1] / engine.counters.steps)
            results[count] = texts, engine.counters
    plain = statistics.median(seconds[0])
    step = statistics.median(in_step[0])
    table = Table(title=f"{config.num_layers} layers, batch 1, {new} new tokens, greedy")
    for heading in (
        "drafts", "tokens/s", "× plain", "came true, by place", "a", "d", "(1 + a) / (1 + d)",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    rows = []
    for count, values in seconds.items():
        texts, counters = results[count]
        if not torch.equal(texts, results[0][0]):
            raise SystemExit(f"other tokens with {count} drafts")
        took = statistics.median(values)
        shares = [
            right / guessed if guessed else 0.0
            for right, guessed in zip(counters.accepted, counters.guessed, strict=True)
        ]
        a = sum(counters.accepted) / counters.guessed[0] if count else 0.0
        d = statistics.median(in_step[count]) / step - 1
        rows.append({"drafts": count, "ratio": plain / took, "a": a, "d": d, "shares": shares})
        table.add_row(
            str(count), f"{PROMPTS * new / took:.0f}", f"{plain / took:.2f}",
            " ".join(f"{share:.2f}" for share in shares), f"{a:.2f}", f"{d:.2f}",
            f"{(1 + a) / (1 + d):.2f}",
        )  # fmt: skip
    Console().print(table)
    print(json.dumps({"layers": config.num_layers, "rows": rows}))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, nargs="+", default=[32, 1024])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 3])
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    with single_process():
        if wanted.checkpoint:
            guessing(wanted.checkpoint, wanted.drafts, wanted.new, wanted.rounds)
        else:
            compare(wanted.batch, wanted.prompt, wanted.new, wanted.rounds)


if __name__ == "__main__":
    main()
