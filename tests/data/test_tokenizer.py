"""Tokenizers: trained ones and foreign folders, held against transformers, tokenizers, upstream."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.data import tokenizer as tokenizer_module
from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.tokenizer import (
    BOS,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    PAD,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    TrainBpe,
    check_fits,
    choose_tokenizer,
    encode_texts,
    open_tokenizer,
    train_bpe,
)
from dsv3_plugin.data.tokenizer_folder import TOKENIZER_FILES, copy_tokenizer
from dsv3_plugin.errors import UserError

TEXTS = [
    "def f(x):\n    return x + 12345  # a comment\n\n\nclass A:\n\tpass\r\n",
    "日本語とひらがな、カタカナ。 中文 zusammen mit äöü ß — “quotes” 😀👩‍👩‍👧\n",
    "   leading and trailing   ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_bpe(stdlib_texts(40), 600, folder)
    return folder


def stdlib_texts(count):
    sources = find_sources("stdlib")[:count]
    return [document.text for document in read_documents(sources)]


@pytest.fixture(scope="module")
def opened(folder):
    return open_tokenizer(folder)


def test_special_tokens_have_deepseeks_names_and_places(opened):
    names = [opened.backend.id_to_token(i) for i in range(len(SPECIAL_TOKENS))]

    assert names == list(SPECIAL_TOKENS)
    assert 256 + len(SPECIAL_TOKENS) == SMALLEST_VOCABULARY
    assert (BOS, EOS, PAD) == (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5c\u2581pad\u2581\uff5c>",
    )
    assert opened.eos_id == 1
    assert opened.most_tokens == 600
    assert opened.sentinels.begin == opened.backend.token_to_id("<\uff5cfim\u2581begin\uff5c>")
    assert opened.sentinels.hole == opened.backend.token_to_id("<\uff5cfim\u2581hole\uff5c>")
    assert opened.sentinels.end == opened.backend.token_to_id("<\uff5cfim\u2581end\uff5c>")


def test_transformers_and_tokenizers_encode_alike(folder, opened):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = encode_texts(opened.backend, TEXTS)
    for loaded in (
        AutoTokenizer.from_pretrained(folder),
        PreTrainedTokenizerFast.from_pretrained(folder),
    ):
        assert [loaded(text).input_ids for text in TEXTS] == ours
        assert [loaded.decode(ids) for ids in ours] == TEXTS
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
    assert [library.encode(text).ids for text in TEXTS] == ours


def test_upstream_reads_the_folder(folder):
    from megatron.core.tokenizers import MegatronTokenizer

    upstream = MegatronTokenizer.from_pretrained(str(folder), {"library": "huggingface"})

    assert (upstream.eod, upstream.pad, upstream.vocab_size) == (1, 2, 600)
    assert upstream.tokenize(TEXTS[0]) == encode_texts(open_tokenizer(folder).backend, TEXTS)[0]


@given(text=st.text())
def test_any_text_comes_back(opened, text):
    [ids] = encode_texts(opened.backend, [text])
    assert opened.decode(ids) == text
    assert min(ids, default=8) >= len(SPECIAL_TOKENS)


def test_text_that_spells_a_special_token_stays_text(opened):
    text = f"{EOS} and {FIM_HOLE}{FIM_BEGIN}{FIM_END}"
    [ids] = encode_texts(opened.backend, [text])

    assert opened.decode(ids) == text
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))


def test_pieces_of_a_long_text_encode_as_the_whole(opened, monkeypatch):
    text = "".join(stdlib_texts(12))
    whole = opened.backend.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(tokenizer_module, "_SEGMENT", 200)

    assert len(tokenizer_module._segments(text)) > 200
    assert "".join(tokenizer_module._segments(text)) == text
    assert encode_texts(opened.backend, [text, "short", ""]) == [
        whole, opened.backend.encode("short").ids, [],
    ]  # fmt: skip


def test_a_text_of_one_line_is_cut_too(opened, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_SEGMENT", 200)
    monkeypatch.setattr(tokenizer_module, "_LONGEST_SEGMENT", 400)
    words, letters = "some words, 123 456 and more. " * 200, "x" * 5000
    for text in (words, letters):
        pieces = tokenizer_module._segments(text)
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 400
    whole = opened.backend.encode(words, add_special_tokens=False).ids
    assert encode_texts(opened.backend, [words, "", letters])[:2] == [whole, []]


def test_training_is_deterministic(folder, tmp_path):
    """In another process, with another hash seed and another number of threads."""
    program = (
        "import sys; from pathlib import Path\n"
        "from dsv3_plugin.data.corpus import find_sources\n"
        "from dsv3_plugin.data.documents import read_documents\n"
        "from dsv3_plugin.data.tokenizer import train_bpe\n"
        "texts = [d.text for d in read_documents(find_sources('stdlib')[:40])]\n"
        "train_bpe(texts, 600, Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "5"}
    subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=True)

    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_copy_holds_the_tokenizer_and_nothing_else(folder, opened, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for path in folder.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    copy_tokenizer(model, tmp_path / "copy")

    assert not (tmp_path / "copy" / "model.safetensors").exists()
    assert (tmp_path / "copy" / "chat_template.jinja").exists()
    assert open_tokenizer(tmp_path / "copy").digest == opened.digest


def foreign_tokenizer(folder: Path, eos_id: int = 9, **config) -> Path:
    """A word-level tokenizer as another project might write it."""
    words = {"<unk>": 0, "a": 1, "b": 2, "</s>": eos_id}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_foreign_folder(tmp_path):
    foreign = choose_tokenizer(str(foreign_tokenizer(tmp_path / "foreign", eos_token="</s>")))

    assert foreign.eos_id == 9
    assert foreign.most_tokens == 10  # ids need not be dense
    assert encode_texts(foreign.backend, ["a b a"]) == [[1, 2, 1]]
    with pytest.raises(UserError, match=r"has no <｜fim▁begin｜>.*set fim_rate to 0"):
        _ = foreign.sentinels


def test_code_of_a_tokenizer_is_never_run(folder, tmp_path, monkeypatch):
    """Nor asked about: there may be nobody at the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    plain = open_tokenizer(folder).digest
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('it ran')")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for auto_map in (
        {"AutoTokenizer": ["tokenization_own.Own", None]},
        {"AutoTokenizer": "somebody/something--tokenization_own.Own"},
        ["tokenization_own.Own", None],
    ):
        said = json.dumps(config | {"tokenizer_class": "Own", "auto_map": auto_map})
        (tmp_path / "tokenizer_config.json").write_text(said)
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        with pytest.raises(UserError, match=r"auto_map .*tokenization_own.py.*is never run"):
            open_tokenizer(tmp_path)
    # What belongs to the model, or is only left lying there, is passed over.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    said = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (tmp_path / "configuration_own.py").write_text("raise SystemExit('it ran')")
    assert open_tokenizer(tmp_path).digest == plain
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"\(tokenization_own.py\), which is never run: convert"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_file_that_leads_elsewhere_is_neither_opened_nor_copied(folder, tmp_path, name):
    source = tmp_path / "source"
    copy_tokenizer(folder, source)
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("/etc/passwd")
    for use in (open_tokenizer, lambda source: copy_tokenizer(source, tmp_path / "copy")):
        with pytest.raises(UserError, match=f"{name} leads out of its folder, to /etc/passwd"):
            use(source)
    assert not (tmp_path / "copy" / name).exists()


def test_what_is_not_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match='does not exist: name a folder, or "bpe:N" to train one'):
        choose_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        choose_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="names no eos_token"):
        choose_tokenizer(str(foreign_tokenizer(tmp_path / "endless")))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="holds no tokenizer that transformers loads"):
        choose_tokenizer(str(tmp_path))


def test_sizes():
    assert choose_tokenizer("bpe:300") == TrainBpe(300)
    for wrong in ("bpe", "bpe:", "bpe:many", "bpe:-5", "bpe:4k"):
        with pytest.raises(UserError, match="write bpe:N"):
            choose_tokenizer(wrong)
    with pytest.raises(UserError, match="need at least 264"):
        TrainBpe(263)
    check_fits(TrainBpe(4096), 4096, "tiny")
    with pytest.raises(
        UserError, match="tokenizer bpe:4097 has 4097 tokens, model tiny has vocab_size 4096"
    ):
        check_fits(TrainBpe(4097), 4096, "tiny")
