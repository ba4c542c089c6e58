"""What a recipe will do, said before it does it. No torch here."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from rich.console import Group, RenderableType
from rich.table import Table

from dsv3_plugin.data.little_held_out import little_held_out
from dsv3_plugin.data.vocabulary import ids_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.idle_gpus import on_machine
from dsv3_plugin.launch.memory_here import beyond_memory
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import count_text, number_of, tokens_text
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.curve import Curve
from dsv3_plugin.recipe.hf_config import why_not_exported
from dsv3_plugin.recipe.regrets import regrets
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.terminal.console import styled

_NOTHING: Mapping[str, str] = MappingProxyType({})


def summary(
    recipe: Recipe, machine: Machine, inherited: Mapping[str, str] = _NOTHING
) -> RenderableType:
    """The recipe in a few lines: model, data, ranks, tokens, and the phases of its curves.

    And, before anything is spent on it, what its author may not have meant, on this machine too.

    Args:
        recipe: the recipe.
        machine: where it runs.
        inherited: keys that it has from another recipe, and the name of that.
    """
    counts = parameter_counts(recipe.model)
    unexportable = why_not_exported(recipe.model)
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        (
            "model",
            f"{recipe.model.name}: {count_text(counts.main)} parameters, "
            f"{count_text(counts.active)} active, "
            f"{count_text(counts.total)} with multi-token prediction",
        ),
        (
            "data",
            f"{corpora.text(recipe.data.corpus)}, sequences of {recipe.data.seq_length} tokens",
        ),
        ("ranks", _ranks(recipe)),
        ("steps", _steps(recipe)),
        *_answers(recipe),
        ("folder", str(recipe.folder)),
        *(() if unexportable is None else (("no export", unexportable),)),
        *(("mind", sentence) for sentence in _minded(recipe, machine, inherited)),
    ):
        facts.add_row(styled(name), value)

    phases = Table(box=None, pad_edge=False, padding=(0, 2))
    phases.add_column("curve", style="bold")
    phases.add_column("phases, by consumed tokens")
    for name in ("learning_rate", "batch_size", "router_bias_speed", "mtp_weight"):
        phases.add_row(name, describe_curve(getattr(recipe.curves, name)))
    return Group(styled(recipe.name), facts, phases)


def _minded(recipe: Recipe, machine: Machine, inherited: Mapping[str, str]) -> Iterator[str]:
    """What the author may not have meant; what a folder has of tokens is looked up for it."""
    yield from regrets(recipe, inherited, ids_of(recipe))
    yield from little_held_out(recipe)
    yield from on_machine(recipe, machine)
    yield from beyond_memory(recipe, machine)
    yield from _no_cluster(recipe)


def _no_cluster(recipe: Recipe) -> Iterator[str]:
    """A cluster that is not there: the run does without it, which is only planned for it."""
    try:
        if recipe.cluster is not None:
            load_cluster(recipe.cluster)
    except UserError as error:
        yield f"cluster: {str(error).removesuffix('.')}: plans and jobs of this recipe are refused"


def _steps(recipe: Recipe) -> str:
    """How many, with their tokens; of epochs nobody has counted yet, what the recipe guesses."""
    said = f"{recipe.total_steps:,} ({tokens_text(recipe.total_tokens)} tokens)"
    if recipe.training.epochs is None or recipe.epochs_counted is not None:
        return said
    return f"{said}, by data.sequences; they are counted when the data are built"


def _answers(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a run of reinforcement learning asks for, and what is paid for it."""
    if not isinstance(recipe, Rl):
        return
    rollouts = recipe.rollouts
    yield (
        "answers",
        f"{number_of(rollouts.prompts, 'prompt')} × {rollouts.n} in a round, of "
        f"{number_of(rollouts.max_tokens, 'token')} at most",
    )
    named = (
        name if reward.weight == 1 else f"{reward.weight:g} × {name}"
        for name, reward in recipe.rewards.items()
    )
    yield "rewards", " + ".join(named)


def describe_curve(curve: Curve) -> str:
    """A curve's pieces in words: `linear 0 → 0.00022 until 34.4B, constant 0.00022 until 10T`."""
    pieces = []
    for segment in curve.segments:
        if segment.shape == "constant":
            text = f"constant {_figure(segment.last)}"
        else:
            text = f"{segment.shape} {_figure(segment.first)} → {_figure(segment.last)}"
        if segment.end is not None:
            text += f" until {tokens_text(segment.end)}"
        pieces.append(text)
    return ", ".join(pieces)


def _figure(value: float) -> str:
    """Sequences of a batch are a whole number, however large."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _ranks(recipe: Recipe) -> str:
    parallel = recipe.parallel
    degrees = [
        f"{name} {degree}"
        for name, degree in (
            ("data", recipe.data_parallel),
            ("expert", parallel.expert),
            ("pipeline", parallel.pipeline),
            ("tensor", parallel.tensor),
            ("context", parallel.context),
        )
        if degree > 1
    ]
    if parallel.pipeline > 1:
        degrees.append(f"schedule {recipe.pipeline.schedule}")
    return f"{parallel.processes}" + (f" ({', '.join(degrees)})" if degrees else "")
