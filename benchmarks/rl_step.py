"""Where a step of reinforcement learning spends its time, and what makes its answers faster.

    python benchmarks/rl_step.py [--folder runs/rl_benchmark] [--steps 12]

1. Seconds of answers, rewards and training of a step of `recipes/rl/tiny.yaml`, medians over steps,
   by `dsv3 train`; the first step, which is also everybody's first, does not count. Parents are
   made first, unless they are there.
2. Tokens of answers in a second of CPU, as a round asks for them: `--n` answers to each of
   `--prompts` prompts, drawn at temperature 1, by the engine on `rl/tiny-base`, which counts, in
   lines of it. With tokens guessed ahead by multi-token prediction and without, with prompts
   computed once for all their answers and for each anew, and, with both, with sums as they come
   instead of rounded once. All take turns within one run, and give the same answers, but for the
   last; printed are medians, and ratios within a round to the plainest. One thread, whose own
   seconds count and not what else the machine does.

Prints two tables and a JSON line.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Sequence as Several
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rl import RECIPE, train

import dsv3_plugin
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.load import load_recipe

BASE = "rl/tiny-base"
PARTS = {
    "answers": "rl/rollout_seconds",
    "rewards": "rl/reward_seconds",
    "training": "rl/training_seconds",
    "the step": "step_seconds",
}


def seconds_of_steps(folder: Path, steps: int) -> dict[str, list[float]]:
    """Of each part, step by step, without the first."""
    run = folder / f"{steps} steps"
    train(RECIPE, run, f"training.steps={steps}", f"training.eval_interval={steps}")
    lines = [line for line in RunFolder(run).metrics.read() if line["iteration"] > 1]
    return {part: [line[key] for line in lines if key in line] for part, key in PARTS.items()}


@dataclass(frozen=True)
class Way:
    """How answers are made.

    Attributes:
        name: in the table.
        drafts: tokens guessed ahead.
        shares: prompts are computed once for all their answers.
        rounds: sums are rounded once, as in training.
    """

    name: str
    drafts: int = 0
    shares: bool = False
    rounds: bool = True


WAYS = (
    Way("each answer by itself"),
    Way("prompts shared", shares=True),
    Way("a token guessed ahead", drafts=1),
    Way("both", drafts=1, shares=True),
    Way("both, sums as they come", drafts=1, shares=True, rounds=False),
)


def prompts_of(count: int, length: int) -> list[tuple[int, ...]]:
    """Lines of counting one after the other, cut to a length."""
    from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint

    recipe = load_recipe(BASE)
    backend = tokenizer_of_checkpoint(recipe.checkpoint_folder).backend
    ids: list[int] = []
    with Path(recipe.data.corpus).open(encoding="utf-8") as file:
        for line in file:
            ids += backend.encode(json.loads(line)["text"] + "\n").ids
            if len(ids) >= count * length:
                break
    return [tuple(ids[start : start + length]) for start in range(0, count * length, length)]


def answered(
    model: torch.nn.Module, way: Way, prompts: Several[tuple[int, ...]], n: int, new: int
) -> tuple[float, list[tuple[int, ...]]]:
    """Tokens in a second of CPU, and the answers of a round."""
    from dsv3_plugin.inference.cache import CacheShape
    from dsv3_plugin.inference.engine import Engine, EngineSettings
    from dsv3_plugin.inference.requests import Request, SamplingParameters
    from dsv3_plugin.inference.scheduler import Sequence
    from dsv3_plugin.model.rounded_once import rounded_once

    class Alone(Engine):
        """Computes every prompt anew."""

        def _sequence(self, request: Request) -> Sequence:
            return replace(super()._sequence(request), shares_prefix=False)

    shape = CacheShape.of(model.config, predictors=len(model.mtp.layers) if way.drafts else 0)
    budget = shape.bytes_for([len(prompts[0]) + new + 2 * way.drafts] * len(prompts) * n)
    settings = EngineSettings(budget, drafts=way.drafts, most_running=len(prompts) * n)
    engine = (Engine if way.shares else Alone)(model, settings)
    requests = [
        Request(prompt, SamplingParameters(max_tokens=new, n=n, seed=seed))
        for seed, prompt in enumerate(prompts)
    ]
    rounded = rounded_once(model.config, torch.device("cpu")) if way.rounds else nullcontext()
    begin = time.process_time()
    with rounded:
        answers = engine.run(requests)
    seconds = time.process_time() - begin
    return engine.counters.drawn / seconds, [tuple(answer.tokens) for answer in answers]


def rates(prompts: int, length: int, n: int, new: int, rounds: int) -> dict[Way, list[float]]:
    """Tokens in a second of CPU of each way, round by round.

    Raises:
        SystemExit: two ways give other answers.
    """
    from dsv3_plugin.checkpoint.load import load_for_inference

    model, _ = load_for_inference(load_recipe(BASE).checkpoint_folder)
    asked = prompts_of(prompts, length)
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        first: list[tuple[int, ...]] | None = None
        for way in WAYS:
            rate, answers = answered(model, way, asked, n, new)
            if first is not None and way.rounds and answers != first:
                raise SystemExit(f"other answers: {way.name}")
            first = first or answers
            if number:  # nobody's first time counts
                found[way].append(rate)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/rl_benchmark"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=160, help="of a prompt, in tokens")
    parser.add_argument("--n", type=int, default=8, help="answers to each")
    parser.add_argument("--new", type=int, default=32, help="the longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    seconds = seconds_of_steps(options.folder, options.steps)
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    torch.set_num_threads(1)
    dsv3_plugin.register()
    with single_process():
        found = rates(options.prompts, options.length, options.n, options.new, options.rounds)

    print("| of a step | seconds | least and most |\n|---|---|---|")
    for part, values in seconds.items():
        middle = statistics.median(values)
        print(f"| {part} | {middle:.3f} | {min(values):.3f} to {max(values):.3f} |")
    print("\n| answers | tokens in a second of CPU | ratio | in a round |\n|---|---|---|---|")
    plain = found[WAYS[0]]
    for way, values in found.items():
        ratios = [mine / other for mine, other in zip(values, plain, strict=True)]
        print(
            f"| {way.name} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    rounds = {way.name: values for way, values in found.items()}
    print(json.dumps({"seconds": seconds, "tokens_per_cpu_second": rounds}))


if __name__ == "__main__":
    main()
