"""Padding under multi-token prediction: the shifted mask never makes padding count."""

from types import SimpleNamespace

import torch
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer

from dsv3_plugin.model.mtp_padding import get_embeddings
from dsv3_plugin.upstream import own_run


def shifted(padding):
    layer = SimpleNamespace(cp_group=None, config=SimpleNamespace(mtp_detach_heads=False))
    ids = torch.arange(padding.shape[1]).expand(padding.shape)
    embeddings = get_embeddings(MultiTokenPredictionLayer._get_embeddings)
    return embeddings(
        layer,
        input_ids=ids,
        position_ids=ids,
        embedding=lambda input_ids, position_ids: input_ids.float(),
        hidden_states=torch.zeros(2, 2),
        padding_mask=padding,
    )


def test_the_last_place_of_a_padded_sequence_stays_padding():
    padding = torch.tensor([[False, False, True, True], [False, False, False, False]])
    with own_run.training():
        ids, _, mask, _, _ = shifted(padding)
    assert mask.tolist() == [[False, True, True, True], [False, False, False, False]]
    assert ids.tolist() == [[1, 2, 3, 0]] * 2


def test_other_programs_have_upstreams():
    padding = torch.tensor([[False, True, True, True]])
    assert shifted(padding)[2].tolist() == [[True, True, True, False]]


def test_without_padding_there_is_none():
    layer = SimpleNamespace(cp_group=None, config=SimpleNamespace(mtp_detach_heads=False))
    ids = torch.arange(4)[None]
    embeddings = get_embeddings(MultiTokenPredictionLayer._get_embeddings)
    given = {"input_ids": ids, "position_ids": ids, "hidden_states": torch.zeros(2, 2)}
    with own_run.training():
        assert embeddings(layer, embedding=lambda **_: ids.float(), **given)[2] is None
