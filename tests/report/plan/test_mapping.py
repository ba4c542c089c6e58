"""A plan as JSON."""

import json

from dsv3_plugin.planner.plan import Limit
from dsv3_plugin.report.plan.mapping import plan_mapping
from tests.plans import GB, phase, plan


def test_a_plan_has_the_promised_keys_and_survives_json():
    made = plan(imbalance=1.2)
    told = plan_mapping(made)
    assert json.loads(json.dumps(told)) == told
    assert list(told) == ["cluster", "imbalance", "processes", "phases", "totals", "limit"]
    assert told["cluster"]["name"] == "made-up"
    assert told["cluster"]["efficiency"]["gemm_fp8"] == {"value": 0.75, "source": "a test"}
    assert (told["imbalance"], told["processes"]) == (1.2, 2048)
    assert told["limit"] == {
        "fits": True,
        "sentence": "memory is the tightest limit: 72.0 of 80.0 GB",
        "overrides": [],
        "way_out": "",
    }
    ramp, last = told["phases"]
    assert list(last) == [
        "name", "seq_length", "batch", "schedule", "steps", "tokens", "step_seconds", "seconds",
        "time_by_part", "tokens_per_second_per_gpu", "mfu", "gpu_hours", "cost",
        "checkpoint_bytes", "checkpoints_written", "stages",
    ]  # fmt: skip
    assert told["totals"] == {
        "tokens": ramp["tokens"] + last["tokens"],
        "steps": 210_000,
        "seconds": 4_100_000.0,
        "gpu_hours": ramp["gpu_hours"] + last["gpu_hours"],
        "cost": ramp["cost"] + last["cost"],
    }


def test_a_stage_has_its_layers_and_its_memory_by_part():
    first, *_, last = plan_mapping(plan(phase()))["phases"][0]["stages"]
    assert first == {
        "pipeline_rank": 0,
        "layers": [{"embedding": 1, "dense": 1}, {"moe": 11, "mtp": 1, "head": 1}],
        "memory_bytes": {
            "weights": 4 * GB,
            "gradients": 8 * GB,
            "optimizer": 2 * GB,
            "fp8_copies": 5 * GB,
            "activations": 40 * GB,
            "allocator": 3 * GB,
        },
        "moments": {"step": 62 * GB, "optimizer": 25 * GB, "saving": 30 * GB},
        "busy_seconds": 12.0,
        "work": 12.0 / 13.5,
    }
    assert last["pipeline_rank"] == 3


def test_a_way_out_is_told_as_overrides_too():
    limit = Limit(False, "it is full", ("training.micro_batch_size=1",), "halve the micro-batch")
    told = plan_mapping(plan(limit=limit))["limit"]
    assert told["overrides"] == ["training.micro_batch_size=1"]
    assert told["way_out"] == "halve the micro-batch"
