"""Samples of whole documents, through upstream's builder, blend and sampler."""

import dataclasses
from pathlib import Path

import numpy
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from dsv3_plugin.data.datasets import Builder
from dsv3_plugin.data.whole import WholeDocuments, WholePacking, whole_documents
from dsv3_plugin.errors import UserError

ROOM, EOD = 8, 0
LENGTHS = [3, 8, 20, 5, 1, 7, 4, 9]


@dataclasses.dataclass
class Tokenizer:
    eod: int = EOD
    vocab_size: int = 7000
    unique_identifiers = "a tokenizer"


def encoded(prefix: Path, lengths=LENGTHS, begin=100) -> str:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.int32)
    for document, length in enumerate(lengths):
        ids = [begin + 100 * document + i for i in range(length - 1)] + [EOD]
        builder.add_document(ids, [length])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def config(prefixes, weights=None) -> GPTDatasetConfig:
    return GPTDatasetConfig(
        random_seed=5,
        sequence_length=ROOM,
        blend_per_split=[(prefixes, weights), None, None],
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )


def train(prefixes, samples, *, share=None, weights=None):
    whole = whole_documents(config(prefixes, weights), WholePacking(8, share), weights)
    return Builder(WholeDocuments, (samples, 0, 0), lambda: True, whole).build()[0]


@pytest.fixture
def prefix(tmp_path):
    return encoded(tmp_path / "some")


def test_an_epoch_of_samples(prefix):
    samples = list(train([prefix], 1))
    tokens = []
    for sample in samples:
        real = ~sample["padding_mask"]
        count = int(real.sum())
        assert real[:count].all()  # padding comes last
        ids, labels, mask = (sample[key] for key in ("tokens", "labels", "loss_mask"))
        assert torch.equal(labels[: count - 1], ids[1:count])
        assert mask[: count - 1].all()
        assert not mask[count:].any()
        # Where a document goes on, its next token is known; else nothing is predicted.
        last = int(ids[count - 1])
        assert bool(mask[count - 1]) == (last != EOD)
        if last != EOD:
            assert int(labels[count - 1]) in (last + 1, EOD)
        assert torch.equal(sample["position_ids"], torch.arange(ROOM))
        tokens += ids[:count].tolist()
    expected = [100 + 100 * d + i for d, n in enumerate(LENGTHS) for i in range(n - 1)]
    assert sorted(token for token in tokens if token != EOD) == expected
    assert tokens.count(EOD) == len(LENGTHS)


def test_a_longer_run_begins_with_the_shorter(prefix):
    short, longer = train([prefix], 4), train([prefix], 50)
    assert len(longer) >= 50
    for i in range(4):
        assert torch.equal(short[i]["tokens"], longer[i]["tokens"])
    again = train([prefix], 50)
    assert all(torch.equal(again[i]["labels"], longer[i]["labels"]) for i in range(50))


def test_a_mixture_has_its_weights_and_its_share(prefix, tmp_path):
    other = encoded(tmp_path / "other", [2] * 30, begin=5000)
    blend = train([prefix, other], 400, share=0.3, weights=[0.5, 0.5])
    of_first = sum(int(blend[i]["dataset_id"]) == 0 for i in range(400))
    assert of_first == 200
    tokens = torch.cat([blend[i]["tokens"][~blend[i]["padding_mask"]] for i in range(400)])
    long = [tokens // 100 == d + 1 for d, n in enumerate(LENGTHS) if n >= 8]
    # EODs, which look alike, left aside: one in twelve and a bit of the long documents' tokens.
    assert sum(map(int, torch.stack(long).sum(1))) / len(tokens) == pytest.approx(0.28, abs=0.03)


def test_a_member_with_nothing_to_give_is_left_out(prefix, tmp_path):
    other = encoded(tmp_path / "other", [2] * 30, begin=5000)
    alone = train([prefix, other], 20, share=1.0)
    assert isinstance(alone, WholeDocuments)


def test_a_share_that_cannot_be_had(tmp_path):
    other = encoded(tmp_path / "other", [2] * 30)
    with pytest.raises(UserError, match="needs long documents, and none has 8 tokens"):
        train([other], 5, share=0.5)


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(prefix, monkeypatch):
    def killed(self):
        yield numpy.zeros(3, numpy.int64)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(WholeDocuments, "_packed", killed)
        with pytest.raises(KeyboardInterrupt):
            train([prefix], 4)
    assert len(train([prefix], 4)) >= 4
