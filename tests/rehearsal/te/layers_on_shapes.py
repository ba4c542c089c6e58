"""DeepSeek-V3's layers at full width as rank 0 of 64 experts' ranks has them, on shapes.

    python layers_on_shapes.py '[{"name": …, "fp8": …, "recompute": […], "swiglu_in_fp8": …}, …]'

Prints one JSON object: per case the bytes that a dense layer, an MoE layer and multi-token
prediction keep of a micro-batch, what is owed between the gradients of inputs and of weights, and
the kernels launched.
"""

import json
import os
import sys
from collections import Counter
from typing import Any

import torch
from off_the_device import keep_off_the_device
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.rehearsal.te.importing import import_from
from dsv3_plugin.rehearsal.te.installed import te_python
from dsv3_plugin.rehearsal.world import fake_world

TOKENS, RANKS = 4096, 64


def main(cases: list[dict[str, Any]]) -> None:
    """Run the cases one after the other, and print what they kept."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    kernels: Counter[str] = Counter()
    keep_off_the_device()
    import_from(te_python(), lambda kernel: kernels.update([kernel.name]))
    with fake_world(0, RANKS, 8):
        from megatron.core import parallel_state

        found = {}
        for case in cases:
            parallel_state.initialize_model_parallel(
                expert_model_parallel_size=RANKS,
                context_parallel_size=case.get("context", 1),
                create_gloo_process_groups=False,
            )
            found[case["name"]] = measured(case, kernels)
            parallel_state.destroy_model_parallel()
        print(json.dumps(found))


def measured(case: dict[str, Any], kernels: Counter[str]) -> dict[str, Any]:
    """Two micro-batches of one model; the second is looked at, when everything cached is there."""
    from dsv3_plugin.pipeline.split_backward import SplitBackward
    from dsv3_plugin.rehearsal import one_rank
    from dsv3_plugin.rehearsal.known import KnownValues
    from dsv3_plugin.rehearsal.observe import Observer
    from dsv3_plugin.rehearsal.routing import even_routing
    from dsv3_plugin.rehearsal.storages import Storages
    from dsv3_plugin.upstream.replace import Replacer

    storages, known, replacer = Storages("cuda"), KnownValues(), Replacer()
    observer = Observer(known, [storages])
    routing = even_routing(TOKENS, 256, 8, groups=8, of_groups=4)
    give_routing(routing, known, replacer)
    one_rank._answer_reading(observer, replacer)
    one_rank._follow_resizing(storages, replacer)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), observer:
            model = build(case)
            split = SplitBackward(model)
            tokens = torch.zeros(1, TOKENS, dtype=torch.int64, device="cuda")
            for _ in range(2):
                kernels.clear()
                for parameter in model.parameters():
                    parameter.grad = None
                kept, loss = forward(model, tokens, pack_of(case, 0, known), storages)
                with split.keeping_weights_owed(True):
                    loss.mean().backward()
                del loss
                owing = storages.total
                split.weights()
                kept["owed"] = owing - storages.total
            return kept | {"kernels": dict(kernels)}
    finally:
        replacer.restore()


def build(case: dict[str, Any]) -> torch.nn.Module:
    """A dense layer, an MoE layer, multi-token prediction and the head, as a run has them."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from dsv3_plugin.model import build as building
    from dsv3_plugin.model.config import transformer_config
    from dsv3_plugin.pipeline.split_backward import let_weights_wait
    from dsv3_plugin.recipe.load import load_model
    from dsv3_plugin.training.patches import TABLE
    from dsv3_plugin.upstream import patching

    def config_in_a_pipeline(*args: Any, **fields: Any) -> Any:
        config = transformer_config(*args, **fields)
        let_weights_wait(config)
        return config

    building.transformer_config = config_in_a_pipeline
    patching.apply(TABLE)
    model_parallel_cuda_manual_seed(1)
    fields: dict[str, Any] = {"fp8": "e4m3", "fp8_recipe": case["fp8"]} if case["fp8"] else {}
    if case["recompute"]:
        fields |= {
            "recompute_granularity": "selective",
            "recompute_modules": case["recompute"],
        }
    shape = {"num_layers": 2, "moe_layer_freq": [0, 1]}
    with torch.device("cuda"):
        model = building.build_model(
            load_model("deepseek-v3").model_copy(update=shape),
            backend="transformer_engine",
            dtype=torch.bfloat16,
            perform_initialization=False,
            expert_model_parallel_size=RANKS,
            context_parallel_size=case.get("context", 1),
            gradient_accumulation_fusion=True,
            apply_rope_fusion=True,
            rope_type="yarn",
            rotary_scaling_factor=1.0,
            moe_router_fusion=True,
            activation_func_fp8_input_store=case.get("swiglu_in_fp8", False),
            **fields,
        )
    for parameter in model.parameters():  # as DistributedDataParallel would
        parameter.main_grad = torch.empty(parameter.shape, dtype=torch.float32, device="cuda")
        parameter.grad_added_to_main_grad = False
    return model


def pack_of(case: dict[str, Any], rank: int, known: Any) -> Any:
    """The samples of a pack by their tokens and the padding behind each; None: no pack."""
    from torch.utils._python_dispatch import _disable_current_modes

    from dsv3_plugin.distributed.packs import packs_of, samples_of
    from dsv3_plugin.rehearsal.samples import without_values

    if "samples" not in case:
        return None
    with _disable_current_modes():
        within = [torch.arange(tokens + padding) for tokens, padding in case["samples"]]
        counts = [
            places < tokens for places, (tokens, _) in zip(within, case["samples"], strict=True)
        ]
        learned = torch.cat(counts)
        samples = samples_of(
            torch.cat(within), ~learned, learned.float(), rank, case.get("context", 1)
        )
    return packs_of(without_values(samples, known))


def forward(
    model: torch.nn.Module, tokens: torch.Tensor, packed: Any, storages: Any
) -> tuple[dict[str, Any], torch.Tensor]:
    """What each layer keeps, and the loss."""
    layers = {
        "dense": model.decoder.layers[0],
        "moe": model.decoder.layers[1],
        "mtp": model.mtp.layers[0],
    }
    kept: dict[str, Any] = {}
    marks: dict[str, dict[int, Any]] = {}
    hooks = []
    for name, layer in layers.items():

        def before(*_: Any, name: str = name) -> None:
            marks[name] = {id(one.reference): one for one in storages._alive.values()}

        def after(*_: Any, name: str = name) -> None:
            alive = storages._alive.values()
            made = [one for one in alive if id(one.reference) not in marks[name]]
            kept[name] = sum(one.size for one in made)

        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    loss = model(tokens, tokens, None, labels=tokens, packed_seq_params=packed)
    for hook in hooks:
        hook.remove()
    return kept, loss


def give_routing(routing: torch.Tensor, known: Any, replacer: Any) -> None:
    """Every layer's map, known where a dispatcher counts."""

    def preprocess(original: Any) -> Any:
        def given(self: Any, hidden: Any, probs: Any, routing_map: torch.Tensor) -> Any:
            known.give(routing_map, routing)
            return original(self, hidden, probs, routing_map)

        return given

    replacer.wrap("dsv3_plugin.dispatch.moe_layer:MoELayer.preprocess", preprocess)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
