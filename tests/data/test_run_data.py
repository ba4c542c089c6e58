"""A run's data: built at first, the same when it resumes, and refused where it does not fit."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from dsv3_plugin.data.dataset_folder import open_dataset
from dsv3_plugin.data.indexed import decode_document
from dsv3_plugin.data.run_data import ensure_data
from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.load import load_model, load_recipe
from dsv3_plugin.recipe.sections import Data

SPEC = ("a_module", "a_function")
TEXTS = [f"document {i} of some words" for i in range(60)]


@pytest.fixture
def section(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Data(
        corpus=str(corpus), tokenizer={"vocab_size": 300}, seq_length=32, held_out=0.2, fim_rate=0.1
    )


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def changed(section: Data, **changes) -> Data:
    return Data.model_validate(section.model_dump() | changes)


def test_what_training_needs(section, tiny, tmp_path):
    data = ensure_data(section, tmp_path / "data", tiny)
    train = IndexedDataset(str(data.train_prefixes[0]))
    valid = IndexedDataset(str(data.valid_prefixes[0]))

    assert len(train) + len(valid) == len(TEXTS)
    assert (train.sequence_lengths.sum(), valid.sequence_lengths.sum()) == (
        data.train_tokens,
        data.valid_tokens,
    )
    assert train[0][-1] == data.eos_id == 1
    assert (data.tokenizer_dir / "tokenizer.json").is_file()
    assert ensure_data(section, tmp_path / "data", tiny) == data
    assert ensure_data(section, tmp_path / "data", tiny, seed=5).fingerprint != data.fingerprint


def test_nothing_held_out(section, tiny, tmp_path):
    data = ensure_data(changed(section, held_out=0.0), tmp_path / "data", tiny)
    assert (data.valid_prefixes, data.valid_tokens) == ([], 0)


def test_a_run_that_resumes_keeps_its_data(section, tiny, tmp_path):
    out = tmp_path / "data"
    began = ensure_data(section, out, tiny)
    Path(section.corpus).write_text('{"text": "the corpus has changed since"}\n')

    assert ensure_data(section, out, tiny, resuming=True) == began
    Path(section.corpus).unlink()
    assert ensure_data(section, out, tiny, resuming=True) == began
    for asked in (
        changed(section, fim_rate=0.2),
        changed(section, tokenizer={"vocab_size": 290}),
        changed(section, corpus="stdlib"),
    ):
        with pytest.raises(UserError, match="which this run began with"):
            ensure_data(asked, out, tiny, resuming=True)
    assert ensure_data(section, out, tiny, resuming=True) == began


def test_data_that_are_prepared_need_no_texts(section, tokenizer_folder, tiny, tmp_path):
    held_out = {"apart": str(tmp_path / "apart.jsonl")}
    shutil.copy(section.corpus, held_out["apart"])
    asked = changed(section, tokenizer=str(tokenizer_folder), held_out_sets=held_out)
    prepared = ensure_data(asked, tmp_path / "data", tiny)
    Path(section.corpus).unlink()
    Path(held_out["apart"]).unlink()
    assert ensure_data(asked, tmp_path / "data", tiny) == prepared
    # What is asked for otherwise has to be built, and cannot be.
    with pytest.raises(UserError, match=r"corpus\.jsonl"):
        ensure_data(changed(asked, fim_rate=0.2), tmp_path / "data", tiny)
    assert ensure_data(asked, tmp_path / "data", tiny) == prepared


def test_a_corpus_may_be_written_another_way(section, tiny, tmp_path, monkeypatch):
    out = tmp_path / "data"
    began = ensure_data(section, out, tiny)
    monkeypatch.chdir(tmp_path)
    for way in ("corpus.jsonl", "./corpus.jsonl", ["corpus.jsonl"]):
        asked = changed(section, corpus=way)
        assert ensure_data(asked, out, tiny, resuming=True) == began


def test_a_tokenizer_in_short(section):
    assert changed(section, tokenizer="bpe:300") == section


def test_data_that_changed_under_a_run(section, tiny, tmp_path):
    """Another run, or somebody, built the folder anew; or it is gone, and the corpus is another."""
    out = tmp_path / "data"
    began = ensure_data(section, out, tiny)
    trained_on = SimpleNamespace(corpus=began.corpus_digest, tokenizer=began.tokenizer_digest)
    resume = partial(ensure_data, section, out, tiny, resuming=True, trained_on=trained_on)
    assert resume() == began

    Path(section.corpus).write_text("".join(f'{{"text": "other words {i}"}}\n' for i in range(60)))
    again = ensure_data(section, out, tiny)
    assert again.fingerprint != began.fingerprint
    with pytest.raises(UserError, match="built anew since this run began, and its texts differ"):
        resume()
    ensure_data(changed(section, held_out=0.5), out, tiny)
    with pytest.raises(UserError, match="built anew since this run began, and its texts differ"):
        resume()
    shutil.rmtree(out)
    with pytest.raises(UserError, match="built anew since this run began, and its texts differ"):
        resume()


def test_a_tokenizer_that_did_not_encode_the_data(section, tiny, tmp_path):
    out = tmp_path / "data"
    ensure_data(section, out, tiny)
    (out / "tokenizer").rename(tmp_path / "aside")
    (out / "tokenizer").symlink_to(tmp_path / "aside")
    with pytest.raises(UserError, match="tokenizer leads out of its folder"):
        ensure_data(section, out, tiny)
    (out / "tokenizer").unlink()
    train_bpe(TEXTS, 290, out / "tokenizer")
    with pytest.raises(UserError, match="is not the tokenizer that encoded"):
        ensure_data(section, out, tiny)
    with pytest.raises(UserError, match="is not the tokenizer that encoded"):
        decode_document(open_dataset(out), 0, 5)


@pytest.mark.parametrize("given", ["trained", "folder"])
def test_a_tokenizer_that_the_weights_do_not_know(section, tiny, tmp_path, given):
    """It is refused before documents are encoded with it."""
    train_bpe(TEXTS, 290, tmp_path / "tokenizer")
    if given == "folder":
        section = changed(section, tokenizer=str(tmp_path / "tokenizer"))

    def accept(tokenizer):
        raise UserError("another one")

    with pytest.raises(UserError, match="another one"):
        ensure_data(section, tmp_path / "data", tiny, accept=accept)
    assert not (tmp_path / "data").exists()


def test_a_folder_the_recipe_names_is_never_replaced(section, tiny, tmp_path):
    shared = changed(section, path=str(tmp_path / "shared"))
    began = ensure_data(shared, tmp_path / "shared", tiny)

    with pytest.raises(UserError, match="must not change"):
        ensure_data(changed(shared, fim_rate=0.2), tmp_path / "shared", tiny)
    assert ensure_data(shared, tmp_path / "shared", tiny) == began


def test_what_gives_way_in_a_runs_own_folder_is_said_before(section, tiny, tmp_path):
    place = tmp_path / "data"

    def told(asked) -> list[str]:
        said = []
        ensure_data(asked, place, tiny, tell=said.append)
        return [sentence for sentence in said if "give way" in sentence]

    assert told(section) == told(section) == []
    tokens, named = open_dataset(place).manifest.train.tokens, section.corpus
    start = f"In {place} are {tokens:,} tokens of {named}: they give way to those of "
    assert told(changed(section, fim_rate=0.2)) == [
        f"{start}{named}, with fim_rate 0.2 in place of 0.1, once these are whole."
    ]
    told(section)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(TEXTS), encoding="utf-8")
    elsewhere = changed(section, corpus=str(other), held_out=0.0)
    assert told(elsewhere) == [
        f"{start}{other}, with held_out 0.0 in place of 0.2, once these are whole."
    ]
    other.write_text("\n".join(TEXTS[1:]), encoding="utf-8")
    [sentence] = told(elsewhere)
    assert sentence.endswith(f"{other}, whose texts have changed, once these are whole.")


def test_a_tokenizer_larger_than_the_vocabulary(section, tiny, tmp_path):
    small = tiny.model_copy(update={"vocab_size": 299})
    train_bpe(TEXTS, 300, tmp_path / "tokenizer")
    for tokenizer, name in (
        ({"vocab_size": 300}, "bpe:300"),
        (str(tmp_path / "tokenizer"), str(tmp_path / "tokenizer")),
    ):
        asked = changed(section, tokenizer=tokenizer)
        with pytest.raises(UserError) as error:
            ensure_data(asked, tmp_path / "data", small)
        assert f"tokenizer {name} has 300 tokens, model tiny has vocab_size 299" in str(error.value)
        assert not (tmp_path / "data").exists()
    ensure_data(asked, tmp_path / "data", small.model_copy(update={"vocab_size": 300}))


def test_a_part_shorter_than_a_sequence(section, tiny, tmp_path):
    data = ensure_data(section, tmp_path / "data", tiny)
    for length, name in ((data.valid_tokens, "held-out"), (data.train_tokens, "training")):
        with pytest.raises(UserError, match=f"the {name} part has {length} tokens"):
            ensure_data(changed(section, seq_length=length), tmp_path / "data", tiny)
    ensure_data(changed(section, seq_length=data.valid_tokens - 1), tmp_path / "data", tiny)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 300, folder)
    return folder


def encode(prefix: Path, tokenizer_folder: Path, texts) -> Path:
    """As Megatron's preprocessing leaves it."""
    tokenizer = open_tokenizer(tokenizer_folder)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for text in texts:
        ids = [*tokenizer.backend.encode(text).ids, tokenizer.eos_id]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture
def mixed(section, tokenizer_folder, tmp_path):
    """Of encoded words, three parts to one of text."""
    words = encode(tmp_path / "words", tokenizer_folder, (f"other words {i}" for i in range(90)))
    corpus = [{"path": f"{words}.idx", "weight": 3}, {"path": section.corpus, "weight": 1}]
    return changed(section, corpus=corpus, tokenizer=str(tokenizer_folder))


def test_a_mixture_is_where_the_command_line_says(mixed, tiny, tmp_path):
    out, said = tmp_path / "data", []
    data = ensure_data(mixed, out, tiny, tell=said.append)
    asked = f"data={json.dumps(mixed.model_dump() | {'path': str(out)})}"
    line = megatron_arguments(load_recipe("pretrain/tiny", [asked]), Machine(0, False), SPEC)
    for flag, prefixes in (
        ("--train-data-path", data.train_prefixes),
        ("--valid-data-path", data.valid_prefixes),
    ):
        place = line.index(flag) + 1
        assert line[place : place + 4] == ["3.0", str(prefixes[0]), "1.0", str(prefixes[1])]
    assert line[line.index("--tokenizer-model") + 1] == str(data.tokenizer_dir)
    counts = [len(IndexedDataset(str(prefix))) for prefix in data.train_prefixes]
    held_out = [len(IndexedDataset(str(prefix))) for prefix in data.valid_prefixes]
    assert [a + b for a, b in zip(counts, held_out, strict=True)] == [90, len(TEXTS)]
    assert any("encoded already: none of it is cut" in sentence for sentence in said)


