"""Upstream's training functions, wrapped once for the run's hooks.

Each wrapper takes its arguments as upstream does and, where no run of ours trains in this process,
is upstream's function and nothing else.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from megatron.core import num_microbatches_calculator
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args, training
from megatron.training.async_utils import is_empty_async_queue

from dsv3_plugin.errors import UserError
from dsv3_plugin.files import full_disk
from dsv3_plugin.training.hooks import Step
from dsv3_plugin.training.lost_rank import wait_for_ranks
from dsv3_plugin.training.run import Run, current_run

Function = Callable[..., Any]


def _during_a_run(
    around: Callable[[Run, dict[str, Any], Callable[..., Any]], Any],
) -> Callable[[Function], Function]:
    """Makes `around` the wrapper of an upstream function while a run trains.

    `around` gets the run, the function's arguments by upstream's names, and the call to make, which
    takes others in their place.
    """

    @functools.wraps(around)
    def wrap(original: Function) -> Function:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            run = current_run()
            if run is None:
                return original(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()

            def proceed(**other: Any) -> Any:
                return original(**given.arguments | other) if other else original(*args, **kwargs)

            return around(run, given.arguments, proceed)

        return wrapped

    return wrap


@_during_a_run
def train(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `train`: a run that begins is evaluated before its first step.

    Where fine-tuning starts, and what training gained, are both told by that number.
    """
    wait_for_ranks(run.recipe)
    _evaluate_before_the_first(given)
    return proceed()


def _evaluate_before_the_first(given: dict[str, Any]) -> None:
    settings = get_args()
    if settings.iteration == 0 and settings.do_valid:
        training.evaluate_and_print_results(
            "iteration 0",
            given["forward_step_func"],
            given["valid_data_iterator"],
            given["model"],
            0,
            given["process_non_loss_data_func"],
            given["config"],
            pg_collection=given["pg_collection"],
            p2p_communicator=given["p2p_communicator"],
        )


