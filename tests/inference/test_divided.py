"""An engine on a model that ranks have together: the answers of the undivided one, whoever has
which layers and experts."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Completion, Request, SamplingParameters
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.schedules.registry import SCHEDULES
from tests.gloo_ranks import run_ranks
from tests.inference.beside_forward import beside_forward
from tests.pipeline.executed import chunks_of, fill, whole_model
from tests.staged_model import staged_model

MODEL = ModelConfig.model_validate(staged_model(8).model_dump() | {"max_position_embeddings": 256})
TOLERANCE = 1e-5  # of log-probabilities, FP32
ROUNDED_OF_TWO = [(None, 1, 2), ("zbv", 2, 1)]
OF_TWO = [*ROUNDED_OF_TWO, ("1f1b", 2, 1), ("interleaved", 2, 1), ("dualpipe", 2, 1)]
"""Schedule (or none), ranks of a pipeline and with experts, on two ranks; those in BF16, too."""


def prompt(length: int, seed: int) -> tuple[int, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(64, (length,), generator=draw).tolist())


def requests_of(member: int) -> list[Request]:
    """Of a data-parallel rank: the first has many, the second is done early, others have none."""
    greedy = SamplingParameters(max_tokens=24, temperature=0.0)
    return [
        [
            Request(prompt(55, 1), greedy),
            Request(prompt(9, 2), replace(greedy, temperature=0.9, n=2, seed=3)),
            Request(prompt(50, 3), replace(greedy, prompt_log_probs=True, top_log_probs=2)),
        ],
        [Request(prompt(20, 4), replace(greedy, max_tokens=7))],
    ][member]


def all_settings(layers: int) -> dict[str, EngineSettings]:
    """With room; and guessing, with a page too few for what the texts grow to.

    Args:
        layers: of the rank that has most, that of multi-token prediction included.
    """
    page_bytes = CacheShape(layers, 16, 8, torch.float32).page_bytes
    return {
        "plain": EngineSettings(2**22, record_experts=True),
        "scarce": EngineSettings(4 * page_bytes, drafts=2, tokens_in_step=40),
    }


def divided(pp: str | None, ranks: int, expert: int, **settings: Any) -> list[torch.nn.Module]:
    """This rank's chunks under a schedule, or its experts of all layers."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.model.build import build_model

    if pp is not None:
        schedule = SCHEDULES[pp].schedule(ranks, 4)
        return chunks_of(schedule, expert=expert, config=MODEL, **settings)
    parallel_state.initialize_model_parallel(expert_model_parallel_size=expert)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    model = build_model(MODEL, expert_model_parallel_size=expert, **settings)
    fill([model])
    return [model]


def answers_of_ranks(rank: int, cases: list[tuple[str | None, int, int]]) -> list[Any]:
    """For each case and setting, what the whole model answers and what the divided does."""
    from megatron.core import parallel_state

    whole = whole_model(MODEL).module
    expected = {
        name: [Engine(whole, settings).run(requests_of(member)) for member in range(2)]
        for name, settings in all_settings(9).items()
    }
    parallel_state.destroy_model_parallel()
    pairs = []
    for case in cases:
        chunks = divided(*case)
        member = parallel_state.get_data_parallel_rank()
        for name, settings in all_settings(9 if case[0] is None else 5).items():
            engine = Engine(chunks, settings)
            got = engine.run(requests_of(member) if engine.leads else [])
            counts = engine.counters.put_back, engine.counters.accepted, engine.scheduler.held
            pairs.append((case, name, expected[name][member], got, counts))
        parallel_state.destroy_model_parallel()
    return pairs


def rounded_answers_of_ranks(cases: list[tuple[str | None, int, int]]) -> list[Any]:
    """For each case, in BF16 and guessing ahead, what `beside_forward` finds of the answers by a
    pass of the whole model, and how many guesses came true."""
    from megatron.core import parallel_state

    made = []
    for case in cases:
        chunks = divided(*case, dtype=torch.bfloat16)
        engine = Engine(chunks, EngineSettings(2**22, record_experts=True, drafts=2))
        member = parallel_state.get_data_parallel_rank()
        answers = engine.run(requests_of(member) if engine.leads else [])
        made.append((answers, sum(engine.counters.accepted)))
        parallel_state.destroy_model_parallel()
    whole = whole_model(MODEL, dtype=torch.bfloat16).module
    found = [(beside_forward(whole, answers), accepted) for answers, accepted in made]
    parallel_state.destroy_model_parallel()
    return found


def found_by_two(rank: int) -> tuple[list[Any], list[Any]]:
    """All that two ranks are asked, in one start of them."""
    return answers_of_ranks(rank, OF_TWO), rounded_answers_of_ranks(ROUNDED_OF_TWO)


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """What each of them found."""
    scratch = tmp_path_factory.mktemp("two")
    return run_ranks(2, found_by_two, scratch=scratch, timeout_s=120)


