"""One linear layer of TE, forward and backward on shapes, in BF16 and in FP8 with 128-blocks."""

import contextlib
import json

import torch
from off_the_device import keep_off_the_device
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.rehearsal.te.importing import import_from
from dsv3_plugin.rehearsal.te.installed import te_python

ROWS, INPUT, OUTPUT = 4096, 7168, 2048


def main() -> None:
    """Print what the layer kept and launched, and what came out."""
    kernels: list[tuple] = []
    keep_off_the_device()
    import_from(
        te_python(),
        lambda kernel: kernels.append(
            (kernel.name, [[*t.shape] for t in kernel.reads], [[*t.shape] for t in kernel.writes])
        ),
    )
    import transformer_engine
    from transformer_engine.common.recipe import Float8BlockScaling, Format
    from transformer_engine.pytorch import Linear, autocast

    said: dict = {"version": transformer_engine.__version__}
    recipe = Float8BlockScaling(fp8_format=Format.E4M3)
    for name, precision in {
        "bf16": contextlib.nullcontext(),
        "fp8": autocast(enabled=True, recipe=recipe),
    }.items():
        kernels.clear()
        kept: list[tuple] = []

        def keep(tensor: torch.Tensor, kept: list[tuple] = kept) -> torch.Tensor:
            kept.append(([*tensor.shape], str(tensor.dtype)))
            return tensor

        with FakeTensorMode(allow_non_fake_inputs=True):
            layer = Linear(INPUT, OUTPUT, bias=False, params_dtype=torch.bfloat16, device="cuda")
            x = torch.empty(ROWS, INPUT, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                y = layer(x)
            forward = len(kernels)
            y.backward(torch.empty_like(y))
        said[name] = {
            "output": [*y.shape],
            "input gradient": [*x.grad.shape],
            "weight gradient": [*layer.weight.grad.shape],
            "kept": kept,
            "forward": kernels[:forward],
            "backward": kernels[forward:],
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
