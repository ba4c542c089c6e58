"""Upstream's own checks, once more, when everything of ours is set.

Upstream checks a configuration when it is made of the command line. What the plugin sets after that
(places of chunks, owed weight gradients, dispatch) it has not seen. So it looks again here; the few
of its checks that do not hold for us stand in `LIFTED`, each with the reason, and with the values
under which upstream looks at everything else.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.rehearsal.refusal import refusal
from dsv3_plugin.rehearsal.report import Finding


@dataclass(frozen=True)
class Lifted:
    """A check of upstream's that a configuration of ours need not pass.

    Attributes:
        says: a pattern that its message matches.
        instead: the fields that upstream sees in place of ours, so that it goes on to its other
            checks; a function gives a field's value from ours.
        reason: why what it fears does not happen here.
        test: which test shows that.
    """

    says: str
    instead: Mapping[str, Any]
    reason: str
    test: str


_OF_THE_PLAN = (
    "upstream's plan of overlapped layers cuts them into nodes and cannot do this; "
    "`chunk_plan.plan_serves` says so, and whole layers overlap on two threads then"
)

LIFTED: tuple[Lifted, ...] = (
    Lifted(
        says="overlap_moe_expert_parallel_comm must be enabled when enabling delay_wgrad_compute",
        instead={"overlap_moe_expert_parallel_comm": True},
        reason="upstream pays owed weight gradients inside its overlapped schedule alone; our "
        "executor pays them where a schedule says, on the stream that computed what they are made "
        "of. As in upstream's, forward and backward overlap, so its conditions for that have to "
        "hold.",
        test="tests/pipeline/test_streams.py",
    ),
    Lifted(
        says="virtual_pipeline_model_parallel_size must be specified when",
        instead={"virtual_pipeline_model_parallel_size": 1},
        reason="upstream overlaps within its interleaved schedule alone; our executor runs "
        "schedules with one chunk on each rank, whose weight gradients wait as well (zb1p).",
        test="tests/pipeline/test_executor.py",
    ),
    Lifted(
        says="disable moe in recompute_modules when enabling overlap_moe_expert_parallel_comm",
        instead={
            "recompute_modules": lambda modules: [name for name in modules if name != "moe"],
        },
        reason=_OF_THE_PLAN,
        test="tests/pipeline/test_chunk_plan.py",
    ),
    Lifted(
        says="disable full recomputation when enabling overlap_moe_expert_parallel_comm",
        instead={
            "recompute_granularity": None,
            "recompute_method": None,
            "recompute_num_layers": None,
        },
        reason=_OF_THE_PLAN,
        test="tests/pipeline/test_chunk_plan.py",
    ),
    Lifted(
        says="overlap_moe_expert_parallel_comm is only supported with bf16 or fp16 model",
        instead={"bf16": True},
        reason=_OF_THE_PLAN,
        test="tests/pipeline/test_chunk_plan.py",
    ),
    Lifted(
        says="MTP supports at most one layer when enabling overlap_moe_expert_parallel_comm",
        instead={"mtp_num_layers": 1},
        reason=_OF_THE_PLAN,
        test="tests/pipeline/test_chunk_plan.py",
    ),
)


def refusals(config: TransformerConfig) -> list[Finding]:
    """What upstream has against a finished configuration."""
    instead: dict[str, Any] = {}
    while True:
        message = _refusal(config, instead)
        if message is None:
            return []
        lifted = next((row for row in LIFTED if re.search(row.says, message)), None)
        if lifted is None or lifted.instead.keys() <= instead.keys():
            return [refusal("the finished configuration", message)]
        for name, value in lifted.instead.items():
            instead[name] = value(getattr(config, name)) if callable(value) else value


def _refusal(config: TransformerConfig, instead: Mapping[str, Any]) -> str | None:
    """The message of upstream's first refusal."""
    looked_at = copy.copy(config)
    for name in [field.name for field in dataclasses.fields(config)]:
        value = getattr(config, name)
        if isinstance(value, list | dict | set):
            setattr(looked_at, name, copy.copy(value))
    for name, value in instead.items():
        setattr(looked_at, name, value)
    try:
        looked_at.__post_init__()
    except (AssertionError, ValueError, NotImplementedError) as error:
        return str(error)
    return None
