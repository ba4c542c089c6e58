"""A child of `dsv3 rehearse`: pretends to be one rank, and prints what it found.

python -m dsv3_plugin.rehearsal.child < request.json
"""

import contextlib
import ctypes
import json
import os
import platform
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import refuse_format
from dsv3_plugin.planner.resolve import resolve
from dsv3_plugin.recipe.load import changed, load_recipe
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.rehearsal.report import Finding, RankReport, Request


def main() -> None:
    """Read a request, write a report."""
    _end_with_parent()
    given = json.load(sys.stdin)
    request = Request(**given | {"overrides": tuple(given["overrides"])})
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever upstream prints is not the report
    with tempfile.TemporaryDirectory() as scratch:
        report = answered(request, Path(scratch))
    json.dump(asdict(report), answer)
    answer.flush()
    os._exit(0)  # threads of upstream's may be waiting for ranks that are not there


def _end_with_parent() -> None:
    """Nobody waits for a child whose parent was killed."""
    if platform.system() == "Linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def answered(request: Request, scratch: Path) -> RankReport:
    """The report on a request; a refusal is a finding of it."""
    cluster = load_cluster(request.cluster)
    machine = cluster.machine
    try:
        recipe = resolve(load_recipe(request.recipe, request.overrides, machine), machine, cluster)
        refuse_format(recipe, cluster)
        if request.depth == "messages":
            from dsv3_plugin.upstream import cpu_host

            cpu_host.enable()
            from dsv3_plugin.rehearsal.pipeline import messages_of

            return messages_of(request, recipe, cluster, machine)
        one = for_one_step(recipe, request.micro_batches, scratch)
        with contextlib.ExitStack() as stack:
            from dsv3_plugin.rehearsal.device import become

            only_configuration = request.depth == "configuration"
            device = become(one, machine, cluster, only_configuration=only_configuration)
            from dsv3_plugin.distributed.world import order_kernels

            order_kernels(one)
            from dsv3_plugin.rehearsal.world import fake_world

            world = stack.enter_context(
                fake_world(request.rank, recipe.parallel.processes, cluster.gpus_per_node)
            )
            from dsv3_plugin.rehearsal.one_rank import refused, rehearse

            if only_configuration and (finding := refused(recipe, machine)) is not None:
                return RankReport(request.rank, 0, (finding,))
            return rehearse(request, one, machine, world, device)
    except UserError as error:
        return RankReport(request.rank, 0, (Finding(str(error).removesuffix(".")),))


def for_one_step(recipe: Recipe, micro_batches: int, scratch: Path) -> Recipe:
    """The recipe with one batch, and without what needs data, or a folder of the run's.

    Args:
        recipe: the run's.
        micro_batches: of a step, on each data-parallel rank.
        scratch: an empty folder.
    """
    batch = micro_batches * recipe.training.micro_batch_size * recipe.data_parallel
    data = recipe.data.model_copy(update={"held_out_sets": {}})  # which would want evaluations
    one = recipe.model_copy(update={"data": data})
    one = changed(one, [f"curves.batch_size={batch}", "training.eval_interval=null"])
    tokenizer = {"tokenizer-type": "NullTokenizer", "vocab-size": recipe.model.vocab_size - 1}
    flags = one.megatron_args | tokenizer | {"num-workers": 0}
    return one.model_copy(update={"directory": scratch / "run", "megatron_args": flags})


if __name__ == "__main__":
    main()
