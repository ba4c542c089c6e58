"""Process groups that write down what a rank posts on them. Nobody else is there.

They take the place of torch's backend, so all above runs as it is: `batch_isend_irecv`, `isend`,
groups of groups. As NCCL's they coalesce: a `batch_isend_irecv` is one batch with one handle; a
send or a receive that is posted alone is a batch of its own, on a communicator of the two ranks
(torch's ProcessGroupNCCL).
"""

import contextlib
import datetime
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.schedules.nccl import Batch, Operation, Work

_BACKEND = "recorded"


@dataclass(frozen=True)
class Posted(Operation):
    """One end of a message as a rank posted it; `peer` is a global rank.

    Attributes:
        shape, dtype: of the tensor.
        tensor: which tensor, in the recording.
    """

    shape: tuple[int, ...]
    dtype: str
    tensor: int


@dataclass
class Recording:
    """What a rank did, in order.

    Attributes:
        rank: in the world.
        program: batches that it posted, and works that waited for them.
    """

    rank: int
    program: list[Work[Posted] | Batch[Posted]] = field(default_factory=list)
    _storages: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def number(self, tensor: torch.Tensor) -> int:
        """The same for tensors that share their memory, and for no others."""
        storage = tensor.untyped_storage()
        # Kept, so that no other can come to lie there.
        return self._storages.setdefault(storage._cdata, (len(self._storages), storage))[0]


_recording: ContextVar[Recording] = ContextVar("recording")


@contextlib.contextmanager
def recorded_world(rank: int, size: int) -> Iterator[Recording]:
    """Be a rank of a world, and write down what it posts, while the block lasts."""
    if _BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(
            _BACKEND, _make_group, extended_api=True, devices=["cpu", "cuda"]
        )
    recording = Recording(rank)
    token = _recording.set(recording)
    dist.init_process_group(_BACKEND, store=dist.HashStore(), rank=rank, world_size=size)
    try:
        yield recording
    finally:
        dist.destroy_process_group()
        _recording.reset(token)


def _make_group(options: Any, of_backend: Any) -> dist.ProcessGroup:
    ranks = options.global_ranks_in_group or list(range(options.group_size))
    return _RecordedGroup(options.group_rank, options.group_id, ranks, _recording.get())


class _RecordedGroup(dist.ProcessGroup):
    """A group, and its own backend.

    Args:
        rank: in the group.
        name: by which its members find each other.
        ranks: global ranks of its members.
        recording: of this rank.
    """

    supports_coalescing = True
    options = None

    def __init__(self, rank: int, name: str, ranks: list[int], recording: Recording) -> None:
        super().__init__(rank, len(ranks))
        self._name, self._ranks, self._recording = name, ranks, recording
        self._coalesced: list[Posted] | None = None

    def getBackendName(self) -> str:
        return _BACKEND

    def _get_backend(self, device: torch.device) -> "_RecordedGroup":
        return self

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: torch.device) -> dist.Work:
        operations, self._coalesced = self._coalesced, None
        return self._batch(self._name, operations or [])

    def send(self, tensors: list[torch.Tensor], to: int, tag: int) -> dist.Work:
        return self._posted(tensors, to, sends=True)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> dist.Work:
        return self._posted(tensors, source, sends=False)

    def allreduce(self, tensors: list[torch.Tensor], options: Any = None) -> dist.Work:
        return _Waited(None, self._recording)

    def _posted(self, tensors: list[torch.Tensor], peer: int, sends: bool) -> dist.Work:
        (tensor,) = tensors
        number = self._recording.number(tensor)
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        operation = Posted(self._ranks[peer], sends, shape, dtype, number)
        if self._coalesced is not None:
            self._coalesced.append(operation)
            return _Waited(None, self._recording)
        pair = frozenset((self._recording.rank, operation.peer))
        return self._batch((self._name, pair), [operation])

    def _batch(self, communicator: Hashable, operations: list[Posted]) -> dist.Work:
        batch = Batch(self._recording.rank, communicator, tuple(operations))
        self._recording.program.append(batch)
        return _Waited(batch, self._recording)


class _Waited(dist.Work):
    """The handle of a batch: whoever waits for it, waits for that batch."""

    def __init__(self, batch: Batch[Posted] | None, recording: Recording) -> None:
        super().__init__()
        self._batch, self._recording = batch, recording

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        if self._batch is not None:
            self._recording.program.append(Work(None, (self._batch,)))
        return True

    def is_completed(self) -> bool:
        return True  # as far as the host can tell, some time it is
