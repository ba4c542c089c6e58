"""`python -m dsv3_plugin.launch.job WHAT RUN …`: what the script of a job asks on its way.

begin: may the run start once more? It is remembered, and the script ends where it may not.
pick: the nodes of this start, of those that were looked at.
blame: which of them kept the ranks from adding a number up, so that others are picked.
end: what follows the end of the ranks, as one word on standard output.

It ends with exit code 2 where somebody has to mend what it says, 75 where that may be over by
itself.

Sentences go to standard error, and so into the output of the job. What is decided stands in
`launch/starts.py` and `launch/node_verdicts.py`. No torch here.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dsv3_plugin.errors import Passing, UserError
from dsv3_plugin.files.metrics_file import number_in
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import node_verdicts, turn
from dsv3_plugin.launch.ending import closing_sentence, is_done
from dsv3_plugin.launch.job_record import is_asked_to_stop
from dsv3_plugin.launch.node_verdicts import Verdict
from dsv3_plugin.launch.run_logs import START_MARK, log_ends
from dsv3_plugin.launch.starts import (
    NOT_STARTED,
    TRY_AGAIN,
    End,
    next_action,
    refusal,
    remember_end,
    remember_start,
    starts_of,
)
from dsv3_plugin.launch.status import LAUNCHED
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.terminal.lines import note, say

_SHOWN_LINES = 12
"""Of the log of the rank that failed first."""


def job_number(environment: Mapping[str, str]) -> str:
    """Slurm's number of this job; of an array's task, as squeue writes it.

    Raises:
        UserError: it is none.
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    if "SLURM_JOB_ID" not in environment:
        raise UserError("SLURM_JOB_ID is not set: this belongs into the script of a job of Slurm.")
    return environment["SLURM_JOB_ID"]


def begin(recipe: Recipe, job: str, restarts: int) -> None:
    """Remember a start of the run, once nobody else is in its folder.

    Where somebody stays there beyond the time that a rank waits for lost ones, it was a start that
    failed, and another follows as after any failure.

    Raises:
        UserError: there may be none.
    """
    run = recipe.run_folder
    turn.refuse_another_job(run, job, turn.SEEN_S)
    while True:
        held = turn.wait_for_folder(
            run, turn.patience_s(recipe), note, lambda: is_asked_to_stop(run)
        )
        if is_asked_to_stop(run):
            raise UserError(f"the run in {run.root} was cancelled: dsv3 launch starts it again.")
        before, step = starts_of(run, job), run.steps_saved()
        if sentence := refusal(before, step, restarts):
            if before[-1].ended == "failed" and not before[-1].why.startswith(sentence):
                why = before[-1].why.partition(";")[0].rstrip(".")
                sentence += f" (it ended last with: {why})"
            remember_end(run, job, "failed", sentence)
            raise UserError(f"{recipe.name}: {sentence}.")
        remember_start(run, job, step)
        if held is None:
            break
        why = f"{held.holder} holds {held.folder} still."
        remember_end(run, job, "failed", why)
        note(f"dsv3: {why}")
    node_verdicts.forget(run.root)
    which = f"restart {len(before)}" if before else "first start"
    note(f"{START_MARK}{recipe.name} in {run.root}: {which}, {_saved(step)} ---")


def pick(run: Path, nodes: list[str], needed: int) -> tuple[str, ...]:
    """The nodes that the run starts on.

    Raises:
        Passing: none gave a sign: Slurm has not begun to look at them, or what they share fails.
        UserError: too few are well; it names the others.
    """
    node_verdicts.forget_ranks(run)
    if not node_verdicts.gave_signs(run, nodes):
        raise Passing(f"none of the nodes {','.join(nodes)} gave a sign when they were looked at.")
    choice = node_verdicts.choose(run, nodes, needed)
    if choice.broken:
        node_verdicts.remember_broken(run, choice.broken)
    left_out = [f"{node} ({'; '.join(why)})" for node, why in choice.left_out.items()]
    for words in left_out:
        note(f"dsv3: left out: node {words}.")
    if not choice.nodes:
        well = len(nodes) - len(left_out)
        raise UserError(
            f"{well:,} of {number_of(len(nodes), 'node')} passed their check and the run takes "
            f"{needed:,}: "
            f"{', '.join(left_out)}; have them mended, or submit again with "
            f'launch.options: ["--exclude={",".join(choice.left_out)}"] in the cluster\'s file, or '
            "with launch.spares."
        )
    return choice.nodes


