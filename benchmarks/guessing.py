"""What guessing ahead brings on a trained model, and what its parts cost (`generate.py` asks).

One text after another, greedy, by an engine that guesses ahead and by one that does not, in turns.
From the second step of a text on (the first computes its prompt) a step that guesses takes
1 + d + j times as long as one that does not:

* d is drafting, timed by itself: the layers of multi-token prediction over the tokens that came,
  and the head once more for each guess;
* j is judging: k more positions in the model and its head, and what there is to note of them.

With a guesses coming true in a step, (1 + a) / (1 + d) would be the ratio to plain steps if judging
took nothing. What there is of it is the ratio over that.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Pace:
    """One engine's texts, timed.

    Attributes:
        texts: whole, [texts, prompt + new].
        seconds: all of it, prompts included.
        decoding: of the steps behind those that computed prompts.
        steps: so many.
        drafting: of `decoding`.
        counters: the engine's.
    """

    texts: torch.Tensor
    seconds: float
    decoding: float
    steps: int
    drafting: float
    counters: Any

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.decoding / self.steps

    @property
    def came_true(self) -> float:
        """Guesses in a step that judged some."""
        judged = self.counters.guessed[:1]
        return sum(self.counters.accepted) / judged[0] if judged else 0.0


@dataclass(frozen=True)
class Gain:
    """A round of guessing so many tokens ahead, beside one without.

    Attributes:
        whole: ratio of texts, prompts included.
        decoding: ratio of their new tokens.
        drafting, judging: d and j.
        expected: (1 + a) / (1 + d).
    """

    whole: float
    decoding: float
    drafting: float
    judging: float
    expected: float

    @classmethod
    def of(cls, plain: Pace, guessing: Pace) -> "Gain":
        """Of two paces on the same texts."""
        drafting = guessing.drafting / guessing.steps / plain.step
        return cls(
            plain.seconds / guessing.seconds,
            plain.decoding / guessing.decoding,
            drafting,
            guessing.step / plain.step - 1 - drafting,
            (1 + guessing.came_true) / (1 + drafting),
        )

    @property
    def reached(self) -> float:
        """How much of the expected ratio there is."""
        return self.decoding / self.expected


def paced(model: torch.nn.Module, prompts: torch.Tensor, new: int, drafts: int) -> Pace:
    """Prompts [b, s] continued one after another."""
    from dsv3_plugin.inference.cache import CacheShape
    from dsv3_plugin.inference.engine import Engine, EngineSettings
    from dsv3_plugin.inference.requests import Request, SamplingParameters

    shape = CacheShape.of(model.config, predictors=len(model.mtp.layers) if drafts else 0)
    budget = shape.bytes_for([prompts.shape[1] + new + 2 * drafts])
    engine = Engine(model, EngineSettings(budget, drafts=drafts))
    guess, drafting = engine._guess, [0.0]

    def timed_guess(*arguments: Any) -> None:
        begin = time.perf_counter()
        guess(*arguments)
        drafting[-1] += time.perf_counter() - begin

    engine._guess = timed_guess
    sampling = SamplingParameters(max_tokens=new, temperature=0.0)
    texts, firsts, decoding, spent = [], 0.0, 0.0, 0.0
    for prompt in prompts.tolist():
        engine.add(Request(tuple(prompt), sampling))
        begin = time.perf_counter()
        engine.step()
        between, drafting[-1] = time.perf_counter(), 0.0
        while engine.busy:
            ended = engine.step()
        decoding += time.perf_counter() - between
        firsts += between - begin
        spent += drafting[-1]
        texts.append([*prompt, *ended[0].completion.tokens])
    steps = engine.counters.steps - len(texts)
    return Pace(
        torch.tensor(texts), firsts + decoding, decoding, steps, spent, engine.counters
    )  # fmt: skip


def gains_of(
    model: torch.nn.Module, prompts: torch.Tensor, drafts: list[int], new: int, rounds: int
) -> tuple[dict[int, list[Pace]], dict[int, list[Gain]]]:
    """By how many are guessed, what the rounds came to.

    Raises:
        SystemExit: guessing changes a text.
    """
    paces: dict[int, list[Pace]] = {count: [] for count in (0, *drafts)}
    for count in paces:  # nobody's first time counts
        paced(model, prompts[:1], new, count)
    for _ in range(rounds):
        for count, of_count in paces.items():
            of_count.append(paced(model, prompts, new, count))
            if not torch.equal(of_count[-1].texts, paces[0][0].texts):
                raise SystemExit(f"other tokens with {count} drafts")
    gains = {
        count: [Gain.of(plain, pace) for plain, pace in zip(paces[0], paces[count], strict=True)]
        for count in drafts
    }
    return paces, gains


def report(
    title: str, paces: dict[int, list[Pace]], gains: dict[int, list[Gain]]
) -> list[dict[str, Any]]:
    """Print the table of medians; its rows for programs."""
    table = Table(title=title)
    for heading in (
        "drafts", "tokens/s", "× plain", "decoding", "came true, by place", "a", "d", "j",
        "(1 + a) / (1 + d)", "of that",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    rows = []
    for count, of_count in paces.items():
        last = of_count[-1]
        tokens = last.counters.drawn
        rate = tokens / statistics.median(pace.seconds for pace in of_count)
        rows.append({"drafts": count, "rate": rate, "step": min(p.step for p in of_count)})
        if count == 0:
            table.add_row("0", f"{rate:.0f}", "1.00", "1.00", *[""] * 6)
            continue
        medians = {
            name: statistics.median(getattr(gain, name) for gain in gains[count])
            for name in ("whole", "decoding", "drafting", "judging", "expected", "reached")
        }
        shares = [
            right / guessed if guessed else 0.0
            for right, guessed in zip(last.counters.accepted, last.counters.guessed, strict=True)
        ]
        rows[-1] |= medians | {"a": last.came_true, "shares": shares}
        whole, decoding, *others = (f"{value:.2f}" for value in medians.values())
        by_place = " ".join(f"{share:.2f}" for share in shares)
        table.add_row(
            f"{count}", f"{rate:.0f}", whole, decoding, by_place, f"{last.came_true:.2f}", *others
        )
    Console(width=120).print(table)
    return rows
