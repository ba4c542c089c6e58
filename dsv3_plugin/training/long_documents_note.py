"""What a run says of how long its documents are, and how whole ones are read."""

from collections.abc import Iterator

import numpy

from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.long_documents import by_length, drawn
from dsv3_plugin.data.rounds import LongShare, Pieces, rounds
from dsv3_plugin.data.run_data import RunData
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.extend import Extend
from dsv3_plugin.recipe.schema import Recipe


def packing_notes(recipe: Recipe, data: RunData) -> list[str]:
    """Of whole documents: how many there are and their tokens, by length, the share of long ones
    there is and is had, and how full sequences are. Of a stream that is to teach longer sequences:
    where none of a corpus is long.

    Raises:
        UserError: the share that is asked for cannot be had.
    """
    if recipe.data.packing == "whole":
        return [*_notes(recipe, data)]
    if recipe.data.packing == "stream" and isinstance(recipe, Extend):
        return [*_without_long_ones(recipe, data)]
    return []


def _without_long_ones(recipe: Extend, data: RunData) -> Iterator[str]:
    """Members whose documents are all short, beside the length of a sequence."""
    members = [member for _, member in corpora.drawn_from(recipe.data.corpus)]
    for member, prefix in zip(members, data.train_prefixes, strict=True):
        each = by_length(map_sequences(prefix).lengths, recipe.data.least_of_long)
        if not each.long_documents:
            yield (
                f"{member} has no long document: the longest has {each.longest:,} tokens and half "
                f"of them {each.median:,} or more, of the {recipe.data.seq_length:,} of a "
                f"sequence. What stands further apart is of different documents."
            )


def _notes(recipe: Recipe, data: RunData) -> Iterator[str]:
    asked, room, least = recipe.data, recipe.data.seq_length, recipe.data.least_of_long
    members = [member for _, member in corpora.drawn_from(asked.corpus)]
    lengths = [map_sequences(prefix).lengths for prefix in data.train_prefixes]
    found = [by_length(each, least) for each in lengths]
    weights = [member.weight for member in members]
    given = None if None in weights or len(weights) == 1 else weights
    ways = drawn(found, given, asked.long_document_share)
    total = sum(way.weight for way in ways)
    for member, sizes, each, way in zip(members, lengths, found, ways, strict=True):
        if way.weight == 0:
            yield f"Nothing is read of {member}, with this share of long documents."
            continue
        long = None if way.long_share is None else LongShare(way.long_share, least)
        full = _fullness(sizes, room, recipe.training.seed, long)
        budget = recipe.total_tokens * full * way.weight / total
        share = each.share if way.long_share is None else way.long_share
        yield (
            f"{member}: {_part(each.long_documents, each.long_tokens)} of at least {least:,} "
            f"tokens, {_part(each.short_documents, each.short_tokens)} that are shorter "
            f"({each.share:.1%} of the tokens are in long ones); the longest has {each.longest:,}."
        )
        yield (
            f"{share:.1%} of the tokens read of it come from long documents"
            f"{_times(budget * share, each.long_tokens, 'long')}"
            f"{_times(budget * (1 - share), each.short_tokens, 'short')}; its sequences are "
            f"{full:.1%} full."
        )


def _part(documents: int, tokens: int) -> str:
    return f"{number_of(documents, 'document')} ({tokens:,} tokens)"


def _times(read: float, there: int, kind: str) -> str:
    return f", the {kind} ones {read / there:,.3g} times" if there else ""


def _fullness(lengths: numpy.ndarray, room: int, seed: int, long: LongShare | None) -> float:
    """How full the sequences of the first round are."""
    pieces = Pieces(lengths, room)
    packs = next(rounds(pieces, seed, long))
    documents = numpy.searchsorted(pieces.first, packs.pieces, side="right") - 1
    offsets = (packs.pieces - pieces.first[documents]) * room
    tokens = int(numpy.minimum(room, pieces.lengths[documents] - offsets).sum())
    return tokens / (room * (len(packs.starts) - 1))
