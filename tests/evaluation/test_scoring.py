"""Texts scored on the engine: as by a forward pass of each alone."""

import pytest
import torch

from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation import harness
from dsv3_plugin.evaluation.harness import Wanted, evaluate
from dsv3_plugin.evaluation.scoring import completions, scored
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from dsv3_plugin.report.evaluation import harness as report
from tests import oracles

CONFIG = oracles.model_config()


@pytest.fixture(scope="module")
def model():
    with single_process(seed=1):
        built = build_model(CONFIG)
        oracles.randomize(built, seed=6)
        yield built.eval()


def by_forward_pass(model, context, continuation):
    ids = torch.tensor([context + continuation])
    rows = main_logits(model, ids[:, :-1]).log_softmax(-1)[0][-len(continuation) :]
    own = rows.gather(1, torch.tensor(continuation)[:, None]).sum().item()
    return own, rows.argmax(-1).tolist() == continuation


def test_a_text_has_the_probability_of_a_forward_pass(model):
    draw = torch.Generator().manual_seed(3)

    def ids(count):
        return torch.randint(CONFIG.vocab_size, (count,), generator=draw).tolist()

    texts = [(ids(context), ids(count)) for context, count in [(1, 1), (5, 9), (20, 44), (1, 63)]]
    engine = Engine(model, EngineSettings(2**22, most_running=3))
    for context in (ids(4), ids(7)):  # what the model itself would write
        (answer,) = engine.run(
            [Request(tuple(context), SamplingParameters(max_tokens=6, temperature=0.0))]
        )
        texts.append((context, answer.tokens))
    told = []
    found = scored(engine, texts, lambda: told.append(1))
    assert len(told) == len(texts)
    for one, (context, continuation) in zip(found, texts, strict=True):
        log_prob, greedy = by_forward_pass(model, context, continuation)
        assert one.log_prob == pytest.approx(log_prob, abs=1e-5 * len(continuation))
        assert one.greedy == greedy
    assert [one.greedy for one in found[-2:]] == [True, True]


def test_of_a_long_list_no_more_is_taken_than_runs(model):
    engine, taken = Engine(model, EngineSettings(2**22, most_running=2)), []

    def requests():
        for number in range(9):
            taken.append(number)
            yield Request((number,), SamplingParameters(max_tokens=1 + number % 3, temperature=0.0))

    places = []
    for count, (place, _answer) in enumerate(completions(engine, requests()), start=1):
        places.append(place)
        assert len(taken) <= count + 2 + 1
    assert sorted(places) == [*range(9)]


def test_without_the_harness_a_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'dsv3_plugin\[harness\]'"):
        evaluate(tmp_path, Wanted(["sums"]))


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ({"until": ["\n", ""], "max_gen_toks": 8}, {"max_tokens": 8, "stop": ("\n",)}),
        ({"max_gen_toks": 8, "temperature": 0.7}, {"max_tokens": 8}),
        (
            {"max_gen_toks": 8, "do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9},
            {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9},
        ),
    ],
)
def test_how_a_task_wants_answers_drawn(said, drawn):
    expected = SamplingParameters(**{"temperature": 0.0} | drawn)
    assert harness._sampling(said) == expected


def test_what_a_task_wants_and_the_engine_has_not_is_said():
    with pytest.raises(UserError, match="asks for num_beams"):
        harness._sampling({"max_gen_toks": 8, "num_beams": 4})


RESULTS = {
    "results": {
        "sums": {"alias": "sums", "exact_match,none": 0.5, "exact_match_stderr,none": 0.1},
        "ppl": {"bits_per_byte,none": 2.0, "bits_per_byte_stderr,none": "N/A"},
        "group": {"alias": "group", "acc,strict": 1.0},
    },
    "n-samples": {"sums": {"original": 9, "effective": 4}, "ppl": {"effective": 3}},
    "versions": {"sums": 1.0},
}


def test_results_as_a_table_and_a_mapping():
    assert report.grid(RESULTS).rows == (
        ("sums", "exact_match", "0.5000", "± 0.1000", "4"),
        ("ppl", "bits_per_byte", "2.0000", "", "3"),
        ("group", "acc (strict)", "1.0000", "", ""),
    )
    told = report.mapping(RESULTS, "runs/x")
    assert told["tasks"]["sums"] == {
        "version": 1.0,
        "metrics": [{"metric": "exact_match", "filter": "none", "value": 0.5, "stderr": 0.1}],
    }
