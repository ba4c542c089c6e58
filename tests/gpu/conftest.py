"""What a GPU test needs, and why it is skipped where that is missing.

    make test-gpu

These tests have a process of their own: most others make theirs a CPU host, which hides the GPU.
Nothing here imports megatron before a test runs, so everything is collected anywhere.
"""

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3_plugin.upstream import cpu_host
from tests.gpu.trained import Start, write_start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs a GPU."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """A GPU that torch sees."""
    if cpu_host.is_enabled():
        pytest.skip("other tests have made this process a CPU host: run `make test-gpu`")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")


def _several(count: int) -> None:
    if (there := torch.cuda.device_count()) < count:
        pytest.skip(f"{count} GPUs are needed, and {there} is here")


@pytest.fixture(scope="session")
def two_gpus(gpu: None) -> None:
    _several(2)


@pytest.fixture(scope="session")
def four_gpus(gpu: None) -> None:
    _several(4)


@pytest.fixture(scope="session")
def transformer_engine(gpu: None) -> None:
    """Transformer Engine beside the GPU."""
    if importlib.util.find_spec("transformer_engine") is None:
        pytest.skip("Transformer Engine is not installed: pip install 'dsv3_plugin[gpu]'")


@pytest.fixture(scope="session")
def hopper(gpu: None) -> None:
    """Tensor cores for FP8 in blocks."""
    if (capability := torch.cuda.get_device_capability()) < (9, 0):
        had = ".".join(map(str, capability))
        pytest.skip(f"FP8 in blocks needs a Hopper GPU (compute capability 9.0), and this is {had}")


@pytest.fixture(scope="session")
def start(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """The small model of eight layers, its corpus, and weights to begin with."""
    return write_start(tmp_path_factory.mktemp("start"), EIGHT_LAYERS)


@pytest.fixture(scope="session")
def wide_start(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A model whose matrices fill the 128×128 blocks of FP8."""
    return write_start(tmp_path_factory.mktemp("wide"), WIDE)


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[], Path]:
    """A function that names another folder for a run each time."""
    numbers = itertools.count()
    return lambda: tmp_path / f"run{next(numbers)}"


EIGHT_LAYERS = {"num_layers": 8, "moe_layer_freq": "[0]*1+[1]*7"}

# The proportions of DeepSeek-V3: the latent with its rotary head is 192 wide, one block and a half.
WIDE = {
    "hidden_size": 256,
    "ffn_hidden_size": 512,
    "num_attention_heads": 2,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "moe_ffn_hidden_size": 128,
    "moe_shared_expert_intermediate_size": 128,
}
