"""Which model a checkpoint is of: its `model.yaml`, or the arguments that upstream keeps in it.

Upstream pickles its whole argument namespace into the common state. It is read here without running
anything: whatever is not plain data becomes an inert placeholder.
"""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dsv3_plugin.checkpoint.formats.dist_metadata import Contents
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.fields import from_arguments
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.validation import validate

MODEL_FILE = "model.yaml"

_COMMON_STATE = "common_state/shard_0_1"
_LEGACY_COMMON = "common.pt"


def model_of_checkpoint(directory: Path, folder: Path, contents: Contents) -> ModelConfig:
    """The model of the checkpoint `directory`, whose iteration lies in `folder`.

    Raises UserError if nothing in the checkpoint says what the model is.
    """
    for where in (directory, folder.parent):
        if inside(where, MODEL_FILE).is_file():
            return ModelConfig.read(where / MODEL_FILE)
    arguments = saved_arguments(folder, contents)
    if arguments is None:
        raise UserError(
            f"{directory} has neither a {MODEL_FILE} nor upstream's arguments in it: put the "
            f"model's description there as {MODEL_FILE}."
        )
    return model_from_arguments(arguments, directory.resolve().name)


def saved_arguments(folder: Path, contents: Contents) -> dict[str, Any] | None:
    """Upstream's arguments in a checkpoint, None if it has none."""
    if place := contents.objects.get(_COMMON_STATE):
        with (folder / place.file).open("rb") as handle:
            handle.seek(place.position)
            data = handle.read(place.length)
    elif (folder / _LEGACY_COMMON).is_file():
        data = (folder / _LEGACY_COMMON).read_bytes()
    else:
        return None
    try:
        state = _unpickle(data)
    except (zipfile.BadZipFile, pickle.UnpicklingError, StopIteration, EOFError):
        return None
    state = state[0] if isinstance(state, list) and state else state
    arguments = state.get("args") if isinstance(state, dict) else None
    return vars(arguments) if isinstance(arguments, argparse.Namespace) else None


def model_from_arguments(arguments: dict[str, Any], name: str) -> ModelConfig:
    """The model that upstream's arguments describe.

    Its vocabulary is the padded one: that is what the tensors have, and the tokenizer's own count
    is not always there, nor always what the name says (some tokenizers add a token to it).
    """
    said = from_arguments(arguments) | {"name": name}
    said.setdefault("original_max_position_embeddings", said.get("max_position_embeddings"))
    return validate(ModelConfig, said, f"{name}: the arguments in the checkpoint")


class _Placeholder:
    """Stands for any object that is no plain data; takes whatever the pickle does to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle.Unpickler):
    _KNOWN = {  # noqa: RUF012
        ("argparse", "Namespace"): argparse.Namespace,
        ("types", "SimpleNamespace"): SimpleNamespace,
        ("collections", "OrderedDict"): OrderedDict,
    }

    def find_class(self, module: str, name: str) -> Any:
        return self._KNOWN.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> Any:
        return _Placeholder()


def _unpickle(data: bytes) -> Any:
    """What `torch.save` wrote, tensors and foreign objects replaced by placeholders."""
    with zipfile.ZipFile(io.BytesIO(data)) as container:
        record = next(name for name in container.namelist() if name.endswith("/data.pkl"))
        return _Unpickler(io.BytesIO(container.read(record))).load()
