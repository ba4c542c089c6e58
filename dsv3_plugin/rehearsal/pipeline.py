"""The messages of a recipe's pipeline in one of its steps: in a child, which is no rank."""

import torch

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.messages import rehearse_messages
from dsv3_plugin.rehearsal.report import RankReport, Request

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def messages_of(request: Request, recipe: Recipe, cluster: Cluster, machine: Machine) -> RankReport:
    """What the ranks of a pipeline post in a step of the request's micro-batches.

    The process has to be a CPU host.

    Args:
        request: says how many micro-batches.
        recipe: closed; run by our executor on several pipeline ranks.
        cluster, machine: what its stages and messages take their time on.
    """
    setting = Setting.of(recipe, cluster, machine, request.imbalance)
    steps = RecipeSteps(recipe, setting, cluster)
    shape = (recipe.data.seq_length, setting.micro_batch, recipe.model.hidden_size)
    schedule = steps.schedule(request.micro_batches)
    messages = rehearse_messages(schedule, steps.costs, shape, _TYPES[setting.dtype])
    return RankReport(request.rank, 0, messages.findings, messages=messages)