def test_a_mixture_that_resumes_keeps_its_data(mixed, tiny, tmp_path):
    out = tmp_path / "data"
    began = ensure_data(mixed, out, tiny)
    words, texts = mixed.corpus
    Path(texts.path).unlink()
    assert ensure_data(mixed, out, tiny, resuming=True) == began
    with pytest.raises(UserError, match=r"which this run began with \(data.corpus is"):
        ensure_data(changed(mixed, corpus=[texts, words]), out, tiny, resuming=True)
    tokens = Path(words.path).with_suffix(".bin")
    tokens.write_bytes(b"\5\0" + tokens.read_bytes()[2:])
    with pytest.raises(UserError, match="from another corpus than is asked for now"):
        ensure_data(mixed, out, tiny, resuming=True)


def test_a_tokenizer_is_trained_once_for_a_mixture(section, tiny, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"xyzzy {i}"}) + "\n" for i in range(90)))
    corpus = [{"path": section.corpus}, {"path": str(more)}]
    asked = changed(section, corpus=corpus, fim_rate=0.0, tokenizer="bpe:600")
    out = tmp_path / "data"
    data = ensure_data(asked, out, tiny)
    assert len({dataset.manifest.tokenizer.digest for dataset in data.datasets}) == 1
    backend = open_tokenizer(out / "tokenizer").backend
    assert {" words", "xyzzy"} <= {backend.decode([i]) for i in range(backend.get_vocab_size())}
    trained = (out / "tokenizer").stat().st_ino
    assert ensure_data(asked, out, tiny) == data
    assert ensure_data(asked, out, tiny, resuming=True) == data
    assert (out / "tokenizer").stat().st_ino == trained
    more.write_text(more.read_text() * 2)
    assert ensure_data(asked, out, tiny).corpus_digest != data.corpus_digest
    assert (out / "tokenizer").stat().st_ino != trained


