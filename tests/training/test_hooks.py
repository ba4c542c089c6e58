"""Hooks: called at their moments, in order, with their state in the checkpoint."""

import dataclasses
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


def train_with(rank, recipe, overrides, kind):
    hook = recorder() if kind == "recorder" else hook_of_the_page()()
    trainer_ranks.train(rank, recipe, overrides, with_hooks(hook))
    return getattr(hook, "seen", None)


def test_each_moment_is_offered_in_order_and_once(recipe, tmp_path):
    overrides = [
        f"directory={tmp_path}/run", *ALONE, "training.eval_interval=2", "checkpoint.interval=2",
    ]  # fmt: skip
    parts = []
    for steps in (3, 4):
        (tmp_path / str(steps)).mkdir()
        stop = [f"megatron_args.exit-interval={steps}"] if steps == 3 else ["training.steps=4"]
        parts += run_ranks(
            1, train_with, recipe, [*overrides, *stop], "recorder", scratch=tmp_path / str(steps)
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


def test_the_hook_of_the_page_tells_its_numbers_and_keeps_its_state(recipe, tmp_path):
    folder = tmp_path / "run"
    for part, stop in enumerate(("megatron_args.exit-interval=2", "training.steps=3")):
        (tmp_path / str(part)).mkdir()
        overrides = [f"directory={folder}", *ALONE, stop]
        run_ranks(1, train_with, recipe, overrides, "page", scratch=tmp_path / str(part))
    steps = [line for line in records(folder) if "loss" in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3]
    sizes = [line["update_size"] for line in steps]
    assert sizes[0] == 0 < min(sizes[1:])  # the learning rate of the first step is 0
    largest = [max(sizes[: n + 1]) for n in range(3)]
    assert [line["largest_update"] for line in steps] == pytest.approx(largest)


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
    (tmp_path / "turns").mkdir()
    alone, first, second = (tmp_path / name for name in ("run0", "run1", "run2"))
    run_ranks(1, two_runs_in_turn, recipe, [(alone, same + data)], scratch=tmp_path / "alone")
    run_ranks(
        1,
        two_runs_in_turn,
        recipe,
        [(first, other), (second, same + data)],
        scratch=tmp_path / "turns",
    )
    assert numbers(second) == numbers(alone)
    assert numbers(first) != numbers(alone)
