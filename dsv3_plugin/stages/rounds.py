"""A round of reinforcement learning: prompts, answers, rewards, advantages, and the steps that are
trained on them."""

import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.errors import SaidElsewhere, UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.grpo.aggregation import token_weights
from dsv3_plugin.grpo.mismatch import Mismatch, together
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.groups import Group, advantages
from dsv3_plugin.rollouts.rows import Text
from dsv3_plugin.stages import log_probs
from dsv3_plugin.stages.draws import Drawn, Draws
from dsv3_plugin.stages.learning import Learning
from dsv3_plugin.stages.packed_answers import micro_batches_of
from dsv3_plugin.stages.reference import Reference
from dsv3_plugin.stages.round_numbers import numbers_of
from dsv3_plugin.stages.unended import Unended
from dsv3_plugin.stages.unjudged import Unjudged
from dsv3_plugin.training.feed import Feed
from dsv3_plugin.training.hooks import Hook, Step
from dsv3_plugin.training.run import Run

_SILENT_ROUNDS = 10
"""Rounds without different rewards, behind which a person is told."""


@dataclass
class MiniBatch:
    """What an optimizer step is trained on.

    Attributes:
        texts: answers behind their prompts.
        advantages: of each.
        first: whether it is the first of its round.
        age: steps that the round's first one is later than the oldest weights that the answers are
            from.
    """

    texts: list[Text]
    advantages: list[float]
    first: bool
    age: int = 0


