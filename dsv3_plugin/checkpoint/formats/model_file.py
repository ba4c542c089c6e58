"""Which model a checkpoint is of: its `model.yaml`, or the arguments that upstream keeps in it.

Upstream pickles its whole argument namespace into the common state. It is read here as data, and
nothing in it is run.
"""

import shlex
from pathlib import Path
from typing import Any

from dsv3_plugin.checkpoint.formats.containers import open_saved
from dsv3_plugin.checkpoint.formats.dist_metadata import COMMON_FILE, Contents
from dsv3_plugin.checkpoint.formats.pickles import PickleError, Record
from dsv3_plugin.checkpoint.formats.symbols import NAMESPACES, OBJECTS
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.fields import from_arguments
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.validation import validate

MODEL_FILE = "model.yaml"

_HF_CONFIG = "hf_config.json"
"""The `config.json` that an import keeps; see `conversion.config_json`."""
_COMMON_STATE = "common_state/shard_0_1"

_NOT_TOLD_BY_SHAPES = (
    "layernorm_epsilon", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "rope_type",
    "rotary_base", "moe_router_topk", "moe_router_num_groups", "moe_router_group_topk",
    "moe_router_score_function", "moe_router_pre_softmax", "moe_router_topk_scaling_factor",
)  # fmt: skip
"""Fields that change what a model computes, and that no tensor's shape depends on alone."""


def model_of_checkpoint(directory: Path, folder: Path, contents: Contents) -> ModelConfig:
    """The model of the checkpoint `directory`, whose iteration lies in `folder`.

    Raises:
        UserError: nothing in the checkpoint says what the model is, or its `model.yaml` is that of
            another model than upstream's arguments are of.
    """
    for where in (directory, folder.parent):
        if inside(where, MODEL_FILE).is_file():
            model = ModelConfig.read(where / MODEL_FILE)
            if difference := trained_as_another(model, folder, contents):
                raise UserError(
                    f"{where / MODEL_FILE} is not of the model that was trained ({difference}): "
                    "put that one's there."
                )
            return model
    arguments = saved_arguments(folder, contents)
    if arguments is None:
        raise UserError(
            f"{directory} has neither a {MODEL_FILE} nor upstream's arguments in it, which say "
            f"which model it is of: {_described_by(folder.parent)}."
        )
    return model_from_arguments(arguments, directory.resolve().name)


def _described_by(folder: Path) -> str:
    """How a checkpoint gets its description, to end a sentence with."""
    out = shlex.quote(str(folder / MODEL_FILE))
    if (kept := folder / _HF_CONFIG).is_file():
        return f"dsv3 model from-hf {shlex.quote(str(kept))} --out {out} writes it again"
    return (
        f"dsv3 model from-hf CONFIG_JSON --out {out} writes it of the config.json of that model on "
        "Hugging Face"
    )


def trained_as_another(model: ModelConfig, folder: Path, contents: Contents) -> str | None:
    """What upstream's arguments in an iteration say otherwise than a model, in words.

    Returns:
        None: as far as there are arguments, and shapes do not tell, they are the model's.
    """
    arguments = saved_arguments(folder, contents)
    try:
        trained = None if arguments is None else model_from_arguments(arguments, model.name)
    except UserError:  # of a release of upstream that said things otherwise
        trained = None
    if trained is None:
        return None
    differences = (
        f"{field} is {now}, and was {was} in {folder.name}"
        for field in _NOT_TOLD_BY_SHAPES
        if (now := getattr(model, field)) != (was := getattr(trained, field))
    )
    return next(differences, None)


def saved_arguments(folder: Path, contents: Contents) -> dict[str, Any] | None:
    """Upstream's arguments in a checkpoint, None if it has none.

    Raises:
        ForeignSymbolError: what they are pickled with names what could run code.
    """
    if place := contents.objects.get(_COMMON_STATE):
        where = folder / place.file
        with where.open("rb") as handle:
            handle.seek(place.position)
            data = handle.read(place.length)
    elif (folder / COMMON_FILE).is_file():
        where = folder / COMMON_FILE
        data = read_plain(where)
    else:
        return None
    try:
        state = open_saved(data).content(OBJECTS, where)
    except PickleError:
        return None
    state = state[0] if isinstance(state, list) and state else state
    arguments = state.get("args") if isinstance(state, dict) else None
    if isinstance(arguments, Record) and arguments.symbol in NAMESPACES:
        return arguments.state if isinstance(arguments.state, dict) else None
    return None


def model_from_arguments(arguments: dict[str, Any], name: str) -> ModelConfig:
    """The model that upstream's arguments describe.

    Its vocabulary is the padded one: that is what the tensors have, and the tokenizer's own count
    is not always there, nor always what the name says (some tokenizers add a token to it).
    """
    said = from_arguments(arguments) | {"name": name}
    said.setdefault("original_max_position_embeddings", said.get("max_position_embeddings"))
    return validate(ModelConfig, said, f"{name}: the arguments in the checkpoint")
