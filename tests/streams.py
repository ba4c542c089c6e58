"""A GPU that is not there: CUDA streams as vector clocks, and what races on them.

Inside `tests.watched.watching` a process computes on CPU tensors, with the right numbers, and a
race checker follows what a GPU would do. Each operation is a kernel on the current stream; it must
be ordered after the last write of what it reads, and after all reads and writes of what it writes.
The rules, all CUDA's, torch's and NCCL's:

* A stream runs in order. `Event.record` and `Event.wait` order streams, and so do `wait_stream` and
  a collective's `work.wait()`; a collective runs on the stream of its communicator, after what the
  current stream was given before.
* The host launches ahead. It waits at `Event.synchronize` and where it reads a tensor of the
  device, for the current stream. What it reads of pinned memory it must have waited for.
* The caching allocator gives a block back to the stream it was made on, at once: the next tensor
  made there may have it. `record_stream` keeps it until that stream has done what it was given.
* Autograd runs a node on the stream of its forward, and AccumulateGrad of a parameter on the
  default stream, where DistributedDataParallel makes it. It orders a gradient's producer before its
  consumer, and the caller of `backward` before the roots and after the last AccumulateGrad.
* Every matrix product writes the workspace it is given.
"""

import contextlib
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from dsv3_plugin.distributed import overlap


@dataclass
class Known:
    """What has ended, as somebody knows: a stream, an event, the host.

    Attributes:
        counts: by stream, how many of its kernels.
        seconds: when the last of them did.
    """

    counts: dict["Stream", int] = field(default_factory=dict)
    seconds: float = 0.0

    def learn(self, other: "Known") -> None:
        for stream, count in other.counts.items():
            if self.counts.get(stream, 0) < count:
                self.counts[stream] = count
        self.seconds = max(self.seconds, other.seconds)

    def copy(self) -> "Known":
        return Known(dict(self.counts), self.seconds)


@dataclass(frozen=True)
class Access:
    """One kernel's touch of one block of memory.

    Attributes:
        kernel: its name. count: its number on its stream.
        known: what has ended when it has, itself included.
    """

    kernel: str
    stream: "Stream"
    count: int
    known: Known

    def before(self, other: "Access | Known") -> bool:
        known = other.known if isinstance(other, Access) else other
        return known.counts.get(self.stream, 0) >= self.count

    def __str__(self) -> str:
        return f"{self.kernel} on {self.stream}"


@dataclass(frozen=True)
class Race:
    """Two kernels that nothing orders. `rule`: access, freed, workspace or host."""

    rule: str
    first: str
    second: str


class Stream:
    """Stands for `torch.cuda.Stream`."""

    def __init__(self, device: "Device", name: str) -> None:
        self._device, self._name = device, name
        self.known = Known({self: 0})
        self.cuda_stream = self.stream_id = id(self)

    def __repr__(self) -> str:
        return self._name

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self._device)
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        self.known.learn(event.known)

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())

    def synchronize(self) -> None:
        self.record_event().synchronize()


class Event:
    """Stands for `torch.cuda.Event`; recorded on no stream yet, nobody waits for it."""

    def __init__(self, device: "Device", **options: Any) -> None:
        self._device = device
        self.known = Known()

    def record(self, stream: Stream | None = None) -> None:
        self.known = (stream or self._device.current).known.copy()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._device.current).wait_event(self)

    def synchronize(self) -> None:
        self._device.host_waits(self.known, "Event.synchronize")


@dataclass
class Block:
    """A storage: where it was made, and who touched which of its bytes.

    Attributes:
        stream: whose pool it goes back to; None for memory of the host.
        touched: by range of bytes, the last write and the reads since.
    """

    stream: Stream | None
    rule: str = "access"
    touched: dict[tuple[int, int], tuple[Access | None, list[Access]]] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)

    def keep(self, stream: Stream) -> None:
        """Not given away before this stream has done what it was given (`record_stream`)."""
        self.recorded.add(stream)

    def last_writes(self, low: int, high: int) -> Iterator[Access]:
        for (begin, end), (write, _) in self.touched.items():
            if begin < high and low < end and write is not None:
                yield write

    def all(self, low: int, high: int) -> Iterator[Access]:
        yield from self.last_writes(low, high)
        for (begin, end), (_, reads) in self.touched.items():
            if begin < high and low < end:
                yield from reads


