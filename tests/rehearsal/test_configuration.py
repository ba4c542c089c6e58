"""Upstream's checks on the finished configuration, and every shipped recipe's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.recipe.load import load_model, shipped_folder
from dsv3_plugin.rehearsal.configuration import LIFTED, refusals
from tests.conftest import Said

ROOT = Path(__file__).parents[2]


def _finished(**fields: Any) -> Any:
    """As our executor has a configuration, with fields that are set when upstream has looked."""
    config = transformer_config(
        load_model("tiny"),
        dtype=torch.bfloat16,
        expert_model_parallel_size=2,
        moe_token_dispatcher_type="alltoall",
    )
    for name, value in {"delay_wgrad_compute": True, **fields}.items():
        setattr(config, name, value)
    return config


def test_a_finished_configuration_passes_but_for_what_is_lifted() -> None:
    assert refusals(_finished()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"recompute_granularity": "selective", "recompute_modules": ["moe", "layernorm"]},
        {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
        {"mtp_num_layers": 2},
        {"bf16": False},
    ],
)
def test_what_upstreams_plan_alone_cannot_do_passes(fields: dict[str, Any]) -> None:
    assert refusals(_finished(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        # The shared expert on a stream of its own, beside weight gradients that wait.
        ({"moe_shared_expert_overlap": True}, "moe_shared_expert_overlap"),
        # The fused rotation, and a rotation that it does not know.
        ({"apply_rope_fusion": True, "rope_type": "rope"}, "YARN"),
        ({"moe_token_dispatcher_type": "allgather"}, "dispatcher"),
    ],
)
def test_what_is_set_behind_upstreams_back_is_looked_at(fields: dict[str, Any], says: str) -> None:
    (finding,) = refusals(_finished(**fields))
    assert finding.stops
    assert says in finding.sentence


def test_a_schedule_of_one_chunk_a_rank_passes() -> None:
    """As of zb1p on four stages, whose weight gradients wait."""
    assert refusals(_finished(pipeline_model_parallel_size=4, pipeline_dtype=torch.bfloat16)) == []


def test_what_is_lifted_has_a_reason_and_a_test() -> None:
    for row in LIFTED:
        assert row.reason
        assert (ROOT / row.test).is_file()


SHIPPED = [
    f"{path.parent.name}/{path.stem}"
    for path in sorted(shipped_folder().glob("*/*.yaml"))
    if path.parent.name != "models"
]


def apart_where_large(recipes: list[str]) -> list[Any]:
    """A case for each recipe; those that go on with a large model are apart from the rest."""
    return [
        pytest.param(
            recipe,
            marks=[] if recipe.startswith("pretrain/") or "tiny" in recipe else [pytest.mark.long],
        )
        for recipe in recipes
    ]


@pytest.mark.parametrize("recipe", apart_where_large(SHIPPED))
@pytest.mark.usefixtures("forked_rehearsals")
def test_every_shipped_recipe_is_configured(dsv3: Callable[..., Said], recipe: str) -> None:
    said = dsv3("rehearse", recipe, "--configuration")
    assert said.code == 0, said.out + said.err
    assert "The configuration stands." in said.out


def test_tensor_parallel_ranks_start_with_the_queues_that_upstream_wants(
    dsv3: Callable[..., Said],
) -> None:
    """Of a run that is divided among as few devices as hold it, its layout by the planner."""
    few = (
        "parallel.processes=256", "parallel.tensor=2", "parallel.expert=16",
        "training.micro_batch_size=2", "pipeline.schedule=1f1b", "pipeline.ramp_schedule=null",
        "pipeline.layout=balanced",
        "recompute=[norms,mla_up_proj,mlp,moe]",
    )  # fmt: skip
    said = dsv3("rehearse", "pretrain/deepseek-v3", *few, "--configuration")
    assert said.code == 0, said.out + said.err
    assert "The configuration stands." in said.out
