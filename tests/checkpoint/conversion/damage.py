"""What damages a Hugging Face folder, and how an import has to refuse it."""

import json

import pytest
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.conversion.weights import open_weights
from dsv3_plugin.errors import UserError
from tests.checkpoint.samples import small_model

MODEL = small_model()
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def edit(folder, change):
    """Rewrites the shards after `change(tensors by name)`, and the index to match."""
    index = {}
    for file in (FIRST, SECOND):
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def refused(source, target, *words, **options):
    """The import is refused with a sentence that has these words; says what is left behind."""
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    with pytest.raises(UserError) as caught:
        import_hf(source, target, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert str(word) in sentence, sentence
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert not (target / "latest_checkpointed_iteration.txt").exists()
    if target.exists():
        assert (target / "INCOMPLETE").exists()
        with pytest.raises(UserError, match="unfinished"):
            open_weights(target)
    return sentence


def rename(tensors, old, new):
    """For `edit`: gives a tensor another name in the shard that has it."""
    if old in tensors:
        tensors[new] = tensors.pop(old)
