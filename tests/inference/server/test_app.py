"""The server, asked by OpenAI's own client; its answers held against the engine and the model."""

import json
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch

from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.routed_experts import decoded
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.words import words_of
from tests.inference.server.serving import KEY, PATIENCE_S, listening, server_of


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    settings = EngineSettings(2**24, record_experts=True)
    return Engine(model, settings, text_of=tokenizer.decode)


@pytest.fixture(scope="module")
def address(engine, tokenizer):
    server = server_of(engine, words_of(tokenizer), Limits(20_000, 50, answer_tokens=2000), KEY)
    with listening(server) as where:
        yield where


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(model):
    """Tokens of a prompt by an engine that does nothing else."""

    def tokens(prompt, number=0, **sampling):
        request = Request(tuple(prompt), SamplingParameters(**sampling), number=number)
        (answer, *_) = Engine(model, EngineSettings(2**24)).run([request])
        return answer.tokens

    return tokens


def log_probs(model, ids):
    """Of all tokens but the first."""
    text = torch.tensor([ids])
    rows = main_logits(model, text[:, :-1]).log_softmax(-1)
    return rows[0].gather(1, text[0, 1:, None])[:, 0].tolist()


def test_models(client):
    assert [model.id for model in client.models.list()] == ["small"]


def test_a_completion_is_the_engines(client, tokenizer, alone):
    prompt = tokenizer.backend.encode("def f(").ids
    expected = alone(prompt, max_tokens=12, temperature=0.0)
    got = client.completions.create(model="small", prompt="def f(", max_tokens=12, temperature=0)
    (choice,) = got.choices
    assert choice.text == tokenizer.backend.decode(expected, skip_special_tokens=True)
    assert choice.finish_reason == "length"
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(prompt), 12)


def test_experts_are_the_engines(client, model):
    """In whole replies of either kind, and in the last piece of a stream."""
    sampling = SamplingParameters(max_tokens=6, temperature=0.0)
    settings = EngineSettings(2**24, record_experts=True)
    (alone,) = Engine(model, settings).run([Request((5, 6, 7), sampling)])
    asked = {
        "model": "small", "prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0,
        "extra_body": {"return_routed_experts": True},
    }  # fmt: skip
    whole = client.completions.create(**asked).choices[0]
    assert decoded(whole.routed_experts).tolist() == alone.experts.tolist()
    *pieces, last = client.completions.create(**asked, stream=True)
    assert not any("routed_experts" in piece.choices[0].model_extra for piece in pieces)
    assert last.choices[0].routed_experts == whole.routed_experts

    talk = [{"role": "user", "content": "f"}]
    del asked["prompt"]
    said = client.chat.completions.create(**asked, messages=talk)
    told = decoded(said.choices[0].routed_experts)
    assert told.shape == (said.usage.total_tokens - 1, *alone.experts.shape[1:])


def test_ids_in_and_out_several_prompts_and_answers(client, alone):
    prompts = [[5, 6, 7], [9]]
    got = client.completions.create(
        model="small", prompt=prompts, max_tokens=6, n=2, seed=3,
        extra_body={"return_token_ids": True, "top_k": 40},
    )  # fmt: skip
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    for choice, prompt in zip(got.choices, [prompts[0]] * 2 + [prompts[1]] * 2, strict=True):
        assert choice.prompt_token_ids == prompt
    for number, (first, prompt) in enumerate(zip(got.choices[::2], prompts, strict=True)):
        assert first.token_ids == alone(prompt, number, max_tokens=6, seed=3, top_k=40)


