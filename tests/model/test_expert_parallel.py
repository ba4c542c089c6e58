"""Expert parallelism 1, 2 and 4 compute one and the same thing."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.moe import token_dispatcher

from dsv3_plugin.model.build import build_model
from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu
from tests import oracles
from tests.gloo_ranks import run_ranks

SEQUENCES, LENGTH = 4, 24


def model():
    return oracles.model_config(
        mtp_num_layers=1,
        moe_aux_loss_coeff=1e-2,
        moe_router_load_balancing_type="seq_aux_loss",
    )


def train_once(built, tokens):
    """Loss and gradients of one backward, on this rank's sequences."""
    built.train()
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions = torch.arange(inputs.shape[1]).expand_as(inputs)
    loss = built(inputs, positions, None, labels=labels).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in built.named_parameters()}


def on_expert_parallel_ranks(rank, ep, state, tokens):
    """One backward with `ep` ranks sharing experts and sequences; gradients of the mean loss."""
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ep)
    model_parallel_cuda_manual_seed(0)
    built = build_model(model(), expert_model_parallel_size=ep)
    mine = {
        name: value.chunk(ep)[rank] if ".experts.weight" in name else value
        for name, value in state.items()
    }
    built.load_state_dict(mine)
    loss, gradients = train_once(built, tokens.chunk(ep)[rank])
    for name, gradient in gradients.items():
        if ".experts.weight" not in name:
            dist.all_reduce(gradient)
        gradient /= ep
    dist.all_reduce(loss)
    router = built.decoder.layers[1].mlp.router
    dist.all_reduce(router.local_tokens_per_expert)
    return loss / ep, gradients, router.local_tokens_per_expert


def test_expert_parallel_sizes_agree(tmp_path):
    built = build_model(model())
    oracles.randomize(built, seed=5)
    state = {name: value for name, value in built.state_dict().items() if value is not None}
    tokens = torch.randint(96, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    loss, gradients = train_once(built, tokens)
    counts = built.decoder.layers[1].mlp.router.local_tokens_per_expert
    assert int(counts.sum()) == SEQUENCES * (LENGTH - 1) * 4

    for ep in (2, 4):
        scratch = tmp_path / str(ep)
        scratch.mkdir()
        ranks = run_ranks(ep, on_expert_parallel_ranks, ep, state, tokens, scratch=scratch)
        for their_loss, _, their_counts in ranks:
            torch.testing.assert_close(their_loss, loss, rtol=0, atol=1e-6)
            assert torch.equal(their_counts, counts)
        for name, gradient in gradients.items():
            theirs = [their_gradients[name] for _, their_gradients, _ in ranks]
            theirs = torch.cat(theirs) if ".experts.weight" in name else theirs[0]
            error = (theirs - gradient).norm() / gradient.norm()
            assert float(error) < 1e-5, name
