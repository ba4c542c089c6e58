"""With Transformer Engine installed, and no GPU: the full model's names, and the CPU host."""

import importlib.machinery
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.recipe.hf_config import hf_config
from dsv3_plugin.recipe.load import load_model

pytestmark = [
    pytest.mark.te,
    pytest.mark.skipif(
        # Not importlib.util.find_spec: the CPU host of other tests hides the package from it.
        importlib.machinery.PathFinder.find_spec("transformer_engine") is None,
        reason="Transformer Engine is not installed: `make test-te` builds it",
    ),
]


@pytest.fixture(scope="module")
def full_size() -> dict:
    """What DeepSeek-V3 holds, built on the meta device with TE's layers and the FP8 recipe."""
    return _said_by("full_size_on_meta.py")


def _said_by(script: str) -> dict:
    """The JSON object that a script beside this file prints last."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_ranks_that_share_a_sequence_attend_by_groups_of_heads() -> None:
    """The tensors are those of one rank; TE is asked for no context parallelism of its own."""
    said = _said_by("context_on_meta.py")
    alone, shared = said["1"], said["8"]
    assert shared["shapes"] == alone["shapes"]
    assert alone["attention"] == [["TEDotProductAttention", 128, True]] * 3
    assert shared["attention"] == [["GroupAttention", 128 // 8, True]] * 3
    assert {"causal_bottom_right", "padding_causal_bottom_right"} <= {*said["masks"]}


def test_samples_of_a_pack_are_what_transformer_engine_attends_within() -> None:
    """`thd`, causal within the boundaries of each sample, the padding behind one of its own."""
    said = _said_by("packs_on_meta.py")
    assert (said["qkv_format"], said["attn_mask_type"]) == ("thd", "padding_causal")
    assert said["cu_seqlens_q"] == said["cu_seqlens_kv"] == [0, 5, 14, 16]
    assert (said["max_seqlen_q"], said["max_seqlen_kv"]) == (9, 9)
    assert said["out"] == [16, 128 * 192]


def test_the_layers_are_transformer_engines(full_size: dict) -> None:
    modules = set(full_size["modules"])
    assert modules >= {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "TEGroupedMLP"}
    assert modules >= {"LatentAttention", "DeepSeekRouter", "MoELayer", "MultiTokenPredictionLayer"}
    assert not modules & {"GroupedExperts", "SequentialMLP", "ColumnLinear"}


def test_the_fp8_recipe_is_the_reports(full_size: dict) -> None:
    assert full_size["fp8"] == ["e4m3", "blockwise"]


def test_a_workspace_is_made_by_device_and_kind(full_size: dict) -> None:
    # What dsv3_plugin/upstream/cublas_workspace.py stands in for.
    assert full_size["workspace"] == ["device", "ub", "grouped_gemm"]


def test_every_linear_can_leave_its_weight_gradient_owed(full_size: dict) -> None:
    linears = full_size["linears"]
    assert all(linears.values()), [name for name, owed in linears.items() if not owed]
    assert {name.rpartition(".")[2] for name in linears} == {
        "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj",
        "linear_proj", "linear_fc1", "linear_fc2", "eh_proj",
    }  # fmt: skip
    for part in ("mlp.experts.linear_fc1", "mlp.shared_experts.linear_fc2", "eh_proj"):
        assert any(name.endswith(part) for name in linears), part


def test_every_name_and_shape_is_in_the_name_table(full_size: dict) -> None:
    table = {entry.key: entry.global_shape for entry in layout(load_model("deepseek-v3"))}
    built = {key: tuple(shape) for key, shape in full_size["shapes"].items()}
    assert built == table


def test_parameters_are_the_published_ones(full_size: dict) -> None:
    model = load_model("deepseek-v3")
    # A Hugging Face checkpoint repeats embedding and head for MTP, and holds the routers' biases,
    # which are buffers here.
    copies = 2 * model.vocab_size * model.hidden_size
    biases = (len(model.moe_layers) + 1) * model.num_moe_experts
    assert full_size["parameters"] + copies + biases == 684_489_845_504
    assert parameter_counts(model).total == 684_489_845_504


def test_upstreams_own_te_model_loads_what_import_wrote(tmp_path: Path) -> None:
    model = load_model("tiny").model_copy(update={"name": "tiny"})
    tensors = {}
    for entry in layout(model):
        tensors[entry.name] = tensors.get(entry.copy_of, torch.randn(entry.shape)).clone()
    (tmp_path / "folder").mkdir()
    save_file(tensors, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text(json.dumps(hf_config(model)))
    import_hf(tmp_path / "folder", tmp_path / "checkpoint")
    script = Path(__file__).with_name("load_import_on_te.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "checkpoint")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"tensors": len(tensors), "different": []}


def _python_without_te() -> Path | None:
    """The interpreter of the environment that this one is laid over."""
    base = Path(sysconfig.get_path("purelib"), "base.pth")
    if not base.exists():
        return None
    return Path(base.read_text().strip()).parents[2] / "bin" / "python"


def _losses(python: Path, directory: Path, data: Path) -> list[float]:
    overrides = [
        "training.steps=3",
        "training.eval_interval=3",
        "training.eval_steps=1",
        "parallel.processes=1",
        "parallel.expert=1",
        "checkpoint.interval=3",
        f"data.path={data}",
        f"directory={directory}",
    ]
    command = [str(python), "-m", "dsv3_plugin.cli", "train", "pretrain/tiny", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    return [record["loss"] for record in records if "loss" in record]


def test_a_login_node_with_te_trains_as_one_without(tmp_path: Path) -> None:
    without = _python_without_te()
    if without is None:
        pytest.skip("there is no environment without Transformer Engine to compare with")
    data = tmp_path / "data"
    here = _losses(Path(sys.executable), tmp_path / "with", data)
    assert here == _losses(without, tmp_path / "without", data)
    assert len(here) == 3
