"""What works, and a person would regret later: said before a run begins, never refused."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import TrainedTokenizer
from dsv3_plugin.recipe.tuned import Tuned

_CURVES = ("learning_rate", "batch_size", "router_bias_speed", "mtp_weight")
INTERVALS = (
    "training.eval_interval", "checkpoint.interval", "training.log_interval",
    "grpo.reference_interval",
)  # fmt: skip
"""Keys of what happens every so many steps."""
_PADDED_TO = 128
"""Up to so many ids more than a tokenizer has are upstream's padding
(`--make-vocab-size-divisible-by`)."""
_FEW = 0.01
"""Up to such a share of a vocabulary may be meant for tokens that are added later, as DeepSeek-V3's
has 465 ids of 129,280."""
_OF_TOKENS, _OF_ANSWERS = 0.05, 0.005
"""From which on a clip is one of tokens' ratios, and below which one of answers'."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


def regrets(
    recipe: Recipe, inherited: Mapping[str, str] = _NOTHING, tokenizer_ids: int | None = None
) -> list[str]:
    """A sentence for each thing in a recipe that its author may not have meant.

    Args:
        recipe: the recipe.
        inherited: keys that it has from another recipe, and the name of that.
        tokenizer_ids: of the tokenizer in its folder, where they are known.
    """
    return [
        *(sentence for look in _LOOKS for sentence in look(recipe)),
        *_intervals_beyond_the_end(recipe, inherited),
        *_other_vocabulary(recipe, tokenizer_ids),
    ]


def _curves_beyond_the_end(recipe: Recipe) -> Iterator[str]:
    """Curves that were written for a longer run, which never come to their end."""
    reached = {}
    curves = _curves_of(recipe)
    over = [name for name in curves if _shares_beyond_all(recipe, name)]
    if over:
        yield (
            f"the shares of {' and of '.join(over)} are more than 100% of the run, which ends in "
            "the middle of them: give lengths (for) whose sum is 100%, or places (until)"
        )
    for name in (name for name in curves if name not in over):
        if all(piece.is_share for piece in getattr(recipe.curve_specs, name)):
            continue  # what it lacks was rounded away
        starts = [segment.start for segment in getattr(recipe.curves, name).segments]
        if (begun := sum(start < recipe.total_tokens for start in starts)) < len(starts):
            reached[name] = f"{name} {begun} of {len(starts)}"
    seen = {*reached, *over}
    unfinished = [name for name in curves if name not in seen and _unfinished(recipe, name)]
    if unfinished:
        yield (
            f"the last piece of {' and of '.join(unfinished)} goes on beyond the run's end, and "
            "never comes to its value: lengths that are shares of it (for: 10%) end with it"
        )
    if reached:
        yield (
            f"the run ends in the middle of its curves (pieces begun: {', '.join(reached.values())}"
            "): lengths that are shares of it (for: 10%) give a shorter run the same shape"
        )


def _curves_of(recipe: Recipe) -> list[str]:
    """The curves that are followed; what is frozen keeps to none."""
    frozen = recipe.frozen_curves if isinstance(recipe, Tuned) else ()
    return [name for name in _CURVES if name not in frozen]


def _shares_beyond_all(recipe: Recipe, name: str) -> bool:
    """Whether the lengths of pieces that are shares are longer together than the run."""
    written = [piece for piece in getattr(recipe.curve_specs, name) if piece.is_share]
    return sum(piece.for_ for piece in written if piece.until is None) > 1


def _unfinished(recipe: Recipe, name: str) -> bool:
    """Whether a curve is still on its way to another value when the run ends."""
    return any(
        piece.end is not None and piece.first != piece.last and piece.shape != "constant"
        and piece.start < recipe.total_tokens < piece.end
        for piece in getattr(recipe.curves, name).segments
    )  # fmt: skip


def _shorter_than_a_step(recipe: Recipe) -> Iterator[str]:
    """Lengths in tokens that were meant as steps, and shares of few steps: whole pieces pass
    between two steps."""
    for name in _curves_of(recipe):
        written, placed = getattr(recipe.curve_specs, name), getattr(recipe.curves, name).segments
        small = []
        for number, (piece, of) in enumerate(zip(written, placed, strict=True), start=1):
            step = int(recipe.curves.batch_size(of.start)) * recipe.data.seq_length
            if of.end is None or of.end - of.start >= step:
                continue
            if piece.is_share:
                small.append(str(number))
            elif piece.is_epochs:
                yield (
                    f"the conversations of piece {number} of {name} are "
                    f"{number_of(of.end - of.start, 'token')}, and a step there takes {step:,}: "
                    "give more of them, or lower curves.batch_size"
                )
            else:
                yield (
                    f"piece {number} of {name} is {number_of(of.end - of.start, 'token')} long, "
                    f"and a step there {step:,}: a number alone counts tokens, "
                    f"for: 100 steps counts steps"
                )
        if small:
            one = len(small) == 1
            yield (
                f"{'piece' if one else 'pieces'} {', '.join(small)} of {name} "
                f"{'is a share' if one else 'are shares'} of the run of less than a step, and "
                "hardly followed: give the run more steps, or larger shares"
            )


