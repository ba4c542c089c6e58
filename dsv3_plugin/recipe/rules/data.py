"""Sequences, and what is kept for evaluation."""

import re
from collections.abc import Iterator, Sequence

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.continued import PARENT, Continued
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import SMALLEST_VOCABULARY, TrainedTokenizer
from dsv3_plugin.recipe.sft import Sft


def sequence(recipe: Recipe) -> Iterator[str]:
    """The model has positions for the sequence, and context parallelism divides it."""
    length, context, model = recipe.data.seq_length, recipe.parallel.context, recipe.model
    if length > model.max_position_embeddings:
        yield (
            f"data.seq_length {length} is more than the model's "
            f"{model.max_position_embeddings} positions: take as many or fewer, or raise "
            "model.max_position_embeddings"
        )
    original, factor = model.original_max_position_embeddings, model.rotary_scaling_factor
    if model.rope_type == "yarn" and length > original * factor:
        yield (
            f"data.seq_length {length} is more than the {original * factor:.0f} positions that "
            f"YaRN reaches from {original} by {factor:g}: raise model.rotary_scaling_factor"
        )
    if context > 1 and (over := length % (2 * context)):
        below, above = length - over, length - over + 2 * context
        nearest = f"{below} or {above}" if below else f"{above}"
        yield (
            f"data.seq_length {length} does not divide by twice context {context}: take {nearest}, "
            f"or another parallel.context"
        )


def tokenizer(recipe: Recipe) -> Iterator[str]:
    """The tokenizer of a parent's weights needs a parent; one of bytes has all of them."""
    if (
        isinstance(recipe.data.tokenizer, TrainedTokenizer)
        and (size := recipe.data.tokenizer.vocab_size) < SMALLEST_VOCABULARY
    ):
        yield (
            f"data.tokenizer bpe:{size} is too small: 256 bytes and the special tokens are "
            f"{SMALLEST_VOCABULARY}: take bpe:{SMALLEST_VOCABULARY} or larger"
        )
    if recipe.data.tokenizer == PARENT and not isinstance(recipe, Continued):
        yield (
            f"data.tokenizer: {PARENT} is for stages that begin with another run's weights, and "
            f"the stage is {recipe.stage}: name a tokenizer's folder, or bpe:SIZE"
        )


def conversations(recipe: Recipe) -> Iterator[str]:
    """Conversations are for supervised fine-tuning, which reads nothing else; what is theirs has
    them."""
    data, training = recipe.data, recipe.training
    packed = data.packing == "conversations"
    if isinstance(recipe, Sft) and not packed:
        yield f"stage sft reads conversations: set data.packing to that, not to {data.packing}"
    if packed and not isinstance(recipe, Sft):
        yield (
            f"data.packing: conversations is for stage sft, and the stage is {recipe.stage}: set "
            f"data.packing to {'prompts' if recipe.stage == 'rl' else 'stream or whole'}"
        )
    if not packed:
        if training.epochs is not None:
            yield "training.epochs counts passes over conversations: give training.tokens or steps"
        of_prompts = ("template", "template_arguments") if data.packing == "prompts" else ()
        for key in ("template", "template_arguments", "sequences"):
            if getattr(data, key) and key not in of_prompts:
                yield f"data.{key} is for data.packing: conversations: leave it out"
        if data.turns != "all":
            yield "data.turns is for data.packing: conversations: leave it out"
        return
    if data.fim_rate:
        yield "data.fim_rate cuts documents, and no conversations: set it to 0"
    if isinstance(data.tokenizer, TrainedTokenizer):
        yield (
            "data.tokenizer has to have a chat template, so none is trained on conversations: name "
            f"a folder, or {PARENT}"
        )
    for key, members in _read(recipe):
        if corpora.STDLIB in (name for each in members for name in each.names):
            yield f"{key}: stdlib holds no conversations: name files of them"
        if encoded := next((each for each in members if each.prefix), None):
            yield (
                f"{key}: {encoded} is encoded already, and conversations are read as rows: name "
                f"their files"
            )


