"""Labels one place further: inside their samples, over ranks, and counted over the sequence."""

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.multi_token_prediction import roll_tensor as upstreams

from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.model.next_tokens import roll_tensor
from tests.gloo_ranks import run_ranks

ours = roll_tensor(getattr(upstreams, "__wrapped__", upstreams))
LENGTHS, PADDING = (8, 16, 8), (3, 0, 5)


def pack():
    """Three samples with padding behind the first and the last."""
    padded = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    tokens = [length - padding for length, padding in zip(LENGTHS, PADDING, strict=True)]
    ends = torch.tensor([0, *tokens]).cumsum(0).int()
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=16,
        max_seqlen_kv=16,
    )


def whole():
    """Numbered rows, and a mask without the padding and each sample's last label."""
    mask = [
        float(place < length - padding - 1)
        for length, padding in zip(LENGTHS, PADDING, strict=True)
        for place in range(length)
    ]
    return torch.arange(1, 33).view(1, 32), torch.tensor([mask])


def expected(rows):
    return torch.cat(
        [torch.nn.functional.pad(part[:, 1:], (0, 1)) for part in rows.split(LENGTHS, dim=1)], dim=1
    )


def test_a_whole_sequence_is_upstreams():
    rows, mask = whole()
    for tensor in (rows, mask):
        for a, b in zip(ours(tensor), upstreams(tensor), strict=True):
            assert torch.equal(a, b)


def test_labels_stay_in_their_samples():
    rows, mask = whole()
    rolled, _ = ours(rows, packed_seq_params=pack())
    assert torch.equal(rolled, expected(rows))
    rolled, count = ours(mask, packed_seq_params=pack())
    assert torch.equal(rolled, expected(mask))
    assert count == expected(mask).sum()


def rolled_on_ranks(rank, size):
    parallel_state.initialize_model_parallel(context_parallel_size=size)
    group = parallel_state.get_context_parallel_group()
    answers = []
    for lengths, packed in ((LENGTHS, pack()), ((32,), None)):
        zigzag = Zigzag(rank, size, lengths)
        rows, mask = whole()
        for tensor in (rows, mask, mask > 0):
            mine = taken(tensor, zigzag.rows(), dim=1)
            answers.append(ours(mine, cp_group=group, packed_seq_params=packed))
    return answers


@pytest.mark.parametrize("size", [2, 4])
def test_over_ranks_it_is_the_same_sequence(size, tmp_path):
    rows, mask = whole()
    inside = [expected(rows), expected(mask), expected(mask > 0)]
    across = [upstreams(tensor)[0] for tensor in whole()]
    across.append(across[1] > 0)
    ranks = run_ranks(size, rolled_on_ranks, size, scratch=tmp_path)
    for rank, answers in enumerate(ranks):
        zigzags = [Zigzag(rank, size, LENGTHS)] * 3 + [Zigzag(rank, size, (32,))] * 3
        for want, zigzag, (got, count) in zip(inside + across, zigzags, answers, strict=True):
            assert torch.equal(got, taken(want, zigzag.rows(), dim=1))
            # Every rank divides by as much, so that the mean over ranks is one over labels.
            assert count == want.sum() / size