def test_echo_and_log_probabilities_are_a_forward_passs(client, model):
    prompt = list(range(10, 60))
    got = client.completions.create(
        model="small", prompt=prompt, max_tokens=3, echo=True, logprobs=2, seed=1,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    (choice,) = got.choices
    first, *rest = choice.logprobs.token_logprobs
    assert first is None
    assert rest == pytest.approx(log_probs(model, prompt + choice.token_ids), abs=1e-5)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == 53
    assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [2] * 52
    assert max(choice.logprobs.top_logprobs[20].values()) >= rest[19] - 1e-6


def test_a_stream_is_the_whole_in_pieces(client):
    asked = {"model": "small", "prompt": "def", "max_tokens": 30, "seed": 2}
    whole = client.completions.create(**asked)
    pieces = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    said = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert said == whole.choices[0].text
    assert pieces[-1].usage == whole.usage
    assert len(pieces) == 31


def test_a_chat_is_by_the_template(client, tokenizer, alone):
    messages = [{"role": "user", "content": "def"}]
    asked = {"model": "small", "messages": messages, "max_tokens": 8, "temperature": 0}
    got = client.chat.completions.create(
        **asked, logprobs=True, top_logprobs=2, extra_body={"return_token_ids": True}
    )
    (choice,) = got.choices
    assert choice.token_ids == alone(choice.prompt_token_ids, max_tokens=8, temperature=0.0)
    assert tokenizer.decode(choice.prompt_token_ids).count("def") == 1
    said = tokenizer.backend.decode(choice.token_ids, skip_special_tokens=True)
    assert choice.message.content == said
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * 8
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert said == choice.message.content
    assert pieces[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        ({"model": "other"}, 404, "no model 'other' here"),
        ({"prompt": []}, 400, "there is none"),
        ({"prompt": [[]]}, 400, "no tokens"),
        ({"prompt": [100_000]}, 400, "Token 100000 is none of the model's"),
        ({"prompt": [1] * 2033}, 400, "exceed the model's 2048 positions"),
        ({"max_tokens": 0}, 400, "max_tokens is 0 and has to be at least 1."),
        ({"temperature": -1.0}, 400, "temperature is -1.0"),
        ({"temperature": "warm"}, 400, 'temperature is "warm" and has to be a number.'),
        ({"logprobs": 99}, 400, "logprobs is 99 and has to be at most 20."),
        ({"best_of": 3}, 400, "best_of"),
        ({"presence_penalty": 1.0}, 400, "presence_penalty is not supported"),
        ({"suffix": "x"}, 400, "suffix is not supported: leave it out"),
        ({"max_token": 9}, 400, "max_token is not supported (nearest: 'max_tokens'): leave"),
        ({"model": None}, 400, "model is missing: it is 'small' here."),
        ({"logit_bias": {"x": 1.0}}, 400, "no token id"),
        ({"echo": True, "stream": True}, 400, "echo"),
        (
            {"n": 51},
            400,
            "51 answers are asked for, n for each prompt, and a request may ask for 50",
        ),
        ({"prompt": ["x"] * 6, "n": 10}, 400, "60 answers are asked for"),
        ({"max_tokens": 2001}, 400, "an answer may have 2000 tokens here"),
        ({"prompt": None}, 400, "prompt is missing."),
        (
            {"prompt": [1, "x"]},
            400,
            'prompt is [1, "x"] and has to be a text, a list of token ids, ',
        ),
        ({"stop": 3}, 400, "stop is 3 and has to be a text or a list of texts."),
        ({"stop_token_ids": 3}, 400, "stop_token_ids is 3 and has to be a list."),
        ({"stop_token_ids": [1, 3.5]}, 400, "stop_token_ids.1 is 3.5 and has to be a whole number"),
        ({"stop_token_ids": [-1]}, 400, "Token -1 is none of the model's"),
        ({"logit_bias": {"5": 1.0, "05": 2.0}}, 400, "logit_bias names token 5 twice"),
        ({"stream_options": {"include_usage": True}}, 400, "goes with stream"),
        ({"stop": [""]}, 400, "stop is"),
        ({"prompt": "x" * 20_000}, 413, "larger than 20000 bytes"),
    ],
)
def test_what_is_not_served_is_said(client, asked, status, sentence):
    body = {"model": "small", "prompt": "x"} | asked
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/completions", body=body, cast_to=object)
    assert refused.value.status_code == status
    assert sentence in refused.value.response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"model": "other"}, "model"),
        ({"model": None}, "model"),
        ({"prompt": []}, "prompt"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 2001}, "max_tokens"),
        ({"max_token": 9}, "max_token"),
        ({"n": 50, "prompt": ["x", "y"]}, None),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [100_000]}, "prompt"),
        ({"prompt": [1] * 2048}, "prompt"),
        ({"prompt": [1] * 2033}, "max_tokens"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"stop": ["x", 3]}, "stop"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"logit_bias": {"100000": 1.0}}, "logit_bias"),
        ({"logit_bias": {"5": 1.0, "05": 2.0}}, "logit_bias"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "stream": True}, "echo"),
    ],
)
def test_a_refusal_names_its_field(client, asked, field):
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/completions", body={"model": "small", "prompt": "x"} | asked, cast_to=object)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("messages", "field", "sentence"),
    [
        (
            [{"role": "narrator", "content": "x"}],
            "messages.0",
            "the role 'narrator' is not known: take one of user, assistant, tool, system, dev",
        ),
        ([{"role": "user"}], "messages.0", "this turn of user has no content"),
        ([], "messages", "messages is [] and has to be a list of at least one"),
    ],
)
def test_turns_that_are_none(client, messages, field, sentence):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="small", messages=messages)
    assert refused.value.param == field
    assert sentence in refused.value.response.json()["error"]["message"]


