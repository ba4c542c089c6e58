"""What cannot be combined: each rule is a function from a recipe to the sentences of what is wrong.

`load_recipe` looks at them, so that a run that could not work is refused before anything starts.
"""

from collections.abc import Callable, Iterator

from dsv3_plugin.recipe.rules.backend import precision, torch_backend, transformer_engine
from dsv3_plugin.recipe.rules.curves import curves
from dsv3_plugin.recipe.rules.data import (
    conversations,
    evaluation,
    held_out_sets,
    mixture,
    packing,
    sequence,
    tokenizer,
)
from dsv3_plugin.recipe.rules.dispatch import dispatch
from dsv3_plugin.recipe.rules.executor import executor
from dsv3_plugin.recipe.rules.layout import layout
from dsv3_plugin.recipe.rules.parallelism import experts, processes, tensor
from dsv3_plugin.recipe.rules.passed_flags import said_once
from dsv3_plugin.recipe.rules.rl import division, loss, prompts, rewards, rollouts, server
from dsv3_plugin.recipe.rules.schedule import micro_batches, ramp, schedule, schedule_file
from dsv3_plugin.recipe.schema import Recipe

RULES: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    schedule,
    tensor,
    processes,
    experts,
    sequence,
    tokenizer,
    evaluation,
    mixture,
    held_out_sets,
    conversations,
    packing,
    prompts,
    division,
    rollouts,
    server,
    loss,
    rewards,
    curves,
    schedule_file,
    micro_batches,
    layout,
    ramp,
    precision,
    transformer_engine,
    torch_backend,
    dispatch,
    said_once,
    executor,
)
"""In the order in which they are looked at: a rule may rely on those before it."""


def first_broken(recipe: Recipe) -> str | None:
    """The sentence of the first rule that a recipe breaks, None where all is well."""
    return next((sentence for rule in RULES for sentence in rule(recipe)), None)
