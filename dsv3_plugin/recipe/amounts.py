"""Amounts as people write them: 469B tokens, 14.8T tokens, 2000 steps, 2 epochs, 10% of a run."""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import pydantic

from dsv3_plugin.recipe.yaml_text import quoted

_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_AMOUNT = re.compile(
    r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})\s*([KMBT]?)(?:\s+(tokens?|steps?|epochs?))?",
    re.IGNORECASE,
)
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{0,12})?|\.\d{1,12})\s*%")
_LIKE_A_SHARE = re.compile(r"(\d{1,2}|100)\s*(?:percent|per cent|pct|p\.c\.)", re.IGNORECASE)


class Steps(int):
    """A number of optimizer steps, where a number of tokens could stand too."""

    def __str__(self) -> str:
        return f"{int(self)} steps"


class Epochs(int):
    """A number of passes over the conversations that are trained on, likewise."""

    def __str__(self) -> str:
        return f"{int(self)} epochs"


class Share(Fraction):
    """A part of the whole run, from 0 to 1."""

    def __str__(self) -> str:
        percent = self * 100  # a decimal number, as it was read
        return f"{Decimal(percent.numerator) / percent.denominator:f}%"

    def of[T: (int, Steps)](self, whole: T) -> T:
        """That part of so many tokens or steps, rounded to a whole one."""
        return type(whole)(round(self * int(whole)))


def parse_tokens(text: Any) -> int:
    """Tokens from an integer or from text such as "469B", "4.3T", "120K tokens".

    Raises ValueError with the sentence.
    """
    amount = parse_extent(text)
    for kind, what, way_out in (
        (Steps, "counts steps", f": training.steps takes {int(amount)}"),
        (Epochs, "counts epochs", f": training.epochs takes {int(amount)}"),
        (Share, "is a share", ""),
    ):
        if isinstance(amount, kind):
            raise ValueError(f"'{text}' {what} where tokens are meant{way_out}")
    return amount


def parse_extent(text: Any) -> int | Steps | Epochs | Share:
    """Tokens as `parse_tokens` reads them, or "2000 steps", or "2 epochs", or "10%"."""
    if isinstance(text, float) and text.is_integer():  # 1.5e6
        text = int(text)
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"{text} is negative")
        return _bounded(text, text)
    if isinstance(text, str) and (percent := _SHARE.fullmatch(text.strip())):
        share = Share(Fraction(percent[1].rstrip(".")) / 100)
        if share > 1:
            raise ValueError(f"'{text}' is more than the whole run; write 100% or less of it")
        return share
    match = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{quoted(text)} is not an amount; {_way_out(text)}")
    amount = Fraction(match[1].rstrip(".")) * _SUFFIX[match[2].upper()]
    if amount.denominator != 1:
        raise ValueError(f"'{text}' is not a whole number")
    unit = {"step": Steps, "epoch": Epochs}.get((match[3] or "").lower().rstrip("s"), int)
    return unit(_bounded(int(amount), text))


def _way_out(text: Any) -> str:
    """How what was meant is written."""
    if isinstance(text, float) and 0 < text < 1:
        return f"write {text * 100:.10g}% for that share of the run"
    if isinstance(text, str) and (percent := _LIKE_A_SHARE.fullmatch(text.strip())):
        return f"write {percent[1]}% for that share of the run"
    if isinstance(text, str) and text.strip().endswith("%"):
        return "a share of the run is written 10%"
    return "write for example 120M, 469B or 2000 steps"


def _bounded(amount: int, written: int | str) -> int:
    """As many as upstream counts with: 64 bits."""
    if amount >= 2**63:
        raise ValueError(f"{written} is more than anybody counts to ({2**63:.1e})")
    return amount


def no_boolean(value: Any) -> Any:
    """The value, where it is none that Python takes for 0 or 1.

    Raises ValueError with the sentence.
    """
    if isinstance(value, bool):
        raise ValueError(f"{quoted(value)} is no number: write {int(value)}")
    return value


def format_tokens(tokens: int) -> int | str:
    """The shortest exact writing: 14800000000000 → "14.8T"; numbers that have none stay numbers."""
    for suffix in "TBMK":
        unit = _SUFFIX[suffix]
        if tokens >= unit and tokens % (unit // 1000) == 0:
            whole, rest = divmod(tokens, unit)
            return f"{whole}.{rest * 1000 // unit:03d}".rstrip("0").rstrip(".") + suffix
    return tokens


def _write(amount: int | Share) -> int | str:
    return str(amount) if isinstance(amount, Steps | Epochs | Share) else format_tokens(amount)


Tokens = Annotated[
    int,
    pydantic.BeforeValidator(parse_tokens),
    pydantic.PlainSerializer(format_tokens),
    pydantic.WithJsonSchema({"format": "tokens"}),
]
"""A pydantic field of tokens: reads "10T", holds an int, writes "10T"."""

Extent = Annotated[
    Any,
    pydantic.BeforeValidator(parse_extent),
    pydantic.PlainSerializer(_write),
    pydantic.WithJsonSchema({"format": "tokens, steps, epochs or a share"}),
]
"""A pydantic field of tokens, steps, epochs or a share of the run."""
