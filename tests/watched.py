"""Computations of this process followed on a GPU that is not there (`tests.streams.Device`).

`watching(device)` answers for `torch.cuda`, sees every operation below autograd and every call
above it, puts collectives on streams of their own, and has autograd's nodes run on the streams of
their forwards.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dsv3_plugin.distributed import on_host, overlap
from tests.streams import Access, Block, Device, Event, Stream, bytes_of

_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "_grouped_mm"}
_READS = {"tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__"}
_COLLECTIVES = (
    "all_reduce", "all_gather_single", "all_gather_into_tensor", "all_to_all_single", "broadcast",
)  # fmt: skip
_IN_PLACE = ("all_reduce", "broadcast")


@contextlib.contextmanager
def watching(device: Device) -> Iterator[None]:
    """Inside, this process has the device, and what it computes is followed there."""
    autograd = _Autograd(device)

    def modes() -> list[Any]:
        return [_Calls(device, autograd), _Kernels(device, autograd)]

    settings = overlap._thread_settings
    on_host._stream_of_copies.cache_clear()
    with contextlib.ExitStack() as stack:
        for target, answer in _answers(device, autograd):
            stack.enter_context(mock.patch(target, answer))
        of_a_thread = mock.patch.object(
            overlap, "_thread_settings", side_effect=lambda: [*settings(), *modes()]
        )
        for context in (of_a_thread, *modes()):
            stack.enter_context(context)
        yield
    on_host._stream_of_copies.cache_clear()


def _answers(device: Device, autograd: "_Autograd") -> Iterator[tuple[str, Any]]:
    """What is replaced, and by what."""
    yield "torch.cuda.is_available", lambda: True
    yield "torch.cuda.Stream", device.new_stream
    yield "torch.cuda.Event", functools.partial(Event, device)
    yield "torch.cuda.stream", device.on
    yield "torch.cuda.current_stream", lambda *_: device.current
    yield "torch.cuda.default_stream", lambda *_: device.default
    yield "torch.Tensor.record_stream", lambda tensor, stream: device.block(tensor).keep(stream)
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        device.resized(storage, size)
        return resize(storage, size)

    yield "torch.UntypedStorage.resize_", resized
    for name in _COLLECTIVES:
        yield f"torch.distributed.{name}", _collective(device, getattr(dist, name))
    yield "dsv3_plugin.pipeline.p2p.batch_isend_irecv", _messages(device, dist.batch_isend_irecv)
    applied = autograd.applied(vars(torch.autograd.Function)["apply"])
    yield "torch.autograd.Function.apply", applied
    engine = torch.autograd.Variable._execution_engine
    yield "torch.autograd.Variable._execution_engine", _Engine(autograd, engine)


class _Kernels(TorchDispatchMode):
    """Sees every operation, below autograd."""

    def __init__(self, device: Device, autograd: "_Autograd") -> None:
        super().__init__()
        self._device, self._autograd = device, autograd

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        device, kwargs = self._device, kwargs or {}
        if function.namespace == "c10d":  # seen where it is called
            return function(*args, **kwargs)
        name = function._schema.name.partition("::")[2]
        given = _tensors((args, kwargs))
        if name == "_local_scalar_dense":
            device.host_reads(given[0], "item")
            return function(*args, **kwargs)
        written = _written(function, args, kwargs)
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        out = function(*args, **kwargs)
        made = [t for t in _tensors(out) if t.untyped_storage()._cdata not in storages]
        # An index that indexing makes of a list has not been seen being made.
        places = {device.is_host(tensor) for tensor in given}
        if True in places and False not in places:
            for tensor in given:
                if device.is_host(tensor) and not any(tensor is one for one in written):
                    device.host_reads(tensor, name)
            for tensor in made:
                device.make(tensor, Block(None))
        elif made or written:
            if self._autograd.between_nodes:
                for tensor in given:
                    self._autograd.arrives(tensor, device.current)
            if name in _PRODUCTS:
                device.multiply()
            shapes_alone = name.endswith("_like") or name.startswith("new_")
            device.launch(name, [] if shapes_alone else given, written, made)
        return out


class _Calls(TorchFunctionMode):
    """Sees what is called on tensors, above autograd."""

    def __init__(self, device: Device, autograd: "_Autograd") -> None:
        super().__init__()
        self._device, self._autograd = device, autograd

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        device, kwargs = self._device, kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _READS and isinstance(args[0], torch.Tensor):
            device.host_reads(args[0], name)
        if name == "cpu" and not device.is_host(args[0]):
            device.host_reads(args[0], name)
            return _on_the_host(device, args[0], None)
        if name == "to" and args[1:] == ("cpu",) and kwargs.get("non_blocking"):
            return _on_the_host(device, args[0], device.launch("copy", [args[0]], []))
        if name == "register_hook":
            args = (args[0], self._autograd.on_its_stream(*args))
        out = function(*args, **kwargs)
        if name == "tensor" and kwargs.get("device") is None:  # of numbers that the host has
            device.make(out, Block(None))
        self._autograd.remember_streams(out)
        return out


class _Autograd:
    """Backwards on streams; what one is in the middle of is kept by thread."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._local = threading.local()

    def remember_streams(self, tensors: Any) -> None:
        """Nodes that were made just now run on the current stream."""
        nodes = [tensor.grad_fn for tensor in _tensors(tensors)]
        while nodes:
            node = nodes.pop()
            if node is None or node.metadata.get("seen by") is self:
                continue
            leaf = getattr(node, "variable", None)
            of_ddp = isinstance(leaf, torch.nn.Parameter)
            stream = self._device.default if of_ddp else self._device.current
            node.metadata["seen by"], node.metadata["stream"] = self, stream
            node.register_prehook(functools.partial(self._begins, stream, leaf is not None))
            node.register_hook(self._ended)
            nodes += [following for following, _ in node.next_functions]

    def on_its_stream(self, tensor: torch.Tensor, hook: Callable[..., Any]) -> Callable[..., Any]:
        """A hook of a gradient runs before the node that takes it, on the stream of that node."""
        reference = weakref.ref(tensor)

        @functools.wraps(hook)
        def called(gradient: torch.Tensor) -> Any:
            tensor, stream = reference(), self._device.current
            if tensor is not None:
                node = torch.autograd.graph.get_gradient_edge(tensor).node
                stream = node.metadata.get("stream", stream)
            self.arrives(gradient, stream)
            with self._device.on(stream):
                return hook(gradient)

        return called

    def applied(self, original: Any) -> Any:
        """Stands for `Function.apply`, which no mode sees."""

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            out = original.__get__(None, cls)(*args, **kwargs)
            self.remember_streams(out)
            return out

        return classmethod(apply)

    def run_backward(self, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Stands for the engine's `run_backward`."""
        device, local = self._device, self._local
        outer = dict(vars(local))
        local.caller, local.leaves = device.current, set()
        local.at_roots, local.between = True, False
        try:
            return original(*args, **options)
        finally:
            device.current = local.caller
            for leaf in local.leaves:
                device.current.wait_stream(leaf)
            vars(local).clear()
            vars(local).update(outer)

    def _begins(self, stream: Stream, is_leaf: bool, gradients: Any) -> None:
        local = self._local
        self._device.current = stream
        local.between = False
        if is_leaf:
            local.leaves.add(stream)
        if local.at_roots:
            local.at_roots = False
            stream.wait_stream(local.caller)
            return
        for gradient in gradients:
            if gradient is not None:
                self.arrives(gradient, stream)

    def _ended(self, *_: Any) -> None:
        self._local.between = True

    def arrives(self, gradient: torch.Tensor, stream: Stream) -> None:
        """The consumer of a gradient waits for its producer, and keeps its memory."""
        block = self._device.block(gradient)
        for write in block.last_writes(*bytes_of(gradient)):
            stream.known.learn(write.known)
        if block.stream is not stream:
            block.keep(stream)

    @property
    def between_nodes(self) -> bool:
        """Whether autograd itself computes, adding gradients of one tensor."""
        return vars(self._local).get("between", False)


class _Engine:
    def __init__(self, autograd: _Autograd, engine: Any) -> None:
        self._engine = engine
        self.run_backward = functools.partial(autograd.run_backward, engine.run_backward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class Work:
    """An asynchronous collective: it holds its tensors until it is waited for.

    Attributes:
        real: gloo's.
    """

    def __init__(self, device: Device, real: Any, event: Event, tensors: Any) -> None:
        self._device, self.real, self._event = device, real, event
        self._tensors = tensors

    def wait(self, *timeout: Any) -> Any:
        self._device.current.wait_event(self._event)
        self._tensors = None
        return self.real.wait(*timeout)

    def is_completed(self) -> bool:
        ended = self.real.is_completed()
        if ended:
            self._device.host.learn(self._event.known)
        return ended


def _collective(device: Device, original: Callable[..., Any]) -> Callable[..., Any]:
    name = original.__name__

    @functools.wraps(original)
    def call(
        first: torch.Tensor, *args: Any, group: Any = None, async_op: bool = False, **more: Any
    ) -> Any:
        read = [first] if name in _IN_PLACE else [args[0]]
        event = device.collective(name, group, read, [first])
        real = original(first, *args, group=group, async_op=True, **more)
        work = Work(device, real, event, (first, args))
        return work if async_op else work.wait()

    return call


def _messages(device: Device, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(operations: list[dist.P2POp]) -> list[Work]:
        sent = [one.tensor for one in operations if one.op is dist.isend]
        received = [one.tensor for one in operations if one.op is not dist.isend]
        event = device.collective("messages", operations[0].group, sent, received)
        return [Work(device, real, event, operations) for real in original(operations)]

    return call


def _on_the_host(device: Device, tensor: torch.Tensor, copy: Access | None) -> torch.Tensor:
    """A tensor's values in memory of the host, written by a kernel that copies if there was one."""
    with _disable_current_modes():
        copied = tensor.detach().clone()
    device.make(copied, Block(None, touched={bytes_of(copied): (copy, [])}))
    return copied


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _written(function: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Arguments that an operation writes."""
    found = []
    for index, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[index] if index < len(args) else kwargs.get(argument.name))
    return found
