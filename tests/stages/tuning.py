"""A recipe that fine-tunes the small run on sums, and what its parent makes of them."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import yaml
from megatron.core.datasets.utils import Split

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.chat.packs import Conversations, PackedConversations, sequences_in
from dsv3_plugin.evaluation.checkpoint import Evaluated, Place
from dsv3_plugin.evaluation.from_checkpoint import losses_of
from dsv3_plugin.recipe.load import load_recipe

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% else %}<｜Assistant｜>{{ message.content }}<｜▁pad▁｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
"""Ends a turn by another token than ends a document."""

TUNED = {
    "base": "small.yaml",
    "stage": "sft",
    "data": {
        "corpus": "chat.jsonl",
        "tokenizer": "parent",
        "packing": "conversations",
        "seq_length": 64,
        "fim_rate": 0.0,
        "held_out": 0.2,
        "on_bad_row": "skip",
    },
    "training": {"steps": None, "epochs": 2, "eval_interval": 3, "eval_steps": 2},
    "curves": {
        "learning_rate": [
            {"linear": 1e-3, "from": 0, "for": "2 steps"},
            {"cosine": 1e-4, "until": "2 epochs"},
        ],
        "batch_size": 4,
        "router_bias_speed": 0.001,
        "mtp_weight": 0.3,
    },
    "checkpoint": {"interval": 100},
}

EVALUATED = TUNED["training"]["eval_steps"] * TUNED["curves"]["batch_size"]
"""Sequences that an evaluation reads."""


def written(folder: Path, source: Path, **changes: Any) -> Path:
    """The recipe in a folder where small.yaml is, with its conversations, to begin with weights."""
    draw = random.Random(0)
    rows: list[Mapping[str, Any]] = []
    for _ in range(60):
        turns = []
        for _ in range(draw.randint(1, 2)):
            a, b = draw.randint(0, 9), draw.randint(0, 9)
            turns += [
                {"role": "user", "content": f"{a} + {b}?"},
                {"role": "assistant", "content": str(a + b)},
            ]
        rows.append({"messages": turns})
    rows += [
        {"messages": [{"role": "user", "content": "?"}]},
        {"prompt": "long", "response": "x " * 99},
    ]
    chat, template = folder / "chat.jsonl", folder / "turns.jinja"
    chat.write_text("\n".join(map(json.dumps, rows)) + "\n")
    template.write_text(TEMPLATE)
    path = folder / "tuned.yaml"
    data = TUNED["data"] | {"corpus": str(chat), "template": str(template)}
    path.write_text(yaml.safe_dump(TUNED | {"from": str(source), "data": data} | changes))
    return path


def seed_of(recipe: Path) -> int:
    """By which its conversations are packed."""
    return load_recipe(str(recipe), ["data.sequences=1000"]).training.seed


def evaluated(data: Path, seed: int) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Token ids and marks of what is learned, of the conversations of a run's first evaluation."""
    held_out = Conversations([data / "held_out"])
    order = Epochs(held_out.lengths, None, TUNED["data"]["seq_length"], 1, seed)
    rows = PackedConversations(
        held_out, order, Split.valid, samples=sequences_in(order.epoch(0)), number=None, padding=0
    )
    for place in range(EVALUATED):
        for number in rows.members(place % len(rows)):
            ids, learned = held_out[number]
            yield ids.astype("int64"), learned.astype("int64")


def loss_of(checkpoint: Path, data: Path, seed: int) -> float:
    """What a checkpoint makes of them, each by itself. In a world of one process."""
    losses = losses_of(Evaluated.load(Place.named(checkpoint)), "conversations")
    total = count = 0.0
    for ids, learned in evaluated(data, seed):
        total += float((losses(ids) * learned[1:]).sum())
        count += int(learned[1:].sum())
    return total / count
