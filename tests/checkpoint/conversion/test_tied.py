"""Folders of a model whose head is its embedding, with the head stored all the same."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.checkpoint.conversion.verify import verify
from dsv3_plugin.checkpoint.inspect import inspect
from dsv3_plugin.errors import UserError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(tmp_path):
    """A folder as transformers saves it, and its tensors."""
    config = transformers.DeepseekV3Config(
        vocab_size=99, hidden_size=32, intermediate_size=48, moe_intermediate_size=20,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8,
        kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=12,
        n_group=4, topk_group=2, num_experts_per_tok=4, first_k_dense_replace=1,
        max_position_embeddings=64, num_nextn_predict_layers=0, tie_word_embeddings=True,
        n_shared_experts=0,
    )  # fmt: skip
    folder = tmp_path / "tied"
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return folder, load_file(folder / "model.safetensors")


def test_equal_head_is_a_copy(tied, tmp_path):
    folder, tensors = tied
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors")
    assert inspect(folder).complete
    import_hf(folder, tmp_path / "checkpoint")
    found = verify(folder, tmp_path / "checkpoint")
    assert (found.differences, found.absent_copies) == ([], [HEAD])


def test_a_copy_in_another_precision_is_a_copy(tied, tmp_path):
    folder, tensors = tied
    coarse = tensors[EMBEDDING].bfloat16()
    assert not torch.equal(coarse.float(), tensors[EMBEDDING])
    save_file(tensors | {HEAD: coarse}, folder / "model.safetensors")
    import_hf(folder, tmp_path / "checkpoint")
    coarse[7, 3] += 1
    save_file(tensors | {HEAD: coarse}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight in .* differs from"):
        import_hf(folder, tmp_path / "again")


def test_a_folder_of_the_cache_names_its_snapshot(tied, tmp_path):
    folder, _ = tied
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    for reads in (inspect, lambda path: import_hf(path, tmp_path / "t")):
        with pytest.raises(UserError, match=r"Hugging Face's cache, name .*snapshots/0123\.$"):
            reads(tmp_path / "models--a--b")


def test_other_head_is_refused(tied, tmp_path):
    folder, tensors = tied
    import_hf(folder, tmp_path / "checkpoint")
    other = tensors[EMBEDDING].clone()
    other[7, 3] += 1
    save_file(tensors | {HEAD: other}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight in .* differs from .*tie_word_embeddings"):
        import_hf(folder, tmp_path / "again")
    (difference,) = verify(tmp_path / "checkpoint", folder).differences
    assert (difference.name, difference.what) == (HEAD, f"in {folder} it is no copy of {EMBEDDING}")


def test_untied_model_without_a_head_is_told_the_key(tied, tmp_path):
    folder, _ = tied
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"lm_head.weight .*missing.* \(tie_word_embeddings false\)"
    ):
        import_hf(folder, tmp_path / "t")


def test_shared_experts_of_no_width_are_none(tied, tmp_path):
    """transformers saves `n_shared_experts: 0` as tensors without values."""
    folder, tensors = tied
    empty = [name for name, tensor in tensors.items() if not tensor.numel()]
    assert len(empty) == 3
    assert inspect(folder).complete
    report = import_hf(folder, tmp_path / "checkpoint")
    assert sorted(report.dropped) == sorted(empty)
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    tokens = torch.arange(12).view(1, 12)
    mine, theirs = (
        transformers.DeepseekV3ForCausalLM.from_pretrained(where)(tokens).logits
        for where in (tmp_path / "out", folder)
    )
    assert torch.equal(mine, theirs)
