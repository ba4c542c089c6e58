"""A model and its weights on one process, for logits, generation and tests."""

from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from dsv3_plugin.checkpoint.conversion.weights import DistWeights
from dsv3_plugin.checkpoint.patches import PATCHES
from dsv3_plugin.checkpoint.restricted import restricted_reading
from dsv3_plugin.errors import UserError
from dsv3_plugin.model.build import build_model
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import weights_at
from dsv3_plugin.upstream import patching
from dsv3_plugin.upstream.quiet import without_warnings


def load_for_inference(
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    as_model: Callable[[ModelConfig], ModelConfig] = lambda trained: trained,
) -> tuple[GPTModel, ModelConfig]:
    """The newest model in a checkpoint folder, in evaluation mode, with the local backend.

    Megatron's parallel state must be initialised (`distributed.world.single_process`).

    Args:
        directory: of a checkpoint, imported or trained under any parallel layout, or of a run.
        dtype: of the parameters; stored values are cast.
        as_model: from the model that was trained, one of the same weights that computes otherwise
            with them (its positions).

    Raises:
        UserError: there is no whole checkpoint, it is of another model than its `model.yaml` says,
            or its weights were kept in FP8.
    """
    from megatron.core import dist_checkpointing

    patching.apply(PATCHES)
    weights = DistWeights(weights_at(directory))
    if weights.quantised:
        raise UserError(
            f"{directory} keeps its weights in FP8, which nothing computes with here: import the "
            "model again without --dtype keep-fp8."
        )
    config = as_model(weights.model)
    model = build_model(config, dtype=dtype, perform_initialization=False)
    iteration = str(weights.checkpoint.path)
    try:
        # Megatron calls torch's reader in an old way, and for one process alone.
        quiet = without_warnings("torch.distributed is disabled", "The argument order of load has")
        with restricted_reading(), quiet:
            metadata = dist_checkpointing.load_content_metadata(iteration) or {}
            sharded = model.sharded_state_dict(metadata=metadata)
            wanted = {n: value for n, value in sharded.items() if not n.endswith("_extra_state")}
            state = dist_checkpointing.load(wanted, iteration)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{iteration} cannot be loaded: {error}") from error
    parameters = {name: state[name] for name in model.state_dict() if name in state}
    model.load_state_dict(parameters, strict=False)
    return model.eval(), config