def test_a_row_of_a_mixture_that_cannot_be_read(section, tiny, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": 5}\n')
    corpus = [{"path": section.corpus}, {"path": str(tmp_path / "bad.jsonl")}]
    with pytest.raises(UserError, match=r'bad\.jsonl line 1: "text" is not text but int'):
        ensure_data(changed(section, corpus=corpus), tmp_path / "data", tiny)


def test_one_corpus_and_a_mixture_in_the_same_place(section, mixed, tiny, tmp_path):
    out = tmp_path / "data"
    one, several = ensure_data(section, out, tiny), ensure_data(mixed, out, tiny)
    assert not (out / "manifest.json").exists()
    kept = changed(section, path=str(out))
    with pytest.raises(UserError, match="holds the datasets of a mixture"):
        ensure_data(kept, out, tiny)
    assert ensure_data(mixed, out, tiny) == several
    assert ensure_data(section, out, tiny) == one
    assert not (out / "member0").exists()
    with pytest.raises(UserError, match="holds the dataset of one corpus"):
        ensure_data(changed(mixed, path=str(out)), out, tiny)


def test_a_member_shorter_than_a_sequence(mixed, tokenizer_folder, tiny, tmp_path):
    short = encode(tmp_path / "short", tokenizer_folder, ["a", "b"])
    corpus = [*mixed.corpus, {"path": str(short), "weight": 1}]
    with pytest.raises(UserError, match=r"the training part of \S*short has 2 tokens, less than"):
        ensure_data(changed(mixed, corpus=corpus), tmp_path / "data", tiny)


def test_a_tokenizer_cannot_be_trained_on_tokens(mixed, tiny, tmp_path):
    with pytest.raises(UserError, match=r"words\.idx is encoded already, so no tokenizer"):
        ensure_data(changed(mixed, tokenizer="bpe:300"), tmp_path / "data", tiny)


def test_held_out_sets(section, tokenizer_folder, tiny, tmp_path):
    code = tmp_path / "code.jsonl"
    code.write_text("".join(f'{{"text": "def f{i}(): return {i}"}}\n' for i in range(30)))
    words = encode(tmp_path / "words", tokenizer_folder, (f"other words {i}" for i in range(40)))
    asked = changed(
        section,
        tokenizer=str(tokenizer_folder),
        held_out_sets={"code": str(code), "words": str(words)},
    )
    out = tmp_path / "data"
    data = ensure_data(asked, out, tiny)
    line = ["pretrain/tiny", [f"data={json.dumps(asked.model_dump() | {'path': str(out)})}"]]
    prefixes = [dataset.train_prefix for dataset in data.held_out_sets.values()]
    assert load_recipe(*line).held_out_prefixes == prefixes
    assert [len(IndexedDataset(str(prefix))) for prefix in prefixes] == [30, 40]
    for dataset in data.held_out_sets.values():
        assert dataset.manifest.train.fim_documents == 0
        assert dataset.manifest.tokenizer.digest == data.tokenizer_digest
    assert data.corpus_digest == ensure_data(section, tmp_path / "plain", tiny).corpus_digest

    code.unlink()
    assert ensure_data(asked, out, tiny, resuming=True) == data
    fewer = changed(asked, held_out_sets={"code": str(words)})  # a run may go on with others
    assert [*ensure_data(fewer, out, tiny, resuming=True).held_out_sets] == ["code"]


def test_a_held_out_set_shorter_than_a_sequence(section, tiny, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    asked = changed(section, held_out_sets={"short": str(tmp_path / "short.txt")})
    with pytest.raises(UserError, match="the held-out set short has 2 tokens, less than one"):
        ensure_data(asked, tmp_path / "data", tiny)
