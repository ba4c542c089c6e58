"""Texts of `benchmarks/long_context.py`: real ones, generated ones, and the tokenizer of both.

Real text is the Python standard library's. Generated documents state facts and ask for them again
(see `dsv3_plugin/evaluation/facts.py`), alone or between passages of real text.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.tokenizer import EOS
from dsv3_plugin.evaluation.facts import KINDS, Kind, names, training_documents, values
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.folders import whole_folder

HELD_OUT = 40
"""Files of the standard library that nobody trains on, about an eightieth."""
SENTENCE = 12
"""Tokens of a fact."""
PASSAGE_CHARACTERS, PASSAGE = 64, 38
"""Characters of a passage at least, and tokens of one, about."""
FILLED = 0.9
"""Of its sequence, that a generated document is: passages differ in length, and it shall fit."""
OF_TOKENIZER = 600
"""Documents of a kind that the tokenizer is trained on."""
CHARACTERS_OF_TOKENIZER = 1500
"""Of each real one: so few that the words of facts are frequent, and so a token each."""


@dataclass(frozen=True)
class Asking:
    """What a generated document is made of.

    Attributes:
        facts: different ones in it.
        times_asked: how often each is asked for after it was stated.
    """

    facts: int
    times_asked: int

    @property
    def tokens(self) -> int:
        return SENTENCE * self.facts * (1 + self.times_asked)


def real_texts() -> tuple[list[str], list[str]]:
    """Files to train on, and files that nobody trains on."""
    documents = [document.text for document in read_documents(find_sources("stdlib"))]
    random.Random(0).shuffle(documents)
    return documents[HELD_OUT:], documents[:HELD_OUT]


def passages(text: str) -> Iterator[str]:
    """Lines that follow each other, two or three as a rule, none of them very long."""
    some: list[str] = []
    for line in text.split("\n"):
        some.append(line)
        if sum(map(len, some)) >= PASSAGE_CHARACTERS:
            passage = "\n".join(some)
            if len(passage) < 2 * PASSAGE_CHARACTERS:
                yield passage
            some = []


def documents_with_facts(
    real: list[str], length: int, askings: dict[Asking, float], seed: int
) -> Iterator[str]:
    """Generated documents without end, of about as many tokens as a sequence has.

    Args:
        real: passages for what facts leave of the length; none: documents of facts alone.
        length: tokens of the sequence.
        askings: what they are made of, each with its share of the documents.
        seed: of all that is drawn.
    """
    draw = random.Random(seed)
    kinds: list[tuple[Kind, ...]] = [KINDS, KINDS[::-1]]
    sources = {
        (asking, of): training_documents(
            real,
            facts=asking.facts,
            passages_each=round((FILLED * length - asking.tokens) / PASSAGE) if real else 0,
            times_asked=asking.times_asked,
            kinds=of,
            seed=draw.getrandbits(32),
        )
        for asking in askings
        for of in kinds
    }
    while True:
        (asking,) = draw.choices([*askings], [*askings.values()])
        yield next(sources[asking, draw.choice(kinds)])


def lists(length: int, longest: int, seed: int) -> Iterator[str]:
    """Lists of the words that facts are made of, read out again and again.

    Nothing teaches sooner to look back: what comes next is always what came next before.

    Args:
        length: words of all of a document, which are as many tokens.
        longest: words of a list; there are two at least.
        seed: of all that is drawn.
    """
    draw = random.Random(seed)
    words = sorted(
        {word for kind in KINDS for value in values(kind, "training") for word in value}
        | {word for name in names("training") for word in name.split()}
    )
    while True:
        of_one = draw.sample(words, draw.randint(2, longest))
        yield " " + " ".join(itertools.islice(itertools.cycle(of_one), length))


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """One document per line, if the file is not there yet."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in documents)


def write_tokenizer(path: Path, vocabulary: int, real: list[str]) -> None:
    """A byte-level BPE in which a word or a digit of a fact is one token, with the space before it.

    Raises:
        ValueError: the vocabulary is too small for that.
    """
    if path.exists():
        return
    backend = tokenizers.Tokenizer(models.BPE())
    split = tokenizers.Regex(r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    generated = (
        lists(160, 32, seed=1),
        documents_with_facts([], 256, {Asking(4, 4): 1.0}, seed=1),
    )
    backend.train_from_iterator(
        itertools.chain(
            *(itertools.islice(of, OF_TOKENIZER) for of in generated),
            (text[:CHARACTERS_OF_TOKENIZER] for text in real[: OF_TOKENIZER // 2]),
        ),
        trainer,
    )
    sentence = next(documents_with_facts([], 0, {Asking(1, 1): 1.0}, seed=0)).split("\n")[0]
    if len(backend.encode(f" {sentence}\n").ids) > SENTENCE + 1:
        raise ValueError(f"{sentence!r} is more than {SENTENCE} tokens of {vocabulary:,}")
    with whole_folder(path) as place:
        backend.save(str(place / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
        (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
