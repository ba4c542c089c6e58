"""What is read and kept back, and how long its sequences are."""

import pytest

from dsv3_plugin.data import tokenizer
from dsv3_plugin.recipe import sections
from dsv3_plugin.recipe.load import load_recipe
from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.corpus=[a, ./a]"], "a twice: name it once"),
        (["data.corpus=[{path: a, weight: -1}, {path: b, weight: 2}]"], "gives a the weight -1"),
        (["data.corpus=gone.idx"], "gone.idx is encoded already, so no tokenizer can be trained"),
        (
            ["data.held_out_sets={other: gone.idx}"],
            "gone.idx is encoded already, so no tokenizer can be trained",
        ),
    ],
)
def test_corpora_that_cannot_be_mixed(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.held_out_sets={a: x, A: y}"], "a and A are one name to some disks"),
        (["data.held_out_sets={a/b: x}"], "'a/b' is no name of a set"),
        (["data.held_out_sets={a: x, b: ./x}"], "b: ./x is data.held_out_sets.a as well"),
        (["data.held_out_sets={a: stdlib}"], "a: stdlib is data.corpus as well"),
        (
            ["data.held_out_sets={a: x}", "training.eval_interval=null"],
            "or set data.held_out_sets to",
        ),
        (
            ["data.held_out_sets={a: x}", "megatron_args={full-validation: true}"],
            "full-validation does not go with data.held_out_sets",
        ),
    ],
)
def test_held_out_sets_that_are_none(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize("recipe", ["pretrain/tiny", "sft/tiny", "rl/tiny"])
@pytest.mark.parametrize(
    "corpus", ["texts", "[{path: other, weight: 1}, {path: ./texts, weight: 2}]"]
)
def test_held_out_sets_do_not_lie_in_what_is_trained_on(recipe, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts" / "below").mkdir(parents=True)
    (tmp_path / "elsewhere.txt").write_text("a")
    (tmp_path / "texts" / "linked.txt").symlink_to("../elsewhere.txt")
    for path in (
        "texts/2.txt",
        "./texts/below",
        str(tmp_path / "texts/below/3"),
        "texts/linked.txt",
    ):
        said = refusal(recipe, [f"data.corpus={corpus}", f"data.held_out_sets={{a: {path}}}"])
        assert f"data.held_out_sets.a: {path} lies in " in said
        assert said.endswith("move it out of there, or name the others alone in data.corpus.")
    said = refusal(recipe, ["data.corpus=texts/2.txt", "data.held_out_sets={a: texts}"])
    assert "data.held_out_sets.a: texts holds texts/2.txt, which is data.corpus and would" in said


def test_held_out_sets_beside_what_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "apart").mkdir()
    (tmp_path / "texts" / "linked").symlink_to("../apart")  # is not read
    for path in ("apart", "texts2", "texts/.hidden/a", "texts/linked", "texts.txt"):
        load_recipe("pretrain/tiny", ["data.corpus=texts", f"data.held_out_sets={{a: {path}}}"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["data.seq_length=250", "parallel={processes: 2, context: 2}"],
            "data.seq_length 250 does not divide by twice context 2: take 248 or 252, or another",
        ),
        (
            ["parallel={processes: 3, context: 3, expert: 1}", "curves.batch_size=9"],
            "data.seq_length 256 does not divide by twice context 3",
        ),
        (["data.seq_length=2048"], "more than the model's 1024 positions: take as many or fewer"),
        (
            [
                "data.seq_length=1024",
                "model={rope_type: yarn, rotary_scaling_factor: 3, "
                "original_max_position_embeddings: 256}",
            ],
            "data.seq_length 1024 is more than the 768 positions that YaRN reaches from 256 by 3",
        ),
    ],
)
def test_sequences_that_are_too_long_or_do_not_divide(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["data.tokenizer=bpe:100"],
            "bpe:100 is too small: 256 bytes and the special tokens are 264",
        ),
        (["data.tokenizer=parent"], "is for stages that begin with another run's weights"),
    ],
)
def test_tokenizers_that_cannot_be(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


def test_the_smallest_vocabulary_is_that_of_the_tokenizer():
    assert sections.SMALLEST_VOCABULARY == tokenizer.SMALLEST_VOCABULARY


def test_conversations_are_for_fine_tuning():
    sentence = "and the stage is rl: set data.packing to prompts."
    assert sentence in refusal("rl/tiny", ["data.packing=conversations"])
