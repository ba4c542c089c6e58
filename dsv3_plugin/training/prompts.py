"""The prompts of a run: read by every rank, looked at by the first before the world trains."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dsv3_plugin.checkpoint import tracker, trained_on
from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.data.tokenizer import TextTokenizer, check_fits, open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside
from dsv3_plugin.files.named import named
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked, asked_by
from dsv3_plugin.rollouts.curriculum import Curriculum
from dsv3_plugin.rollouts.judging import Judging
from dsv3_plugin.rollouts.order import Order
from dsv3_plugin.rollouts.prompts import read_prompts
from dsv3_plugin.training import parent
from dsv3_plugin.training.changed_settings import other_numbers
from dsv3_plugin.training.checkpoint_folder import write_description
from dsv3_plugin.training.prepare import begin, go_on
from dsv3_plugin.training.resume import refuse_another_model, refuse_what_does_not_go_on
from dsv3_plugin.training.run import Run


@dataclass(frozen=True)
class PromptData:
    """What a run asks, by the tokenizer in a folder.

    Attributes:
        tokenizer_dir: with the chat template.
        members: the prompts of each member of the mixture.
        weights: of these.
        held_out: prompts by the names of their sets.
        left_out: what is not asked, a sentence each.
    """

    tokenizer_dir: Path
    members: tuple[list[Asked], ...]
    weights: tuple[float, ...]
    held_out: Mapping[str, list[Asked]]
    left_out: tuple[str, ...]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """By which answers are read."""
        return open_tokenizer(self.tokenizer_dir)

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return end_ids(self.tokenizer_dir, self.tokenizer.eos_id)

    @property
    def tokenizer_digest(self) -> str:
        """Of how texts become tokens."""
        return self.tokenizer.digest

    @property
    def corpus_digest(self) -> str:
        """Of what is asked, in its order."""
        rows = [[one.prompt.row for one in member] for member in self.members]
        text = json.dumps([rows, self.weights], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def order(self, recipe: Rl) -> Order:
        """In which they are asked."""
        seed, wanted = recipe.training.seed, recipe.rollouts.curriculum
        curriculum = wanted and Curriculum(wanted.low, wanted.high, wanted.again, seed)
        return Order(self.members, self.weights, seed, curriculum)


def prompts_of(recipe: Rl, tokenizer: Path) -> PromptData:
    """The prompts that a recipe names, as a tokenizer's folder has them asked.

    Raises:
        UserError: whatever is wrong with them, or with the template.
    """
    data, longest = recipe.data, recipe.rollouts.max_prompt_tokens
    opened = open_tokenizer(tokenizer)
    check_fits(opened, recipe.model.vocab_size, recipe.model.name)
    written = None if data.template is None else named(data.template)
    template = open_template(tokenizer, written, data.template_arguments, "all")
    names = Judging.of(recipe).names
    sentences: list[str] = []

    def read(paths: tuple[str, ...], what: str) -> list[Asked]:
        tally = Tally()
        found = read_prompts(paths, names, on_bad_row=data.on_bad_row, left_out=tally)
        asked = asked_by(found, opened, template, longest, tally)
        if tally.all():
            sentences.append(f"Not asked of {what}: {tally}.")
        return asked

    drawn = [member for _, member in corpora.drawn_from(data.corpus)]
    members = tuple(read(member.names, str(member)) for member in drawn)
    sentences += asked_twice([str(member) for member in drawn], members)
    weights = tuple(
        float(len(asked)) if member.weight is None else member.weight
        for member, asked in zip(drawn, members, strict=True)
    )
    held_out = {
        name: read((path,), f"held-out set {name}") for name, path in data.held_out_sets.items()
    }
    asked_in_training = {one.prompt.key: one for member in members for one in member}
    for name, asked in held_out.items():
        for one in asked:
            if (other := asked_in_training.get(one.prompt.key)) is not None:
                raise UserError(
                    f"{one.prompt.where}, of held-out set {name}, is {other.prompt.where} as well: "
                    f"take what is trained on out of it."
                )
    return PromptData(tokenizer, members, weights, held_out, tuple(sentences))


def asked_twice(names: Sequence[str], members: Sequence[Sequence[Asked]]) -> Iterator[str]:
    """Of each member of a mixture, how many of its prompts others before it have as well: within a
    member they are left out, and of several each is asked as often as its weight says.

    Args:
        names: of the members.
        members: their prompts.
    """
    first: dict[object, str] = {}
    for name, asked in zip(names, members, strict=True):
        twice = Counter(first[one.prompt.key] for one in asked if one.prompt.key in first)
        for other, count in twice.items():
            yield (
                f"Asked of {name} and of {other} as well: {number_of(count, 'prompt', 'prompts')}."
            )
        first |= {one.prompt.key: name for one in asked if one.prompt.key not in first}


def prepare_prompts(run: Run, tell: Callable[[str], None]) -> None:
    """Put the folders of a run in order, and look at its prompts: see `prepare.prepare`."""
    recipe = run.recipe
    refuse_another_model(recipe)
    weights, saved = begin(run, tell)
    resumed = saved is not None and not saved.release
    data = prompts_of(recipe, inside(weights, TOKENIZER))
    if resumed:
        _refuse_other_prompts(recipe, data)
    changed = other_numbers(recipe) if resumed else []
    write_description(recipe, data, weights)
    go_on(run, saved, changed, tell)
    for sentence in data.left_out:
        tell(sentence)


def look_at_prompts(recipe: Rl, tell: Callable[[str], None]) -> None:
    """Read the prompts of a run as it would before its first step, say how many there are, and
    leave everything as it is.

    Raises:
        UserError: whatever is wrong with them, or with what the run begins or goes on with.
    """
    refuse_what_does_not_go_on(recipe)
    saved = tracker.newest_complete(recipe.checkpoint_folder)
    if saved is not None:
        folder = inside(recipe.checkpoint_folder, TOKENIZER)
    else:
        begins_with = parent.find(recipe.from_)
        parent.refuse_another(begins_with, recipe.model)
        imported = begins_with.saved is None  # is written as the run's own when it begins
        folder = begins_with.folder if imported else inside(begins_with.folder, TOKENIZER)
    data = prompts_of(recipe, folder)
    if saved is not None and not saved.release:
        _refuse_other_prompts(recipe, data)
    drawn = [str(member) for _, member in corpora.drawn_from(recipe.data.corpus)]
    for what, asked in (
        *zip(drawn, data.members, strict=True),
        *((f"held-out set {name}", asked) for name, asked in data.held_out.items()),
    ):
        tell(f"{number_of(len(asked), 'prompt')} of {what}.")
    for sentence in data.left_out:
        tell(sentence)


def _refuse_other_prompts(recipe: Rl, data: PromptData) -> None:
    before = trained_on.read(recipe.checkpoint_folder)
    if before is not None and before.corpus != data.corpus_digest:
        raise UserError(
            f"the prompts are others than those that {recipe.checkpoint_folder} was trained on: "
            f"put those back, or start a run in another folder with directory=PATH."
        )
