"""The forward step of pretraining, as upstream's schedules call it."""

import inspect
from typing import Any

import pytest
import torch

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402

from dsv3_plugin.data.batch import Batch  # noqa: E402
from dsv3_plugin.stages import pretrain  # noqa: E402

BATCH = Batch(
    tokens=torch.zeros(1, 4, dtype=torch.int64),
    labels=torch.ones(1, 4, dtype=torch.int64),
    position_ids=torch.arange(4).unsqueeze(0),
    loss_mask=torch.ones(1, 4),
)


class Chunk(torch.nn.Module):
    """The only stage of a pipeline, which takes note of what it is given."""

    pre_process, post_process, mtp_process = True, True, False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[str, Any]:
        return "computed", inspect.signature(GPTModel.forward).bind(self, *args, **kwargs)

    def build_schedule_plan(self, *args: Any, **kwargs: Any) -> tuple[str, Any]:
        return "planned", inspect.signature(GPTModel.build_schedule_plan).bind(
            self, *args, **kwargs
        )


@pytest.mark.parametrize(
    ("asked", "done"), [({}, "computed"), ({"return_schedule_plan": True}, "planned")]
)
def test_a_chunk_computes_or_is_planned_on_the_same_batch(
    monkeypatch: pytest.MonkeyPatch, asked: dict, done: str
) -> None:
    monkeypatch.setattr(pretrain, "get_batch", lambda samples, inputs, padded: next(samples))
    (how, given), _ = pretrain.forward_step(iter([BATCH]), Chunk(), **asked)
    assert how == done
    assert given.arguments["input_ids"] is BATCH.tokens
    assert given.arguments["labels"] is BATCH.labels
    assert given.arguments["loss_mask"] is BATCH.loss_mask
