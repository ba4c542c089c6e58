"""Answers of a checkpoint of ours, by an engine in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.chat.template import ChatTemplate, open_template
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.distillation.teacher import Answered, seed_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.cache_budget import default_cache
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.from_checkpoint import refuse_unknown_tokens
from dsv3_plugin.inference.requests import Completion, Request, SamplingParameters
from dsv3_plugin.inference.text import TextStream
from dsv3_plugin.rollouts.asked import opened_by
from dsv3_plugin.rollouts.prompts import Prompt


@dataclass
class _Asked:
    """A problem that is being answered: its answers as they end, by their number."""

    problem: Prompt
    opened: str
    done: dict[int, Answered] = field(default_factory=dict)


class CheckpointTeacher:
    """Answers of a checkpoint.

    Args:
        checkpoint: with its tokenizer.
        sampling: how.
        max_tokens: of an answer; None: as many as the model has positions for.
        seed: of all.
        at_once: answers that are made at once.

    Raises:
        UserError: the checkpoint, its tokenizer or its chat template cannot be read.
    """

    def __init__(
        self,
        checkpoint: Path,
        sampling: SamplingParameters,
        max_tokens: int | None,
        seed: int,
        at_once: int,
    ) -> None:
        self._tokenizer: TextTokenizer = tokenizer_of_checkpoint(checkpoint)
        self._template: ChatTemplate = open_template(self._tokenizer.folder, None, {}, "all")
        model, self._config = load_for_inference(checkpoint)
        ends = end_ids(self._tokenizer.folder, self._tokenizer.eos_id)
        self._sampling = replace(sampling, stop_tokens=ends)
        self._max_tokens, self._seed, self._at_once = max_tokens, seed, at_once
        self._positions = model.max_sequence_length
        memory = default_cache(CacheShape.of(model.config), at_once, self._positions)
        self._engine = Engine(model, EngineSettings(memory, most_running=at_once))

    def answers(
        self, problems: Sequence[Prompt], n: int
    ) -> Iterator[tuple[Prompt, list[Answered]]]:
        """See `Teacher`."""
        waiting = iter(problems)
        asked: dict[int, _Asked] = {}
        while True:
            # One more than fills it, so that it is full while one ends.
            while len(asked) <= self._at_once // n and (problem := next(waiting, None)) is not None:
                try:
                    number, opened = self._ask(problem, n)
                except UserError as error:
                    yield problem, [Answered(refusal=str(error).rstrip("."))] * n
                    continue
                asked[number] = _Asked(problem, opened)
            if not asked:
                return
            for progress in self._engine.step():
                if progress.completion is None:
                    continue
                one = asked[progress.request]
                one.done[progress.number] = self._answered(one, progress.completion)
                if len(one.done) == n:
                    del asked[progress.request]
                    yield one.problem, [one.done[number] for number in range(n)]

    def _ask(self, problem: Prompt, n: int) -> tuple[int, str]:
        """The engine's number of a problem, and what the template has begun its answers with."""
        text = self._template.prompt(problem.conversation, problem.where)
        tokens = self._tokenizer.backend.encode(text, add_special_tokens=False).ids
        refuse_unknown_tokens(tokens, self._tokenizer, self._config)
        room = self._positions - len(tokens)
        if room < 1:
            raise UserError(f"longer than the model's {self._positions} positions")
        sampling = replace(
            self._sampling,
            n=n,
            seed=seed_of(self._seed, problem.key, 0),
            max_tokens=min(self._max_tokens or room, room),
        )
        return self._engine.add(Request(tuple(tokens), sampling)), opened_by(text)

    def _answered(self, one: _Asked, completion: Completion) -> Answered:
        ends = self._sampling.stop_tokens
        stream = TextStream(self._tokenizer.decode, stop_tokens=ends)
        text = stream.add(completion.tokens) + stream.end()
        return Answered(text, one.opened, whole=completion.finish_reason == "stop")
