"""What a round of answers takes on the disk: `dsv3_plugin.stages.journal`, which writes it so."""

from dataclasses import dataclass
from typing import Literal, Self

from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe

Kind = Literal["uint8", "int16", "int32", "float64"]
"""Of numbers, by torch's name."""
BYTES: dict[Kind, int] = {"uint8": 1, "int16": 2, "int32": 4, "float64": 8}
OF_TOKEN: dict[str, Kind] = {"tokens": "int32", "log_probs": "float64", "versions": "int32"}
"""What there is of each token of an answer."""
OF_PROMPT: Kind = "int32"
"""A token of a prompt, of each answer to it."""
OF_TEXT = 4
"""Bytes of a token's text, about: English has some four characters of it."""


def of_expert(experts: int) -> Kind:
    """The smallest kind for the numbers of so many experts."""
    return "uint8" if experts <= 2**8 else "int16"


@dataclass(frozen=True)
class Kept:
    """Answers on the disk.

    Attributes:
        bytes: of a round whose answers are all as long as they may be.
        rounds: that lie there at once, until a checkpoint has what is left of them.
    """

    bytes: int
    rounds: int

    @classmethod
    def of(cls, recipe: Recipe) -> Self | None:
        """Of a run; None: it has no answers."""
        if not isinstance(recipe, Rl):
            return None
        rollouts = recipe.rollouts
        read = rollouts.max_prompt_tokens
        each = rollouts.max_tokens * (OF_TEXT + sum(BYTES[kind] for kind in OF_TOKEN.values()))
        each += read * BYTES[OF_PROMPT]
        if recipe.grpo.routing_replay:  # of all tokens but the last, of which nothing follows
            each += (read + rollouts.max_tokens - 1) * experts_bytes(recipe.model)
        several, in_parts = rollouts.dynamic_sampling > 1, rollouts.partial is not None
        # Those that are gone on with are at once fewer than two askings' (`stages/draws.py`).
        asked = rollouts.prompts * (rollouts.dynamic_sampling + (several and in_parts))
        return cls(asked * rollouts.n * each, -(-recipe.checkpoint.interval // recipe.updates))


def experts_bytes(model: ModelConfig) -> int:
    """Of the numbers of the experts that a token goes to, in all layers."""
    kind = of_expert(model.num_moe_experts or 0)
    return len(model.moe_layers) * (model.moe_router_topk or 0) * BYTES[kind]
