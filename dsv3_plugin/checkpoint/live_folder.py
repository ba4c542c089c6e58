"""A live model as a Hugging Face folder, which servers load: no checkpoint in between."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from dsv3_plugin.checkpoint.conversion.config_json import exported_config, kept_config, new_config
from dsv3_plugin.checkpoint.conversion.tokenizer_files import CARRIED, TOKEN_IDS, token_ids
from dsv3_plugin.checkpoint.formats.hf_headers import CONFIG
from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout
from dsv3_plugin.checkpoint.live_model import iter_hf_tensors
from dsv3_plugin.checkpoint.names import layout
from dsv3_plugin.checkpoint.trained_on import TOKENIZER
from dsv3_plugin.data.tokenizer_folder import files_of
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.model import ModelConfig

_SHARD = 5 * 10**9
"""Bytes of a file."""


def write_live(
    chunks: Sequence[torch.nn.Module],
    model: ModelConfig,
    dtype: torch.dtype,
    folder: Path,
    beside: Path,
) -> None:
    """Write the weights as they are; all ranks of the world call, and the first one writes.

    The folder is whole when `model.safetensors`, or the index of several, is there. It is the first
    rank's disk that may be full, and the others wait for it.

    Args:
        chunks: of this rank.
        model: of all ranks together.
        dtype: of its weights; router biases are FP32.
        folder: a new one.
        beside: the run's folder of checkpoints, whose tokenizer and description go with it.
    """
    entries = layout(model)
    types = {e.name: torch.float32 if e.precision == "fp32" else dtype for e in entries}
    places = HFLayout(((e.name, types[e.name], e.shape) for e in entries), _SHARD)
    writes = dist.get_rank() == 0
    with contextlib.ExitStack() as stack:
        files = {}
        if writes:
            folder.mkdir(parents=True)
            for part, header in places.headers.items():
                files[part] = stack.enter_context((folder / part).open("wb"))
                files[part].write(header)
        for name, tensor in iter_hf_tensors(chunks, model, group=dist.group.WORLD):
            if writes:
                (piece,) = places.targets[name].pieces
                plain = tensor.detach().to("cpu", types[name]).contiguous()
                files[piece.file].seek(piece.position)
                files[piece.file].write(plain.view(-1).view(torch.uint8).numpy().data)
    if writes:
        _describe(folder, model, str(dtype).removeprefix("torch."), beside)
        places.publish(folder)


def _describe(folder: Path, model: ModelConfig, dtype: str, beside: Path) -> None:
    """config.json, as the parent's was, and the tokenizer."""
    tokenizer = inside(beside, TOKENIZER)
    kept, ids = kept_config(beside), token_ids(tokenizer)
    if kept is None:
        config = new_config(model, dtype, False, ids)
    else:
        config = exported_config(kept, model, dtype, fp8=False)
        config |= dict.fromkeys(TOKEN_IDS & config.keys()) | ids
    replace_file(folder / CONFIG, json.dumps(config, indent=2).encode())
    for name, path in files_of(tokenizer, CARRIED).items():
        replace_file(folder / name, path.read_bytes())
