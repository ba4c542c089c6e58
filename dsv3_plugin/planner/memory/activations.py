"""Bytes that one micro-batch takes in a stage, and for how long.

The tables (`local_rows.py`, `te_rows.py`) say it tensor by tensor; here they are added up by layer
kind and stage. Everything is of one rank and one micro-batch.
"""

from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import NamedTuple

from dsv3_plugin.planner.counts import Kind
from dsv3_plugin.planner.memory import local_rows, te_rows
from dsv3_plugin.planner.memory.rows import Row, bytes_of
from dsv3_plugin.planner.memory.tensors import layer_tensors
from dsv3_plugin.planner.setting import BYTES, Setting
from dsv3_plugin.planner.stages import Stage

_SAMPLE = 3 * 8 + 4
"""Bytes of a token in a batch: itself, label and position in int64, its weight in the loss."""


class StageBytes(NamedTuple):
    """Of a micro-batch in a stage.

    Attributes:
        layers: kept from the forward to the backward, but for the next.
        logits: kept of the head's and the loss's.
        owed: kept from the gradient of the input to those of the weights, where they are divided.
        input: what the stage before sends.
        batch: what it reads, which upstream keeps until the step's end (to run it again where a
            loss is not finite).
        forward: what its largest layer works with beyond what is kept, in the forward.
        backward: the same in the backward of the input.
        weights: gradients of a layer's weights that autograd is handed in a whole backward.
        embedding: the same of the embedding, when all layers are through.
        logits_forward, logits_backward: what the head and the loss work with.
    """

    layers: float
    logits: float
    owed: float
    input: float
    batch: float
    forward: float
    backward: float
    weights: float
    embedding: float
    logits_forward: float
    logits_backward: float


@cache
def stage_bytes(setting: Setting, stage: Stage) -> StageBytes:
    """What a micro-batch takes in a stage."""
    kinds = stage.kinds
    message = setting.model.hidden_size * setting.tokens_split * setting.width
    forward, backward = _logits_worked_with(setting, stage)
    layers = [kind for kind in kinds if kind not in ("embedding", "head")]
    return StageBytes(
        layers=sum(n * bytes_of(setting, rows_kept(setting, kind)) for kind, n in kinds.items()),
        logits=_logits_kept(setting, stage),
        owed=sum(n * bytes_of(setting, rows_owed(setting, kind)) for kind, n in kinds.items()),
        input=0.0 if stage.embedding else message,
        batch=_SAMPLE * setting.tokens if {"embedding", "mtp", "head"} & kinds.keys() else 0.0,
        forward=max((_forward(setting, kind) for kind in layers), default=0.0),
        backward=max((_backward(setting, kind) for kind in layers), default=0.0),
        weights=max((_weights(setting, kind) for kind in layers), default=0.0),
        embedding=_summed(1 + stage.mtp) * _table(setting) if stage.embedding else 0.0,
        logits_forward=forward,
        logits_backward=backward,
    )


def rows_kept(setting: Setting, kind: Kind) -> tuple[Row, ...]:
    """The table of a layer kind, from forward to backward."""
    tables = _tables(setting)
    if kind == "embedding":
        return ()
    if kind == "head":
        return tables.HEAD
    block = tables.ATTENTION + (tables.MOE if _is_moe(setting, kind) else tables.DENSE)
    return block if kind != "mtp" else tables.MTP + block


def rows_owed(setting: Setting, kind: Kind) -> tuple[Row, ...]:
    """The table of a layer kind, from the gradient of its input to those of its weights."""
    tables = _tables(setting)
    if kind in ("embedding", "head"):
        return ()
    moe = _is_moe(setting, kind)
    block = tables.ATTENTION_OWED + (tables.MOE_OWED if moe else tables.DENSE_OWED)
    return block if kind != "mtp" else tables.MTP_OWED + block


