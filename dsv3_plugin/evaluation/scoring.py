"""What a model makes of texts that are there already, and what it writes behind others, many at a
time on the engine."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dsv3_plugin.inference.engine import Engine
from dsv3_plugin.inference.requests import Completion, Request, SamplingParameters

_CERTAIN = 1e30
"""Added to a token's logit: more than any other has, and FP32 has it."""


@dataclass(frozen=True)
class Scored:
    """What a model makes of a text.

    Attributes:
        log_prob: natural logarithm of its probability.
        greedy: whether each of its tokens is the likeliest.
    """

    log_prob: float
    greedy: bool


def scored(
    engine: Engine, texts: Iterable[tuple[list[int], list[int]]], done: Callable[[], None]
) -> list[Scored]:
    """Continuations behind contexts, both of a token at least.

    A model of s positions takes s of both together: the last token is not computed with. It is what
    the engine draws, since nothing else may be, and what is reported of it is of the model's own
    logits.
    """
    counts: list[int] = []

    def requests() -> Iterator[Request]:
        for context, continuation in texts:
            counts.append(len(continuation))
            *before, last = context + continuation
            yield Request(
                tuple(before),
                SamplingParameters(
                    max_tokens=1,
                    temperature=0.0,
                    logit_bias={last: _CERTAIN},
                    top_log_probs=1,
                    prompt_log_probs=True,
                ),
            )

    found: dict[int, Scored] = {}
    for place, answer in completions(engine, requests()):
        reports = [*(answer.prompt_reports or ()), *answer.reports][-counts[place] :]
        greedy = all(report.token == report.top[0][0] for report in reports)
        found[place] = Scored(math.fsum(report.log_prob for report in reports), greedy)
        done()
    return [found[place] for place in range(len(found))]


def completions(engine: Engine, requests: Iterable[Request]) -> Iterator[tuple[int, Completion]]:
    """Answers as they come, each with its request's place; no more is asked at once than runs, so
    that of long lists nothing is kept but what is under way."""
    left = enumerate(requests)
    places: dict[int, int] = {}
    while True:
        while engine.scheduler.running + engine.scheduler.waiting < engine.settings.most_running:
            following = next(left, None)
            if following is None:
                break
            place, request = following
            places[engine.add(request)] = place
        if not engine.busy:
            return
        for progress in engine.step():
            if progress.completion is not None:
                yield places.pop(progress.request), progress.completion
