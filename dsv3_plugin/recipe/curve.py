"""A curve over consumed tokens: learning rate, batch size, router-bias speed γ, MTP weight λ.

In YAML a curve is a number (constant for ever) or a list of pieces, each of one shape and each
beginning where the one before ended:

    learning_rate:
      - {linear: 2.2e-4, from: 0, for: 2000 steps}   # a straight line to 2.2e-4
      - {constant: 2.2e-4, until: 10T}               # absolute position, in tokens
      - {cosine: 2.2e-5, for: 4.3T}                  # half a cosine wave down to 2.2e-5
      - {constant: 7.3e-6}                           # the last piece may stay open

`from` starts a line or a wave elsewhere than at the value before it. Lengths are tokens (K, M, B,
T), steps, epochs or shares of the run (10%); steps are turned into tokens through the batch size in
force there, epochs of conversations through the sequences that they fill. After its last piece a
curve holds its last value. A run resumes on all its curves from one number, the tokens consumed so
far.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import pydantic

from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe.amounts import Epochs, Extent, Share, Steps
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.yaml_text import quoted

Shape = Literal["linear", "constant", "cosine"]
_SHAPES: tuple[Shape, ...] = ("linear", "constant", "cosine")


class Piece(Section):
    """One piece as written: its shape with the value it arrives at, and its length."""

    linear: float | None = None
    """A straight line to this value."""
    constant: float | None = None
    """This value throughout."""
    cosine: float | None = None
    """Half a cosine wave to this value."""
    from_: float | None = pydantic.Field(default=None, alias="from")
    """Where a line or a wave begins; null: where the piece before ended."""
    until: Extent | None = None
    """The position where it ends."""
    for_: Extent | None = pydantic.Field(default=None, alias="for")
    """Its length, in place of `until`."""

    @property
    def shape(self) -> Shape:
        return next(shape for shape in _SHAPES if getattr(self, shape) is not None)

    @property
    def to(self) -> float:
        """The value at the end of the piece."""
        return getattr(self, self.shape)

    @property
    def is_share(self) -> bool:
        """Whether its length or the place of its end is a share of the run."""
        return isinstance(_extent(self), Share)

    @property
    def is_epochs(self) -> bool:
        """Whether its length or the place of its end counts epochs."""
        return isinstance(_extent(self), Epochs)

    @pydantic.model_validator(mode="after")
    def _one_of_each(self) -> Self:
        shapes = [shape for shape in _SHAPES if getattr(self, shape) is not None]
        if len(shapes) != 1:
            raise ValueError("a piece has exactly one of linear, constant and cosine")
        if self.until is not None and self.for_ is not None:
            raise ValueError("a piece has until or for, not both")
        if self.from_ is not None and shapes == ["constant"]:
            raise ValueError("a constant piece has no from")
        return self


def _as_pieces(written: Any) -> Any:
    """A bare number is one constant piece."""
    if isinstance(written, int | float) and not isinstance(written, bool):
        return [{"constant": float(written)}]
    if not isinstance(written, list) or not written:
        if isinstance(written, dict) and all(str(key).isdecimal() for key in written):
            raise ValueError(
                "a piece cannot be changed alone: give the whole curve, a number or a list of "
                "pieces, such as [{linear: 1e-4, from: 0, for: 10%}, {constant: 1e-4}]"
            )
        if isinstance(written, dict):
            raise ValueError(
                f"{quoted(written)} is one piece of a curve: put it in brackets, [{{…}}]"
            )
        raise ValueError(
            f"{quoted(written)} is not a curve; write a number or a list of pieces, such as "
            f"[{{linear: 1e-4, from: 0, for: 10%}}, {{constant: 1e-4}}]"
        )
    for number, piece in enumerate(written, start=1):
        if isinstance(piece, str | int | float | list | None):
            raise ValueError(f"piece {number} is {quoted(piece)}: write {_as_mapping(piece)}")
    return written


def _as_mapping(piece: Any) -> str:
    """How a piece is written that was given as a number, or as a pair of place and value."""
    match piece:
        case bool() | [bool(), _] | [_, bool()]:
            pass
        case int() | float():
            return f"{{constant: {piece:g}, until: 10%}}, or another shape and length"
        case [int() | str() as place, int() | float() as value] if place:
            return f"{{linear: {value:g}, until: {place}}}, or another shape"
    return "a mapping such as {constant: 1e-4, until: 10%}"


def _as_written(pieces: list[Piece]) -> float | list[dict[str, Any]]:
    first, *others = pieces
    if not others and first.shape == "constant" and first == Piece(constant=first.constant):
        return first.constant
    return [piece.model_dump(exclude_none=True) for piece in pieces]


CurveSpec = Annotated[
    list[Piece],
    pydantic.BeforeValidator(_as_pieces),
    pydantic.PlainSerializer(_as_written),
    pydantic.WithJsonSchema({"format": "curve"}),
]
"""A pydantic field holding a curve as written."""


@dataclass(frozen=True)
class Segment:
    """A piece with its place: from `start` (tokens) at value `first` to `end` at value `last`.

    `end` is None for the open last segment, whose value is `last` throughout.
    """

    shape: Shape
    start: int
    end: int | None
    first: float
    last: float

    def __call__(self, tokens: int) -> float:
        if self.shape == "constant" or self.end is None or self.end == self.start:
            return self.last
        progress = (tokens - self.start) / (self.end - self.start)
        if self.shape == "cosine":
            progress = (1.0 - math.cos(math.pi * progress)) / 2.0
        # Written so that both ends are exact.
        return self.first * (1.0 - progress) + self.last * progress


@dataclass(frozen=True)
class Curve:
    """A piecewise function of consumed tokens."""

    segments: tuple[Segment, ...]

    def __call__(self, tokens: int) -> float:
        """The value after `tokens` consumed tokens; at a boundary, that of the later piece."""
        for segment in self.segments:
            if segment.end is None or tokens < segment.end:
                return segment(tokens)
        return self.segments[-1].last

    @property
    def maximum(self) -> float:
        return max(max(segment.first, segment.last) for segment in self.segments)

    @property
    def minimum(self) -> float:
        return min(min(segment.first, segment.last) for segment in self.segments)

    @property
    def boundaries(self) -> list[int]:
        """Where pieces begin and end, in tokens; an open end is left out."""
        ends = [segment.end for segment in self.segments if segment.end is not None]
        return [self.segments[0].start, *ends]

    @classmethod
    def constant(cls, value: float) -> Self:
        return cls((Segment("constant", 0, None, value, value),))


def resolve(
    pieces: Sequence[Piece],
    tokens_after: Callable[[int, int], int] | None,
    tokens_of_epochs: Callable[[int], int] | None = None,
    budget: int | Steps | Epochs | None = None,
) -> Curve:
    """The curve that `pieces` describe.

    Args:
        pieces: as written.
        tokens_after: `(start, steps) -> tokens`, the position `steps` steps after position
            `start`; None where steps have no meaning (the batch size itself).
        tokens_of_epochs: the tokens of the first so many epochs; None where there are none.
        budget: how long the run is, for pieces that are a share of it.

    Raises:
        ValueError: with the sentence, its piece numbered from 1.
    """
    segments: list[Segment] = []
    position, value = 0, None
    steps: int | None = 0
    for number, piece in enumerate(pieces, start=1):
        first = piece.to if piece.shape == "constant" else piece.from_
        if first is None:
            first = value
        if first is None:
            raise ValueError(f"piece {number}: the first piece needs from, its first value")
        try:
            end = _end(piece, position, tokens_after, tokens_of_epochs, budget)
        except ValueError as error:
            raise ValueError(f"piece {number}: {error}") from None
        if end is None and number < len(pieces):
            raise ValueError(f"piece {number}: only the last piece may lack until and for")
        if end is None and piece.shape != "constant":
            raise ValueError(f"piece {number}: a {piece.shape} piece needs until or for")
        # A short run may have no step for a piece that is a share of it.
        least = position if isinstance(_extent(piece), Share) else position + 1
        if end is not None and end < least:
            raise ValueError(f"piece {number}: {_too_early(piece, end, position, steps, budget)}")
        segments.append(Segment(piece.shape, position, end, first, piece.to))
        position, value, steps = end, piece.to, _steps_at_end(piece, steps)
    return Curve(tuple(segments))


def _steps_at_end(piece: Piece, before: int | None) -> int | None:
    """The step at which a piece ends that begins at another, where no more than its own words say
    so; None: its batches say, or the length of the run."""
    extent = _extent(piece)
    if not isinstance(extent, Steps):
        return None
    if piece.until is not None:
        return int(extent)
    return None if before is None else before + int(extent)


def _too_early(
    piece: Piece, end: int, position: int, steps: int | None, budget: int | Steps | Epochs | None
) -> str:
    """What is said of a piece that ends before it begins, in steps where both are said in steps."""
    extent, way_out = _extent(piece), "give it a later until, or a length with for"
    here, there = f"{end:,} tokens", f"{position:,}"
    if isinstance(extent, Share) and isinstance(budget, Steps) and steps:
        here, there = f"step {extent.of(budget):d} ({extent} of {budget})", f"step {steps:,}"
        way_out = (
            f"give the run {math.ceil(steps / extent):,} steps or more, or this piece a later "
        )
        way_out += "until, or a length with for"
    elif isinstance(extent, Steps) and steps:
        here, there = f"step {int(extent):,}", f"step {steps:,}"
    return f"ends at {here}, and the piece before at {there}: {way_out}"


def _extent(piece: Piece) -> Any:
    """The length of a piece, or the place of its end; None where it is open."""
    return piece.for_ if piece.until is None else piece.until


def _end(
    piece: Piece,
    position: int,
    tokens_after: Callable[[int, int], int] | None,
    tokens_of_epochs: Callable[[int], int] | None,
    budget: int | Steps | Epochs | None,
) -> int | None:
    """Where a piece that begins at `position` ends, in tokens."""
    extent, origin = _extent(piece), position if piece.until is None else 0
    if extent is None:
        return None
    written = str(extent)
    if isinstance(extent, Share):
        assert budget is not None
        if not extent:
            raise ValueError(f"'{written}' is no length: write one such as 10%, or leave it out")
        written += f" of {budget}"
        if isinstance(budget, Epochs):
            budget = _tokens_of(budget, tokens_of_epochs)
        extent = extent.of(budget)
    elif isinstance(extent, Epochs):
        if piece.until is None and position:
            raise ValueError("epochs are counted from the beginning: write until")
        extent = _tokens_of(extent, tokens_of_epochs)
    if not isinstance(extent, Steps):
        return origin + extent
    if tokens_after is None:
        raise ValueError(
            f"'{written}' would need the batch size that this curve defines; give tokens"
        )
    return tokens_after(origin, extent)


def _tokens_of(epochs: Epochs, tokens_of_epochs: Callable[[int], int] | None) -> int:
    if tokens_of_epochs is None:
        raise ValueError(
            f"'{number_of(int(epochs), 'epoch')}' is for training on conversations: give tokens, "
            "steps, or a share of the run such as 10%"
        )
    return tokens_of_epochs(epochs)