def _read(recipe: Recipe) -> Iterator[tuple[str, Sequence[corpora.Member]]]:
    """What is read, by the keys that name it."""
    yield "data.corpus", corpora.members(recipe.data.corpus)
    for name, path in recipe.data.held_out_sets.items():
        yield f"data.held_out_sets.{name}", corpora.members(path)


def packing(recipe: Recipe) -> Iterator[str]:
    """Long documents have a share where documents stay whole."""
    data = recipe.data
    if data.packing != "whole":
        for key in ("long_document_share", "long_document"):
            if (value := getattr(data, key)) is not None:
                yield (
                    f"data.{key} {value:g} needs documents that stay whole: set data.packing to "
                    f"whole, or leave it out"
                )
    if data.packing != "stream":
        for flag in ("reset-position-ids", "reset-attention-mask", "eod-mask-loss"):
            if recipe.passed_flags.get(flag):
                yield f"megatron_args: {flag} is for data.packing: stream: leave it out"


def evaluation(recipe: Recipe) -> Iterator[str]:
    """There is something to evaluate on."""
    interval, data = recipe.training.eval_interval, recipe.data
    if interval is not None and data.held_out == 0 and not data.held_out_sets:
        yield (
            f"training.eval_interval {interval} needs held-out documents: give data.held_out a "
            "share above 0, or set training.eval_interval to null"
        )
    if interval is None and data.held_out_sets:
        yield (
            "data.held_out_sets would never be looked at: give training.eval_interval the steps "
            "between evaluations, or set data.held_out_sets to null"
        )


def held_out_sets(recipe: Recipe) -> Iterator[str]:
    """Held-out sets have names of their own, and none of them is trained on: none is, lies in, or
    has in it what the corpus is read from."""
    sets = recipe.data.held_out_sets
    seen: dict[str, str] = {}
    for name in sets:
        if not re.fullmatch(r"\w[\w.-]*", name):
            yield (
                f"data.held_out_sets: {name!r} is no name of a set: take letters, digits, _, . and "
                f"- (it is that of a folder, too)"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            yield f"data.held_out_sets: {other} and {name} are one name to some disks: rename one"
    places: dict[str, str] = {}
    for member in corpora.members(recipe.data.corpus):
        places |= {place: "data.corpus" for place in member.place}
    for name, path in sets.items():
        for place in (place for member in corpora.members(path) for place in member.place):
            if place in places:
                yield f"data.held_out_sets.{name}: {path} is {places[place]} as well: take another"
            places[place] = f"data.held_out_sets.{name}"
        yield from _trained_on(recipe, name, path)
    if sets and recipe.passed_flags.get("full-validation"):
        yield (
            "megatron_args: full-validation does not go with data.held_out_sets, of which "
            "training.eval_steps batches each are read: leave it out"
        )


def _trained_on(recipe: Recipe, name: str, path: str) -> Iterator[str]:
    """The sentences for a held-out set of which a part is read as texts of the corpus too."""
    texts = [each for each in corpora.members(recipe.data.corpus) if each.prefix is None]
    for corpus in (corpus for each in texts for corpus in each.names if corpus != corpora.STDLIB):
        if corpora.lies_in(path, corpus):
            yield (
                f"data.held_out_sets.{name}: {path} lies in {corpus}, all of which is data.corpus, "
                "so that it would be trained on: move it out of there, or name the others alone in "
                "data.corpus"
            )
        elif corpora.lies_in(corpus, path):
            yield (
                f"data.held_out_sets.{name}: {path} holds {corpus}, which is data.corpus and would "
                f"be trained on: move that out of there, or name the others alone"
            )


def mixture(recipe: Recipe) -> Iterator[str]:
    """The members of a mixture are different, have weights or not, and one is drawn from; what is
    encoded already brings its tokenizer."""
    data = recipe.data
    yield from corpora.wrong_with(data.corpus)
    encoded = [each for _, members in _read(recipe) for each in members if each.prefix is not None]
    if encoded and isinstance(data.tokenizer, TrainedTokenizer):
        yield (
            f"{encoded[0]} is encoded already, so no tokenizer can be trained for it: name the "
            f"folder of the one that encoded it with data.tokenizer"
        )
