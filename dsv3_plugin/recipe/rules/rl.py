"""Prompts, the answers to them, and what they are worth."""

from collections.abc import Iterator

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.continued import PARENT
from dsv3_plugin.recipe.fitting import divisor, multiples
from dsv3_plugin.recipe.rl import Grpo, Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.scripts import is_script, near_script
from dsv3_plugin.recipe.validation import nearest
from dsv3_plugin.recipe.yaml_text import quoted

_WHOLE = ("tensor", "context")
"""Divisions that no engine of ours computes."""

NAMED_REWARDS = ("accuracy", "match", "code", "format", "length", "language")
"""What is no dotted path of a function."""


def prompts(recipe: Recipe) -> Iterator[str]:
    """Prompts are for reinforcement learning, which reads nothing else."""
    data = recipe.data
    if not isinstance(recipe, Rl):
        if data.packing == "prompts":
            yield (
                f"data.packing: prompts is for stage rl, and the stage is {recipe.stage}: set "
                f"data.packing to {'conversations' if recipe.stage == 'sft' else 'stream'}"
            )
        return
    if data.packing != "prompts":
        yield f"stage rl reads prompts: set data.packing to that, not to {data.packing}"
    if data.tokenizer != PARENT:
        yield f"stage rl reads by its parent's tokenizer: set data.tokenizer to {PARENT}"
    if corpora.STDLIB in (name for each in corpora.members(data.corpus) for name in each.names):
        yield "data.corpus: stdlib holds no prompts: name files of them"
    if data.held_out:
        yield (
            "data.held_out keeps back documents: set it to 0, and name prompts to evaluate on in "
            "data.held_out_sets"
        )
    if recipe.training.epochs is not None:
        yield "training.epochs counts passes over conversations: give training.steps"


def division(recipe: Recipe) -> Iterator[str]:
    """The engine computes with the model as it is divided, in steps of any number of
    micro-batches."""
    if not isinstance(recipe, Rl):
        return
    for name in _WHOLE:
        if (ranks := getattr(recipe.parallel, name)) > 1:
            yield (
                f"stage rl answers with layers that are whole, or divided by experts: set "
                f"parallel.{name} to 1, not to {ranks}"
            )
    kind = recipe.schedule_kind
    if recipe.parallel.pipeline > 1 and (kind is None or kind.searched):
        yield (
            f"stage rl has as many micro-batches in a step as its answers fill, and "
            f"pipeline.schedule {recipe.pipeline.schedule} is of one number: take one by name"
        )


def rollouts(recipe: Recipe) -> Iterator[str]:
    """A round of answers is divided among ranks and steps, and each fits into a sequence."""
    if not isinstance(recipe, Rl):
        return
    settings, room = recipe.rollouts, recipe.data.seq_length
    longest = settings.max_prompt_tokens + settings.max_tokens
    if longest > room:
        yield (
            f"rollouts.max_prompt_tokens {settings.max_prompt_tokens} and max_tokens "
            f"{settings.max_tokens} are more than a sequence: raise data.seq_length {room} to "
            f"{longest}, or lower them"
        )
    if settings.prompts % recipe.data_parallel:
        yield (
            f"rollouts.prompts {settings.prompts} does not divide by {recipe.data_parallel} "
            f"data-parallel ranks: take {multiples(settings.prompts, recipe.data_parallel)}"
        )
    if settings.prompts % recipe.grpo.mini_batches:
        yield (
            f"rollouts.prompts {settings.prompts} does not divide into grpo.mini_batches "
            f"{recipe.grpo.mini_batches}: take "
            f"{divisor(settings.prompts, recipe.grpo.mini_batches)} of them"
        )
    if settings.top_p < 1:
        yield (
            f"rollouts.top_p {settings.top_p:g} would never draw tokens that the loss expects now "
            f"and then, so that its ratios were of two distributions: set it to 1, and lower "
            f"rollouts.temperature for surer answers"
        )
    wanted = settings.curriculum
    if wanted is not None and wanted.low > wanted.high:
        yield (
            f"rollouts.curriculum has its bounds the wrong way round: low {wanted.low:g} and high "
            f"{wanted.high:g}: give low the smaller one"
        )
    if recipe.trains_on_older and recipe.grpo.on_mismatch == "stop":
        key = "async: 1" if settings.async_ else f"partial: {settings.partial}"
        yield (
            f"rollouts.{key} trains on answers of older weights, whose log-probabilities differ: "
            "set grpo.on_mismatch to warn, which looks at answers of the same weights alone"
        )
    yield from _partial(recipe)
    if recipe.grpo.routing_replay and not recipe.model.moe_layers:
        yield "grpo.routing_replay needs a model with experts: set it to false"
    if settings.drafts and not recipe.model.mtp_num_layers:
        yield "rollouts.drafts needs a model with multi-token prediction: set it to 0"


