"""Forward and backward by upstream's schedule plan, on CPU tensors: the same numbers as without.

Two gloo ranks divide the experts, as the plan wants it. A GPU's streams are what is missing here:
the nodes run one after the other, in the order in which a GPU would be given them. FP32; whole
tensors, loss to 1e-6 and gradients to 1e-5 of the largest of their tensor.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv3_plugin.dispatch import moe_layer
from dsv3_plugin.machine import Machine
from dsv3_plugin.pipeline.chunk_plan import PlannedComputation, plan_serves
from dsv3_plugin.pipeline.split_backward import SplitBackward
from dsv3_plugin.pipeline.tasks import BackwardTask, ForwardResult, ForwardTask
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.stage_layout import even
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks
from tests.recipe.conftest import upstream  # noqa: F401
from tests.staged_model import forward_step, staged_model

SEQ, MICRO = 16, 2

MODEL = staged_model(4)


def _prepare(pipeline: int, virtual: int | None, first_and_last_meet: bool = False) -> None:
    """This process as one of two expert-parallel ranks of a pipeline stage."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    import dsv3_plugin

    dsv3_plugin.register()
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        expert_model_parallel_size=2,
        get_embedding_ranks=(lambda ranks: [ranks[0]]) if first_and_last_meet else None,
    )
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    # It takes a real stream; there are none here to be told about.
    torch.Tensor.record_stream = lambda tensor, stream: None


def _build(**stage: Any) -> torch.nn.Module:
    from dsv3_plugin.model.build import build_model

    return build_model(
        MODEL,
        expert_model_parallel_size=2,
        init_method_std=0.2,
        **stage,
    ).train()


def _batches(rank: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
    for number in range(count):
        draw = torch.Generator().manual_seed(100 * rank + number)
        drawn = torch.randint(64, (MICRO, SEQ + 1), generator=draw)
        yield {
            "tokens": drawn[:, :-1],
            "labels": drawn[:, 1:],
            "positions": torch.arange(SEQ).expand(MICRO, SEQ),
            "padding": torch.arange(SEQ).expand(MICRO, SEQ) >= SEQ - 1 - number,
        }


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of all parameters, taken away."""
    answer = {}
    for name, parameter in model.named_parameters():
        answer[name] = parameter.grad
        parameter.grad = None
    return answer


def _main_gradients(chunks: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Those that upstream's data parallelism keeps, taken away."""
    answer = {
        f"{index}.{name}": parameter.main_grad.clone()
        for index, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }
    for chunk in chunks:
        chunk.zero_grad_buffer()
    return answer


def _close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-12)
        error = (got[name] - gradient).abs().max() / scale
        assert error < 1e-5, f"{name} differs by {error:.2e}"


# What a rank does in three micro-batches: F0, (F1;B0), (F2;I1), W1, I2, W2.
def _whole_model(rank: int) -> Any:
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining
    from megatron.core.pipeline_parallel.utils import ScheduleNode

    _prepare(1, None)
    model = _build()
    arguments = {
        "forward_step_func": forward_step,
        "model": model,
        "num_microbatches": 3,
        "seq_length": SEQ,
        "micro_batch_size": MICRO,
    }
    reports = forward_backward_no_pipelining(data_iterator=_batches(rank, 3), **arguments)
    expected = [report["token losses"] for report in reports], _gradients(model)

    order: list[str] = []
    for way in ("forward", "backward"):
        _record(ScheduleNode, way, order)
    by_plan = []
    for delayed in (False, True):
        model.config.delay_wgrad_compute = delayed
        by_plan.append(_three_micro_batches(rank, model, order))
    return expected, by_plan, order


def _record(node: type, way: str, order: list[str]) -> None:
    original = getattr(node, way)

    def recorded(self: Any, *args: Any) -> Any:
        order.append(f"{way} {self.name}")
        return original(self, *args)

    setattr(node, way, recorded)


