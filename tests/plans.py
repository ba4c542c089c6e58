"""Plans made up for the tests of what shows them: every number is plain to see, none is a claim."""

from dataclasses import replace

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.planner.plan import Limit, PhasePlan, Plan, RankPlan
from dsv3_plugin.planner.stages import stages_of
from dsv3_plugin.recipe.load import load_model

GB = 10**9
WEIGHTS = {"weights": 4 * GB, "gradients": 8 * GB, "optimizer": 2 * GB, "fp8_copies": 5 * GB}


def cluster(**changes: object) -> Cluster:
    """A cluster of 2048 devices of 80 GB."""
    share = {"value": 0.75, "source": "a test"}
    described = {
        "name": "made-up",
        "gpu": "Made-Up 80",
        "gpus": 2048,
        "gpus_per_node": 8,
        "nvlink_domain": 8,
        "multiprocessors": 132,
        "memory_gb": 80,
        "memory_gb_per_second": 3350,
        "peak_tflops": {"fp32": 60, "bf16": 990, "fp8": 1980},
        "nvlink": {"gb_per_second": 160, "latency_us": 3},
        "network": {"gb_per_second": 50, "latency_us": 6},
        "storage_gb_per_second": 2,
        "price_per_gpu_hour": 2.0,
        "efficiency": dict.fromkeys(
            (
                "gemm_fp32",
                "gemm_bf16",
                "gemm_fp8",
                "attention_forward",
                "attention_backward",
                "memory",
                "nvlink",
                "network",
            ),
            share,
        ),
        "ends": {"gemm": 700, "attention": 1000, "source": "a test"},
    }
    return Cluster.model_validate(described | changes)


def phase(name: str = "batch 15,360", activations: int = 40 * GB, **changes: object) -> PhasePlan:
    """A phase of DeepSeek-V3 on 4 pipeline ranks, 10 GB of activations more on the second."""
    model = load_model("deepseek-v3")
    stages = stages_of(model, "Et|tttttttt|(tttttttttt|)*2" + "(ttttttt|)*3" + "t" * 11 + "mL")
    ranks = tuple(
        RankPlan(
            pipeline_rank=rank,
            stages=(stages[rank], stages[7 - rank]),
            memory_bytes=WEIGHTS
            | {"activations": activations + (10 * GB if rank == 1 else 0), "allocator": 3 * GB},
            moments={
                "step": 22 * GB + activations + (10 * GB if rank == 1 else 0),
                "optimizer": 25 * GB,
                "saving": 30 * GB,
            },
            busy_seconds=12.0 + rank,
            work=(12.0 + rank) / 13.5,
        )
        for rank in range(4)
    )
    made = PhasePlan(
        name=name,
        seq_length=4096,
        batch=15360,
        schedule="dualpipe_v",
        steps=200_000,
        tokens=200_000 * 15360 * 4096,
        step_seconds=20.0,
        seconds=4_000_000.0,
        time_by_part={"gemm": 10.0, "attention": 3.0, "pipeline": 5.0, "optimizer": 2.0},
        tokens_per_second_per_gpu=1536.0,
        mfu=0.389,
        gpu_hours=4_000_000 / 3600 * 2048,
        cost=4_000_000 / 3600 * 2048 * 2.0,
        checkpoint_bytes=9_600 * GB,
        checkpoints_written=200,
        ranks=ranks,
    )
    return replace(made, **changes)


def plan(*phases: PhasePlan, **changes: object) -> Plan:
    """A plan of these phases; by default of a growing batch, then a full one."""
    model = load_model("deepseek-v3")
    ramp = phase(
        "batch 3,072 to 15,360",
        steps=10_000,
        tokens=469 * GB,
        schedule="zbv",
        seconds=100_000.0,
        gpu_hours=100_000 / 3600 * 2048,
        cost=100_000 / 3600 * 2048 * 2.0,
        checkpoints_written=10,
    )
    made = Plan(
        name="deepseek-v3",
        cluster=cluster(),
        processes=2048,
        parameters=parameter_counts(model),
        flops=flops_per_token(model, 4096),
        phases=phases or (ramp, phase()),
        limit=Limit(fits=True, sentence="memory is the tightest limit: 72.0 of 80.0 GB"),
    )
    return replace(made, **changes)
