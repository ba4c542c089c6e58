"""Bytes of model states against exact counts and published ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.planner.memory.states import _Run, fp8_copies, gradients, optimizer, weights
from dsv3_plugin.planner.memory.tensors import rank_chunks
from dsv3_plugin.planner.stages import Stage, stages_of
from dsv3_plugin.recipe.load import load_model
from tests.planner.memory.settings import setting_of


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "kimi-k2", "tiny"])
@pytest.mark.parametrize("backend", ["local", "transformer_engine"])
def test_undivided_tensors_are_the_counted_parameters(name: str, backend: str) -> None:
    model = load_model(name)
    whole = "E" + "t" * model.num_layers + "m" * (model.mtp_num_layers or 0) + "L"
    setting = setting_of(model, backend=backend)
    (chunk,) = rank_chunks(setting, tuple(stages_of(model, whole)))
    values = sum(tensor.number * tensor.values for tensor in chunk)
    counted = parameter_counts(model)
    biases = sum(layer.number * layer.parameters.get("router_bias", 0) for layer in counted.layers)
    copies = (model.mtp_num_layers or 0) * 2 * model.vocab_size * model.hidden_size
    assert values == counted.total - copies - biases


def test_tensor_parallel_ranks_hold_the_whole_but_for_what_is_on_all_of_them() -> None:
    model = load_model("deepseek-v3")
    stage = (Stage(moe=1),)

    def values(tensor: int) -> int:
        setting = setting_of(model, backend="transformer_engine", tensor=tensor, expert=8)
        return sum(t.number * t.values for t in rank_chunks(setting, stage)[0])

    h, experts = 7168, 256 // 8 * 3 * 7168 * 2048
    norms_latents_router = 2 * h + 1536 + 512 + h * (1536 + 512 + 64) + h * 256
    on_all = norms_latents_router + experts
    assert values(4) - on_all == (values(1) - on_all) // 4


@pytest.mark.parametrize(
    ("fp8", "moments", "each"),
    [
        # A master weight that the optimizer keeps itself is 16 bits beside the BF16 parameter.
        (None, "bf16", 2 + 2 + 2),
        ("delayed", "bf16", 2 + 2 + 2),
        ("blockwise", "bf16", 4 + 2 + 2),
        ("mxfp8", "bf16", 4 + 2 + 2),
        (None, "fp32", 4 + 4 + 4),
    ],
)
def test_bytes_of_a_parameter_in_the_optimizer(fp8: str | None, moments: str, each: int) -> None:
    setting = setting_of(
        load_model("moonlight-16b-a3b"), backend="transformer_engine", data=16, zero1=True,
        dtype="bf16", fp8=fp8, moments=moments,
    )  # fmt: skip
    rank = (Stage(moe=2),)
    values = sum(t.number * t.values for chunk in rank_chunks(setting, rank) for t in chunk)
    assert optimizer(setting, rank) == pytest.approx(each * values / 16, rel=1e-3)


def test_a_middle_rank_of_the_report() -> None:
    """61 layers on 16 ranks with 64-way experts: 4 MoE layers a rank, BF16, FP8 copies of both."""
    model = load_model("deepseek-v3")
    setting = setting_of(
        model, backend="transformer_engine", pipeline=16, expert=64, data=128, zero1=True,
        dtype="bf16", fp8="blockwise", moments="bf16",
    )  # fmt: skip
    rank = (Stage(moe=2), Stage(moe=2))
    values = sum(t.number * t.values for chunk in rank_chunks(setting, rank) for t in chunk)
    assert weights(setting, rank) == pytest.approx(2 * values, rel=1e-4)
    assert gradients(setting, rank) == pytest.approx(4 * values, rel=1e-4)
    quantised = values - 4 * 7168 * 256  # the routers, and norms that do not show
    assert fp8_copies(setting, rank) == pytest.approx(2 * quantised, rel=1e-3)
    # 8 bytes a value; routed experts are shared by 2 ranks, the rest by 128.
    experts = 4 * 4 * 3 * 7168 * 2048
    assert optimizer(setting, rank) == pytest.approx(
        8 * (experts / 2 + (values - experts) / 128), rel=1e-3
    )


def test_kimi_k2_needs_what_its_report_says() -> None:
    """About 30 GB of a GPU for all states, PP16, EP16, ZeRO-1 (arXiv 2507.20534, section 2.4.3).

    BF16 parameters and FP32 gradients over 256 GPUs; on many nodes the optimizer's states, which
    are sharded over the groups of 256, are said not to count.
    """
    setting = setting_of(
        load_model("kimi-k2"), backend="transformer_engine", pipeline=16, expert=16, data=512,
        zero1=True, dtype="bf16",
    )  # fmt: skip
    rank = (Stage(moe=4),)
    states = weights(setting, rank) + gradients(setting, rank) + optimizer(setting, rank)
    assert states == pytest.approx(30e9, rel=0.05)


def test_a_rank_of_the_published_analysis() -> None:
    """11.64 GiB of BF16 parameters with PP16, TP2, EP8 (arXiv 2502.07846, section 3).

    It divides a little less of the attention than upstream does.
    """
    setting = setting_of(
        load_model("deepseek-v3"), backend="transformer_engine", pipeline=16, tensor=2, expert=8,
        data=32, dtype="bf16",
    )  # fmt: skip
    assert weights(setting, (Stage(moe=4),)) == pytest.approx(11.64 * 2**30, rel=0.02)


@given(*(st.integers(low, 30) for low in (0, 1, 0, 1, 0, 1)))
def test_what_a_rank_owns_of_alike_parameters_is_what_counting_each_value_says(
    first: int, values: int, padding: int, number: int, begin: int, length: int
) -> None:
    run = _Run(first, values, values + padding, number)
    each = [range(first + n * run.apart, first + n * run.apart + values) for n in range(number)]
    owned = [sum(begin <= value < begin + length for value in parameter) for parameter in each]
    assert run.within(begin, begin + length) == (sum(owned), sum(map(bool, owned)))
    assert run.last == each[-1].stop
