"""Linear layers of the local backend, whose weight gradients can wait.

Backward of a linear layer is two products: the gradient of its input, which the layer below waits
for, and the gradient of its weight, which nobody waits for until the optimizer's step. Zero-bubble
schedules (arXiv 2401.10241) and DualPipe (arXiv 2412.19437, section 3.2.1) fill pipeline bubbles
with the second. Transformer Engine's layers offer that through `backward_dw()`; upstream's local
ones do not. Here they do, with the same protocol:

* `postpone_weight_gradients(model, True)` makes every backward that follows leave its weight
  gradients owed; each module keeps them first in, first out, one entry per backward, so several
  micro-batches may be outstanding. (`config.delay_wgrad_compute` at construction does the same.)
* `module.backward_dw()` pays the oldest entry of that module. `backward_dw(model)` here pays the
  oldest of every module, which is one micro-batch's.

Where a gradient goes. Without upstream's DistributedDataParallel it is added to `param.grad`. With
it, it is added to `param.main_grad`, by the product itself (no temporary) when the types agree;
`param.grad_added_to_main_grad` then tells the hook so, as upstream's fused kernels do. That hook
runs when autograd reaches the parameter, which for an owed gradient is too early: harmless with
`overlap_grad_reduce=False` (it finds nothing and waits for nothing). With overlap, set
`delay_wgrad_compute=True` in DistributedDataParallelConfig: DDP then gives its hook to the module
(`register_wgrad_accumulation_and_reduce_hooks`), and it is called when the gradient is really
there, whether owed or not.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from megatron.core import tensor_parallel
from torch import Tensor

Product = Callable[[Tensor | None], Tensor]
"""Computes one weight's gradient: `product(None)` returns it, `product(out)` adds it to `out`."""

Owed = Sequence[tuple[torch.nn.Parameter, Product]]


@dataclass
class WeightGradients:
    """The weight gradients of one module: paid at once, or owed until asked for.

    Attributes:
        postpone: they are owed.
        hooks: called after each payment.
    """

    postpone: bool = False
    hooks: list[Callable[[], None]] = field(default_factory=list)
    _owed: deque[Owed] = field(default_factory=deque)

    def arrive(self, gradients: Owed) -> list[Tensor | None]:
        """Called by a backward; returns what it hands to autograd for each parameter."""
        if self.postpone:
            self._owed.append(gradients)
        elif self.hooks:
            self._pay(gradients)
        else:
            return [_for_autograd(parameter, product) for parameter, product in gradients]
        return [None] * len(gradients)

    def pay_oldest(self) -> None:
        """Compute what the oldest outstanding backward left owed; nothing owed, nothing done."""
        if self._owed:
            self._pay(self._owed.popleft())

    def add_hook(self, hook: Callable[[], None]) -> None:
        """Have `hook` called after each payment, instead of autograd calling it."""
        self.hooks.append(hook)

    def __len__(self) -> int:
        return len(self._owed)

    @torch.no_grad()
    def _pay(self, gradients: Owed) -> None:
        for parameter, product in gradients:
            if _takes_product(parameter):
                product(parameter.main_grad)
                parameter.grad_added_to_main_grad = True
                if self.hooks:  # which insist on a gradient, look at the flag and drop it
                    parameter.grad = torch.empty_like(parameter)
            elif hasattr(parameter, "main_grad") and not self.hooks:
                parameter.main_grad.add_(product(None))
            elif parameter.grad is None:
                parameter.grad = product(None)
            else:
                product(parameter.grad)
        for hook in self.hooks:
            hook()


def _takes_product(parameter: torch.nn.Parameter) -> bool:
    """Whether a product may add to `main_grad` itself: upstream's DDP holds it, in our type."""
    return (
        hasattr(parameter, "grad_added_to_main_grad")
        and getattr(parameter, "main_grad", None) is not None
        and parameter.main_grad.dtype == parameter.dtype
        and not getattr(parameter, "zero_out_wgrad", False)
        and not hasattr(parameter, "__fsdp_param__")
    )