class Rounds(Hook):
    """Has the model answer when answers are used up, and gives each step its part of them.

    First in the list: a step's time includes that of its answers.

    Args:
        run: the run.
        draws: answers.
        learning: what the loss computes with.
        feed: where the model reads.
    """

    def __init__(self, run: Run, draws: Draws, learning: Learning, feed: Feed) -> None:
        self._run, self._draws, self._learning, self._feed = run, draws, learning, feed
        self._recipe: Rl = run.recipe
        self._reference = Reference(run.folder, self._recipe.grpo.reference_interval)
        self._waiting: deque[MiniBatch] = deque()
        self._silent = 0
        self._unjudged, self._unended = Unjudged(), Unended()
        self._warned = False
        self._mini: MiniBatch | None = None
        self._later: tuple[Mismatch, int] | None = None
        self._began = self._trained_from = 0.0
        self._tokens = 0

    def before_step(self, step: Step) -> None:
        self._began = time.perf_counter()
        if not self._waiting:
            self._begin_round(step)
        self._mini = mini = self._waiting.popleft()
        batches = micro_batches_of(mini.texts, self._recipe)
        lengths = torch.tensor([len(text.answer) for text in mini.texts])
        grpo, longest = self._recipe.grpo, self._recipe.rollouts.max_tokens
        self._learning.begin(
            torch.tensor(mini.advantages),
            token_weights(lengths, grpo.aggregation, longest),
            int(lengths.sum()),
        )
        step.micro_batches = len(batches)
        self._feed.give(batches)
        self._tokens = sum(map(len, mini.texts))
        self._trained_from = time.perf_counter()

    def after_backward(self, step: Step) -> None:
        if self._mini.first:
            self._look_at_mismatch(step)
            self._later = None

    def after_step(self, step: Step) -> None:
        now = time.perf_counter()
        seconds, training = now - self._began, now - self._trained_from
        step.numbers |= self._learning.numbers() | {
            "step_seconds": round(seconds, 4),
            "tokens_per_second": round(self._tokens / max(seconds, 1e-4), 1),
            "rl/training_seconds": round(training, 4),
            "rl/training_tokens_per_second": round(self._tokens / max(training, 1e-4), 1),
        }

    def _begin_round(self, step: Step) -> None:
        """A round of answers, divided into mini-batches; and before it is trained on, the next one
        is asked for, where answers may be older."""
        recipe, draws, version = self._recipe, self._draws, step.iteration - 1
        began = time.perf_counter()
        if not draws.under_way:
            draws.begin(step.model, version, step.iteration)
        drawn = draws.take()
        step.numbers |= numbers_of(drawn.groups, drawn.trained, drawn.costs, drawn.made)
        if draws.order.curriculum is not None:
            step.numbers |= draws.order.curriculum.numbers()
        following = step.iteration + recipe.updates
        if recipe.rollouts.async_:
            waited = time.perf_counter() - began
            step.numbers |= {"rl/age": version - drawn.version, "rl/waited_seconds": waited}
            if following <= recipe.total_steps:
                draws.begin(step.model, version, following)
        age = version - drawn.oldest
        if recipe.rollouts.partial is not None:
            step.numbers |= {"rl/unfinished": drawn.unfinished, "rl/age_max": age}
        self._keep_samples(step.iteration, drawn)
        self._say_silence(drawn.groups)
        self._say_unjudged(step.iteration, drawn.groups)
        self._say_unended(drawn.groups)
        self._waiting.extend(self._divided(step, drawn.trained, age))

    def _divided(self, step: Step, groups: Sequence[Group], age: int) -> list[MiniBatch]:
        recipe, grpo = self._recipe, self._recipe.grpo
        worth = advantages(groups, grpo.advantage) if groups else []
        parts = []
        for number in range(grpo.mini_batches):
            texts, own = [], []
            for group, of_group in zip(
                groups[number :: grpo.mini_batches], worth[number :: grpo.mini_batches], strict=True
            ):
                for answer, advantage in zip(group.answers, of_group, strict=True):
                    if answer.reward is not None:
                        rollout = answer.rollout
                        texts.append(Text.of(rollout))
                        own.append(advantage)
            parts.append(MiniBatch(texts, own, False, age))
        if self._recipe.updates > 1 or grpo.old == "engine":
            self._add_old(step, parts)
        if grpo.kl_weight:
            with self._reference.in_place(step.model, step.iteration):
                # Another model, whose routers choose for it.
                texts = [replace(text, experts=None) for text in _texts(parts)]
                self._add("reference", log_probs.of_texts(step.model, texts, recipe), parts)
        again = [
            MiniBatch(part.texts, part.advantages, False, age)
            for _ in range(grpo.epochs)
            for part in parts
        ]
        again[0].first = True
        return again

    def _add_old(self, step: Step, parts: Sequence[MiniBatch]) -> None:
        """What ratios are taken to, where that is not the model in training."""
        texts = _texts(parts)
        if self._recipe.grpo.old == "engine":
            old = [text.log_probs for text in texts]
        else:
            old = log_probs.of_texts(step.model, texts, self._recipe)
            own = len(parts[0].texts)
            self._later = self._learning.mismatch_of(old[own:], texts[own:])
        self._add("old", old, parts)

    def _add(self, name: str, found: Sequence[Sequence[float]], parts: Sequence[MiniBatch]) -> None:
        each = iter(found)
        for part in parts:
            part.texts = [replace(text, **{name: next(each)}) for text in part.texts]

    def _look_at_mismatch(self, step: Step) -> None:
        found = self._learning.mismatch()
        if self._later is not None:  # what later steps of the round are trained on
            found = together([(found, self._learning.tokens), self._later])
        step.numbers |= {f"rl/mismatch_{name}": value for name, value in asdict(found).items()}
        limit, grpo = self._recipe.mismatch_limit, self._recipe.grpo
        if found.max <= limit or self._mini.age:  # of older weights it differs anyway
            return
        far = (
            f"the engine's log-probabilities differ from the trainer's by up to {found.max:.3g} "
            f"nats (mean {found.mean:.3g}), more than {limit:.3g}"
        )
        rank = dist.get_rank()
        if grpo.on_mismatch == "stop":
            self._draws.forget(step.iteration)
            error = UserError if rank == 0 else SaidElsewhere
            raise error(
                f"step {step.iteration:,}: {far}: the step is not taken. Look for what computes "
                f"otherwise, or set grpo.on_mismatch to correct."
            )
        if not self._warned and rank == 0:
            what = (
                "tokens are weighed by it" if grpo.on_mismatch == "correct" else "go on with care"
            )
            self._run.tell(f"In step {step.iteration:,} {far}: {what}.")
        self._warned = True

    def _say_silence(self, groups: Sequence[Group]) -> None:
        """Tell when rewards have been equal for long: nothing is learned from them."""
        self._silent = 0 if any(group.tells_apart for group in groups) else self._silent + 1
        if self._silent == _SILENT_ROUNDS and dist.get_rank() == 0:
            rewards = [a.reward for g in groups for a in g.answers if a.reward is not None]
            mean = f"mean {sum(rewards) / len(rewards):.3g}" if rewards else "none could be judged"
            self._run.tell(
                f"For {_SILENT_ROUNDS} rounds all answers to a prompt have had equal rewards "
                f"({mean}), from which nothing is learned: take prompts that the model answers now "
                f"and then, more answers (rollouts.n), or look for what is wrong in "
                f"{self._run.folder.samples}."
            )

    def _say_unjudged(self, iteration: int, groups: Sequence[Group]) -> None:
        said = self._unjudged.sentence(groups)
        if said is not None and dist.get_rank() == 0:
            self._run.tell(f"In step {iteration:,} {said}")

    def _say_unended(self, groups: Sequence[Group]) -> None:
        said = self._unended.sentence(groups, self._recipe.rollouts.max_tokens)
        if said is not None and dist.get_rank() == 0:
            self._run.tell(f"{said} ({self._run.folder.samples}).")

    def _keep_samples(self, iteration: int, drawn: Drawn) -> None:
        if dist.get_rank() != 0:
            return
        folder = self._run.folder.samples
        folder.mkdir(exist_ok=True)
        lines = (
            json.dumps(
                {
                    "prompt": group.prompt,
                    "expected": group.expected,
                    "answer": answer.text,
                    "reward": answer.reward,
                    "rewards": answer.parts,
                    **({"problems": answer.problems} if answer.problems else {}),
                    "tokens": len(answer.rollout.tokens),
                    "finish_reason": answer.rollout.finish_reason,
                    "weights": drawn.version,
                    **({"versions": runs_of(answer.rollout.versions)} if drawn.made else {}),
                    "where": group.where,
                },
                ensure_ascii=False,
            )
            for group in drawn.groups
            for answer in group.answers
        )
        text = "".join(f"{line}\n" for line in lines)
        replace_file(folder / f"step_{iteration:07d}.jsonl", text.encode(errors="replace"))

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._draws.state_dict(),
            "silent": self._silent,
            "unended": self._unended.rounds,
            "waiting": [asdict(mini) for mini in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {"silent", "unended", "waiting"}
        self._draws.load_state_dict({key: state[key] for key in state.keys() - own})
        self._silent = state["silent"]
        self._unended.rounds = state.get("unended", 0)
        self._waiting = deque(
            MiniBatch(**mini | {"texts": [Text(**text) for text in mini["texts"]]})
            for mini in state["waiting"]
        )


def runs_of(versions: Sequence[int]) -> list[list[int]]:
    """Of tokens one after the other: each version, and of how many."""
    return [[version, len([*run])] for version, run in groupby(versions)]


def _texts(parts: Sequence[MiniBatch]) -> list[Text]:
    return [text for part in parts for text in part.texts]
