"""Where a search begins: with the recipe as it is given, or with sizes that at least divide.

Other processes than a recipe was written for may be no multiple of its parallel sizes. These are
what a search chooses, so it must not be stopped by them.
"""

from collections.abc import Iterator, Sequence

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe, load_recipe_or_model

_SIZES = (64, 32, 16, 8, 4, 2, 1)


def sizes_that_divide(name_or_path: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides with which a recipe can be read, the first of ever larger changes.

    None where it can be read as it is; nor for a model, which has no such sizes.

    Raises:
        UserError: it cannot be read with other parallel sizes either; the sentence is that of the
            recipe as it was given.
    """
    try:
        load_recipe_or_model(name_or_path, overrides)
        return ()
    except UserError as refusal:
        for more in _changes():
            try:
                load_recipe(name_or_path, [*overrides, *more])
                return more
            except UserError:
                continue
        raise refusal from None


def _changes() -> Iterator[tuple[str, ...]]:
    one = ("training.micro_batch_size=1",)
    experts = [(f"parallel.expert={size}",) for size in _SIZES]
    yield from experts
    yield from ((*expert, *one) for expert in experts)
    no_pipeline = (
        "parallel.pipeline=1",
        "pipeline.devices=1",
        "pipeline.schedule=1f1b",
        "pipeline.ramp_schedule=null",
        "pipeline.virtual_stages=null",
        "pipeline.layout=null",
    )
    yield from ((*no_pipeline, *expert) for expert in experts)
    yield from ((*no_pipeline, *expert, *one) for expert in experts)
