"""`dsv3 init`: a recipe for a person's own things."""

import json
import shutil

import pytest

from dsv3_plugin.data.new_recipe import write_recipe
from dsv3_plugin.data.tokenizer import FIM_HOLE, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.load import load_recipe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of mine") / "tokenizer"
    train_bpe(["some words, and some words more"] * 9, 300, folder)
    return folder


def test_the_vocabulary_has_room_for_the_tokenizer_and_no_more(tokenizer, tmp_path):
    path, minded = write_recipe(
        str(tmp_path / "mine"), tokenizer=tokenizer, corpus="texts/", tokens="1M"
    )
    assert path == tmp_path / "mine.yaml"
    assert minded == []
    mine = load_recipe(path)
    assert mine.data.tokenizer == str(tokenizer)
    assert mine.data.corpus == "texts/"
    assert mine.model.vocab_size == 384
    assert mine.data.fim_rate == load_recipe("pretrain/tiny").data.fim_rate
    assert mine.training.tokens == 1_000_000


def test_documents_are_not_cut_where_the_tokenizer_has_no_tokens_for_it(tokenizer, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tokenizer, other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace(FIM_HOLE, "<hole>"), encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8"))
    path, _ = write_recipe(str(tmp_path / "mine.yaml"), tokenizer=other)
    assert load_recipe(path).data.fim_rate == 0


def test_what_may_not_be_meant_is_told(tmp_path):
    _, minded = write_recipe(str(tmp_path / "mine"), model="deepseek-v2-lite")
    assert [sentence.partition(":")[0] for sentence in minded] == [
        "data.tokenizer has 4,096 ids and the model 102,400"
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tokens": "5%"}, "--tokens: '5%' is a share where tokens are meant"),
        ({"tokens": "0"}, "tokens must be more than 0"),
        ({"origin": "pretrain/tyni"}, "nearest: 'pretrain/tiny'"),
        ({"model": "nix"}, "'nix' is neither a file nor a shipped model"),
        ({"origin": "sft/tiny", "tokens": "1M"}, "trains for 2 epochs"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_written(arguments, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        write_recipe(str(tmp_path / "mine"), **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("of somebody", encoding="utf-8")
    with pytest.raises(UserError, match="is there already: choose another name"):
        write_recipe(str(path))
    assert path.read_text(encoding="utf-8") == "of somebody"
