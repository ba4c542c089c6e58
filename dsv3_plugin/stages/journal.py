"""Answers of rounds on the disk, as soon as they are there, so that they are made once.

A checkpoint is written now and then, and the steps behind it are taken again by a run that was
killed. Everything is seeded, so they come to the same weights, and answers to the same prompts
would be the same: they are read in place of being made, from a file for each time that prompts were
asked.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3_plugin.files.atomic import replacing
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.planner.journal import OF_PROMPT, OF_TOKEN, of_expert
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.round_numbers import Costs

_DECIDE = ("from", "model", "precision", "optimizer", "curves", "grpo", "rewards", "router", "mtp")
"""Sections of a recipe from which answers follow, beside those of which a part does."""
_WHO = (
    "kind", "url", "model", "key_variable", "update", "bucket_gb", "folder", "at_once", "seconds",
    "outage", "drafts", "cache_gb", "tokens_in_step", "held_out_n",
)  # fmt: skip
"""Of rollouts: by whom they are made, and how."""
_TIMES = ("log_interval", "eval_interval", "eval_steps")
"""Of training: when something is said."""
_PER_TOKEN = {name: getattr(torch, kind) for name, kind in OF_TOKEN.items()}
_OF_PROMPT = getattr(torch, OF_PROMPT)


class Journal:
    """Of a run; all ranks call each method.

    Args:
        recipe: the run's.
        folder: of the run.
        tell: takes a sentence for the person.
    """

    def __init__(self, recipe: Rl, folder: RunFolder, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        self._settings = settings_of(recipe)
        self._told = False

    def read(
        self, step: int, number: int, asked: Sequence[Sequence[int]], version: int
    ) -> tuple[list[Group], Costs] | None:
        """The answers that were made for a round before the run ended; None: none are there.

        Args:
            step: that begins with the round.
            number: how often prompts were asked for it before.
            asked: token ids of each of these, and of its answers that are gone on with.
            version: of the weights that answer.
        """
        found: list[dict[str, Any] | None] = [None]
        if dist.get_rank() == 0:
            state = _read(self._file(step, number))
            same = state is not None and state["of"] == self._of(asked, version)
            found = [state if same else None]
        device = torch.device(torch.cuda.current_device())
        dist.broadcast_object_list(found, src=0, device=device)
        if found[0] is None:
            return None
        if not self._told and dist.get_rank() == 0:
            self._tell(
                f"From step {step:,} on answers that were made before the run ended are taken up "
                f"from {self._folder.rollouts}, and not made again."
            )
        self._told = True
        return groups_of(found[0]["groups"]), Costs(**found[0]["costs"])

    def keep(
        self,
        step: int,
        number: int,
        asked: Sequence[Sequence[int]],
        version: int,
        groups: Sequence[Group],
        costs: Costs,
    ) -> None:
        """Write what was answered, and remove what no run goes on with: see `read`."""
        if dist.get_rank() != 0:
            return
        state = {
            "of": self._of(asked, version), "groups": state_of(groups), "costs": asdict(costs)
        }  # fmt: skip
        self._folder.rollouts.mkdir(exist_ok=True)
        saved = self._folder.steps_saved()
        for path in self._folder.rollouts.glob("step_*.pt"):
            if int(path.name.split("_")[1]) <= saved:  # a checkpoint has what is left of them
                path.unlink()
        with replacing(self._file(step, number)) as file:
            torch.save(state, file)

    def forget(self, step: int) -> None:
        """Have the answers of a round made again, whoever goes on."""
        if dist.get_rank() == 0:
            for path in self._folder.rollouts.glob(f"step_{step:07d}_*.pt"):
                path.unlink()

    def _of(self, asked: Sequence[Sequence[int]], version: int) -> str:
        """What answers are of: the same whenever they would be made again."""
        return _digest([self._settings, version, [[*tokens] for tokens in asked]])

    def _file(self, step: int, number: int) -> Path:
        return self._folder.rollouts / f"step_{step:07d}_{number}.pt"


def settings_of(recipe: Rl) -> str:
    """A digest of what decides in a recipe which answers are made, and what they are worth."""
    data = recipe.model_dump(mode="json", by_alias=True)
    said = {key: data.get(key) for key in _DECIDE}
    for section, without in (("rollouts", _WHO), ("training", _TIMES)):
        said[section] = {key: value for key, value in data[section].items() if key not in without}
    return _digest(said)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """A file of ours; None where there is none, or something else."""
    try:
        state = torch.load(path, weights_only=True)
        return state if isinstance(state, dict) and "of" in state else None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
        return None


def state_of(groups: Sequence[Group]) -> dict[str, Any]:
    """Groups as a file has them: what there is of each token in one tensor, read at once."""
    answers = [answer for group in groups for answer in group.answers]
    rollouts = [answer.rollout for answer in answers]
    flat = {
        name: torch.cat(
            [torch.tensor([], dtype=dtype)]
            + [torch.tensor(getattr(one, name), dtype=dtype) for one in rollouts]
        )
        for name, dtype in (_PER_TOKEN | {"prompt": _OF_PROMPT}).items()
    }
    return flat | {
        "lengths": [len(rollout.tokens) for rollout in rollouts],
        "prompt_lengths": [len(rollout.prompt) for rollout in rollouts],
        "experts": [_narrowed(rollout.experts) for rollout in rollouts],
        "finish_reasons": [rollout.finish_reason for rollout in rollouts],
        "answers": [_without_rollout(answer) for answer in answers],
        "of_prompts": [
            {"prompt": group.prompt, "expected": group.expected, "where": group.where,
             "answers": len(group.answers)}
            for group in groups
        ],
    }  # fmt: skip


def _narrowed(experts: Tensor | None) -> Tensor | None:
    """Numbers of experts in the smallest kind that has room for them."""
    if experts is None:
        return None
    highest = int(experts.max()) if experts.numel() else 0
    return experts.to(getattr(torch, of_expert(highest + 1)))


def _without_rollout(answer: Scored) -> dict[str, Any]:
    own = asdict(replace(answer, rollout=None))
    del own["rollout"]
    return own | {"parts": dict(answer.parts), "problems": dict(answer.problems)}


def groups_of(state: Mapping[str, Any]) -> list[Group]:
    """What `state_of` has written."""
    rollouts = _rollouts(state)
    answers = (
        Scored(rollout=rollout, **answer)
        for rollout, answer in zip(rollouts, state["answers"], strict=True)
    )
    return [
        Group(
            one["prompt"],
            one["expected"],
            one["where"],
            tuple(next(answers) for _ in range(one["answers"])),
        )
        for one in state["of_prompts"]
    ]


def _rollouts(state: Mapping[str, Any]) -> Iterator[Rollout]:
    of_tokens = zip(*(_parts(state[name], state["lengths"]) for name in _PER_TOKEN), strict=True)
    prompts = _parts(state["prompt"], state["prompt_lengths"])
    for (tokens, log_probs, versions), prompt, reason, experts in zip(
        of_tokens, prompts, state["finish_reasons"], state["experts"], strict=True
    ):
        wide = None if experts is None else experts.to(torch.int32)
        yield Rollout(prompt, tokens, log_probs, reason, versions, wide)


def _parts(flat: Tensor, lengths: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """A tensor cut again."""
    values = flat.tolist()
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    for begin, end in pairwise(ends):
        yield tuple(values[begin:end])