class Device:
    """The GPU of this process.

    Attributes:
        races: what was found, each pair of kernels once.
        products: how many matrix products ran on each stream.
        host_waited: where the host waited in a pair: at what, and how many kernels that it had
            given the streams of the device were not waited for.
        workspace: gives the workspace of a product: `(device, ub, grouped) → tensor`.
        kernel_seconds: how long each kernel takes; others take no time, and the host never any.
    """

    def __init__(
        self,
        workspace: Callable[[int, bool, bool], torch.Tensor],
        kernel_seconds: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.default = Stream(self, "main")
        self.races: dict[Race, None] = {}
        self.products: dict[str, int] = defaultdict(int)
        self.host_waited: list[tuple[str, int]] = []
        self.workspace = workspace
        self._seconds = kernel_seconds
        self.host = Known()
        self._local = threading.local()
        self._blocks: dict[int, Block] = {}
        self._free: dict[Stream, list[Access]] = defaultdict(list)
        self._communicators: dict[Any, Stream] = {}
        self._streams: list[Stream] = []

    # Streams

    @property
    def current(self) -> Stream:
        """The current stream of this thread."""
        return getattr(self._local, "stream", self.default)

    @current.setter
    def current(self, stream: Stream) -> None:
        self._local.stream = stream

    @contextlib.contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        before = self.current
        self.current = stream or before
        try:
            yield
        finally:
            self.current = before

    def new_stream(self, *args: Any, **options: Any) -> Stream:
        self._streams.append(Stream(self, f"stream {len(self._streams) + 1}"))
        return self._streams[-1]

    def host_waits(self, known: Known, name: str) -> None:
        self.host.learn(known)
        if overlap.in_a_pair():
            streams = (self.default, *self._streams)
            given = sum(stream.known.counts[stream] for stream in streams)
            ended = sum(self.host.counts.get(stream, 0) for stream in streams)
            self.host_waited.append((name, given - ended))

    # Memory

    def block(self, tensor: torch.Tensor) -> Block:
        """What a tensor lies in; seen for the first time it is of the device, made long ago."""
        storage = tensor.untyped_storage()
        known = self._blocks.get(storage._cdata)
        return known or self.make(tensor, Block(self.default))

    def make(self, tensor: torch.Tensor, block: Block) -> Block:
        """A tensor's memory is this from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._blocks[key] = block
        weakref.finalize(storage, self._freed, key)
        return block

    def _freed(self, key: int) -> None:
        block = self._blocks.pop(key, None)
        if block is not None:
            self._give_back(block)

    def _give_back(self, block: Block) -> None:
        if block.stream is not None:
            left = block.all(0, 1 << 62)
            self._free[block.stream] += [a for a in left if a.stream not in block.recorded]

    def _allocate(self, access: Access) -> None:
        """What was given back to the current stream may be what a kernel gets now."""
        for earlier in self._free.pop(self.current, []):
            if not earlier.before(access):
                self._race("freed", earlier, access)

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """Recomputation empties storages and fills them again."""
        block = self._blocks.get(storage._cdata)
        if block is None:
            return
        if size == 0:
            self._give_back(block)
            block.touched.clear()
        else:
            block.stream = self.current
            self._allocate(self.launch("resize_", [], []))

    def is_host(self, tensor: torch.Tensor) -> bool | None:
        """Whether a tensor is in the host's memory; None where it was never seen."""
        known = self._blocks.get(tensor.untyped_storage()._cdata)
        return None if known is None else known.stream is None

    # Kernels

    def launch(
        self,
        kernel: str,
        reads: Sequence[torch.Tensor],
        writes: Sequence[torch.Tensor],
        made: Sequence[torch.Tensor] = (),
        stream: Stream | None = None,
    ) -> Access:
        """A kernel on a stream; the tensors `made` are allocated for it."""
        stream = stream or self.current
        known = stream.known
        known.learn(self.host)
        known.counts[stream] += 1
        known.seconds += self._seconds.get(kernel, 0.0)
        access = Access(kernel, stream, known.counts[stream], known.copy())
        if made:
            self._allocate(access)
            for tensor in made:
                self.make(tensor, Block(self.current))
        for tensor in reads:
            self._touch(tensor, access, writes=False)
        for tensor in (*writes, *made):
            self._touch(tensor, access, writes=True)
        return access

    def _touch(self, tensor: torch.Tensor, access: Access, *, writes: bool) -> None:
        low, high = bytes_of(tensor)
        if low == high:
            return
        block = self.block(tensor)
        for earlier in block.all(low, high) if writes else block.last_writes(low, high):
            if not earlier.before(access):
                self._race(block.rule, earlier, access)
        if writes:
            inside = [key for key in block.touched if low <= key[0] and key[1] <= high]
            for key in inside:
                del block.touched[key]
            block.touched[low, high] = access, []
        else:
            _, reads = block.touched.setdefault((low, high), (None, []))
            reads[:] = [read for read in reads if read.stream is not access.stream] + [access]

    def _race(self, rule: str, first: Access, second: Access) -> None:
        self.races.setdefault(Race(rule, str(first), str(second)))

    def host_reads(self, tensor: torch.Tensor, name: str) -> None:
        """The host looks at values: it waits for a device, and should have waited for a copy."""
        if not self.is_host(tensor):
            self.host_waits(self.current.known, name)
            return
        for write in self.block(tensor).last_writes(*bytes_of(tensor)):
            if not write.before(self.host):
                self.races.setdefault(Race("host", str(write), name))

    def multiply(self) -> None:
        """A matrix product has begun: what else it writes."""
        stream = self.current
        self.products[str(stream)] += 1
        with _disable_current_modes():
            workspace = self.workspace(0, False, False)
        self.block(workspace).rule = "workspace"
        self.launch("product", [], [workspace])

    # Collectives

    def communicator(self, group: Any) -> Stream:
        if group not in self._communicators:
            self._communicators[group] = Stream(self, f"NCCL {len(self._communicators)}")
        return self._communicators[group]

    def collective(
        self, name: str, group: Any, reads: list[torch.Tensor], writes: list[torch.Tensor]
    ) -> Event:
        """On the communicator's stream, after what the current stream was given so far."""
        stream = self.communicator(group)
        stream.wait_stream(self.current)
        self.launch(name, reads, writes, stream=stream)
        return stream.record_event()

    @property
    def seconds(self) -> float:
        """When everything that the default stream waits for has ended, from the beginning."""
        return self.default.known.seconds


def bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage between the first and the last that a tensor has."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    return tensor.storage_offset() * size, (tensor.storage_offset() + last + 1) * size