@_during_a_run
def update_num_microbatches(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `update_num_microbatches`, which `train` calls twice before a step.

    First to look whether the batch grows, and if it does, `train` saves, which nobody has asked
    for; then, with a check, to go on with the batch.
    """
    answer = proceed()
    run.batch_may_grow = not given["consistency_check"]
    return answer


@_during_a_run
def train_step(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `train_step`: hooks before and after it."""
    settings = get_args()
    micro_batches = get_num_microbatches()
    sequences = settings.micro_batch_size * settings.data_parallel_size
    run.step = step = Step(
        iteration=settings.curr_iteration + 1,
        tokens=settings.consumed_train_samples * run.recipe.data.seq_length,
        batch_size=micro_batches * sequences,
        micro_batches=micro_batches,
        model=given["model"],
        optimizer=given["optimizer"],
        config=given["config"],
    )
    run.place = f"step {step.iteration:,}"
    for hook in run.hooks:
        hook.before_step(step)
    with _micro_batches_of(step):
        answer = proceed()
    for hook in run.hooks:
        hook.after_step(step)
    return answer


@contextlib.contextmanager
def _micro_batches_of(step: Step) -> Iterator[None]:
    """Let upstream see as many micro-batches as a step has."""
    calculator = num_microbatches_calculator._GLOBAL_NUM_MICROBATCHES_CALCULATOR
    planned, calculator.num_micro_batches = calculator.num_micro_batches, step.micro_batches
    try:
        yield
    finally:
        calculator.num_micro_batches = planned


@_during_a_run
def finalize_model_grads(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `finalize_model_grads`, which every schedule calls after its last backward."""
    answer = proceed()
    for hook in run.hooks:
        hook.after_backward(run.step)
    return answer


@_during_a_run
def training_log(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `training_log`, which upstream calls after every step."""
    with _micro_batches_of(run.step):  # over which it takes means
        answer = proceed()
    for hook in run.hooks:
        hook.on_log(run.step)
    return answer


@_during_a_run
def evaluate_and_print_results(
    run: Run, given: dict[str, Any], proceed: Callable[..., Any]
) -> None:
    """Around `evaluate_and_print_results`: the same weights are evaluated once, and on each set.

    Upstream evaluates once more when training has ended, be it after a step that was evaluated.
    What it is given to read has an evaluation's batches of each set in turn (`data.evaluated`).
    """
    iteration = given["iteration"]
    if iteration == run.evaluated:
        return
    recipe = run.recipe
    with run.at(f"the evaluation after step {iteration:,}"):
        if recipe.data.held_out or not recipe.data.held_out_sets:
            proceed()
        for hook in run.hooks:
            hook.on_evaluation(iteration)
        for name in recipe.data.held_out_sets:
            with _of_one_set(name):
                proceed(data_iterator=[given["data_iterator"]])
            for hook in run.hooks:
                hook.on_held_out_set(iteration, name)
    run.evaluated = iteration


@contextlib.contextmanager
def _of_one_set(name: str) -> Iterator[None]:
    """Upstream's settings for an evaluation whose lines are to have a name."""
    settings = get_args()
    own = {
        "multiple_validation_sets": True,
        "validation_set_names": [name],
        "eval_iters": [settings.eval_iters],
    }
    before = {key: getattr(settings, key) for key in own}
    vars(settings).update(own)
    try:
        yield
    finally:
        vars(settings).update(before)


@_during_a_run
def save_checkpoint(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `save_checkpoint`: hooks say whether, and hear when it is whole.

    Upstream also saves each time the batch has grown, a hundred times in DeepSeek-V3's ramp: that
    is left out. Whatever asks for a save (interval, signal, end) does so at another moment.

    Raises:
        UserError: the disk is full.
    """
    iteration = given["iteration"]
    if run.batch_may_grow or iteration == run.unfinished:
        return None
    if not all(hook.wants_save(iteration) for hook in run.hooks):
        return None
    # One at a time, which bounds the host memory that copies take.
    training.maybe_finalize_async_save(blocking=True)
    run.saving_here = True
    try:
        with run.at(f"the checkpoint of step {iteration:,}"), _writing(run, iteration):
            answer = proceed()
    finally:
        run.saving_here = False
    if get_args().async_save:
        run.unfinished = iteration
    else:
        _tell_whole(run, iteration)
    return answer


@_during_a_run
def maybe_finalize_async_save(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `maybe_finalize_async_save`, which upstream calls before each step and at the end.

    The tensors of a checkpoint may have been written since, on all ranks; here it becomes whole.

    Raises:
        UserError: the disk was full.
    """
    iteration = run.unfinished
    if iteration is None:
        return proceed()
    waits = given["blocking"]
    place = run.at(f"the checkpoint of step {iteration:,}") if waits else contextlib.nullcontext()
    with place, _writing(run, iteration):
        answer = proceed()
    if is_empty_async_queue():
        run.unfinished = None
        _tell_whole(run, iteration)
    return answer


@contextlib.contextmanager
def _writing(run: Run, iteration: int) -> Iterator[None]:
    """A full disk in the block becomes a sentence."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if full_disk.is_full(error, run.recipe.checkpoint_folder):
            raise UserError(
                f"no space left for the checkpoint of step {iteration} in "
                f"{run.recipe.checkpoint_folder}: make room and start again; the run goes on "
                f"from the checkpoint before."
            ) from error
        raise


def _tell_whole(run: Run, iteration: int) -> None:
    for hook in run.hooks:
        hook.on_save(iteration)


@_during_a_run
def generate_state_dict(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `generate_state_dict`: what hooks keep is part of the checkpoint."""
    state = proceed()
    if kept := {hook.name: held for hook in run.hooks if (held := hook.state_dict())}:
        state[_HOOKS] = kept
    return state


@_during_a_run
def load_base_checkpoint(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `_load_base_checkpoint`: holds what hooks kept until everything is loaded."""
    answer = proceed()
    state_dict = answer[0]
    run.loaded = (state_dict or {}).get(_HOOKS, {})
    return answer


@_during_a_run
def load_checkpoint(run: Run, given: dict[str, Any], proceed: Callable[[], Any]) -> Any:
    """Around `load_checkpoint`: hooks take up their state, and hear where the run goes on."""
    answer = proceed()
    iteration = answer[0]
    if iteration > 0:  # 0: weights alone, or no checkpoint at all
        for hook in run.hooks:
            if hook.name in run.loaded:
                hook.load_state_dict(run.loaded[hook.name])
            hook.on_load(iteration)
    return answer


_HOOKS = "dsv3_plugin_hooks"
"""Under this key a checkpoint's state has what hooks keep, by their names."""
