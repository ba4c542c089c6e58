"""lm-evaluation-harness' tasks, answered by the engine.

The harness is an extra (`pip install 'dsv3_plugin[harness]'`), and is imported where it is asked
for.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids, token_ids
from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.tokenizer import TextTokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Evaluated, Place
from dsv3_plugin.evaluation.scoring import completions, scored
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.cache_budget import default_cache
from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.from_checkpoint import refuse_unknown_tokens
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.text import TextStream

Progress = Callable[[str, int, int | None], None]
"""Called with a phase of the work, what is done of it, and of how much where that is known."""

_NEW_TOKENS = 256
"""Of an answer where a task does not say, as the harness' own models have it."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What a task may say of how answers are drawn, beside where they end."""


@dataclass(frozen=True)
class Wanted:
    """What a model is asked.

    Attributes:
        tasks: names of the harness' tasks, groups or tags, patterns, or files.
        include_path: a folder of further tasks.
        shots: examples before each question; None: as the tasks say.
        limit: questions of each task; None: all.
        chat: questions are users' turns of a chat.
    """

    tasks: Sequence[str]
    include_path: Path | None = None
    shots: int | None = None
    limit: int | None = None
    chat: bool = False


def evaluate(checkpoint: Path, wanted: Wanted, progress: Progress | None = None) -> dict[str, Any]:
    """The harness' results for a checkpoint.

    Args:
        checkpoint: the folder of a run, or of checkpoints.
        wanted: what it is asked.
        progress: told after every answer.

    Raises:
        UserError: the harness is not installed; it has no such task, or the task's data cannot be
            had; the checkpoint cannot be loaded; a task asks for what the engine does not do.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-evaluation-harness is not installed: pip install 'dsv3_plugin[harness]'."
        )
    import lm_eval

    manager = _manager(wanted)
    place = Place.named(checkpoint)
    tokenizer = tokenizer_of_checkpoint(place.folder)
    evaluated = Evaluated.load(place)
    refuse_unknown_tokens([tokenizer.most_tokens - 1], tokenizer, evaluated.config)
    model = adapter_of(evaluated, tokenizer, progress)
    try:
        return lm_eval.simple_evaluate(
            model,
            tasks=[*wanted.tasks],
            task_manager=manager,
            num_fewshot=wanted.shots,
            limit=wanted.limit,
            apply_chat_template=wanted.chat,
            log_samples=False,
        )
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # tasks are programs of their own
        raise UserError(
            f"The harness ended with {type(error).__name__}: {str(error).strip() or 'no word'}"
        ) from error


def _manager(wanted: Wanted) -> Any:
    """The harness' tasks, with its own among them where the folder's are not all that is asked:
    to index them takes seconds."""
    from lm_eval.tasks import TaskManager

    if wanted.include_path is not None and not wanted.include_path.is_dir():
        raise UserError(f"--include-path {wanted.include_path} is no folder.")
    path = None if wanted.include_path is None else str(wanted.include_path)
    for defaults in (False, True) if path else (True,):
        manager = TaskManager(include_path=path, include_defaults=defaults)
        missing = [
            task
            for task in wanted.tasks
            if not manager.match_tasks([task]) and not Path(task).is_file()
        ]
        if not missing:
            return manager
    raise UserError(f"The harness has no task {missing[0]}: see lm-eval ls tasks.")


def adapter_of(
    evaluated: Evaluated, tokenizer: TextTokenizer, progress: Progress | None = None
) -> Any:
    """A model as the harness asks it, `lm_eval.api.model.TemplateLM`.

    Texts begin as the tokenizer has them begin; where there is nothing to begin with, by its first
    token, or its last if it has none, as the harness' own models do.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model, longest = evaluated.model, evaluated.config.max_position_embeddings
    running = EngineSettings.most_running
    budget = default_cache(CacheShape.of(model.config), running, longest)
    engine = Engine(model, EngineSettings(budget), text_of=tokenizer.decode)
    begin = token_ids(tokenizer.folder).get("bos_token_id")
    prefix = begin if isinstance(begin, int) else tokenizer.eos_id
    ends = end_ids(tokenizer.folder, tokenizer.eos_id)

    def said_of(ids: Sequence[int]) -> str:
        return tokenizer.backend.decode(list(ids), skip_special_tokens=True)

    def counted(phase: str, count: int) -> Callable[[], None]:
        done = iter(range(1, count + 1))
        return lambda: progress(phase, next(done), count) if progress else None

    class EngineModel(TemplateLM):
        """The engine, asked by the harness."""

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_id

        @property
        def prefix_token_id(self) -> int:
            return prefix

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.folder.name

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            if add_special_tokens is None:  # a chat's template has written it already
                add_special_tokens = not string.startswith(tokenizer.decode([prefix]))
            return tokenizer.backend.encode(string, add_special_tokens=add_special_tokens).ids

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            template = open_template(tokenizer.folder, None, {}, "all")
            if add_generation_prompt:
                return template.prompt(Conversation(chat_history), "a task")
            raise UserError("Tasks that begin the answer themselves are not asked as a chat.")

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            texts = []
            for _names, context, continuation in requests:
                if len(continuation) >= longest:
                    raise UserError(
                        f"A continuation has {len(continuation)} tokens, and the model {longest} "
                        "positions, of which its context needs one."
                    )
                if not continuation:
                    raise UserError("A task asks for the probability of nothing.")
                texts.append((context[len(continuation) - longest :], continuation))
            found = scored(engine, texts, counted("scoring", len(texts)))
            return [(one.log_prob, one.greedy) for one in found]

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            windows, whose = [], []
            for number, request in enumerate(requests):
                parts = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=prefix,
                    max_seq_len=longest - 1,
                    context_len=1,
                )
                for part in map(make_disjoint_window, parts):
                    windows.append(part)
                    whose.append(number)
            totals = [0.0] * len(requests)
            found = scored(engine, windows, counted("scoring", len(windows)))
            for number, one in zip(whose, found, strict=True):
                totals[number] += one.log_prob
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [self._asked(number, *request.args) for number, request in enumerate(requests)]
            texts, done = [""] * len(asked), counted("writing", len(asked))
            for place, answer in completions(engine, asked):
                sampling = asked[place].sampling
                stream = TextStream(said_of, sampling.stop, sampling.stop_tokens)
                texts[place] = stream.add(answer.tokens) + stream.end()
                done()
            return texts

        def _asked(self, number: int, context: str, said: Mapping[str, Any]) -> Request:
            sampling = _sampling(normalize_gen_kwargs(dict(said), _NEW_TOKENS))
            room = longest - sampling.max_tokens
            if room < 1:
                raise UserError(
                    f"A task asks for {sampling.max_tokens} tokens, and the model has {longest} "
                    "positions."
                )
            prompt = self.tok_encode(context)[-room:] or [prefix]
            return Request(tuple(prompt), replace(sampling, stop_tokens=ends, seed=number))

    return EngineModel()


def _sampling(said: Mapping[str, Any]) -> SamplingParameters:
    """How a task wants answers drawn.

    Raises:
        UserError: in a way that the engine does not know.
    """
    rest = {name: value for name, value in said.items() if value is not None}
    stop, most = rest.pop("until", ()), rest.pop("max_gen_toks")
    drawn = rest.pop("do_sample", False)
    known = {name: rest.pop(name) for name in _SAMPLING if name in rest}
    if rest:
        raise UserError(f"A task asks for {', '.join(sorted(rest))}, which the engine has not.")
    known["temperature"] = float(known.get("temperature", 1.0)) if drawn else 0.0
    if known.get("top_k", 1) < 1:  # as transformers says that all are drawn from
        del known["top_k"]
    return SamplingParameters(max_tokens=most, stop=tuple(filter(None, stop)), **known)
