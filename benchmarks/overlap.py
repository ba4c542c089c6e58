"""An overlapped pair hides its all-to-all: shown with a slow link between two ranks.

    python benchmarks/overlap.py [--delays 5 10 20] [--repeats 7]

Two processes divide the experts of a chunk of MoE layers. Every all-to-all (upstream's dispatcher)
is given an extra delay, as a slow link would; the forward of one micro-batch and the backward of
another then run one after the other, and as a pair (`distributed/overlap.py`). Each round measures
every case once, so that all meet the same machine. Printed are medians in milliseconds: computation
(one after the other, no delay; gloo's own time is in it), communication (what the delays add to
that), their sum as measured, and the pair, also as a multiple of the longer of the two.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from rich.console import Console
from rich.table import Table

LAYERS, WIDTH, TOKENS = 4, 128, 512


class _Slow:
    """Work that ends some time after it began."""

    def __init__(self, work: Any, seconds: float) -> None:
        self._work = work
        self._ready = time.perf_counter() + seconds

    def wait(self) -> None:
        self._work.wait()
        time.sleep(max(0.0, self._ready - time.perf_counter()))


def _rank(rank: int, delays: list[float], repeats: int, folder: str) -> None:
    """One process: time every delay, rank 0 writes the medians."""
    torch.set_num_threads(1)
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    import dsv3_plugin
    from dsv3_plugin.distributed.overlap import Overlap
    from dsv3_plugin.model.build import build_model
    from dsv3_plugin.recipe.model import ModelConfig

    dsv3_plugin.register()
    parallel_state.initialize_model_parallel(expert_model_parallel_size=2)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    shape = ModelConfig.model_validate(
        {
            "name": "slow link",
            "num_layers": LAYERS,
            "hidden_size": WIDTH,
            "ffn_hidden_size": 2 * WIDTH,
            "vocab_size": 128,
            "max_position_embeddings": TOKENS,
            "num_attention_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_head_dim": 32,
            "qk_pos_emb_head_dim": 16,
            "v_head_dim": 32,
            "moe_layer_freq": f"[1]*{LAYERS}",
            "num_moe_experts": 8,
            "moe_ffn_hidden_size": WIDTH,
            "moe_router_topk": 4,
            "moe_router_score_function": "sigmoid",
        }
    )
    chunk = build_model(
        shape, pre_process=False, post_process=False, expert_model_parallel_size=2
    ).train()
    exchange = torch.distributed.all_to_all_single
    link = {"delay": 0.0}

    def slow(*args: Any, async_op: bool = False, **kwargs: Any) -> Any:
        work = _Slow(exchange(*args, async_op=True, **kwargs), link["delay"])
        if async_op:
            return work
        return work.wait()

    torch.distributed.all_to_all_single = slow
    draw = torch.Generator().manual_seed(rank)

    def forward() -> torch.Tensor:
        x = torch.randn(TOKENS, 1, WIDTH, generator=draw).requires_grad_()
        chunk.set_input_tensor(x)
        return chunk(None, None, None)

    def in_turn(backward: Callable[[], None]) -> None:
        forward()
        backward()

    overlap = Overlap()

    def as_pair(backward: Callable[[], None]) -> None:
        overlap.run_pair(forward, backward)

    def seconds(step: Callable[[Callable[[], None]], None], delay: float) -> float:
        output = forward()
        gradient = torch.ones_like(output)
        link["delay"] = delay / 1e3
        torch.distributed.barrier()
        begin = time.perf_counter()
        step(lambda: output.backward(gradient))
        taken = time.perf_counter() - begin
        link["delay"] = 0.0
        return taken

    cases = [(step, delay) for delay in [0.0, *delays] for step in (in_turn, as_pair)]
    measured: dict[Any, list[float]] = {case: [] for case in cases}
    for turn in range(repeats + 1):
        for case in cases:
            taken = seconds(*case)
            if turn:  # the first round warms up
                measured[case].append(1e3 * taken)
    median = {case: statistics.median(values) for case, values in measured.items()}
    computation = median[in_turn, 0.0]
    rows = []
    for delay in delays:
        one_after_other, pair = median[in_turn, delay], median[as_pair, delay]
        communication = one_after_other - computation
        rows.append(
            {
                "delay": delay,
                "computation": computation,
                "communication": communication,
                "in turn": one_after_other,
                "pair": pair,
                "pair / longer": pair / max(computation, communication),
            }
        )
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    """Run, print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--delays", type=float, nargs="+", default=[5, 10, 20], help="ms")
    parser.add_argument("--repeats", type=int, default=7)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (wanted.delays, wanted.repeats, folder), nprocs=2)
        rows = json.loads(Path(folder, "rows.json").read_text())
    table = Table(title=f"{LAYERS} MoE layers, {TOKENS} tokens, expert parallel 2; ms, medians")
    for heading in ("delay per exchange", *list(rows[0])[1:]):
        table.add_column(heading, justify="right")
    for row in rows:
        *times, ratio = row.values()
        table.add_row(*(f"{value:.0f}" for value in times), f"{ratio:.2f}")
    Console().print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
