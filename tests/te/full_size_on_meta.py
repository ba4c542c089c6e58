"""Builds DeepSeek-V3 at full width and depth on the meta device with Transformer Engine's layers.

Run in a process of its own, because it pretends to have a GPU: TE's modules ask for one when they
are made, and nothing is computed. Prints one JSON object: the parameters' number, the shape of
every tensor of a distributed checkpoint by its key, the kinds of modules, the FP8 recipe, and of
every linear layer whether it leaves its weight gradients owed, as a pipeline schedule wants it.
"""

import inspect
import json
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

META = torch.device("meta")


class _Nothing:
    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass


def pretend_gpu() -> None:
    """Answer as an H100 would, as far as building modules asks."""
    properties = SimpleNamespace(
        name="H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
    )
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda *args, **kwargs: properties
    torch.cuda.get_device_capability = lambda *args, **kwargs: (9, 0)
    torch.cuda.current_device = lambda: META
    torch.cuda.device_count = lambda: 1
    torch.cuda.Stream = torch.cuda.Event = _Nothing
    torch.cuda.current_stream = lambda *args, **kwargs: _Nothing()


def main() -> None:
    """Build the model and print what it holds."""
    pretend_gpu()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    from megatron.core import parallel_state
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from dsv3_plugin.model import build
    from dsv3_plugin.model.config import transformer_config
    from dsv3_plugin.pipeline.split_backward import SplitBackward, let_weights_wait
    from dsv3_plugin.recipe.load import load_model

    def config_in_a_pipeline(*args: Any, **fields: Any) -> Any:
        config = transformer_config(*args, **fields)
        let_weights_wait(config)
        return config

    build.transformer_config = config_in_a_pipeline
    parallel_state.initialize_model_parallel()
    with META:
        model = build.build_model(
            load_model("deepseek-v3"),
            backend="transformer_engine",
            dtype=torch.bfloat16,
            fp8="e4m3",
            fp8_recipe="blockwise",
            perform_initialization=False,
            init_model_with_meta_device=True,
            moe_permute_fusion=False,  # its dispatcher would make an index tensor on the GPU
        )
    tensors = model.sharded_state_dict()
    apply_factories(tensors)
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in flat(tensors):
        if isinstance(tensor, ShardedTensor):
            shapes[tensor.key] = tensor.global_shape
    modules = {type(module).__name__ for module in model.modules()}
    owing = {id(module) for module in SplitBackward(model).of_te}
    linears = {
        name: id(module) in owing
        for name, module in model.named_modules()
        if hasattr(module, "wgrad_store") and list(module.parameters(recurse=False))
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    answer = {"parameters": parameters, "shapes": shapes, "modules": sorted(modules)}
    # As the layers themselves hold them: what the build was told may not have reached them.
    configs = {(c.fp8, c.fp8_recipe) for c in (layer.config for layer in model.decoder.layers)}
    (fp8,) = configs
    answer |= {"fp8": fp8, "linears": linears, "workspace": _workspace_of_te()}
    print(json.dumps(answer))


def _workspace_of_te() -> list[str]:
    """The arguments of what TE remembers a workspace by, below its memory."""
    from transformer_engine.pytorch.cpp_extensions import gemm

    return list(inspect.signature(gemm.get_cublas_workspace.__wrapped__).parameters)


def flat(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for child in value.values() for leaf in flat(child)]
    if isinstance(value, list):
        return [leaf for child in value for leaf in flat(child)]
    return [value]


if __name__ == "__main__":
    main()