def must_be_alike(expected: list[Completion], got: list[Completion], where: Any) -> None:
    assert len(got) == len(expected) > 0, where
    for answer, wanted in zip(got, expected, strict=True):
        assert answer.tokens == wanted.tokens, where
        for mine, theirs in (
            (answer.reports, wanted.reports),
            (answer.prompt_reports or (), wanted.prompt_reports or ()),
        ):
            for one, other in zip(mine, theirs, strict=True):
                assert one.log_prob == pytest.approx(other.log_prob, abs=TOLERANCE), where
                assert one.sampling_log_prob == pytest.approx(
                    other.sampling_log_prob, abs=TOLERANCE
                ), where
                assert [token for token, _ in one.top] == [token for token, _ in other.top], where
        if wanted.experts is not None:
            assert torch.equal(answer.experts.sort(-1).values, wanted.experts.sort(-1).values), (
                where
            )


def assert_of_the_whole_model(of_ranks: list[list[Any]]) -> None:
    for rank, pairs in enumerate(of_ranks):
        for case, name, expected, got, (put_back, accepted, held) in pairs:
            must_be_alike(expected, got, (rank, case, name))
            assert held == 0
            assert len(expected) == 1 or (put_back > 0) == (name == "scarce")
            assert sum(accepted) > 0 or name == "plain" or len(expected) == 1


def test_answers_are_those_of_the_whole_model(of_two_ranks):
    assert_of_the_whole_model([pairs for pairs, _ in of_two_ranks])


def test_answers_are_those_of_the_whole_model_by_pipeline_and_experts(tmp_path):
    cases = [("zbv", 2, 2)]
    assert_of_the_whole_model(
        run_ranks(4, answers_of_ranks, cases, scratch=tmp_path, timeout_s=120)
    )


def test_log_probabilities_in_bfloat16(of_two_ranks):
    """Of each token that a rank with experts of its own, or a pipeline, drew or had guessed."""
    of_experts, of_pipeline = zip(*(rounded for _, rounded in of_two_ranks), strict=True)
    found = [*of_experts, of_pipeline[0]]
    assert [apart.tokens for apart, _ in found] == [4 * 24, 7, 4 * 24]
    for apart, accepted in found:
        apart.must_be_near()
        assert accepted > 0 or apart.tokens == 7


def orders_and_weights(rank: int) -> list[Any]:
    """What is cancelled and what changes under way, of the whole model and of a V on two ranks."""
    from megatron.core import parallel_state

    results = []
    for which in ("whole", "V"):
        if which == "whole":
            chunks = [whole_model(MODEL).module]
        else:
            chunks = [wrapped.module for wrapped in divided("zbv", 2, 1)]
        engine = Engine(chunks, EngineSettings(2**22, record_experts=True, drafts=1))
        leads = engine.leads
        if leads:
            numbers = engine.add_all(requests_of(0))
        done, steps = [], 0
        while engine.busy_anywhere():
            progress = engine.step()
            done += [p.completion for p in progress if p.completion]
            steps += 1
            if steps == 3 and leads:
                done += [p.completion for p in engine.cancel(numbers[1])]
            if steps == 6:  # one rank of the two has it, and nobody is told
                layers = [layer for chunk in chunks for layer in chunk.decoder.layers]
                for layer in layers:
                    if layer.layer_number == 4:
                        layer.self_attention.linear_kv_up_proj.weight.data.mul_(-2.0)
        results.append(sorted(done, key=lambda c: (c.request, c.number)))
        parallel_state.destroy_model_parallel()
    return results


def test_what_one_rank_knows_all_act_on(tmp_path):
    for whole, of_v in run_ranks(2, orders_and_weights, scratch=tmp_path, timeout_s=120):
        assert [answer.finish_reason for answer in of_v] == [
            "length", "cancelled", "cancelled", "length",
        ]  # fmt: skip
        must_be_alike(whole, of_v, "V")
        for answer, wanted in zip(of_v, whole, strict=True):
            assert answer.versions == wanted.versions
        assert set(of_v[0].versions) == {0, 1}


def asks_a_follower(rank: int) -> str | None:
    engine = Engine(divided("1f1b", 2, 1), EngineSettings(2**22))
    try:
        engine.add(requests_of(0)[0])
    except ValueError as error:
        return str(error)
    return None


def test_the_first_rank_of_a_pipeline_is_asked(tmp_path):
    assert run_ranks(2, asks_a_follower, scratch=tmp_path) == [
        None, "the first rank of a pipeline is asked, for all of it",
    ]  # fmt: skip