@cache
def _forward(setting: Setting, kind: Kind) -> float:
    """What one layer's forward works with: what is recomputed is there for a while, too."""
    tables = _tables(setting)
    moe = _is_moe(setting, kind)
    block = (tables.MOE, tables.MOE_FORWARD) if moe else (tables.DENSE, tables.DENSE_FORWARD)
    return max(
        _worked_with(setting, tables.ATTENTION, tables.ATTENTION_FORWARD),
        _worked_with(setting, *block),
    )


@cache
def _backward(setting: Setting, kind: Kind) -> float:
    """What one layer's backward works with: gradients, and what it computes again."""
    tables = _tables(setting)
    moe = _is_moe(setting, kind)
    block = (tables.MOE, tables.MOE_BACKWARD) if moe else (tables.DENSE, tables.DENSE_BACKWARD)
    return max(
        _worked_with(setting, tables.ATTENTION, tables.ATTENTION_BACKWARD),
        _worked_with(setting, *block),
    )


def _worked_with(setting: Setting, kept: Iterable[Row], worked: Iterable[Row]) -> float:
    """Bytes of what a block works with, and of what it drops and computes again."""
    return bytes_of(setting, worked) + bytes_of(setting, kept, dropped=True)


@cache
def _weights(setting: Setting, kind: Kind) -> float:
    """Gradients of one module's weights, of their size, that autograd is handed at once.

    The local backend hands over what its experts, or one linear layer, have; TE adds to the
    gradients' buffers by itself.
    """
    if setting.backend != "local":
        return 0.0
    tensors = layer_tensors(setting, kind)
    routed = sum(tensor.values for tensor in tensors if tensor.routed)
    return setting.width * max(routed, *(t.values for t in tensors if not t.routed))


def _logits_kept(setting: Setting, stage: Stage) -> float:
    """The softmax of every prediction, and what the head multiplies.

    With multi-token prediction the hidden states of all depths are put one after the other.
    """
    if not stage.head:
        return 0.0
    predictions = 1 + stage.mtp
    hidden = predictions * setting.model.hidden_size * setting.tokens_split * setting.width
    target = (8 + 1) * setting.tokens  # int64, and whether it lies in the vocabulary
    return (hidden if stage.mtp else 0) + predictions * (_softmax(setting) + target)


def _logits_worked_with(setting: Setting, stage: Stage) -> tuple[float, float]:
    """Forward: logits beside their softmax. Backward: gradients of logits and of the head's weight.

    The head is one weight for all predictions; upstream's own linear layer makes a gradient of it
    for each.
    """
    if not stage.head:
        return 0.0, 0.0
    logits = setting.model.vocab_size // setting.tensor * setting.tokens * setting.width
    cast = logits if setting.dtype != "fp32" else 0  # the gradient is made in FP32
    # Compiled, the gradient is made in a copy of the softmax: the label's place is written into it.
    copy = _softmax(setting) if setting.fused_loss else 0
    first = cast + max(copy, _table(setting))
    predictions = 1 + stage.mtp
    last = _summed(predictions) * _table(setting) - predictions * _softmax(setting)
    return logits, max(first, last)


def _softmax(setting: Setting) -> int:
    """Bytes of one prediction's, in FP32."""
    return setting.model.vocab_size // setting.tensor * setting.tokens * BYTES["fp32"]


def _table(setting: Setting) -> int:
    """Bytes of a gradient of the embedding, or of the head."""
    model = setting.model
    return model.vocab_size // setting.tensor * model.hidden_size * setting.width


def _summed(uses: int) -> int:
    """How many gradients of a weight there are at most: autograd adds two up into a third."""
    return 1 if uses == 1 else 3


def _is_moe(setting: Setting, kind: Kind) -> bool:
    return kind == "moe" or (kind == "mtp" and setting.model.mtp_is_moe)


def _tables(setting: Setting) -> ModuleType:
    return local_rows if setting.backend == "local" else te_rows
