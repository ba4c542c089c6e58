"""A rank that is gone is named wherever the others notice it, not inside of steps alone."""

import os
import signal

from tests.gloo_ranks import run_ranks
from tests.training import trainer_ranks
from tests.training.test_hooks import with_hooks


def train_until_rank_1_goes(rank, recipe, overrides):
    from dsv3_plugin.errors import UserError
    from dsv3_plugin.training.hooks import Hook

    class Goes(Hook):
        def on_log(self, step):  # what comes next is an exchange among all ranks
            if rank == 1 and step.iteration == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        trainer_ranks.train(rank, recipe, overrides, with_hooks(Goes()))
    except UserError as error:
        return str(error)
    return "went through"


def test_a_rank_lost_between_two_steps_is_named(recipe, tmp_path):
    overrides = [f"directory={tmp_path}/run", "checkpoint.interval=1"]
    sentence, _ = run_ranks(
        2, train_until_rank_1_goes, recipe, overrides, scratch=tmp_path, missing=(1,)
    )
    assert sentence.startswith("step 2: rank 0 lost rank 1 during an exchange among all:")
    assert "; the checkpoint of step 1 is whole, the same command goes on from it" in sentence
