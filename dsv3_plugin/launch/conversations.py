"""The conversations of a run are built and counted before its steps are asked for.

How many steps some epochs are depends on how many sequences the conversations fill. So `dsv3 train`
has that found out by a process of its own, `python -m dsv3_plugin.launch.conversations RECIPE
[key=value …]`, and reads the recipe after it. A run that goes on has all that already.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from dsv3_plugin.data.progress import Progress
from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe.load import stage_of
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sft import Sft
from dsv3_plugin.terminal.lines import note

_ANY_NUMBER = f"data.sequences={10**9}"
"""In place of the one that is looked for: more than there will be, since a curve may have pieces of
some steps before those of an epoch."""


@dataclass(frozen=True)
class Counted:
    """How the counting ended.

    Attributes:
        code: the exit code; 0 where there is nothing to count, too.
        said: the sentences that the person has read by then.
    """

    code: int = 0
    said: frozenset[str] = frozenset()


def count_first(name: str, overrides: list[str], machine: Machine) -> Counted:
    """Have conversations built and counted, where a recipe's steps depend on them.

    Raises:
        UserError: the recipe is wrong.
    """
    if stage_of(name, overrides) is not Sft:
        return Counted()
    recipe = uncounted(name, overrides, machine)
    if recipe.training.epochs is None or recipe.run_folder.steps_saved():
        return Counted()
    command = [sys.executable, "-W", "ignore", "-m", __name__, name, *overrides]
    said = set()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            note(line.rstrip("\n"))
            said.add(line.rstrip("\n"))
    return Counted(process.returncode, frozenset(said))


def prepare_data(
    name: str,
    overrides: list[str],
    tell: Callable[[str], None],
    progress: Progress | None = None,
    *,
    begins: bool = False,
) -> None:
    """Build the data of a recipe, as its run would, and count its conversations; look at its
    prompts. On a CPU.

    Args:
        tell: takes a sentence for the person.
        progress: told after every document.
        begins: whether its run begins with it, and is seen to prepare them.

    Raises:
        UserError: for whatever is wrong with the recipe or the data.
    """
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()

    from dsv3_plugin.training import prepare
    from dsv3_plugin.training.conversations import conversation_notes
    from dsv3_plugin.training.run import Run

    machine = Machine.here()
    recipe = uncounted(name, overrides, machine)
    if isinstance(recipe, Rl):  # its prompts are read when it begins, and nothing is built of them
        from dsv3_plugin.training.prompts import look_at_prompts

        look_at_prompts(recipe, tell)
        return
    with recipe.run_folder.held(), recipe.run_folder.preparing() if begins else nullcontext():
        data, _, _ = prepare.prepare_data(Run(recipe, recipe.run_folder, machine), tell, progress)
        tell(f"The data are in {recipe.data_folder}: {data.train_tokens:,} tokens.")
        if isinstance(recipe, Sft):
            for sentence in conversation_notes(recipe, data):
                tell(sentence)


def uncounted(name: str, overrides: list[str], machine: Machine) -> Recipe:
    """A recipe of which all is known but how many sequences its conversations fill."""
    counts = [_ANY_NUMBER] if stage_of(name, overrides) is Sft else []
    return load_resolved(name, [*overrides, *counts], machine)


if __name__ == "__main__":
    try:
        prepare_data(sys.argv[1], sys.argv[2:], note, begins=True)
    except UserError as error:
        note(f"dsv3: {error}")
        sys.exit(2)