def _for_autograd(parameter: torch.nn.Parameter, product: Product) -> Tensor:
    if not _takes_product(parameter):
        return product(None)
    product(parameter.main_grad)
    parameter.grad_added_to_main_grad = True
    # Never read: it only makes autograd call the DDP hook, which sees the flag.
    return torch.empty_like(parameter)


def postpone_weight_gradients(model: torch.nn.Module, postpone: bool) -> None:
    """Let backwards of every module that can leave their weight gradients owed, or not."""
    for module in model.modules():
        owed = getattr(module, "weight_gradients", None)
        if isinstance(owed, WeightGradients):
            owed.postpone = postpone


def backward_dw(model: torch.nn.Module) -> None:
    """Compute the weight gradients of the oldest outstanding micro-batch of every module."""
    for module in model.modules():
        owed = getattr(module, "weight_gradients", None)
        if isinstance(owed, WeightGradients):
            owed.pay_oldest()


class _Linear(torch.autograd.Function):
    """y = x Wᵀ, the gradient of W through the module's `WeightGradients`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, owed: WeightGradients) -> Tensor:
        ctx.save_for_backward(x)
        # Itself: under hooks on saved tensors (offloading) autograd would hand back another tensor,
        # which has no `main_grad`.
        ctx.weight = weight
        ctx.owed = owed
        return torch.matmul(x, weight.t())

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        grad_output = grad_output.reshape(-1, grad_output.shape[-1])
        # Detached: what is owed would else keep the graph it came from, down to the chunk's input.
        rows = x.detach().reshape(-1, x.shape[-1])

        def product(out: Tensor | None) -> Tensor:
            if out is None:
                return torch.mm(grad_output.t(), rows)
            return out.addmm_(grad_output.t(), rows)

        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = torch.mm(grad_output, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            (grad_weight,) = ctx.owed.arrive([(weight, product)])
        return grad_input, grad_weight, None


class _Postponing:
    """What `ColumnLinear` and `RowLinear` add to upstream's classes."""

    @property
    def weight_gradients(self) -> WeightGradients:
        """What this module owes."""
        # Made on first use: upstream's own linears become ours by `of`, after their __init__.
        owed = self.__dict__.get("_weight_gradients")
        if owed is None:
            owed = WeightGradients(postpone=self.config.delay_wgrad_compute)
            self.__dict__["_weight_gradients"] = owed
        return owed

    @classmethod
    def of(cls, linear: torch.nn.Module) -> torch.nn.Module:
        """Turn an upstream linear into ours, in place (MLA insists on building its own class)."""
        linear.__class__ = cls
        linear.weight.skip_backward_post_hook = True
        return linear

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.weight is not None:
            self.weight.skip_backward_post_hook = True

    def _forward_impl(self, input: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:
        """Upstream's product where tensor parallelism needs communication, ours elsewhere."""
        plain = self.tp_group.size() == 1 and self.gtp_remat_size == 1
        if not plain or not weight.requires_grad or kwargs.get("bias") is not None:
            return super()._forward_impl(input, weight, *args, **kwargs)
        return _Linear.apply(input, weight, self.weight_gradients)

    def backward_dw(self) -> None:
        """Compute the oldest weight gradient owed."""
        self.weight_gradients.pay_oldest()

    def register_wgrad_accumulation_and_reduce_hooks(self, hook: Callable[[], None]) -> None:
        """Upstream's DDP gives its hook here when its `delay_wgrad_compute` is set."""
        self.weight_gradients.add_hook(hook)


class ColumnLinear(_Postponing, tensor_parallel.ColumnParallelLinear):
    """Upstream's column-parallel linear; same parameters, same checkpoint keys."""


class RowLinear(_Postponing, tensor_parallel.RowParallelLinear):
    """Upstream's row-parallel linear; same parameters, same checkpoint keys."""
