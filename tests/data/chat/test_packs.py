"""Sequences of conversations: positions, labels, masks, and where they end."""

from itertools import pairwise

import numpy
import pytest
import torch
from megatron.core.datasets.utils import Split

from dsv3_plugin.data.chat.epochs import Epochs
from dsv3_plugin.data.chat.packs import PackedConversations, sequences_in

SAMPLES = [([11, 12, 13], [0, 1, 1]), ([21, 22, 23, 24, 25], [0, 0, 1, 0, 1]), ([31, 32], [0, 1])]


class Held:
    def __getitem__(self, number):
        ids, learned = SAMPLES[number]
        return numpy.array(ids, numpy.int32), numpy.array(learned, numpy.uint8)


def packed(room=8, multiple=1, number=1, samples=9):
    lengths = numpy.array([len(ids) for ids, _ in SAMPLES])
    epochs = Epochs([lengths], None, room, multiple, seed=3)
    return PackedConversations(
        Held(), epochs, Split.train, samples=samples, number=number, padding=0
    )


def by_sample(row):
    """The parts of a row between places where positions begin anew."""
    starts = [*(row["position_ids"] == 0).nonzero().flatten().tolist(), len(row["tokens"])]
    for begin, end in pairwise(starts):
        yield {key: value[begin:end] for key, value in row.items()}


@pytest.mark.parametrize("multiple", [1, 4])
def test_a_conversation_is_in_any_sequence_what_it_is_alone(multiple):
    dataset = packed(multiple=multiple)
    found = {}
    for index in range(sequences_in(dataset._epochs.epoch(0))):
        for part in by_sample(dataset[index]):
            real = ~part["padding_mask"]
            if real.any():
                found[tuple(part["tokens"][real].tolist())] = part
    assert {*found} == {tuple(ids) for ids, _ in SAMPLES}
    for ids, learned in SAMPLES:
        part, count = found[tuple(ids)], len(ids)
        assert len(part["tokens"]) % multiple == 0
        assert part["labels"][: count - 1].tolist() == ids[1:], "one place further, once"
        assert part["loss_mask"].tolist()[: count - 1] == learned[1:]
        assert part["loss_mask"][count - 1 :].sum() == 0, "its last token predicts nothing"
        assert part["position_ids"].tolist() == list(range(len(part["tokens"])))
        assert part["padding_mask"][count:].all()


def test_what_is_left_of_a_sequence_is_padding_that_sees_no_conversation():
    dataset = packed(room=16)
    *_, last = by_sample(dataset[0])
    assert last["padding_mask"].all()
    assert last["loss_mask"].sum() == 0
    assert last["position_ids"][0] == 0


def test_epochs_are_exact_and_the_rest_of_the_last_batch_is_padding():
    dataset = packed(room=16, number=2)  # a sequence in each epoch
    seen = [int((~dataset[index]["padding_mask"]).sum()) for index in range(len(dataset))]
    assert seen == [10, 10, 0, 0, 0, 0, 0, 0, 0]


def test_without_a_number_of_epochs_there_is_no_end():
    dataset = packed(room=16, number=None)
    assert all((~dataset[index]["padding_mask"]).sum() == 10 for index in range(9))
    assert torch.equal(dataset[5]["tokens"], packed(room=16, number=None)[5]["tokens"])
