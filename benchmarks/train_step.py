"""One full training step of the same model, side by side: this project, upstream, transformers.

    python benchmarks/train_step.py [--repeats 7] [--threads 2] [--width 1 2]

A step is forward, backward, gradient clipping and AdamW on one batch of 8 × 256 tokens, FP32, on
the CPU. The contenders:

* `dsv3_plugin`: our specs under upstream's DistributedDataParallel and optimizer, as `dsv3 train`;
* `upstream local`: megatron-core's own local spec (a loop over experts) under the same, with our
  SDPA core attention, because upstream's refuses MLA's head sizes;
* `transformers`: DeepseekV3ForCausalLM with its grouped and its eager experts and torch's fused
  AdamW.

They take turns within one run; printed are medians, and tokens/s as a multiple of the best of
transformers. Model: 6 layers, hidden 256, 16 experts of which 4 are used (12.3M parameters), and
the same `--width` times as wide.
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM  # noqa: E402

from dsv3_plugin.model.attention import CausalAttention  # noqa: E402
from dsv3_plugin.model.build import build_model  # noqa: E402
from dsv3_plugin.model.config import transformer_config  # noqa: E402
from dsv3_plugin.planner.counts import parameter_counts  # noqa: E402
from dsv3_plugin.recipe.hf_config import hf_config  # noqa: E402
from dsv3_plugin.recipe.model import ModelConfig  # noqa: E402
from dsv3_plugin.upstream import patches  # noqa: E402
from dsv3_plugin.upstream.process_groups import single_process  # noqa: E402

BATCH, LENGTH = 8, 256

Step = Callable[[], torch.Tensor]


def model_config(width: int) -> ModelConfig:
    """The benchmark's model, `width` times as wide."""
    return ModelConfig.model_validate(
        {
            "name": f"width{width}",
            "num_layers": 6,
            "hidden_size": 256 * width,
            "ffn_hidden_size": 704 * width,
            "vocab_size": 4096,
            "max_position_embeddings": 512,
            "num_attention_heads": 8 * width,
            "q_lora_rank": 128 * width,
            "kv_lora_rank": 64 * width,
            "qk_head_dim": 32,
            "qk_pos_emb_head_dim": 16,
            "v_head_dim": 32,
            "moe_layer_freq": "[0]*1+[1]*5",
            "num_moe_experts": 16,
            "moe_ffn_hidden_size": 128 * width,
            "moe_shared_expert_intermediate_size": 128 * width,
            "moe_router_topk": 4,
            "moe_router_num_groups": 4,
            "moe_router_group_topk": 2,
            "moe_router_score_function": "sigmoid",
            "moe_router_topk_scaling_factor": 2.5,
            "moe_router_enable_expert_bias": True,
        }
    )


def batch(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, labels and positions, `[b, s]`."""
    drawn = torch.randint(
        vocab_size, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0)
    )
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous(), positions


def megatron_step(model: torch.nn.Module) -> Step:
    """A step as upstream's trainer takes it: DDP's gradient buffers and Megatron's optimizer."""
    model.train()
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-4, weight_decay=0.1, clip_grad=1.0), [wrapped]
    )
    tokens, labels, positions = batch(model.vocab_size)

    def step() -> torch.Tensor:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        loss = wrapped(tokens, positions, None, labels=labels).mean()
        loss.backward()
        wrapped.finish_grad_sync()
        optimizer.step()
        return loss

    return step


def ours(model: ModelConfig) -> Step:
    """This project's model."""
    return megatron_step(build_model(model))


def upstream_local(model: ModelConfig) -> Step:
    """megatron-core's local spec as it comes, but for the core attention."""
    config = transformer_config(model)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = CausalAttention
    built = GPTModel(
        config,
        spec,
        model.vocab_size,
        model.max_position_embeddings,
        position_embedding_type="rope",
    )
    return megatron_step(built)


def transformers_step(model: ModelConfig, experts: str) -> Step:
    """transformers' model with one of its expert implementations, and torch's fused AdamW."""
    torch.manual_seed(0)
    built = DeepseekV3ForCausalLM(DeepseekV3Config.from_dict(hf_config(model))).float().train()
    built.set_experts_implementation(experts)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens, labels, _ = batch(model.vocab_size)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        logits = built(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def measure(contenders: dict[str, tuple[Step, bool]], repeats: int) -> dict[str, float]:
    """Median seconds of each contender's step; they take turns, after one warm-up round.

    Args:
        contenders: a step, and whether it runs with the plugin's patches applied.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, (step, patched) in contenders.items():
            (patches.register if patched else patches.unregister)()
            begin = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(width: int, repeats: int) -> None:
    """Measure one model, print the table and a JSON line."""
    model = model_config(width)
    patches.register()
    contenders = {"dsv3_plugin": (ours(model), True)}
    patches.unregister()
    contenders["upstream local"] = (upstream_local(model), False)
    for experts in ("grouped_mm", "eager"):
        contenders[f"transformers {experts}"] = (transformers_step(model, experts), False)
    medians = measure(contenders, repeats)
    best = min(value for name, value in medians.items() if name.startswith("transformers"))
    parameters = parameter_counts(model).main
    table = Table(title=f"{parameters / 1e6:.1f}M parameters, {BATCH} × {LENGTH} tokens")
    for heading in ("", "ms per step", "tokens/s", "× transformers' best"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, value in medians.items():
        rate = BATCH * LENGTH / value
        table.add_row(name, f"{value * 1e3:.0f}", f"{rate:,.0f}", f"{best / value:.2f}")
    Console().print(table)
    print(json.dumps({"parameters": parameters, "median_seconds": medians}))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, nargs="+", default=[1, 2])
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    with single_process():
        for width in wanted.width:
            compare(width, wanted.repeats)


if __name__ == "__main__":
    main()
