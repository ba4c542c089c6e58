"""Batches of the right shape, in place of a dataset's.

Values do not matter, with one exception: where samples of a pack end, and which of its tokens an
answer has, since the host reads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.training import get_args
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dsv3_plugin.data.batch import Sample
from dsv3_plugin.distributed.packs import Samples
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sft import Sft
from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.rollouts.rows import Text, micro_batches, packed
from dsv3_plugin.stages.learning import Learning
from dsv3_plugin.upstream.replace import Replacer

CONVERSATIONS = 4
"""In each sequence of packed conversations, of nearly equal length: DeepSeek-V3's 1.5M
conversations are of a thousand tokens where they fill 375,000 sequences of 4,096."""


def give_samples(recipe: Recipe, known: KnownValues, replacer: Replacer) -> None:
    """Have upstream read such batches, and the host count samples by their true boundaries."""

    def iterators(*args: Any, **kwargs: Any) -> tuple[Any, None, None]:
        settings = get_args()
        settings.do_train, settings.do_valid, settings.do_test = True, False, False
        return RerunDataIterator(_samples(recipe, known)), None, None

    def counted(original: Callable[..., Samples]) -> Callable[..., Samples]:
        def of(positions: Tensor, padding: Tensor, loss_mask: Tensor, *ranks: int) -> Samples:
            with _disable_current_modes():
                read = [known.of(each) for each in (positions, padding, loss_mask)]
                samples = original(*read, *ranks)
            return without_values(samples, known)

        return of

    replacer.set("megatron.training.training:build_train_valid_test_data_iterators", iterators)
    replacer.wrap("dsv3_plugin.data.batch:samples_of", counted)
    if isinstance(recipe, Rl):
        _weigh_answers(recipe, replacer)


def _samples(recipe: Recipe, known: KnownValues) -> Iterator[Sample]:
    if isinstance(recipe, Rl):
        yield from _of_answers(recipe, known)
    shape = (recipe.training.micro_batch_size, recipe.data.seq_length)
    while True:
        numbers = torch.zeros(shape, dtype=torch.int64)
        sample = {
            "tokens": numbers,
            "labels": numbers,
            "position_ids": torch.zeros_like(numbers),
            "loss_mask": torch.ones(shape),
            "padding_mask": torch.zeros(shape, dtype=torch.bool),
            "attention_mask": None,
        }
        if isinstance(recipe, Sft):
            with _disable_current_modes():
                positions = _positions(recipe).expand(shape)
                ones = torch.ones(shape)
            known.give(sample["position_ids"], positions)
            known.give(sample["loss_mask"], ones)
            known.give(sample["padding_mask"], ones == 0)
        yield sample


def _positions(recipe: Sft) -> Tensor:
    """Of the tokens of a sequence, `[s]`."""
    room, multiple = recipe.data.seq_length, recipe.places_multiple
    length = max(multiple, room // CONVERSATIONS // multiple * multiple)
    return torch.arange(room).remainder(length)


def _of_answers(recipe: Rl, known: KnownValues) -> Iterator[Sample]:
    """Packs of answers, made as a run makes them."""
    with _disable_current_modes():
        size = recipe.training.micro_batch_size
        rows = packed(_texts(recipe), recipe.data.seq_length, size, 0)
        (batch,) = islice(micro_batches(rows, size, 0, 1), 1)
    while True:
        yield {
            name: known.give(torch.empty(value.shape, dtype=value.dtype), value)
            for name, value in batch.items()
        }


def _texts(recipe: Rl) -> list[Text]:
    """Answers of a micro-batch, behind prompts: all as long as they may be."""
    settings = recipe.rollouts
    prompt, tokens = [0] * settings.max_prompt_tokens, [0] * settings.max_tokens
    logs = [0.0] * settings.max_tokens
    text = Text(
        prompt,
        tokens,
        logs,
        old=logs if recipe.updates > 1 else None,
        reference=logs if recipe.grpo.kl_weight else None,
    )
    return [text] * (recipe.training.micro_batch_size * (recipe.data.seq_length // len(text)))


def _weigh_answers(recipe: Rl, replacer: Replacer) -> None:
    """Have a loss without a round of answers before it."""

    def loss(original: Callable[..., Any]) -> Callable[..., Any]:
        def of(learning: Learning, *rest: Any) -> Any:
            if not learning.tokens:
                with _disable_current_modes():
                    each = torch.zeros(len(_texts(recipe)))
                learning.begin(each, each, len(each) * recipe.rollouts.max_tokens)
            return original(learning, *rest)

        return of

    replacer.wrap("dsv3_plugin.stages.rl:loss", loss)


def without_values(samples: Samples, known: KnownValues) -> Samples:
    """The same with fake tensors, whose values are known: a fake mode computes with others."""
    return replace(
        samples,
        **{
            name: known.give(torch.empty(value.shape, dtype=value.dtype), value)
            for name, value in vars(samples).items()
            if isinstance(value, Tensor)
        },
    )
