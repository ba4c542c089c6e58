"""One full training step of the same model, side by side: this project, upstream, transformers.

    python benchmarks/train_step.py [--repeats 7] [--threads 2] [--width 1 4] [--length 256]

A step is forward, backward, gradient clipping and AdamW on one batch of 8 sequences of that length,
FP32, on the CPU. The contenders:

* `dsv3_plugin`: our specs under upstream's DistributedDataParallel and optimizer, as `dsv3 train`;
* `upstream local`: megatron-core's own local spec (a loop over experts) under the same, with our
  SDPA core attention, because upstream's refuses MLA's head sizes;
* `transformers`: DeepseekV3ForCausalLM with its grouped and its eager experts and torch's fused
  AdamW, from the same weights: its first loss must be ours. (Its batched experts copy an expert's
  weights for every token: 4 GB for each product of the smaller model.)

They take turns within one run, a round each; printed are medians over the rounds, tokens/s as a
multiple of the best of transformers, and the smallest and largest of that ratio in a round. Model:
6 layers, hidden 256, 16 experts of which 4 are used (12.3M parameters), and the same `--width`
times as wide.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from transformers import DeepseekV3ForCausalLM  # noqa: E402

import dsv3_plugin  # noqa: E402
from dsv3_plugin.checkpoint import iter_hf_tensors  # noqa: E402
from dsv3_plugin.distributed.world import single_process  # noqa: E402
from dsv3_plugin.model.build import build_model  # noqa: E402
from dsv3_plugin.model.config import transformer_config  # noqa: E402
from dsv3_plugin.model.core_attention import CausalAttention  # noqa: E402
from dsv3_plugin.planner.counts import parameter_counts  # noqa: E402
from dsv3_plugin.recipe.hf_config import hf_config  # noqa: E402
from dsv3_plugin.recipe.model import ModelConfig  # noqa: E402

BATCH = 8

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


def batch(vocab_size: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, labels and positions, `[b, s]`."""
    drawn = torch.randint(
        vocab_size, (BATCH, length + 1), generator=torch.Generator().manual_seed(0)
    )
    positions = torch.arange(length).expand(BATCH, length)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous(), positions


def megatron_step(model: torch.nn.Module, length: int) -> Step:
    """A step as upstream's trainer takes it: DDP's gradient buffers and Megatron's optimizer."""
    model.train()
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=1e-4, weight_decay=0.1, clip_grad=1.0), [wrapped]
    )
    tokens, labels, positions = batch(model.vocab_size, length)

    def step() -> torch.Tensor:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        loss = wrapped(tokens, positions, None, labels=labels).mean()
        loss.backward()
        wrapped.finish_grad_sync()
        optimizer.step()
        return loss

    return step


def write_hf(built: torch.nn.Module, model: ModelConfig, folder: Path) -> None:
    """The model as a Hugging Face folder."""
    tensors = {name: tensor.clone() for name, tensor in iter_hf_tensors(built, model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config(model)))


def upstream_local(model: ModelConfig, length: int) -> Step:
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
    return megatron_step(built, length)


def transformers_step(model: ModelConfig, folder: Path, experts: str, length: int) -> Step:
    """transformers' model with one of its expert implementations, and torch's fused AdamW."""
    built = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    built.set_experts_implementation(experts)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens, labels, _ = batch(model.vocab_size, length)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        logits = built(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def measure(
    contenders: dict[str, tuple[Step, bool]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each contender's step in every round, and its loss in the warm-up round.

    Args:
        contenders: a step, and whether it runs with the plugin's patches applied.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, (step, patched) in contenders.items():
            (dsv3_plugin.register if patched else dsv3_plugin.unregister)()
            begin = time.perf_counter()
            loss = step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
            else:
                losses[name] = float(loss.detach())
    return seconds, losses


def compare(width: int, repeats: int, length: int) -> None:
    """Measure one model, print the table and a JSON line."""
    model = model_config(width)
    dsv3_plugin.register()
    built = build_model(model)
    contenders = {"dsv3_plugin": (megatron_step(built, length), True)}
    with tempfile.TemporaryDirectory() as name:
        write_hf(built, model, Path(name))
        dsv3_plugin.unregister()
        contenders["upstream local"] = (upstream_local(model, length), False)
        for experts in ("grouped_mm", "eager"):
            step = transformers_step(model, Path(name), experts, length)
            contenders[f"transformers {experts}"] = (step, False)
    seconds, losses = measure(contenders, repeats)
    theirs = [name for name in contenders if name.startswith("transformers")]
    for name in theirs:
        if abs(losses[name] - losses["dsv3_plugin"]) > 1e-4:
            raise SystemExit(f"{name} computes another loss: {losses}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(theirs, key=medians.__getitem__)
    parameters = parameter_counts(model).main
    table = Table(title=f"{parameters / 1e6:.1f}M parameters, {BATCH} × {length} tokens")
    for heading in ("", "ms per step", "tokens/s", "× transformers' best", "in a round"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in seconds.items():
        ratios = [b / mine for b, mine in zip(seconds[best], values, strict=True)]
        table.add_row(
            name,
            f"{medians[name] * 1e3:.0f}",
            f"{BATCH * length / medians[name]:,.0f}",
            f"{medians[best] / medians[name]:.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console().print(table)
    print(json.dumps({"parameters": parameters, "median_seconds": medians}))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, default=256)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    logging.disable(logging.WARNING)  # upstream says every parameter's name
    with single_process():
        for width in wanted.width:
            compare(width, wanted.repeats, wanted.length)


if __name__ == "__main__":
    main()