def _three_micro_batches(rank: int, model: torch.nn.Module, order: list[str]) -> Any:
    computation, split = PlannedComputation(model.config), SplitBackward(model)
    batches = _batches(rank, 3)
    experts = model.decoder.layers[1].mlp.experts.weight_gradients
    done: list[ForwardResult] = []

    def forward() -> ForwardTask:
        return ForwardTask(
            function=forward_step,
            chunk=model,
            batch=batches,
            activation=None,
            micro_batch=len(done),
            micro_batches=3,
            is_first=not done,
            is_last_stage=True,
            config=model.config,
        )

    def backward(number: int, weights_owed: bool) -> BackwardTask:
        return BackwardTask(done[number], None, weights_owed, split, model.config)

    def pair(weights_owed: bool) -> None:
        result, gradient = computation.run_pair(forward(), backward(len(done) - 1, weights_owed))
        assert gradient is None  # of tokens
        done.append(result)

    def owed() -> set[int]:
        modules = (getattr(module, "weight_gradients", ()) for module in model.modules())
        return {len(gradients) for gradients in modules if gradients != ()}

    done.append(computation.forward(forward()))
    order.clear()
    pair(weights_owed=False)
    first_pair, debts, paid_by_plan = list(order), [owed()], experts.postpone
    pair(weights_owed=True)
    debts.append(owed())
    split.weights()
    debts.append(owed())
    computation.backward(backward(2, weights_owed=True))
    split.weights()
    order[:] = first_pair
    losses = [report["token losses"] for result in done for report in result.reports]
    return losses, _gradients(model), debts, paid_by_plan


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks(2, _whole_model, scratch=tmp_path_factory.mktemp("plan"), timeout_s=120)


def test_losses_and_gradients_are_those_of_plain_forwards_and_backwards(whole_model: Any) -> None:
    for (losses, gradients), by_plan, _ in whole_model:
        for got_losses, got_gradients, *_ in by_plan:
            torch.testing.assert_close(got_losses, losses, rtol=1e-6, atol=1e-6)
            _close(got_gradients, gradients)


def test_forward_and_backward_of_a_pair_advance_layer_by_layer(whole_model: Any) -> None:
    expert_layer = [
        "backward moe_combine",
        "forward pre_dispatch_computation",
        "backward mlp",
        "forward moe_dispatch",
        "backward moe_dispatch",
        "forward mlp",
        "forward moe_combine",
        "backward pre_dispatch_computation",
    ]
    for _, _, order in whole_model:
        middle = [node for node in order if "process" not in node]
        # Layers are dense, expert, expert, expert, expert (of MTP): in a pair, the first and the
        # last meet, where the dense one has nothing to dispatch.
        assert middle[6:30] == 3 * expert_layer
        assert [node for node in middle[:6] if "moe" in node] == [
            "backward moe_combine",
            "backward moe_dispatch",
        ]


def test_a_backward_in_halves_leaves_its_weight_gradients_owed(whole_model: Any) -> None:
    for _, by_plan, _ in whole_model:
        for *_, debts, _ in by_plan:
            assert debts == [{0}, {1}, {0}]  # after a whole backward, an input gradient, a W


def test_with_delayed_weight_gradients_the_plan_pays_those_of_a_whole_backward(
    whole_model: Any,
) -> None:
    for _, by_plan, _ in whole_model:
        assert [paid for *_, paid in by_plan] == [False, True]


def _pipeline(rank: int, schedules: list[Schedule]) -> list[Any]:
    from megatron.core import parallel_state

    from dsv3_plugin.pipeline import executor

    answers = []
    for schedule in schedules:
        chunks = _chunks(schedule)
        by = {}
        for name, serves in (("threads", False), ("plan", True)):
            executor.plan_serves = lambda *asked, serves=serves: serves
            runner = executor.Executor(lambda count, schedule=schedule: schedule)
            reports = runner(
                forward_step_func=forward_step,
                data_iterator=[_batches(rank % 2, schedule.num_micro_batches) for _ in chunks],
                model=chunks,
                num_microbatches=schedule.num_micro_batches,
                seq_length=SEQ,
                micro_batch_size=MICRO,
            )
            losses = [report["token losses"] for report in reports]
            by[name] = losses, _main_gradients(chunks), runner.peak_live
        answers.append(by)
        parallel_state.destroy_model_parallel()
    return answers


def _chunks(schedule: Schedule) -> list[torch.nn.Module]:
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from dsv3_plugin.pipeline.chunks import PlacedLayout, join_chunks
    from dsv3_plugin.schedules.placement import placement_of

    placement = placement_of(schedule)
    virtual = placement.chunks_per_rank if placement.chunks_per_rank > 1 else None
    _prepare(schedule.pp, virtual, placement.ends_meet)
    layout = PlacedLayout(even(MODEL.num_layers, placement.depth, 1), placement)
    rank = parallel_state.get_pipeline_model_parallel_rank()
    chunks = [
        _build(
            pre_process=placement.model_stage(stage) == 0,
            post_process=placement.model_stage(stage) == placement.depth - 1,
            vp_stage=index if virtual else None,
            pipeline_model_parallel_size=schedule.pp,
            virtual_pipeline_model_parallel_size=virtual,
            pipeline_model_parallel_layout=layout,
            deallocate_pipeline_outputs=True,
        )
        for index, stage in enumerate(placement.chunks[rank])
    ]
    wrapped = [
        DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk)
        for chunk in join_chunks(chunks, placement)
    ]
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    return wrapped