def _nothing_is_learned(recipe: Recipe) -> Iterator[str]:
    """A run that ends with the weights that it began with."""
    if recipe.curves.learning_rate.maximum == 0:
        yield (
            "curves.learning_rate is 0 from beginning to end, so that nothing is learned: give it "
            "a value, such as curves.learning_rate=1e-4"
        )


def _intervals_beyond_the_end(recipe: Recipe, inherited: Mapping[str, str]) -> Iterator[str]:
    """What happens every so many steps, and so never."""
    steps = recipe.total_steps
    there = f"the {number_of(steps, 'step')} that there {'is' if steps == 1 else 'are'}"
    for key, every, never in _intervals(recipe):
        if every is not None and every > steps:
            who = f" ({inherited[key]} says so, its base)" if key in inherited else ""
            yield f"{key} {every:,}{who} is more than {there}: {never}"


def _intervals(recipe: Recipe) -> Iterator[tuple[str, int | None, str]]:
    """Key and value of each interval, and what it is that never happens; checkpoints that nobody
    spoke of are saved at the end anyway."""
    training, checkpoint = recipe.training, recipe.checkpoint
    evaluated = "nothing is evaluated between the first and the last"
    yield "training.eval_interval", training.eval_interval, evaluated
    if "interval" in checkpoint.model_fields_set:
        yield "checkpoint.interval", checkpoint.interval, "nothing is saved before the last"
    unsaid = "no step has a line of its own in the log"
    yield "training.log_interval", training.log_interval, unsaid
    if isinstance(recipe, Rl):
        stays = "the reference stays the parent"
        yield "grpo.reference_interval", recipe.grpo.reference_interval, stays


def _other_vocabulary(recipe: Recipe, in_folder: int | None) -> Iterator[str]:
    """Rows of the embedding and of the head that no text ever uses; or ids without one."""
    tokenizer, vocabulary = recipe.data.tokenizer, recipe.model.vocab_size
    trained = isinstance(tokenizer, TrainedTokenizer)
    ids = tokenizer.vocab_size if trained else in_folder
    if ids is None:
        return
    whose = "" if trained else f" {tokenizer}"
    unused = vocabulary - ids
    if unused >= _PADDED_TO and unused > _FEW * vocabulary:
        rows = ids if trained else -(-ids // _PADDED_TO) * _PADDED_TO
        yield (
            f"data.tokenizer{whose} has {ids:,} ids and the model {vocabulary:,}: the "
            f"rest are never used, and cost as much; model.vocab_size={rows} leaves them out"
        )
    elif trained and unused < 0:
        yield (
            f"data.tokenizer may have {ids:,} ids and the model {vocabulary:,}: "
            f"it is refused when it has more; take bpe:{vocabulary}, or model.vocab_size={ids}"
        )
    elif unused < 0:
        yield (
            f"data.tokenizer{whose} has {ids:,} ids and the model {vocabulary:,}: it is refused "
            f"when the data are built; take model.vocab_size={-(-ids // _PADDED_TO) * _PADDED_TO}"
        )


def _rewards_that_teach_otherwise(recipe: Recipe) -> Iterator[str]:
    """Rewards that weigh nothing, or are fled from."""
    if not isinstance(recipe, Rl):
        return
    weights = {name: reward.weight for name, reward in recipe.rewards.items()}
    if not any(weights.values()):
        yield (
            f"the weight of {' and of '.join(f'rewards.{name}' for name in weights)} is 0, so that "
            "no answer is worth more than another and nothing is learned: give one another weight"
        )
    for name, weight in weights.items():
        if weight < 0:
            yield (
                f"rewards.{name}.weight {weight:g} is negative, so that answers are the better the "
                f"less {name} they get: {-weight:g} is for the other way round"
            )


def _clips_of_another_ratio(recipe: Recipe) -> Iterator[str]:
    """Bounds of single tokens' ratios for those of answers, or the other way round; where each
    round is one step, ratios to the trainer's own are 1, and nothing is clipped."""
    if not isinstance(recipe, Rl) or (recipe.updates == 1 and recipe.grpo.old == "trainer"):
        return
    grpo = recipe.grpo
    clips = f"grpo.clip_low {grpo.clip_low:g} and grpo.clip_high {grpo.clip_high:g}"
    if grpo.importance == "sequence" and min(grpo.clip_low, grpo.clip_high) >= _OF_TOKENS:
        yield (
            f"{clips} are made for ratios of single tokens, and those of answers (grpo.importance: "
            "sequence), some 1,000 times nearer to 1, are clipped by them next to never: GSPO's "
            "are grpo.clip_low=3e-4 grpo.clip_high=4e-4"
        )
    elif grpo.importance == "token" and max(grpo.clip_low, grpo.clip_high) < _OF_ANSWERS:
        yield (
            f"{clips} are made for ratios of answers (GSPO), and most of single tokens are clipped "
            "by them: say grpo.importance=sequence, or take grpo.clip_low=0.2 grpo.clip_high=0.28"
        )


_LOOKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    _curves_beyond_the_end,
    _shorter_than_a_step,
    _nothing_is_learned,
    _rewards_that_teach_otherwise,
    _clips_of_another_ratio,
)
