"""One process, two ranks that share the data, the experts or each sequence: the same training.

Also: optimizer states sharded over data-parallel ranks (ZeRO-1), which on torch's AdamW upstream
cannot resume by itself.
"""

import pytest

from tests.gloo_ranks import run_ranks
from tests.small_runs import numbers, records
from tests.training import trainer_ranks

STEPS = 6
RANKS = {
    "one process": (1, ["parallel.expert=1"]),
    "data parallel": (2, ["parallel.expert=1"]),
    "expert parallel": (2, ["parallel.expert=2"]),
    "context and expert parallel": (2, ["parallel.expert=2", "parallel.context=2"]),
}


@pytest.fixture(scope="module")
def losses(recipe, tmp_path_factory):
    """The losses of each step by each division of the work, from the first on."""
    scratch = tmp_path_factory.mktemp("parallel")
    same = ["curves.batch_size=8", f"training.steps={STEPS}", "training.eval_interval=3"]

    def run(name):
        world, parallel = RANKS[name]
        folder = scratch / name.replace(" ", "-")
        data = f"data.path={scratch}/one-process/data"
        ranks = scratch / f"{folder.name}-ranks"
        ranks.mkdir()
        arguments = [f"directory={folder}", data, f"parallel.processes={world}", *same, *parallel]
        run_ranks(world, trainer_ranks.train, recipe, arguments, scratch=ranks)
        return {
            (line["iteration"], key): line[key]
            for line in records(folder)
            for key in ("loss", "mtp_loss", "balance_loss", "grad_norm", "validation_loss")
            if key in line
        }

    return {name: run(name) for name in RANKS}


@pytest.mark.parametrize("name", list(RANKS)[1:])
def test_losses_are_those_of_one_process(losses, name):
    alone, together = losses["one process"], losses[name]
    assert together.keys() == alone.keys()
    # Every number is a mean over the same sequences, in another order of FP32 additions; six
    # steps of Adam let the differences grow.
    assert together == pytest.approx(alone, rel=3e-5)
    assert len(alone) == STEPS * 4 + 3


@pytest.mark.parametrize("zero1", ["true", "false"])
def test_a_run_goes_on_with_another_learning_rate(recipe, tmp_path, zero1):
    for attempt, more in enumerate(
        (["megatron_args.exit-interval=2"], ["curves.learning_rate=1e-5"])
    ):
        overrides = [
            f"directory={tmp_path}/run", f"parallel.zero1={zero1}", "training.steps=4",
            "checkpoint.interval=4",
        ]  # fmt: skip
        ranks = tmp_path / f"{attempt}"
        ranks.mkdir()
        run_ranks(2, trainer_ranks.train, recipe, [*overrides, *more], scratch=ranks)
    rates = {line["iteration"]: line["learning_rate"] for line in records(tmp_path / "run")
             if "learning_rate" in line}  # fmt: skip
    assert [rates[step] for step in (3, 4)] == [1e-5, 1e-5]
    assert rates[2] > 1e-5


def test_a_sharded_optimizer_resumes_bit_for_bit(recipe, tmp_path):
    def run(folder, *more):
        ranks = tmp_path / f"{folder}-{len(more)}"
        ranks.mkdir()
        overrides = [
            f"directory={tmp_path}/{folder}", f"data.path={tmp_path}/data", "parallel.zero1=true",
            "training.steps=4", "checkpoint.interval=4",
        ]  # fmt: skip
        run_ranks(2, trainer_ranks.train, recipe, [*overrides, *more], scratch=ranks)
        return numbers(tmp_path / folder)

    undisturbed = run("undisturbed")
    # Saved as on GPUs, where states are gathered over gloo on one rank; loaded as anywhere.
    on_one_rank = "megatron_args.distrib-optim-fully-reshardable-mem-efficient=true"
    run("stopped", "megatron_args.exit-interval=2", on_one_rank)
    assert run("stopped") == undisturbed
