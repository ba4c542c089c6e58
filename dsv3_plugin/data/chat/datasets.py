"""The dataset provider of conversations for upstream's `megatron.training.pretrain`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core.datasets.utils import Split
from megatron.training import get_args, get_tokenizer

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.chat.packs import Conversations, PackedConversations, sequences_in
from dsv3_plugin.data.datasets import Provider
from dsv3_plugin.data.evaluated import Endless, InTurn


def conversations_provider(
    train: Sequence[Path],
    weights: Sequence[float] | None,
    epochs: int | None,
    held_out: Sequence[Path],
    held_out_sets: Sequence[Path],
    *,
    room: int,
    multiple: int,
    seed: int,
) -> Provider:
    """A `train_valid_test_datasets_provider` in upstream's signature.

    Every rank reads: all stages need to know where a sequence's conversations end.

    Args:
        train: prefixes of the datasets that are trained on.
        weights: of those.
        epochs: after which all is padding; None: conversations without end.
        held_out: prefixes of their held-out parts, evaluated on together.
        held_out_sets: prefixes of datasets that are evaluated on in turn, behind those.
        room, multiple, seed: see `Epochs`.
    """
    pack = partial(_packed, room=room, multiple=multiple, seed=seed)

    def provider(
        num_samples: Sequence[int | None], vp_stage: int | None = None
    ) -> tuple[Any, Any, Any]:
        args = get_args()
        trained = pack(train, weights, Split.train, num_samples[0] or 1, epochs)
        if args.consumed_train_samples >= len(trained):
            trained = Endless(trained)  # nothing is left but to evaluate
        sets = [set_ for set_ in (held_out, *([each] for each in held_out_sets)) if set_]
        evaluated = [Endless(pack(each, None, Split.valid)) for each in sets]
        valid: Any = evaluated[0] if evaluated else None
        if held_out_sets:
            per_evaluation = args.eval_iters * args.eval_global_batch_size
            valid = InTurn(evaluated, per_evaluation, args.consumed_valid_samples)
        return trained, valid, None

    provider.is_distributed = True  # type: ignore[attr-defined]
    return provider


def _packed(
    prefixes: Sequence[Path],
    weights: Sequence[float] | None,
    split: Split,
    samples: int | None = None,
    epochs: int | None = None,
    *,
    room: int,
    multiple: int,
    seed: int,
) -> PackedConversations:
    """Sequences of some datasets: so many, or those of an epoch."""
    conversations = Conversations(prefixes)
    order = Epochs(conversations.lengths, weights, room, multiple, seed)
    return PackedConversations(
        conversations,
        order,
        split,
        samples=sequences_in(order.epoch(0)) if samples is None else samples,
        number=epochs,
        padding=get_tokenizer().eod,
    )
