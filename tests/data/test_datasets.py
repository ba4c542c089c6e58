"""Samples: the stream upstream's GPTDataset cuts of our data, its resuming, its indices on disk."""

import json
import pickle
import shutil
import struct
from functools import partial
from itertools import islice

import numpy
import pytest
import torch
import transformers
from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.utils import Split
from megatron.training import global_vars
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler

from dsv3_plugin.data import datasets
from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.datasets import Documents, datasets_provider, remove_broken_indices
from dsv3_plugin.data.tokenizer import TrainBpe, open_tokenizer
from dsv3_plugin.errors import UserError
from tests.data.upstream_globals import SEED, SEQ, set_globals, set_tokenizer, small_dataset
from tests.gloo_ranks import run_ranks


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def megatron(built, tmp_path):
    """Upstream's globals in this process, taken down again."""
    set_globals(built, tmp_path / "cache")
    yield global_vars._GLOBAL_ARGS
    global_vars._GLOBAL_ARGS = global_vars._GLOBAL_TOKENIZER = None


def documents(prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    indexed = IndexedDataset(str(prefix))
    return [indexed[i].tolist() for i in range(len(indexed))]


def windows(documents, epochs):
    """The samples of a seed, written from upstream's description: documents of all epochs in one
    shuffled row, laid end to end, cut every SEQ tokens, and the samples shuffled."""
    random = numpy.random.RandomState(SEED)
    order = numpy.tile(numpy.arange(len(documents)), epochs)
    random.shuffle(order)
    stream = [token for i in order for token in documents[i]]
    samples = [stream[i : i + SEQ + 1] for i in range(0, len(stream) - SEQ, SEQ)]
    shuffled = numpy.arange(len(samples), dtype=numpy.uint32)
    random.shuffle(shuffled)
    return [samples[i] for i in shuffled]


@pytest.mark.parametrize("epochs", [1, 3])
def test_samples_are_the_documents_laid_end_to_end(built, megatron, epochs):
    own = documents(built.train_prefix)
    count = sum(map(len, own)) * epochs // SEQ - 1
    train, valid, test = datasets_provider()((count, 3, 0))
    expected = windows(own, epochs)

    assert isinstance(train, GPTDataset)
    assert test is None
    assert count <= len(train) == len(expected)
    assert len(valid) >= 3
    eos = built.manifest.tokenizer.eos_id
    seen = 0
    for sample, window in zip(train, expected, strict=True):
        assert set(sample) == {"tokens", "labels", "loss_mask", "position_ids"}
        assert sample["tokens"].tolist() == window[:-1]
        assert sample["labels"].tolist() == window[1:]
        assert sample["position_ids"].tolist() == list(range(SEQ))
        assert sample["loss_mask"].tolist() == [1.0] * SEQ
        seen += window[1:].count(eos)
    assert seen > 50 * epochs  # ends of documents are predicted, and count

    held_out = {tuple(window) for window in windows(documents(built.held_out_prefix), 1)}
    assert tuple([*valid[0]["tokens"].tolist(), valid[0]["labels"][-1].item()]) in held_out


@pytest.mark.parametrize("named", ["pad_token", "eos_token"])
def test_no_token_is_read_or_counted_by_its_name(built, megatron, tmp_path, named):
    """A tokenizer may call an ordinary token its padding; nothing is padded here."""
    frequent = documents(built.train_prefix)[0][1]
    folder = tmp_path / "tokenizer"
    shutil.copytree(built.tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config[named] = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(
        frequent
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    as_built = [*datasets_provider()((40, 3, 0))[0]]

    set_tokenizer(folder)
    assert getattr(global_vars.get_tokenizer(), named.removesuffix("_token")) == frequent
    renamed = [*datasets_provider()((40, 3, 0))[0]]

    assert sum(sample["labels"].eq(frequent).sum() for sample in renamed) > 10
    for sample, expected in zip(renamed, as_built, strict=True):
        assert all(torch.equal(sample[key], expected[key]) for key in expected)
        assert sample["loss_mask"].eq(1).all()


def test_made_up_tokens_all_count(megatron):
    megatron.mock_data, megatron.split = True, "90,10,0"
    megatron.train_data_path = megatron.valid_data_path = None
    many = datasets_provider()((40, 3, 0))[0]
    samples = [many[i] for i in range(400)]
    pad = global_vars.get_tokenizer().pad
    assert any(sample["labels"].eq(pad).any() for sample in samples)
    assert all(sample["loss_mask"].eq(1).all() for sample in samples)


def test_a_resumed_run_reads_what_it_would_have_read(megatron, monkeypatch):
    def stream(consumed):
        train, _, _ = datasets_provider()((60, 3, 0))
        sampler = partial(MegatronPretrainingSampler, len(train), consumed, 2, data_parallel_size=2)
        ranks = [torch.utils.data.DataLoader(train, batch_sampler=sampler(r)) for r in (0, 1)]
        return [batch["tokens"] for pair in zip(*ranks, strict=True) for batch in pair]

    whole, resumed = stream(0), stream(24)
    assert len(whole) - len(resumed) == 24 // 2
    assert all(torch.equal(a, b) for a, b in zip(whole[12:], resumed, strict=True))


@pytest.fixture(scope="module")
def others(tmp_path_factory, built):
    """A second dataset, of the first one's tokenizer."""
    folder = tmp_path_factory.mktemp("others")
    corpus = folder / "corpus.jsonl"
    texts = [f"another document {i} " + "word " * (i % 5) for i in range(30)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_dataset(corpus, open_tokenizer(built.tokenizer_folder), folder / "out")


def test_a_mixture_is_upstreams_blend(built, others, megatron):
    train_paths = ["3", str(built.train_prefix), "1", str(others.train_prefix)]
    vars(megatron).update(train_data_path=train_paths)
    train, _, _ = datasets_provider()((40, 3, 0))
    blend, _, _ = BlendedMegatronDatasetBuilder(
        Documents, (40, 3, 0), lambda: True, datasets.dataset_config(megatron)
    ).build()
    assert [train[i]["dataset_id"] for i in range(40)].count(0) == 30
    for i in range(40):
        assert torch.equal(train[i]["tokens"], blend[i]["tokens"])


def test_without_weights_sizes_decide_for_as_long_as_a_run_lasts(built, others, megatron):
    vars(megatron).update(train_data_path=[str(built.train_prefix), str(others.train_prefix)])
    train, _, _ = datasets_provider()((1000, 3, 0))
    sizes = [dataset.manifest.train.tokens for dataset in (built, others)]
    of_first = [train[i]["dataset_id"] for i in range(1000)].count(0)
    assert len(train) >= 1000
    assert abs(of_first - 1000 * sizes[0] / sum(sizes)) < 2


def test_a_broken_index_of_a_mixture_is_written_anew(built, others, megatron, tmp_path):
    vars(megatron).update(train_data_path=[str(built.train_prefix), str(others.train_prefix)])
    tokens = datasets_provider()((20, 3, 0))[0][7]["tokens"]
    [path] = (tmp_path / "cache").rglob("*BlendedDataset-train-dataset_index.npy")
    whole = path.read_bytes()
    for keep in (0, 50, -4):
        path.write_bytes(whole[:keep])
        assert torch.equal(datasets_provider()((20, 3, 0))[0][7]["tokens"], tokens)
        assert path.read_bytes() == whole


def test_held_out_sets_are_evaluated_in_turn(built, others, megatron):
    """An evaluation's batches of the documents kept back, then of each set."""
    vars(megatron).update(eval_iters=2, eval_global_batch_size=3, consumed_valid_samples=0)
    provider = partial(datasets_provider, held_out_sets=[others.train_prefix, built.train_prefix])
    alone = []
    for prefix in (built.held_out_prefix, others.train_prefix, built.train_prefix):
        vars(megatron).update(valid_data_path=[str(prefix)])
        alone.append(datasets_provider()((60, 12, 0))[1])
    vars(megatron).update(valid_data_path=[str(built.held_out_prefix)])
    _, valid, _ = provider()((60, 12, 0))
    expected = [
        alone[which][turn * 6 + i] for turn in (0, 1) for which in range(3) for i in range(6)
    ]
    for i, sample in enumerate(expected):
        assert torch.equal(valid[i]["tokens"], sample["tokens"])
    vars(megatron).update(consumed_valid_samples=18)
    _, resumed, _ = provider()((60, 12, 0))
    assert torch.equal(resumed[18]["tokens"], expected[18]["tokens"])
    vars(megatron).update(valid_data_path=None, consumed_valid_samples=0)  # nothing is kept back
    _, sets, _ = provider()((60, 12, 0))
    assert torch.equal(sets[0]["tokens"], expected[6]["tokens"])


def loader(dataset, consumed):
    """Upstream's, which asserts that something is left to read; one sample a batch."""
    sampler = MegatronPretrainingSampler(len(dataset), consumed, 1, 0, data_parallel_size=1)
    return torch.utils.data.DataLoader(dataset, batch_sampler=sampler)


def test_evaluations_never_run_out_of_samples(megatron):
    """However many were read before, as by a run that goes on with longer intervals."""
    _, valid, _ = datasets_provider()((60, 3, 0))
    _, plain, _ = BlendedMegatronDatasetBuilder(
        GPTDataset, (60, 3, 0), lambda: True, datasets.dataset_config(megatron)
    ).build()
    assert valid.split == Split.valid  # by it upstream takes the batch size of evaluations
    once = [sample["tokens"].tolist() for sample in plain]
    consumed = 3 * len(once) + 1
    read = [batch["tokens"][0].tolist() for batch in islice(loader(valid, consumed), 2 * len(once))]
    assert read == once[1:] + once + once[:1]


def test_a_run_that_has_read_everything_can_still_be_evaluated(megatron):
    length = len(datasets_provider()((60, 3, 0))[0])
    megatron.consumed_train_samples = length
    train, _, _ = datasets_provider()((60, 3, 0))
    assert train.split == Split.train
    next(iter(loader(train, length)))


@pytest.mark.parametrize("flags", [{"dataloader_type": "cyclic"}, {"full_validation": True}])
def test_samplers_that_begin_anew_by_themselves_know_where_the_samples_end(megatron, flags):
    vars(megatron).update(flags)
    _, valid, _ = datasets_provider()((60, None if "full_validation" in flags else 3, 0))
    assert isinstance(valid, GPTDataset)


def test_a_longer_run_within_one_epoch_begins_with_the_shorter(megatron):
    short, _, _ = datasets_provider()((10, 3, 0))
    longer, _, _ = datasets_provider()((40, 3, 0))
    for i in range(10):
        assert torch.equal(short[i]["tokens"], longer[i]["tokens"])


def test_broken_indices_are_written_anew(built, megatron, tmp_path):
    """As a run killed while writing them leaves behind; upstream would fail at each start."""
    tokens = datasets_provider()((20, 3, 0))[0][7]["tokens"]
    cache = tmp_path / "cache" / built.fingerprint
    for suffix in ("shuffle_index.npy", "document_index.npy", "sample_index.npy"):
        for keep in (0, 50, -8):
            [path] = cache.glob(f"*train-{suffix}")
            path.write_bytes(path.read_bytes()[:keep])
            with pytest.raises((ValueError, EOFError, OSError)):
                BlendedMegatronDatasetBuilder(
                    Documents, (20, 3, 0), lambda: True, datasets.dataset_config(megatron)
                ).build()
            assert torch.equal(datasets_provider()((20, 3, 0))[0][7]["tokens"], tokens)
    whole = sorted(cache.iterdir())
    remove_broken_indices(cache)
    assert sorted(cache.iterdir()) == whole


def test_what_is_no_index_is_removed_and_nothing_else(tmp_path):
    """Upstream would unpickle what is no array; a name of a file is no pattern."""
    ran = tmp_path / "ran"
    for name in ("document", "sample", "shuffle"):
        (tmp_path / f"a-{name}_index.npy").write_bytes(pickle.dumps(ran))
    for name in ("a-description.txt", "*-description.txt", "a-notes.txt", "b-mine.txt"):
        (tmp_path / name).write_text("")
    remove_broken_indices(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-notes.txt", "b-mine.txt"]


def test_an_index_that_lies_is_refused(built, megatron, tmp_path):
    for suffix in ("bin", "idx"):
        shutil.copy(built.train_prefix.with_suffix(f".{suffix}"), tmp_path / f"a.{suffix}")
    index = tmp_path / "a.idx"
    index.write_bytes(index.read_bytes()[:18] + struct.pack("<Q", 2**62) + index.read_bytes()[26:])
    megatron.train_data_path = [str(tmp_path / "a")]
    with pytest.raises(UserError, match=r"a.idx does not describe a.bin \(it has .* bytes"):
        datasets_provider()((20, 3, 0))


def test_indices_stand_beside_the_data_unless_told_otherwise(built, megatron):
    megatron.data_cache_path = None
    datasets_provider()((20, 3, 0))
    assert list((built.folder / "train" / "cache" / "Documents_indices").glob("*.npy"))


def test_indices_elsewhere_are_those_of_the_data_that_are_there(megatron, tmp_path):
    """The same path, built anew: the documents lie at other places."""
    for words in (40, 3):
        corpus = tmp_path / f"{words}.jsonl"
        texts = [f"document {i} " + "word " * words for i in range(80)]
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = build_dataset(corpus, TrainBpe(320), tmp_path / "data", held_out=0.1)
        megatron.train_data_path = [str(data.train_prefix)]
        megatron.valid_data_path = [str(data.held_out_prefix)]
        samples = datasets_provider()((20, 3, 0))[0]
        assert [sample["tokens"].tolist() for sample in samples] == [
            window[:-1] for window in windows(documents(data.train_prefix), 1)
        ]


def test_a_place_for_indices_that_cannot_be_written(megatron, tmp_path):
    (tmp_path / "file").write_text("")
    megatron.data_cache_path = str(tmp_path / "file" / "cache")
    with pytest.raises(
        UserError, match=r"cannot write the index .*file.*megatron_args.data-cache-path"
    ):
        datasets_provider()((20, 3, 0))


def test_the_shipped_helper_loads():
    def unasked():
        raise AssertionError("the wheel has no Makefile")

    datasets.compile_helpers(unasked)()


def test_a_checkout_of_upstream_compiles_its_helper(tmp_path, monkeypatch):
    made = []
    (tmp_path / "Makefile").touch()
    monkeypatch.setattr(datasets.utils, "__file__", str(tmp_path / "utils.py"))
    datasets.compile_helpers(lambda: made.append("make"))()
    assert made == ["make"]


def _build_in_turns(rank, built, cache):
    """Which ranks had built a dataset when this one began to, and what this rank waited in."""
    parallel_state.initialize_model_parallel()
    set_globals(built, cache, rank=rank)
    seen = []

    class Recorded(Documents):
        def __init__(self, *arguments):
            seen.append(sorted(path.name for path in cache.parent.glob("built by *")))
            super().__init__(*arguments)
            (cache.parent / f"built by {rank}").touch()

    def barrier(*_, **__):
        raise AssertionError("a barrier gives up after the run's timeout")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "Documents", Recorded)
        patch.setattr(torch.distributed, "barrier", barrier)
        datasets_provider()((20, 3, 0))
    return seen


def test_ranks_wait_for_an_index_outside_of_collectives(built, tmp_path):
    first, second = run_ranks(2, _build_in_turns, built, tmp_path / "cache", scratch=tmp_path)
    assert first[0] == []
    assert second[0] == ["built by 0"]


def _refuse_the_index(rank, built, cache):
    parallel_state.initialize_model_parallel()
    set_globals(built, cache, rank=rank)
    with pytest.raises(UserError) as refusal:
        datasets_provider()((20, 3, 0))
    return type(refusal.value).__name__, str(refusal.value)


def test_an_index_that_cannot_be_written_is_told_to_all_and_said_once(built, tmp_path):
    (tmp_path / "file").touch()
    answers = run_ranks(2, _refuse_the_index, built, tmp_path / "file" / "x", scratch=tmp_path)
    assert [kind for kind, _ in answers] == ["UserError", "SaidElsewhere"]
    assert len({sentence for _, sentence in answers}) == 1


def test_an_index_of_samples_is_not_written_through_a_link(tmp_path):
    (tmp_path / "0-Documents-train-description.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link or no file"):
        remove_broken_indices(tmp_path)
