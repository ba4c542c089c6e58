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


def sent(rank: int, recompute: list[list[str]]) -> tuple[list[dict[str, int]], int]:
    """Bytes of each way to recompute, and of what upstream's ring would send on: the keys and
    values that a rank makes of its own tokens."""
    import dsv3_plugin

    dsv3_plugin.register()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.model.build import build_model

    hidden = torch.randn(LENGTH // 2, 1, 32, requires_grad=True)
    answers = []
    parallel_state.initialize_model_parallel(context_parallel_size=2)
    model_parallel_cuda_manual_seed(0)
    for modules in recompute:
        model = build_model(
            oracles.model_config(), context_parallel_size=2,
            recompute_granularity="selective", recompute_modules=modules,
        )  # fmt: skip
        with _Sent() as counted:
            model.decoder.layers[1].self_attention(hidden, None)[0].sum().backward()
        answers.append(counted.bytes)
    parallel_state.destroy_model_parallel()

    parallel_state.initialize_model_parallel()
    attention = build_model(oracles.model_config()).decoder.layers[1].self_attention
    made = []
    attention.core_attention.register_forward_pre_hook(lambda _, given: made.extend(given[1:3]))
    attention(hidden, None)
    return answers, sum(tensor.nbytes for tensor in made)


def test_latents_travel_and_keys_and_values_do_not(tmp_path):
    """Once forward, their gradient once backward, and once more where they are not kept.

    To each other rank goes a rank's own part, in rings as in gathers.
    """
    model = oracles.model_config()
    latents = LENGTH // 2 * (model.kv_lora_rank + model.qk_pos_emb_head_dim) * 4
    ways = {"core_attn": 1, "moe": 1, "mla_up_proj": 2}
    for answers, keys_and_values in run_ranks(2, sent, [[way] for way in ways], scratch=tmp_path):
        for gathers, bytes in zip(ways.values(), answers, strict=True):
            assert bytes == {
                "_allgather_base_": gathers * latents,
                "_reduce_scatter_base_": latents,
            }
        # Heads of keys and values, of which upstream sends these forward, and these and their
        # gradient backward.
        assert keys_and_values == 5 * latents
