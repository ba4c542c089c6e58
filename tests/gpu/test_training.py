"""One GPU trains what the CPU trains: both backends, FP8, two-hop dispatch, and back."""

import pytest

from dsv3_plugin.files.run_folder import RunFolder
from tests.gpu.trained import ON_CPU, ON_GPU, ON_TRANSFORMER_ENGINE


@pytest.fixture(scope="module")
def cpu(start, tmp_path_factory):
    """The numbers of the CPU, in FP32."""
    return start.train(tmp_path_factory.mktemp("cpu") / "run", *ON_CPU)


def test_the_local_backend_has_the_losses_of_the_cpu(start, cpu, new_folder):
    # FP32 on both; sums in another order, which six steps of Adam let grow.
    start.train(new_folder(), *ON_GPU).must_be(cpu, losses=1e-4, gradients=1e-3)


@pytest.mark.usefixtures("transformer_engine")
def test_transformer_engine_has_the_losses_of_the_cpu(start, cpu, new_folder):
    # Its FP32 products round their factors to TF32, which has the ten bits of FP16.
    got = start.train(new_folder(), *ON_TRANSFORMER_ENGINE)
    got.must_be(cpu, losses=2e-3, gradients=2e-2)


@pytest.mark.usefixtures("transformer_engine")
def test_the_backends_agree_in_bf16(start, cpu, new_folder):
    bf16 = "precision.dtype=bf16"
    local = start.train(new_folder(), *ON_GPU, bf16)
    theirs = start.train(new_folder(), *ON_TRANSFORMER_ENGINE, bf16)
    theirs.must_be(local, losses=5e-3, gradients=5e-2)
    theirs.must_be(cpu, losses=1e-2, gradients=1e-1)


@pytest.mark.usefixtures("transformer_engine", "hopper")
def test_fp8_in_blocks_stays_near_bf16(wide_start, new_folder):
    """DeepSeek-V3 reports a loss within 0.25 % of BF16 (arXiv 2412.19437, section 3.3)."""
    settings = ("precision.dtype=bf16", "curves.learning_rate=2e-4", "data.seq_length=128")
    common = (*ON_TRANSFORMER_ENGINE, *settings)
    bf16 = wide_start.train(new_folder(), *common)
    in_blocks = "precision.fp8={recipe: blockwise, format: e4m3}"
    fp8 = wide_start.train(new_folder(), *common, in_blocks)
    # A single step of a small model is noisier than the mean over billions of tokens.
    fp8.must_be(bf16, losses=1e-2, gradients=2e-1)
    assert fp8.of["loss"] != bf16.of["loss"], "FP8 was not used"


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_two_hop_dispatch_at_one_rank_changes_nothing(start, new_folder, precision):
    expected = start.train(new_folder(), *ON_GPU)
    two_hop = f"dispatch={{kind: two_hop, precision: {precision}}}"
    # Nothing leaves the node, so nothing is quantised either.
    start.train(new_folder(), *ON_GPU, two_hop).must_be(expected, losses=1e-5, gradients=1e-4)


def test_a_run_goes_on_where_it_stopped(start, new_folder):
    undisturbed = start.train(new_folder(), *ON_GPU)
    folder = new_folder()
    start.begin(folder, 3, *ON_GPU)
    assert RunFolder(folder).steps_saved() == 3
    start.go_on(folder, *ON_GPU)
    undisturbed.read(folder).must_be(undisturbed, losses=1e-5, gradients=1e-4)
