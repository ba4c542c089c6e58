"""A round's answers as far as a rehearsal can have them: the engine's cache at its budget, and a
step of the engine at its fullest, when every answer is about as long as it may be.

It is the engine of a run, on the rank's own chunks. Where tokens go is given, evenly; what is drawn
nobody computes.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dsv3_plugin.inference.batch import Span
from dsv3_plugin.inference.cache import LatentCache
from dsv3_plugin.inference.company import ExpertRanks
from dsv3_plugin.inference.engine import Engine
from dsv3_plugin.inference.forward import ModelParts
from dsv3_plugin.inference.pages import pages_for
from dsv3_plugin.model.router import DeepSeekRouter
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.rehearsal.report import Answered
from dsv3_plugin.rehearsal.storages import Storages
from dsv3_plugin.rollouts.embedded import Embedded
from dsv3_plugin.upstream.replace import Replacer


def give_answers(known: KnownValues, storages: Storages, replacer: Replacer) -> None:
    """Have routers of the engine spread tokens evenly, and its cache be a part of its own."""

    def choose(original: Callable[..., Any]) -> Callable[..., Any]:
        def even(router: DeepSeekRouter, hidden: Tensor) -> tuple[Tensor, Tensor]:
            chosen, weights = original(router, hidden)
            with _disable_current_modes():
                places = torch.arange(chosen.numel()) % router.config.num_moe_experts
                places = places.view(chosen.shape)
            known.give(chosen, places)
            return chosen, weights

        return even

    def gathered(original: Callable[..., Any]) -> Callable[..., Any]:
        def alike(ranks: ExpertRanks, rows: Tensor) -> Tensor:
            every, own = original(ranks, rows), known.of(rows)
            if own is not None and not rows.is_floating_point():
                with _disable_current_modes():
                    own = own.repeat(len(every) // max(1, len(own)), 1)
                known.give(every, own)
            return every

        return alike

    def made(original: Callable[..., Any]) -> Callable[..., Any]:
        def cache(*args: Any, **kwargs: Any) -> None:
            with storages.as_part("cache"):
                original(*args, **kwargs)

        return cache

    replacer.wrap(f"{DeepSeekRouter.__module__}:DeepSeekRouter.choose", choose)
    replacer.wrap(f"{ExpertRanks.__module__}:ExpertRanks.gathered", gathered)
    replacer.wrap(f"{LatentCache.__module__}:LatentCache.__init__", made)


@torch.no_grad()
def answered(model: Sequence[torch.nn.Module], recipe: Rl, storages: Storages) -> Answered:
    """Have a rank's engine do such a step, and give all back.

    Args:
        model: the rank's chunks, in upstream's wrappers.
        recipe: the run's.
        storages: of the rank.

    Raises:
        UserError: an engine cannot compute with the model, or the cache holds too little.
    """
    before = dict(storages.now)
    storages.begin_moment()
    at_once = recipe.rollouts.prompts // recipe.data_parallel * recipe.rollouts.n
    settings = recipe.rollouts
    if not ModelParts(model).predictors:  # of the ranks, only who has them guesses
        settings = settings.model_copy(update={"drafts": 0})
    replay = recipe.grpo.routing_replay
    embedded = Embedded(model, settings, at_once, frozenset(), experts=replay)
    _step(embedded.engine, recipe, at_once)
    fullest = dict(storages.fullest)
    embedded.engine.release_cache()
    del embedded
    gc.collect()
    left = sum(storages.now.values()) - sum(before.values())
    weights = fullest.get("weights", 0) - before.get("weights", 0)
    return Answered(fullest, handed_over=weights, left=left)


def _step(engine: Engine, recipe: Rl, at_once: int) -> None:
    """A token, and what is guessed behind it, of as many answers as the cache and a step hold."""
    settings = recipe.rollouts
    tokens = 1 + settings.drafts
    end = settings.max_prompt_tokens + settings.max_tokens + settings.drafts
    pages = pages_for(end)
    count = min(at_once, engine.scheduler.pages.count // pages, settings.tokens_in_step // tokens)
    spans = [
        Span([0] * tokens, end - tokens, [*range(number * pages, (number + 1) * pages)])
        for number in range(count)
    ]
    engine.compute(spans)
