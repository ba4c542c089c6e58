"""Hooks: called at their moments, in order, with their state in the checkpoint."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import torch

from tests.gloo_ranks import run_ranks
from tests.small_runs import numbers, records
from tests.training import trainer_ranks

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-hook.md"
ALONE = ("parallel.processes=1", "parallel.expert=1")


def hook_of_the_page():
    """The class in docs/adding-a-hook.md, as a file of its own would define it."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "update_size"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["UpdateSize"]


def hooks_of_the_page():
    """`hooks` of stages/pretrain.py with the page's diff in it, and its class."""
    from dsv3_plugin.stages import pretrain

    [diff] = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] == " ")
    source = inspect.getsource(pretrain)
    assert source.count(before) == 1
    names = {"__name__": "dsv3_plugin.stages.pretrain", "UpdateSize": hook_of_the_page()}
    patched = source.replace(before, "".join(line[1:] for line in lines))
    exec(compile(patched, pretrain.__file__, "exec"), names)
    return names["hooks"]


def with_hooks(*more):
    """Pretraining with further hooks before the last, which writes the metrics."""
    from dsv3_plugin.stages import pretrain

    def stage(run):
        plain = pretrain.pretrain(run)
        *first, metrics = plain.hooks
        return dataclasses.replace(plain, hooks=[*first, *more, metrics])

    return stage


def recorder():
    """A hook that writes down what it is called for, and what it sees then."""
    from dsv3_plugin.training.hooks import Hook

    class Recorder(Hook):
        def __init__(self):
            self.seen = []
            self.first_weight = None

        def before_step(self, step):
            self.first_weight = next(step.model[0].parameters()).detach().clone()
            self.seen.append(("before_step", step.iteration, step.tokens, step.batch_size))

        def after_backward(self, step):
            weight = next(step.model[0].parameters())
            assert weight.main_grad.norm() > 0
            assert torch.equal(weight.detach(), self.first_weight)
            self.seen.append(("after_backward", step.iteration))

        def after_step(self, step):
            weight = next(step.model[0].parameters()).detach()
            # The learning rate of the first step is 0.
            assert torch.equal(weight, self.first_weight) == (step.iteration == 1)
            self.seen.append(("after_step", step.iteration, {*step.numbers} >= {"mtp_weight"}))

        def on_log(self, step):
            self.seen.append(("on_log", step.iteration))

        def on_evaluation(self, iteration):
            self.seen.append(("on_evaluation", iteration))

        def wants_save(self, iteration):
            return iteration != 2

        def on_save(self, iteration):
            self.seen.append(("on_save", iteration))

        def on_load(self, iteration):
            self.seen.append(("on_load", iteration))

    return Recorder()


def counter():
    """A hook that counts steps in a tensor, which each rank holds a part of."""
    from megatron.core.dist_checkpointing import ShardedTensor

    from dsv3_plugin.training.hooks import Hook

    class Counter(Hook):
        def __init__(self):
            self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            self.steps = torch.zeros(1)

        def after_step(self, step):
            self.steps += 1 + self.rank
            step.numbers["counted"] = self.steps.item()

        def state_dict(self):
            part = (0, self.rank, self.world)
            return {"steps": ShardedTensor.from_rank_offsets("counter.steps", self.steps, part)}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    return Counter()


def train_recorded(rank, recipe, overrides):
    hook = recorder()
    trainer_ranks.train(rank, recipe, overrides, with_hooks(hook))
    return hook.seen


def with_the_page(*more):
    """Pretraining with the page's hook where the page puts it, and others before the last."""
    from dsv3_plugin.stages import pretrain

    def stage(run):
        *first, metrics = hooks_of_the_page()(run)
        assert type(first[-1]).__name__ == "UpdateSize"
        return dataclasses.replace(pretrain.pretrain(run), hooks=[*first, *more, metrics])

    return stage


def train_with_the_page(rank, recipe, overrides):
    trainer_ranks.train(rank, recipe, overrides, with_the_page(counter()))


def test_each_moment_is_offered_in_order_and_once(recipe, tmp_path):
    overrides = [
        f"directory={tmp_path}/run", *ALONE, "training.eval_interval=2", "checkpoint.interval=2",
    ]  # fmt: skip
    parts = []
    for steps in (3, 4):
        (tmp_path / str(steps)).mkdir()
        stop = [f"megatron_args.exit-interval={steps}"] if steps == 3 else ["training.steps=4"]
        parts += run_ranks(
            1, train_recorded, recipe, [*overrides, *stop], scratch=tmp_path / str(steps)
        )
    begun, resumed = parts
    moments = [(name, at) for name, at, *_ in begun]
    step = ["before_step", "after_backward", "after_step", "on_log"]
    assert moments == [
        ("on_evaluation", 0),
        *((name, 1) for name in step),
        *((name, 2) for name in step),
        ("on_evaluation", 2),  # and no checkpoint: the hook said no
        *((name, 3) for name in step),
        ("on_save", 3),
    ]
    assert next(entry[2:] for entry in begun if entry[0] == "before_step") == (0, 8)
    assert all(entry[2] for entry in begun if entry[0] == "after_step")
    assert [(name, at) for name, at, *_ in resumed] == [
        ("on_load", 3),
        *((name, 4) for name in step),
        ("on_evaluation", 4),
        ("on_save", 4),
    ]


def test_the_hook_of_the_page_and_one_of_tensors_keep_their_state(recipe, tmp_path):
    folder = tmp_path / "run"
    for part, stop in enumerate(("megatron_args.exit-interval=2", "training.steps=3")):
        (tmp_path / str(part)).mkdir()
        overrides = [f"directory={folder}", stop]
        run_ranks(2, train_with_the_page, recipe, overrides, scratch=tmp_path / str(part))
    steps = [line for line in records(folder) if "loss" in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3]
    sizes = [line["update_size"] for line in steps]
    assert sizes[0] == 0 < min(sizes[1:])  # the learning rate of the first step is 0
    largest = [max(sizes[: n + 1]) for n in range(3)]
    assert [line["largest_update"] for line in steps] == pytest.approx(largest)
    assert [line["counted"] for line in steps] == [2, 4, 6]  # the last rank's, which writes


def two_runs_in_turn(rank, recipe, folders):
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
    from megatron.training.training import destroy_global_state

    from dsv3_plugin.training.run import current_run

    for folder, more in folders:
        trainer_ranks.train(rank, recipe, [f"directory={folder}", *ALONE, *more])
        assert current_run() is None
        destroy_global_state()
        # Upstream's own tables of losses per layer are not part of that.
        MTPLossLoggingHelper.tracker.clear()
        get_moe_metrics_tracker().metrics.clear()


def test_two_runs_in_one_process_do_not_share_state(recipe, tmp_path):
    # The first ends in mid-ramp, with other curves: nothing of it may be left for the second.
    other = ["training.steps=3", "training.seed=7", "curves.mtp_weight=0.2"]
    same = ["training.steps=3"]
    data = [f"data.path={tmp_path}/data"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "in_turn").mkdir()
    alone, first, second = (tmp_path / name for name in ("run0", "run1", "run2"))
    run_ranks(1, two_runs_in_turn, recipe, [(alone, same + data)], scratch=tmp_path / "alone")
    run_ranks(
        1,
        two_runs_in_turn,
        recipe,
        [(first, other), (second, same + data)],
        scratch=tmp_path / "in_turn",
    )
    assert numbers(second) == numbers(alone)
    assert numbers(first) != numbers(alone)
