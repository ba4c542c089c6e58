"""The engine against the trainer's forward pass: the same numbers whatever runs beside, whatever is
cached, shared, put back or changed in between."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference import attention
from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.inference.requests import Completion, Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from tests import oracles
from tests.forked import answer_of
from tests.inference.beside_forward import beside_forward

CONFIG = oracles.model_config(
    max_position_embeddings=512, moe_ffn_hidden_size=24, moe_shared_expert_intermediate_size=48
)
ROOMY = EngineSettings(2**24, record_experts=True)
TOLERANCE = 1e-5  # of log-probabilities, FP32


def drawn(seed):
    model = build_model(CONFIG)
    oracles.randomize(model, seed)
    return model


@pytest.fixture(scope="module")
def model(world):
    return drawn(6)


def prompt(length, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(CONFIG.vocab_size, (length,), generator=draw).tolist())


MIXED = [
    Request(prompt(3), SamplingParameters(max_tokens=70, temperature=0.0)),
    Request(prompt(100, 1), SamplingParameters(max_tokens=9, n=3, seed=5)),
    Request(
        prompt(70, 2),
        SamplingParameters(
            max_tokens=40, temperature=0.6, top_p=0.9, seed=4, prompt_log_probs=True
        ),
    ),
    Request(prompt(130, 3), SamplingParameters(max_tokens=20, seed=8, top_log_probs=3)),
]


@pytest.fixture(scope="module")
def answers(model):
    """Of the requests together, with room for all."""
    return Engine(model, ROOMY).run(MIXED)


def forward(model, completion: Completion) -> torch.Tensor:
    """Log-probabilities [text - 1, vocab] of what follows each token, by one pass."""
    ids = torch.tensor([[*completion.prompt, *completion.tokens]])
    return main_logits(model, ids[:, :-1])[0].log_softmax(-1)


def assert_equals_forward(model, completion: Completion) -> None:
    text = torch.tensor([*completion.prompt, *completion.tokens])
    expected = forward(model, completion).gather(1, text[1:, None])[:, 0]
    first = len(completion.prompt) - 1
    got = torch.tensor(completion.log_probs)
    torch.testing.assert_close(got, expected[first:], rtol=0, atol=TOLERANCE)
    if completion.prompt_reports is not None:
        got = torch.tensor([report.log_prob for report in completion.prompt_reports])
        torch.testing.assert_close(got, expected[:first], rtol=0, atol=TOLERANCE)


def test_log_probabilities_are_those_of_a_forward_pass(model, answers):
    assert [len(answer.tokens) for answer in answers] == [70, 9, 9, 9, 40, 20]
    for answer in answers:
        assert_equals_forward(model, answer)


@pytest.mark.parametrize(
    ("settings", "pages"),
    [({"tokens_in_step": 48}, 99), ({"most_running": 1}, 99), ({}, 4)],
    ids=["long prompts in parts", "one at a time", "too few pages"],
)
def test_answers_do_not_depend_on_what_runs_beside(model, answers, settings, pages):
    budget = pages * CacheShape.of(model.config).page_bytes
    engine = Engine(model, EngineSettings(budget, **settings))
    for got, expected in zip(engine.run(MIXED), answers, strict=True):
        assert got.tokens == expected.tokens
        assert_equals_forward(model, got)
    assert (engine.counters.put_back > 0) == (pages == 4)
    assert engine.scheduler.held == 0


def test_top_log_probabilities_are_the_likeliest(model, answers):
    answer = answers[-1]
    likely = forward(model, answer)[len(answer.prompt) - 1 :].topk(3)
    for row, report in enumerate(answer.reports):
        assert [token for token, _ in report.top] == likely.indices[row].tolist()
        got = torch.tensor([value for _, value in report.top])
        torch.testing.assert_close(got, likely.values[row], rtol=0, atol=TOLERANCE)


def test_log_probabilities_of_the_drawing_are_after_temperature(model, answers):
    sampled = answers[1]
    assert sampled.sampling_log_probs == pytest.approx(sampled.log_probs)  # temperature 1
    assert answers[0].sampling_log_probs == [0.0] * 70  # greedy
    warm = answers[4]
    rows = forward(model, warm)[len(warm.prompt) - 1 :] / 0.6
    for row, report in zip(rows, warm.reports, strict=True):
        at_least = float(row.log_softmax(-1)[report.token])  # a nucleus is likelier than all
        assert at_least - 1e-5 <= report.sampling_log_prob <= at_least - torch.tensor(0.9).log()


def test_experts_are_those_of_the_trainers_router(model, answers):
    seen = {}
    hooks = [
        layer.mlp.router.register_forward_hook(
            lambda _module, _inputs, out, number=number: seen.__setitem__(number, out[1])
        )
        for number, layer in enumerate(model.decoder.layers)
        if hasattr(layer.mlp, "router")
    ]
    for answer in answers:
        forward(model, answer)
        assert answer.experts.shape == (len(answer.prompt) + len(answer.tokens) - 1, 2, 4)
        for layer, number in enumerate(sorted(seen)):
            expected = seen[number].nonzero()[:, 1].view(-1, 4)
            assert torch.equal(answer.experts[:, layer].sort(dim=1).values.long(), expected)
    for hook in hooks:
        hook.remove()


def test_the_way_of_attending_is_the_one_with_fewer_multiplications(model, monkeypatch):
    """Whole prompts and parts of them make keys and values, single tokens attend to latents; and
    either step would have been dearer the other way, as torch counts."""
    ways = []
    for name in ("_plain", "_absorbed"):
        way = getattr(attention, name)

        def noted(*arguments, name=name, way=way):
            ways.append((name, arguments[-1].rows, arguments[-1].lengths))
            return way(*arguments)

        monkeypatch.setattr(attention, name, noted)

    def operations(absorbed):
        """Of a prompt's step and of the one behind it, by a way, or by the engine's choice."""
        engine = Engine(model, EngineSettings(2**24))
        if absorbed is not None:
            engine._absorbed = lambda _count, _length: absorbed
        engine.add(LATER)
        counts = []
        for _ in range(2):
            with FlopCounterMode(display=False) as counter:
                engine.step()
            counts.append(counter.get_total_flops())
        return counts

    chosen = operations(None)
    layers = CONFIG.num_layers
    assert (
        ways
        == [("_plain", slice(0, 100), [100])] * layers
        + [("_absorbed", slice(0, 1), [101])] * layers
    )
    (prompt_plain, token_plain), (prompt_absorbed, token_absorbed) = map(operations, (False, True))
    assert chosen == [prompt_plain, token_absorbed]
    assert prompt_plain < prompt_absorbed
    assert token_absorbed < token_plain


def test_answers_to_one_prompt_compute_it_once(model):
    engine = Engine(model, EngineSettings(2**24))
    engine.run([Request(prompt(100), SamplingParameters(max_tokens=1, n=8))])
    assert engine.counters.computed == 100 + 7


def test_answers_differ_by_their_number_and_seed(model, answers):
    first, second, third = (answer.tokens for answer in answers[1:4])
    assert first != second != third
    other = replace(MIXED[1], sampling=replace(MIXED[1].sampling, seed=6))
    assert [a.tokens for a in Engine(model, ROOMY).run([other])] != [first, second, third]


def test_without_a_seed_every_request_draws_for_itself(model):
    sampling = SamplingParameters(max_tokens=20, n=2)
    answers = Engine(model, ROOMY).run([Request(prompt(9), sampling)] * 2)
    assert len({tuple(answer.tokens) for answer in answers}) == 4


def test_prompts_of_one_seed_draw_by_their_numbers(model):
    sampling = SamplingParameters(max_tokens=20, seed=7)
    several = [Request(prompt(9), sampling, number=number) for number in (0, 1, 0)]
    first, second, again = (answer.tokens for answer in Engine(model, ROOMY).run(several))
    assert first == again != second


def test_nan_of_one_text_is_no_part_of_another(world):
    """Of a text beside it that is longer, nor of one that had its pages before."""
    poisoned = drawn(6)
    with torch.no_grad():
        poisoned.embedding.word_embeddings.weight[95] = float("nan")
    never = SamplingParameters(max_tokens=12, temperature=0.0, logit_bias={95: -1e9})
    clean = [Request(tuple(token % 95 for token in prompt(140, 4)), never)]
    bad = Request((*prompt(150), *[95] * 50), never)
    (expected,) = Engine(poisoned, ROOMY).run(clean)
    engine = Engine(poisoned, EngineSettings(8 * CacheShape.of(poisoned.config).page_bytes))
    for _ in range(2):
        ruined, answer = engine.run([bad, *clean])
        assert torch.tensor(ruined.log_probs).isnan().all()
        assert answer.tokens == expected.tokens
        torch.testing.assert_close(answer.log_probs, expected.log_probs, rtol=0, atol=TOLERANCE)
    (answer,) = engine.run([replace(clean[0], prompt=clean[0].prompt[1:])])
    assert torch.tensor(answer.log_probs).isfinite().all()


LATER = Request(prompt(100), SamplingParameters(max_tokens=20, temperature=0.0))


def changed(model, *, told=False):
    """Some values of one weight; `told`: in a way that autograd does not see."""
    with torch.no_grad():
        weight = model.decoder.layers[1].self_attention.linear_kv_up_proj.weight
        (weight.data if told else weight)[3].mul_(-2.0)


def answer_of_changed(connection):
    """For `forked.answer_of`: what a process says that never had other weights."""
    with single_process(seed=1):
        model = drawn(6)
        changed(model)
        (answer,) = Engine(model, ROOMY).run([LATER])
    connection.send((answer.tokens, answer.log_probs))


@pytest.fixture(scope="module")
def afresh():
    """Tokens and log-probabilities of the changed weights in a process of their own."""
    return answer_of(answer_of_changed)


@pytest.mark.parametrize("told", [False, True])
def test_nothing_of_older_weights_is_used(world, afresh, told):
    changing = drawn(6)
    engine = Engine(changing, ROOMY)
    (before,) = engine.run([LATER])
    number = engine.add(replace(LATER, sampling=replace(LATER.sampling, max_tokens=30)))
    for _ in range(4):
        engine.step()  # a text that is being made when the weights change
    changed(changing, told=told)
    if told:
        engine.weights_changed()
    done = []
    while engine.busy:
        done += [p.completion for p in engine.step() if p.completion]
    assert done[0].request == number
    assert done[0].versions == [0] * 4 + [1] * 26
    (after,) = engine.run([LATER])
    tokens, log_probs = afresh
    assert after.tokens == tokens != before.tokens
    assert after.log_probs == pytest.approx(log_probs, abs=TOLERANCE)


def test_a_cache_given_back_comes_again_when_it_is_needed(model, answers):
    engine = Engine(model, ROOMY)
    assert engine.cache_bytes == 0
    engine.add(MIXED[0])
    engine.step()
    assert 0 < engine.cache_bytes <= ROOMY.cache_bytes
    engine.release_cache()
    assert engine.cache_bytes == 0
    done = []
    while engine.busy:
        done += [p.completion for p in engine.step() if p.completion]
    assert done[0].tokens == answers[0].tokens


def test_experts_can_be_trained_on(answers):
    experts = answers[0].experts
    assert not experts.is_inference()
    experts.add_(1)  # which an inference tensor refuses outside of inference
    experts.sub_(1)


def test_requests_are_taken_all_or_none(model):
    engine = Engine(model, ROOMY)
    with pytest.raises(UserError, match="no tokens"):
        engine.run([MIXED[0], Request(())])
    assert not engine.busy


def test_cancelled_and_late_requests_end_as_they_are(model):
    now = [0.0]
    engine = Engine(model, ROOMY, clock=lambda: now[0])
    late = engine.add(Request(prompt(5), SamplingParameters(max_tokens=50), seconds=2.0))
    unwanted = engine.add(Request(prompt(6), SamplingParameters(max_tokens=50, n=2)))
    for _ in range(3):
        engine.step()
    cancelled = engine.cancel(unwanted)
    assert [p.completion.finish_reason for p in cancelled] == ["cancelled"] * 2
    assert engine.cancel(unwanted) == []
    now[0] = 2.0
    (ended,) = engine.step()
    assert (ended.request, ended.completion.finish_reason) == (late, "timeout")
    assert len(ended.completion.tokens) == 3
    assert not engine.busy
    assert engine.scheduler.held == 0


def test_stop_tokens_and_strings(model, answers):
    text = answers[0].tokens
    request = replace(MIXED[0], sampling=SamplingParameters(
        max_tokens=70, temperature=0.0, stop_tokens=frozenset({text[9]})
    ))  # fmt: skip
    (stopped,) = Engine(model, ROOMY).run([request])
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == text[: text.index(text[9]) + 1]

    def spelled(tokens):
        return "".join(f"<{token}>" for token in tokens)

    end = spelled(text[20:23])[1:-1]
    request = replace(MIXED[0], sampling=SamplingParameters(
        max_tokens=70, temperature=0.0, stop=("nowhere", end)
    ))  # fmt: skip
    (stopped,) = Engine(model, ROOMY, text_of=spelled).run([request])
    assert stopped.finish_reason == "stop"
    assert spelled(stopped.tokens).endswith(end + ">")


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(()), "no tokens"),
        (Request((96,)), "Token 96 is none of the model's, which are 0 to 95"),
        (Request((-1,)), "Token -1 is none"),
        (Request((1,), SamplingParameters(logit_bias={500: 1.0})), "Token 500 is none"),
        (Request((1,) * 500), "exceed the model's 512 positions"),
        (Request((1,), SamplingParameters(stop=("x",))), "need a tokenizer"),
        (Request((1,), SamplingParameters(top_log_probs=97)), "has 96 tokens"),
    ],
)
def test_what_cannot_be_answered_is_refused(model, request_, sentence):
    engine = Engine(model, ROOMY)
    with pytest.raises(UserError, match=sentence):
        engine.add(request_)
    assert not engine.busy


def test_bfloat16(world):
    model = build_model(CONFIG, dtype=torch.bfloat16)
    oracles.randomize(model, 6)
    apart = beside_forward(model, Engine(model, ROOMY).run(MIXED))
    assert apart.tokens == 157
    assert len(apart.untouched) > 50
    apart.must_be_near()
