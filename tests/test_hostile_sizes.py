"""Files that lie about sizes are refused by a process that has little memory to spend on them."""

import json
import resource
import subprocess
import sys

import pytest

ADDRESS_SPACE = 700 << 20
"""Bytes: what Python and our imports map, and less than 500 MB besides."""
CPU_SECONDS = 60
"""Far above what any of them takes, far below what they took."""

MODEL = {
    "model_type": "deepseek_v3", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512,
    "max_position_embeddings": 128, "intermediate_size": 128, "num_attention_heads": 2,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1, "aux_loss_alpha": 0.0001, "routed_scaling_factor": 2.5,
}  # fmt: skip


def many_entries(path):
    empty = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d":%s' % (n, empty) for n in range(1_200_000)) + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def many_shards(path):
    weights = ",".join(f'"{n}":"{n}.safetensors"' for n in range(2_100_000))
    path.write_text('{"weight_map":{%s}}' % weights)  # noqa: UP031


def config(**changes):
    return lambda path: path.write_text(json.dumps(MODEL | changes))


@pytest.mark.parametrize(
    ("name", "write", "verb"),
    [
        ("model.safetensors", many_entries, "inspect ."),
        ("model.safetensors.index.json", many_shards, "inspect ."),
        ("config.json", config(num_hidden_layers=10**9), "model from-hf config.json"),
        ("config.json", config(n_routed_experts=10**9), "model from-hf config.json"),
        ("config.json", config(first_k_dense_replace=-(10**9)), "model from-hf config.json"),
        ("config.json", config(num_nextn_predict_layers=10**9), "model from-hf config.json"),
        ("a.yaml", lambda path: path.write_text("a: " + "[" * 900_000), "plan a.yaml"),
        ("a.csv", lambda path: path.write_text("0F0," * 5_200_000), "schedule --from-csv a.csv"),
    ],
    ids=["entries", "shards", "layers", "experts", "dense", "prediction", "deep", "cells"],
)  # fmt: skip
def test_a_lie_is_a_sentence(tmp_path, name, write, verb):
    write(tmp_path / name)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))

    done = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", *verb.split()],
        cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("dsv3: ")
    assert done.stderr.count("\n") == 1