def test_the_executor_does_the_same_by_plans_as_on_two_threads(tmp_path: Path) -> None:
    schedules = [dualpipe_v(2, 5), dualpipe(2, 6), zbv(2, 4)]
    for answers in run_ranks(4, _pipeline, schedules, scratch=tmp_path, timeout_s=240):
        for by in answers:
            losses, gradients, peak = by["plan"]
            torch.testing.assert_close(losses, by["threads"][0], rtol=1e-6, atol=1e-6)
            _close(gradients, by["threads"][1])
            assert peak == by["threads"][2]


def _config(**different: Any) -> SimpleNamespace:
    """What `plan_serves` asks of DeepSeek-V3 on a GPU, dispatched by DeepEP."""
    fields: dict[str, Any] = {
        "transformer_impl": "transformer_engine",
        "bf16": True,
        "fp16": False,
        "expert_model_parallel_size": 64,
        "dispatch": SimpleNamespace(kind="deepep"),
        "moe_token_dispatcher_type": "flex",
        "moe_flex_dispatcher_backend": "deepep",
        "num_moe_experts": 256,
        "num_layers": 61,
        "moe_layer_freq": [0] * 3 + [1] * 58,
        "mtp_num_layers": 1,
        "moe_shared_expert_overlap": False,
        "recompute_granularity": "selective",
        "recompute_modules": ["layernorm", "mla_up_proj"],
        "cuda_graph_impl": "none",
        "fine_grained_activation_offloading": False,
        "moe_paged_stash": False,
        "fp8": "e4m3",
        "fp8_recipe": "blockwise",
    }
    return SimpleNamespace(**fields | different)


def test_these_settings_are_served_on_a_gpu() -> None:
    assert plan_serves(_config(), torch.device("cuda"))
    assert not plan_serves(_config(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "overrides", "by_plan"),
    [
        ("pretrain/deepseek-v3", [], False),  # two_hop: on two threads, on a GPU too
        ("pretrain/deepseek-v3", ["dispatch.precision=bf16"], False),
        ("pretrain/deepseek-v3", ["dispatch.precision=bf16", "dispatch.kind=alltoall"], True),
        (
            "pretrain/deepseek-v3",
            ["dispatch.precision=bf16", "dispatch.kind=alltoall", "data.packing=whole"],
            True,
        ),
        ("pretrain/deepseek-v3", ["dispatch.precision=bf16", "dispatch.kind=deepep"], True),
        ("pretrain/deepseek-v3", ["dispatch.precision=bf16", "dispatch.kind=hybridep"], True),
        ("pretrain/tiny", [], False),
    ],
    ids=str,
)
def test_which_way_the_shipped_recipes_take(
    recipe: str,
    overrides: list[str],
    by_plan: bool,
    upstream: Callable[..., Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kernels in ("HAVE_DEEP_EP", "HAVE_HYBRIDEP"):
        monkeypatch.setattr(moe_layer.fused_a2a, kernels, True)
    loaded = load_recipe(recipe, overrides)
    settings = upstream(loaded, Machine(gpus=8, transformer_engine=True))
    # What upstream makes of its command line, as far as the question goes; then as the trainer.
    config = SimpleNamespace(**vars(settings), num_moe_experts=settings.num_experts)
    asked = loaded.dispatch.model_dump() | {"hide_shared_expert": loaded.hides_shared_expert}
    moe_layer.configure_dispatch(config, **asked)
    assert plan_serves(config, torch.device("cuda")) == by_plan
    assert not plan_serves(config, torch.device("cpu"))


@pytest.mark.parametrize(
    "different",
    [
        {"transformer_impl": "local"},
        {"bf16": False},
        {"expert_model_parallel_size": 1},
        {"dispatch": SimpleNamespace(kind="two_hop"), "moe_token_dispatcher_type": "alltoall"},
        {"moe_token_dispatcher_type": "allgather"},
        {"moe_flex_dispatcher_backend": "ncclep"},
        {"moe_layer_freq": [1] * 60 + [0]},
        {"moe_layer_freq": 7},
        {"num_moe_experts": None},
        {"mtp_num_layers": 2},
        {"moe_shared_expert_overlap": True},
        {"recompute_granularity": "full"},
        {"recompute_modules": ["moe"]},
        {"cuda_graph_impl": "local"},
        {"fine_grained_activation_offloading": True},
        {"moe_paged_stash": True},
        {"fp8_recipe": "delayed"},
    ],
    ids=str,
)
def test_what_upstreams_plan_does_not_serve_runs_on_two_threads(different: dict[str, Any]) -> None:
    assert not plan_serves(_config(**different), torch.device("cuda"))
