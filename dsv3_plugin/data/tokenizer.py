"""Tokenizers: a byte-level BPE trained on the corpus, or any Hugging Face tokenizer folder.

Both end as a Hugging Face tokenizer folder that transformers, upstream's `HuggingFaceTokenizer`
and an exported model all load. A trained one uses DeepSeek-V3's pre-tokenizer and its names of
special tokens, with `<｜begin▁of▁sentence｜>`, `<｜end▁of▁sentence｜>` and padding at ids 0, 1, 2
as there, and its chat template. Documents are encoded as plain text: one that happens to spell a
special token does not become it.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsv3_plugin.data.fim import Sentinels
from dsv3_plugin.data.hub import tokenizer_folder_of
from dsv3_plugin.data.tokenizer_folder import files_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.sections import SMALLEST_VOCABULARY, size_of_bpe

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_END = "<｜fim▁end｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"

SPECIAL_TOKENS = (BOS, EOS, PAD, FIM_BEGIN, FIM_HOLE, FIM_END, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{{ raise_exception('this template knows no tools') }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.tool_calls %}{{ raise_exception('this template knows no tools') }}{% endif %}"
    "{% if message.role == 'system' %}{{ message.content }}"
    f"{{% elif message.role == 'user' %}}{USER}{{{{ message.content }}}}"
    f"{{% elif message.role == 'assistant' %}}{ASSISTANT}{{{{ message.content }}}}{EOS}"
    "{% else %}{{ raise_exception('this template knows no tools') }}"
    "{% endif %}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)
"""How DeepSeek-V3 writes a conversation, of a tokenizer that is trained."""

# The pre-tokenizer of DeepSeek-V3's tokenizer.json: numbers in groups of three digits, runs of
# Chinese and Japanese, then words, punctuation and white space.
_DEEPSEEK_V3_SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+",
)

# A text is encoded in segments of about this many characters, cut where a line begins, in a long
# line where a word does, and in a long word anywhere: the tokenizers library needs some 120 bytes
# per character, and encodes segments in parallel.
_SEGMENT = 500_000
_LONGEST_SEGMENT = 1_000_000
_SEGMENTS_AT_ONCE = 8
_LINE_START = re.compile(r"\n(?=\S)")
_WORD_START = re.compile(r"(?<=\S)(?= \S)")


@dataclass(frozen=True)
class TrainBpe:
    """Train a byte-level BPE of at most `vocab_size` tokens, special tokens included."""

    vocab_size: int

    @property
    def most_tokens(self) -> int:
        """Rows of an embedding that are enough for it."""
        return self.vocab_size

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"a byte-level tokenizer of {self.vocab_size} tokens cannot be: 256 bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens need at least {SMALLEST_VOCABULARY}."
            )

    def __str__(self) -> str:
        return f"bpe:{self.vocab_size}"


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer folder, opened: what the data room needs of it.

    Attributes:
        folder: the Hugging Face tokenizer folder.
        backend: the `tokenizers` object; encode with `encode_texts`.
        eos_id: the end-of-document token.
    """

    folder: Path
    backend: tokenizers.Tokenizer
    eos_id: int

    @cached_property
    def most_tokens(self) -> int:
        """Rows an embedding needs: the highest token id plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of everything that decides how text becomes tokens."""
        state = f"{self.eos_id} {self.backend.to_str()}"
        return hashlib.blake2b(state.encode(), digest_size=16).hexdigest()

    @property
    def sentinels(self) -> Sentinels:
        """The FIM sentinels.

        Raises:
            UserError: the tokenizer has none of DeepSeek's names for them.
        """
        ids = [self.backend.token_to_id(name) for name in (FIM_BEGIN, FIM_HOLE, FIM_END)]
        if None in ids:
            raise UserError(
                f"tokenizer {self.folder} has no {FIM_BEGIN}, {FIM_HOLE}, {FIM_END} tokens, so "
                "it cannot write fill-in-the-middle documents: set fim_rate to 0, or add them."
            )
        return Sentinels(*ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self.backend.decode(list(ids), skip_special_tokens=False)


def encode_texts(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as plain text, nothing added, encoded on the library's threads."""
    backend.encode_special_tokens = True  # not part of what is saved or pickled
    ids: list[list[int]] = [[] for _ in texts]
    segments = ((of, part) for of, text in zip(ids, texts, strict=True) for part in _segments(text))
    # Short texts, of which a caller passes as many as do no harm, are encoded all at once.
    long = any(len(text) > _SEGMENT for text in texts)
    for some in itertools.batched(segments, _SEGMENTS_AT_ONCE if long else max(len(texts), 1)):
        parts = [part for _, part in some]
        for (of, _), encoding in zip(
            some, backend.encode_batch_fast(parts, add_special_tokens=False), strict=True
        ):
            of += encoding.ids
    return ids


def _segments(text: str) -> list[str]:
    segments = []
    start = 0
    while len(text) - start > _SEGMENT:
        window = (start + _SEGMENT, start + _LONGEST_SEGMENT)
        cut = _LINE_START.search(text, *window) or _WORD_START.search(text, *window)
        end = cut.end() if cut else window[1]
        segments.append(text[start:end])
        start = end
    return [*segments, text[start:]]


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE and write it as a Hugging Face tokenizer folder.

    The same texts give the same tokenizer. A small corpus may give fewer tokens than asked for.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
                for split in _DEEPSEEK_V3_SPLITS
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    segments = (segment for text in texts for segment in _segments(text))
    backend.train_from_iterator(segments, trainer)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def open_tokenizer(folder: Path) -> TextTokenizer:
    """Open a Hugging Face tokenizer folder, through transformers, as every later user of it will.

    Raises:
        UserError: no tokenizer there, one without an end-of-sentence token, one that is Python
            code of its own, or a file of it is a link that leads out of the folder.
    """
    if not folder.is_dir():
        raise UserError(
            f'tokenizer folder {folder} does not exist: name a folder, or "bpe:N" to train one of '
            "N tokens."
        )
    files = files_of(folder)
    _refuse_code(folder, files)
    # transformers would look for a missing file elsewhere, and take a model's config for one.
    if not any(name in files for name in _BEGINNINGS):
        raise UserError(f"{folder} holds no tokenizer (no {' or '.join(_BEGINNINGS)}).")

    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        loaded = AutoTokenizer.from_pretrained(
            folder,
            # No model's: the tokenizer's files have to say it all, as where they are copied to.
            config=PreTrainedConfig(),
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # transformers raises whatever its parsers do
        raise UserError(f"{folder} holds no tokenizer that transformers loads: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"tokenizer {folder} has no tokenizer.json, only Python code of its own: convert it "
            "to a fast tokenizer first."
        )
    if loaded.eos_token_id is None:
        raise UserError(
            f"tokenizer {folder} names no eos_token, which ends every document: add it to "
            "tokenizer_config.json."
        )
    backend.no_truncation()
    backend.no_padding()
    return TextTokenizer(folder, backend, loaded.eos_token_id)


_BEGINNINGS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these is in every folder that transformers loads a tokenizer from without code."""


def _refuse_code(folder: Path, files: Collection[str]) -> None:
    """Raise UserError if a tokenizer is code of its own, which nothing here runs."""
    code = sorted(path.name for path in folder.glob("tokeniz*.py"))
    if _names_code(folder):
        what = f"auto_map in its tokenizer_config.json{''.join(f', {name}' for name in code)}"
    elif code and "tokenizer.json" not in files:
        what = ", ".join(code)
    else:
        return
    raise UserError(
        f"tokenizer {folder} brings Python code of its own ({what}), which is never run: convert "
        "it to a fast tokenizer (a tokenizer.json, and no auto_map) first."
    )


def _names_code(folder: Path) -> bool:
    """Whether `tokenizer_config.json` says that a class of the folder's, or a repository's, is the
    tokenizer."""
    try:
        text = read_plain(inside(folder, "tokenizer_config.json")).decode()
        said = json.loads(text).get("auto_map")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # transformers says what is wrong with it
    return bool(said.get("AutoTokenizer") if isinstance(said, dict) else said)


def choose_tokenizer(choice: str) -> TrainBpe | TextTokenizer:
    """`bpe:4096` asks for a tokenizer to be trained; anything else is a folder, or a hub's name.

    Raises:
        UserError: neither a size of a vocabulary nor a folder with a tokenizer.
    """
    try:
        size = size_of_bpe(choice)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    return open_tokenizer(tokenizer_folder_of(choice)) if size is None else TrainBpe(size)


def check_fits(tokenizer: TrainBpe | TextTokenizer, vocab_size: int, model_name: str) -> None:
    """Refuse a tokenizer with more tokens than the model has rows in its embedding.

    Raises:
        UserError: naming both sizes.
    """
    if tokenizer.most_tokens > vocab_size:
        raise UserError(
            f"tokenizer {tokenizer} has {tokenizer.most_tokens} tokens, model {model_name} has "
            f"vocab_size {vocab_size}: choose a smaller tokenizer, or a model with a larger "
            "vocabulary."
        )


def without_threads() -> None:
    """For worker processes: they are the parallelism, so each encodes on one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