def blame(run: Path, nodes: list[str], ranks_per_node: int) -> None:
    """Count nodes as not well whose ranks kept the others from adding a number up.

    Raises:
        Passing: it cannot be told which: it was the same on all.
    """
    fault = node_verdicts.at_fault(run, nodes, ranks_per_node)
    if not fault:
        raise Passing(
            f"the ranks on {','.join(nodes)} could not add a number up, on no node: look at the "
            "network between them, and at NCCL's settings in the cluster's file."
        )
    for node, why in fault.items():
        node_verdicts.remember(run, node, Verdict(own=(why,)))


def end(recipe: Recipe, job: str, code: int, *, time_is_up: bool, by_slurm: bool) -> str:
    """Remember how the ranks ended; what the job does next."""
    run = recipe.run_folder
    starts = starts_of(run, job)
    began = starts[-1].began if starts else 0.0
    ended, action = next_action(
        code,
        done=is_done(recipe),
        wanted=not is_asked_to_stop(run),
        time_is_up=time_is_up,
        by_slurm=by_slurm,
        # Not by their numbers: the steps before it that were not saved stand there too.
        moved=any((number_in(record, "time") or 0) >= began for record in run.metrics.stream()),
    )
    said = starts[-1].why if starts and starts[-1].ended == "failed" else ""
    why = said or sentence_of(ended, recipe, code)
    remember_end(run, job, ended, why)
    if ended != "done" and not said:  # which the run, or the choice of its nodes, has said itself
        note(f"dsv3: {why}")
    if ended == "failed" and not said:
        show_first_failure(run)
    return action


def sentence_of(ended: End, recipe: Recipe, code: int) -> str:
    """How a start ended, for people."""
    saved = recipe.run_folder.steps_saved()
    match ended:
        case "done":
            return closing_sentence(recipe)
        case "time limit":
            return f"The job's time is nearly over: {_saved(saved)}."
        case "stopped":
            return f"Stopped: {_saved(saved)}."
        case "refused":
            return "The run did not begin: see the sentence above, which somebody has to mend."
        case "failed":
            from_where = f"the checkpoint of step {saved:,}" if saved else "the beginning"
            how = "were not started" if code == NOT_STARTED else f"ended with exit code {code}"
            return f"The ranks {how}; the run goes on from {from_where}."


def _saved(step: int) -> str:
    """Of which step the newest checkpoint is."""
    return f"step {step:,} is saved" if step else "nothing is saved yet"


def show_first_failure(run: RunFolder) -> None:
    """The lines of the rank that failed first, in the output of the job."""
    try:
        failed = [end for end in log_ends(run) if end.title.endswith("(failed)")]
    except UserError:  # nothing was printed
        return
    for log in failed[:1]:
        note(f"== {log.title}: {log.file}")
        for line in log.lines[-_SHOWN_LINES:]:
            note(line)


def main() -> None:
    """Answer the script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("begin", "pick", "blame", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("code", type=int, nargs="?", default=0)
    parser.add_argument("--restarts", type=int)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--of", type=lambda text: text.split(","))
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--time-is-up", action="store_true")
    parser.add_argument("--by-slurm", action="store_true")
    given = parser.parse_args()
    recipe, job = load_recipe(given.run / "launch" / LAUNCHED), job_number(os.environ)
    if given.what in ("pick", "blame") and is_asked_to_stop(recipe.run_folder):
        why = "Cancelled while its nodes were looked at."
        remember_end(recipe.run_folder, job, "stopped", why)
        raise UserError(why)
    try:
        if given.what == "pick":
            say(",".join(pick(given.run, given.of, given.nodes)))
        elif given.what == "blame":
            blame(given.run, given.of, given.ranks)
    except UserError as error:
        ended: End = "failed" if isinstance(error, Passing) else "refused"
        remember_end(recipe.run_folder, job, ended, str(error))
        raise
    if given.what == "begin":
        begin(recipe, job, given.restarts)
    elif given.what == "end":
        how = {"time_is_up": given.time_is_up, "by_slurm": given.by_slurm}
        say(end(recipe, job, given.code, **how))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        note(f"dsv3: {error}")
        sys.exit(TRY_AGAIN if isinstance(error, Passing) else 2)