def test_an_answer_ends_at_a_token_that_was_named(client, tokenizer, alone):
    """As vLLM does: at its first place, where it is not part of the text."""
    expected = alone([5, 6, 7], max_tokens=12, temperature=0.0)
    end = expected[5]
    first = expected.index(end)
    asked = {"model": "small", "max_tokens": 12, "temperature": 0}
    more = {"stop_token_ids": [end], "return_token_ids": True}
    got = client.completions.create(**asked, prompt=[5, 6, 7], extra_body=more).choices[0]
    assert got.token_ids == expected[: first + 1]
    assert got.finish_reason == "stop"
    assert got.text == tokenizer.backend.decode(expected[:first], skip_special_tokens=True)
    (ends, *_) = words_of(tokenizer).ends
    forced = {"logit_bias": {str(ends): 100.0}}  # the tokenizer's own ends it still
    last = client.completions.create(**asked, prompt=[5], extra_body=more | forced).choices[0]
    assert last.token_ids == [ends]

    talk = [{"role": "user", "content": "def"}]
    whole = client.chat.completions.create(
        **asked, messages=talk, extra_body=more | {"stop_token_ids": []}
    )
    tokens = whole.choices[0].token_ids
    more["stop_token_ids"] = [tokens[3]]
    cut = client.chat.completions.create(**asked, messages=talk, extra_body=more).choices[0]
    assert (cut.token_ids, cut.finish_reason) == (tokens[: tokens.index(tokens[3]) + 1], "stop")


def test_which_routes_there_are_is_said(client):
    with pytest.raises(openai.NotFoundError, match=r"no /v1/completion here: .*/v1/completions, "):
        client.post("/completion", body={}, cast_to=object)
    with pytest.raises(openai.APIStatusError, match="does not take GET: ask it with POST"):
        client.get("/completions", cast_to=object)


def post(address, body, key=KEY):
    """Status and sentence of a raw body."""
    request = urllib.request.Request(
        f"{address}/v1/completions", body, {"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return reply.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def test_bodies_that_are_no_json_and_wrong_keys(address):
    assert post(address, b"{") == (400, "The body is not JSON.")
    assert post(address, b"[" * 10_000)[0] == 400
    assert post(address, b"3")[0] == 400
    assert post(address, b"{}", key="another") == (401, "The API key is missing or wrong.")


def test_half_of_a_character_is_no_text(address):
    for text in (b'"\\ud800"', b'"a\xed\xa0\x80"'):
        status, sentence = post(address, b'{"model": "small", "prompt": %s}' % text)
        assert (status, "surrogate" in sentence) == (400, True)
    status, _ = post(address, b'{"model": "small", "prompt": "\\ud83d\\ude00", "max_tokens": 1}')
    assert status == 200
    assert post(address, b'{"model": "small", "prompt": "x", "temperature": NaN}')[0] == 400


def test_what_is_null_is_not_there(client, tokenizer):
    fields = (
        "n",
        "seed",
        "temperature",
        "top_p",
        "stream",
        "echo",
        "max_tokens",
        "presence_penalty",
    )
    endless = {str(end): -100 for end in words_of(tokenizer).ends}
    body = {"model": "small", "prompt": "x", "logit_bias": endless} | dict.fromkeys(fields)
    got = client.post("/completions", body=body, cast_to=object)
    assert got["usage"]["completion_tokens"] == 16


def test_a_question_without_a_seed_is_drawn_anew(client):
    asked = {"model": "small", "prompt": "def", "max_tokens": 40}
    first, second = (client.completions.create(**asked).choices[0].text for _ in range(2))
    assert first != second


def test_a_turn_in_parts_is_a_turn(client):
    def reply(content):
        asked = {"model": "small", "max_tokens": 4, "temperature": 0}
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(**asked, messages=messages).choices[0].message

    parts = [{"type": "text", "text": "de"}, {"type": "text", "text": "f"}]
    assert reply(parts) == reply("def")
    with pytest.raises(openai.BadRequestError, match="not 'image_url'"):
        reply([{"type": "image_url", "image_url": {"url": "x"}}])
    with pytest.raises(openai.BadRequestError, match="content is a text"):
        reply(3)


def metrics(address):
    request = urllib.request.Request(
        f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        lines = [line.split() for line in reply.read().decode().splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


def test_who_leaves_frees_the_pages(client, address):
    asked = {"model": "small", "prompt": "def", "max_tokens": 2000, "n": 20, "temperature": 0}
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    assert metrics(address)["dsv3_running"] == 20
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(**asked)
    until = time.monotonic() + PATIENCE_S
    while (seen := metrics(address))["dsv3_running"] + seen["dsv3_waiting"] > 0:
        assert time.monotonic() < until
    assert seen["dsv3_pages_held"] == 0
    assert seen["dsv3_drawn_tokens_total"] > 0


def test_health_needs_no_key(address):
    with urllib.request.urlopen(f"{address}/health", timeout=PATIENCE_S) as reply:
        assert json.load(reply) == {"status": "ok"}
