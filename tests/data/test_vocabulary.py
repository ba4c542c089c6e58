"""How many ids a recipe's tokenizer has, from its folder alone."""

import json

import pytest
import tokenizers

from dsv3_plugin.data.tokenizer import train_bpe
from dsv3_plugin.data.vocabulary import ids_of
from dsv3_plugin.recipe.load import load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "hf"
    train_bpe(["a few words, and a few more of them"], 290, folder)
    return folder


def of(choice) -> int | None:
    return ids_of(load_recipe("pretrain/tiny", [f"data.tokenizer={choice}"]))


def test_as_many_as_its_library_counts(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert of(folder) == backend.get_vocab_size()


def test_tokens_that_the_configuration_alone_adds(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["added_tokens_decoder"] = {"999": {"content": "<|more|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert of(tmp_path) == 1000


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_what_is_none_says_nothing_here(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    assert of(tmp_path) is None
    assert of(tmp_path / "nowhere") is None
    assert of("deepseek-ai/DeepSeek-V3") is None  # no look at a hub


def test_a_tokenizer_that_is_trained_has_no_folder():
    assert of("bpe:2048") is None
