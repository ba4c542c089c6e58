"""One text, one token at a time, by an engine of its own."""

from collections.abc import Collection, Iterator, Sequence

from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters


def require_positions(model: GPTModel, prompt: int, max_new_tokens: int) -> None:
    """Look whether a model has positions for so many tokens of prompt and new ones.

    Raises:
        UserError: it has not.
    """
    if prompt + max_new_tokens > model.max_sequence_length:
        raise UserError(
            f"{prompt} tokens of prompt and {max_new_tokens} new ones exceed the model's "
            f"{model.max_sequence_length} positions: shorten the prompt or --max-new-tokens."
        )


def generate(
    model: GPTModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Continue a text. What is wrong is said here, before the first token is asked for.

    Args:
        model: a whole model (all layers on this process).
        prompt: token ids, at least one.
        max_new_tokens: how many tokens to yield at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_p: sample from the smallest set of tokens whose probabilities sum to this.
        seed: of the sampling.
        stop: tokens that end the text; none of them is yielded.

    Raises:
        UserError: the prompt is empty, or prompt and new tokens exceed the model's positions.
    """
    require_positions(model, len(prompt), max_new_tokens)
    sampling = SamplingParameters(
        max_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_tokens=frozenset(stop),
    )
    engine = Engine(
        model, EngineSettings(CacheShape.of(model.config).bytes_for([len(prompt) + max_new_tokens]))
    )
    engine.add(Request(tuple(prompt), sampling))
    return _tokens(engine, stop)


def _tokens(engine: Engine, stop: Collection[int]) -> Iterator[int]:
    while engine.busy:
        for progress in engine.step():
            for report in progress.reports:
                if report.token not in stop:
                    yield report.token
