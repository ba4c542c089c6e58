"""Bytes that context parallelism sends, as torch.distributed is asked for them."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import oracles
from tests.gloo_ranks import run_ranks

LENGTH = 32
SIZES = {"_allgather_base_": 1, "_reduce_scatter_base_": 0}
"""Collective → which of its two tensors is one rank's."""


class _Sent(TorchDispatchMode):
    """Bytes that a rank sends to each of the others, by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "c10d":
            name = function._opname
            mine = args[SIZES[name]]
            self.bytes[name] = self.bytes.get(name, 0) + mine.nbytes
        return function(*args, **(kwargs or {}))


def sent(rank: int, recompute: list[str]) -> dict[str, int]:
    import dsv3_plugin

    dsv3_plugin.register()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.model.build import build_model

    parallel_state.initialize_model_parallel(context_parallel_size=2)
    model_parallel_cuda_manual_seed(0)
    model = build_model(
        oracles.model_config(), context_parallel_size=2,
        recompute_granularity="selective", recompute_modules=recompute,
    )  # fmt: skip
    attention = model.decoder.layers[1].self_attention
    hidden = torch.randn(LENGTH // 2, 1, 32, requires_grad=True)
    with _Sent() as counted:
        attention(hidden, None)[0].sum().backward()
    return counted.bytes


def test_latents_travel_and_keys_and_values_do_not(tmp_path):
    """Once forward, their gradient once backward; upstream's ring moves all heads' keys and values.

    To each other rank goes a rank's own part, in rings as in gathers.
    """
    model = oracles.model_config()
    latents = LENGTH // 2 * (model.kv_lora_rank + model.qk_pos_emb_head_dim) * 4
    heads, key = model.num_attention_heads, model.qk_head_dim + model.qk_pos_emb_head_dim
    ring = LENGTH // 2 * heads * (key + model.v_head_dim) * 4
    assert ring == 5 * latents
    for number, (again, gathers) in enumerate((([], 1), (["core_attn"], 1), (["mla_up_proj"], 2))):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        for bytes in run_ranks(2, sent, again, scratch=scratch):
            assert bytes == {
                "_allgather_base_": gathers * latents,
                "_reduce_scatter_base_": latents,
            }