def _partial(recipe: Rl) -> Iterator[str]:
    """Answers that are gone on with go where the weights of their round have them go."""
    settings, most = recipe.rollouts, recipe.rollouts.partial
    if most is None:
        return
    if most >= settings.max_tokens:
        yield (
            f"rollouts.partial {most} is no less than rollouts.max_tokens {settings.max_tokens}, "
            f"and every answer ends in its round: lower it, or leave it out"
        )
    if recipe.grpo.routing_replay:
        yield (
            "grpo.routing_replay has each token go where it went, and with rollouts.partial other "
            "weights read the prompt and the beginning again, by experts of their own: leave one "
            "of them out"
        )


def server(recipe: Recipe) -> Iterator[str]:
    """What is said of a server is said where one answers."""
    if not isinstance(recipe, Rl):
        return
    settings = recipe.rollouts
    if settings.kind == "openai":
        if settings.url is None:
            yield "rollouts.kind: openai asks a server: give rollouts.url"
        elif not settings.url.startswith(("http://", "https://")):
            yield f"rollouts.url {settings.url} is no address: write http://HOST:PORT"
        for key in ("drafts", "cache_gb"):
            if getattr(settings, key):
                yield f"rollouts.{key} is of the embedded engine: tell it the server, and not here"
        return
    for key in ("url", "model", "key_variable", "folder"):
        if getattr(settings, key) is not None:
            yield f"rollouts.{key} is of a server: set rollouts.kind to openai, or leave it out"


def loss(recipe: Recipe) -> Iterator[str]:
    """What is said of the loss has an effect, and can have it."""
    if not isinstance(recipe, Rl):
        return
    grpo, usual = recipe.grpo, Grpo()
    if grpo.on_mismatch == "correct" and grpo.old == "engine":
        yield (
            "grpo.on_mismatch: correct weighs tokens by how far the trainer is from the engine, "
            "and grpo.old: engine takes ratios to the engine itself, so that all would weigh the "
            "same: set grpo.old to trainer, or grpo.on_mismatch to warn"
        )
    if grpo.correction == "mask" and grpo.correction_low > grpo.correction_high:
        yield (
            f"grpo.correction_low {grpo.correction_low:g} is more than grpo.correction_high "
            f"{grpo.correction_high:g}, between which no ratio is: give low the smaller one"
        )
    corrects = grpo.on_mismatch == "correct" or recipe.trains_on_older
    for key in ("correction", "correction_high", "correction_low"):
        if (given := getattr(grpo, key)) == getattr(usual, key):
            continue
        if not corrects or grpo.old == "engine":
            yield (
                f"grpo.{key} {_plain(given)} is of a correction that is not made: set "
                f"grpo.on_mismatch to correct and grpo.old to trainer, or leave it out"
            )
        elif key == "correction_low" and grpo.correction != "mask":
            yield (
                f"grpo.correction_low {given:g} is of mask, and grpo.correction is "
                f"{grpo.correction}: set that to mask, or leave it out"
            )
    if not grpo.kl_weight:
        for key in ("kl", "reference_interval"):
            if (given := getattr(grpo, key)) != getattr(usual, key):
                yield (
                    f"grpo.{key} {given} is of a divergence that has no weight: give "
                    f"grpo.kl_weight, or set it to {getattr(usual, key) or 'null'}"
                )


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def rewards(recipe: Recipe) -> Iterator[str]:
    """There are rewards, with what each needs."""
    if not isinstance(recipe, Rl):
        return
    if not recipe.rewards:
        yield "rewards is empty: name one at least, such as rewards.accuracy={}"
    for name, reward in recipe.rewards.items():
        if name not in NAMED_REWARDS and "." not in name and reward.address is None:
            yield (
                f"rewards.{name}: there is no such reward{nearest(name, NAMED_REWARDS)}: take one "
                f"of {', '.join(NAMED_REWARDS)}, the dotted path of a function, or give it the "
                f"address of a reward model"
            )
        if name in NAMED_REWARDS and reward.address is not None:
            yield f"rewards.{name} is judged here: give the reward model another name"
        if reward.key_variable is not None and reward.address is None:
            yield f"rewards.{name}.key_variable is for a reward model: give its address"
        for key, owner in (("margin", "length"), ("script", "language")):
            given = getattr(reward, key) is not None
            if given and name != owner:
                yield f"rewards.{name}.{key} is for {owner}: leave it out"
            if not given and name == owner:
                yield f"rewards.{name} needs a {key}: give rewards.{name}.{key}"
        if reward.script is not None and name == "language" and not is_script(reward.script):
            yield (
                f"rewards.{name}.script: Unicode has no letters of a script {reward.script}"
                f"{near_script(reward.script)}: name one by the word that its letters begin with"
            )
        if reward.cap is not None and reward.cap[0] > reward.cap[1]:
            there, right = quoted(reward.cap), quoted(reward.cap[::-1])
            yield f"rewards.{name}.cap {there} has its bounds the wrong way round: write {right}"
        if reward.margin is not None and reward.margin > recipe.rollouts.max_tokens:
            yield (
                f"rewards.{name}.margin {reward.margin} is more than rollouts.max_tokens "
                f"{recipe.rollouts.max_tokens}: take as many or fewer"
            )
