"""Messages between stages: to other ranks in ordered batches, or to a chunk on the same rank.

Shapes are known beforehand, so nothing but the tensors travels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.distributed import P2POp, batch_isend_irecv, irecv, isend

from dsv3_plugin.distributed.failures import naming_lost, timeout_of
from dsv3_plugin.pipeline.neighbours import Neighbours
from dsv3_plugin.schedules.actions import FORWARD, Compute, Transfer
from dsv3_plugin.schedules.messages import Message


class StageMessages:
    """The messages of one rank in one step.

    Args:
        neighbours: the groups of this rank and each of its peers, with their timeout.
        shape: of every message, `[s, b, h]`.
        config: upstream's configuration, for the type.
    """

    def __init__(self, neighbours: Neighbours, shape: tuple[int, int, int], config: Any) -> None:
        self._neighbours = neighbours
        self._shape = shape
        self._dtype = config.pipeline_dtype
        # gloo's messages know nothing of the group's timeout; NCCL's are watched from outside, and
        # would hold up the host if they were waited for in this way.
        on_gloo = torch.distributed.get_backend(neighbours.pipeline) == "gloo"
        self._timeout = (timeout_of(neighbours.pipeline),) if on_gloo else ()
        self._outgoing: dict[tuple[str, int, int], torch.Tensor] = {}
        self._expected: dict[tuple[str, int, int], tuple[Any, torch.Tensor]] = {}
        self._sending: list[tuple[Any, torch.Tensor, Transfer]] = []

    def send(self, direction: str, stage: int, micro_batch: int, tensor: torch.Tensor) -> None:
        """Send a result of `stage`: `F` goes to the next stage, `B` to the one before.

        It leaves with the next batch of messages (`post`), or stays for a chunk of this rank.
        """
        target = stage + 1 if direction == "F" else stage - 1
        self._outgoing[direction, target, micro_batch] = tensor

    def receive(self, part: Compute) -> torch.Tensor:
        """The tensor that a computation starts from; waits until it is here."""
        key = ("F" if part.kind == FORWARD else "B", part.stage, part.micro_batch)
        if key in self._outgoing:  # from a chunk of this rank
            return self._outgoing.pop(key)
        work, tensor = self._expected.pop(key)
        self._wait(work, part)
        return tensor

    def post(self, batch: Sequence[Message]) -> None:
        """Start a batch with one peer: sends of what there is, receives of what will be needed."""
        peer = batch[0].peer
        group, global_peer = self._neighbours.group(peer), self._neighbours.ranks[peer]
        operations, notes = [], []
        for message in batch:
            transfer = message.transfer
            direction = transfer.kind[-1]
            if transfer.sends:
                key = (direction, transfer.partner.stage, transfer.micro_batch)
                tensor = self._outgoing.pop(key).contiguous()
                operation = isend
            else:
                key = (direction, transfer.stage, transfer.micro_batch)
                tensor = torch.empty(
                    self._shape, dtype=self._dtype, device=torch.cuda.current_device()
                )
                operation = irecv
            operations.append(P2POp(operation, tensor, global_peer, group))
            notes.append((transfer, key, tensor))
        with self._naming_lost(notes[0][0]):
            works = batch_isend_irecv(operations)
        if len(works) == 1:  # one for all, as NCCL gives
            works = works * len(notes)
        for work, (transfer, key, tensor) in zip(works, notes, strict=True):
            if transfer.sends:
                self._sending.append((work, tensor, transfer))
            else:
                self._expected[key] = (work, tensor)
        self._sending = [entry for entry in self._sending if not entry[0].is_completed()]

    def wait_for_sends(self) -> None:
        """Wait until everything sent has left."""
        for work, _, transfer in self._sending:
            self._wait(work, transfer)
        self._sending.clear()

    def _wait(self, work: Any, what: Compute | Transfer) -> None:
        with self._naming_lost(what):
            work.wait(*self._timeout)

    def _naming_lost(self, what: Compute | Transfer) -> AbstractContextManager[None]:
        return naming_lost(str(what), self._neighbours.ranks)
