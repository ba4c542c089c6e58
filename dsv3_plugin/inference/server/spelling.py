"""How single tokens are written in a reply: each by a name that no other has, and by its bytes.

Tokens are not texts. Of a byte-level tokenizer many are part of a character only, and what decoding
makes of those is the same for all; others are written alike, or not at all. Log-probabilities that
are reported by a token's text would fall on each other.
"""

import json
from collections import Counter
from dataclasses import dataclass

from dsv3_plugin.data.tokenizer import TextTokenizer

_PART = "\ufffd"
"""In what decoding makes of part of a character."""


@dataclass(frozen=True)
class Spelling:
    """Names and bytes of the tokens of a vocabulary.

    Attributes:
        names: by id.
        coded: their bytes, by id.
    """

    names: tuple[str, ...]
    coded: tuple[bytes, ...]

    @classmethod
    def of(cls, tokenizer: TextTokenizer) -> "Spelling":
        """That of a tokenizer. A part of a character is called by its bytes, as OpenAI's
        completions do (`bytes:\\xe2\\x80`), what else has not a text of its own by its id, as vLLM
        does (`token_id:7`)."""
        ids = range(tokenizer.most_tokens)
        texts = tokenizer.backend.decode_batch([[i] for i in ids], skip_special_tokens=False)
        times = Counter(texts)
        bytes_of_letters = _letters() if _is_byte_level(tokenizer) else {}
        names, coded = [], []
        for token, text in zip(ids, texts, strict=True):
            letters = tokenizer.backend.id_to_token(token) or ""
            if _PART in text and letters and bytes_of_letters.keys() >= set(letters):
                coded.append(bytes(bytes_of_letters[letter] for letter in letters))
                names.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in coded[-1]))
                continue
            coded.append(text.encode())
            names.append(text if times[text] == 1 and text else _by_id(token))
        return cls(tuple(names), tuple(coded))

    def name(self, token: int) -> str:
        """What no other token is called; also for those that the model has and the tokenizer has
        not."""
        return self.names[token] if token < len(self.names) else _by_id(token)

    def bytes(self, token: int) -> bytes:
        """What it adds to a text's bytes."""
        return self.coded[token] if token < len(self.coded) else b""

    def characters(self, token: int) -> int:
        """How many characters of a text begin in it."""
        return sum(byte & 0xC0 != 0x80 for byte in self.bytes(token))


def _by_id(token: int) -> str:
    return f"token_id:{token}"


def _is_byte_level(tokenizer: TextTokenizer) -> bool:
    said = json.loads(tokenizer.backend.to_str())["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in said.get("decoders", [said]))


def _letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with (GPT-2's `bytes_to_unicode`): those
    that can be seen stand for themselves, the others for letters from 256 on, in their order."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }
