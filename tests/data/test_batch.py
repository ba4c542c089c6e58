"""Micro-batches: what each part of a model reads of them."""

from dataclasses import fields
from functools import partial

import pytest
import torch
from megatron.core import parallel_state

from dsv3_plugin.data.batch import SAMPLE_KEYS, StageInputs, get_batch, stage_inputs
from dsv3_plugin.data.datasets import datasets_provider
from tests.data.upstream_globals import SEQ, set_globals, small_dataset
from tests.gloo_ranks import run_ranks


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data"))


BOTH, TOKENS, LABELS, NOTHING = (True, True), (True, False), (False, True), (False, False)

# Pipeline ranks, virtual stages, MTP layers, layout; what the stages of rank 0, then 1, read.
PLACEMENTS = {
    "one stage": (1, None, 1, None, [BOTH, BOTH]),
    "two stages": (2, None, None, None, [TOKENS, LABELS]),
    "MTP beside the loss": (2, None, 1, None, [TOKENS, BOTH]),
    "virtual stages": (2, 2, 1, None, [TOKENS, NOTHING, NOTHING, BOTH]),
    "MTP away from the loss": (2, 2, 1, "Et|t|tm|L", [TOKENS, BOTH, NOTHING, LABELS]),
}


def v_placement(rank, stage):
    """DualPipe's placement: rank 0 holds the first and the last stage, with MTP on the last."""
    return StageInputs(tokens=rank == 0, labels=rank == 0 and stage == 1)


@pytest.fixture(scope="module")
def read_by_ranks(built, tmp_path_factory):
    """What two gloo ranks read under every arrangement of this file, by its name."""
    scratch = tmp_path_factory.mktemp("ranks")
    return run_ranks(2, _read_all, built, scratch / "cache", scratch=scratch)


def _read_all(rank, built, cache):
    def read(stages, inputs_of, **parallel):
        """(is there a dataset, stage inputs, batch), by stage."""
        parallel_state.initialize_model_parallel(
            pipeline_model_parallel_size=parallel.get("pipeline_model_parallel_size", 1),
            virtual_pipeline_model_parallel_size=len(stages) if stages != [None] else None,
            tensor_model_parallel_size=parallel.pop("tensor", 1),
            context_parallel_size=parallel.get("context_parallel_size", 1),
        )
        set_globals(built, cache, rank=rank, **parallel)
        found = []
        for stage in stages:
            train, _, _ = datasets_provider(inputs_of)((20, 3, 0), vp_stage=stage)
            iterator = iter(torch.utils.data.DataLoader(train, batch_size=2)) if train else None
            inputs = inputs_of(stage)
            found.append((train is not None, tuple(inputs), get_batch(iterator, inputs)))
        parallel_state.destroy_model_parallel()
        return found

    answers = {}
    for name, (pipeline, virtual, mtp_layers, layout, _) in PLACEMENTS.items():
        answers[name] = read(
            list(range(virtual)) if virtual else [None],
            stage_inputs,
            pipeline_model_parallel_size=pipeline,
            pipeline_model_parallel_layout=layout,
            mtp_num_layers=mtp_layers,
        )
    answers["V"] = read([0, 1], partial(v_placement, rank), pipeline_model_parallel_size=2)
    answers["tensor"] = read([None], stage_inputs, tensor=2)
    answers["context"] = read([None], stage_inputs, context_parallel_size=2)
    return answers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, placement[-1]) for name, placement in PLACEMENTS.items()),
        ("V", [TOKENS, BOTH, NOTHING, NOTHING]),
    ],
)
def test_stages_read_what_they_need(read_by_ranks, name, expected):
    """The same batch, cut down to what a stage reads; datasets only where one reads."""
    found = [stage for answer in read_by_ranks for stage in answer[name]]
    batches = [batch for _, _, batch in found]
    tokens = next(batch.tokens for batch in batches if batch.tokens is not None)
    labels = next(batch.labels for batch in batches if batch.labels is not None)

    assert tokens.shape == labels.shape == (2, SEQ)
    assert torch.equal(tokens[:, 1:], labels[:, :-1])
    assert [inputs for _, inputs, _ in found] == expected
    assert [is_built for is_built, _, _ in found] == [inputs != NOTHING for inputs in expected]
    for batch, (reads_tokens, reads_labels) in zip(batches, expected, strict=True):
        assert {*SAMPLE_KEYS} <= {field.name for field in fields(batch)}
        assert batch.attention_mask is batch.boundaries is batch.padding_mask is None
        for key, reads, value in (
            ("tokens", reads_tokens, tokens),
            ("position_ids", reads_tokens, torch.arange(SEQ).expand(2, SEQ)),
            ("labels", reads_labels, labels),
            ("loss_mask", reads_labels, torch.ones(2, SEQ)),
        ):
            assert (getattr(batch, key) is not None) == reads
            assert not reads or torch.equal(getattr(batch, key), value)


def test_tensor_parallel_ranks_receive_what_the_first_reads(read_by_ranks):
    [(first_reads, _, first)], [(second_reads, _, second)] = (
        answer["tensor"] for answer in read_by_ranks
    )
    assert (first_reads, second_reads) == (True, False)
    for key in ("tokens", "labels", "loss_mask", "position_ids"):
        assert torch.equal(getattr(first, key), getattr(second, key))


def test_context_parallel_ranks_slice_the_sequence(read_by_ranks):
    """Of four stretches, rank 0 keeps the outer two and rank 1 the inner: equal causal work."""
    outer, inner = (answer["context"][0][2] for answer in read_by_ranks)
    whole = read_by_ranks[0]["tensor"][0][2]
    for key in ("tokens", "labels", "loss_mask", "position_ids"):
        stretches = getattr(whole, key).chunk(4, dim=1)
        assert torch.equal(getattr(outer, key), torch.cat([stretches[0], stretches[3]], dim=1))
        assert torch.equal(getattr(inner, key), torch.cat([stretches[1], stretches[2]], dim=1))
