"""Answers of servers: those of ours, and of some that do this or that otherwise."""

import base64
import dataclasses
import itertools
import signal
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Threads
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.responses import JSONResponse

from dsv3_plugin.checkpoint import export_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer, train_bpe
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request
from dsv3_plugin.inference.routed_experts import coded
from dsv3_plugin.rollouts.endpoint import Endpoint
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.routing import Routing
from dsv3_plugin.web import Patience
from tests.docs import to_servers
from tests.rollouts.other_server import (
    BRIEF,
    PROMPTS,
    SAMPLING,
    VOCABULARY,
    Prompt,
    rollouts,
    server_that,
)
from tests.served import free_port
from tests.small_runs import Command, Trained

PATIENT = Patience(attempt=300, outage=300, first_wait=0.1, longest_wait=0.5)


def test_they_are_what_an_engine_of_ours_gives(
    server: str, tokenizer: TextTokenizer, trained: Trained
) -> None:
    with single_process():
        model, config = load_for_inference(trained.checkpoints)
        engine = Engine(model, EngineSettings(2**24, record_experts=True))
        requests = [
            Request(prompt.tokens, dataclasses.replace(SAMPLING, n=3, seed=seed))
            for prompt, seed in zip(PROMPTS, (7, 8), strict=True)
        ]
        done = [Rollout.of(one) for one in engine.run(requests)]
    with Endpoint(server, patience=PATIENT) as endpoint:
        assert endpoint.model == "small"
        source = rollouts(endpoint, tokenizer, routing=Routing.of(config))
        found = source.answers(PROMPTS, 3, [7, 8])
    for group, alone in zip(found, (done[:3], done[3:]), strict=True):
        assert len({rollout.tokens for rollout in group}) == 3
        for mine, other in zip(group, alone, strict=True):
            assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert dataclasses.replace(mine, log_probs=other.log_probs) == other
            assert mine.experts.dtype == other.experts.dtype
            assert torch.equal(mine.experts, other.experts)


def test_answers_that_are_gone_on_with_are_those_made_at_once(
    server: str, tokenizer: TextTokenizer
) -> None:
    """Where it is always the likeliest token; log-probabilities to 1e-5."""
    likeliest = dataclasses.replace(SAMPLING, top_k=1)
    with Endpoint(server, patience=PATIENT) as endpoint:
        source = rollouts(endpoint, tokenizer, sampling=likeliest)
        at_once = source.answers(PROMPTS, 2, [7, 8])
        begun = None
        for number in (3, 4, 5):
            begun = source.answers(PROMPTS, 2, [0, 1], version=number, begun=begun, most=5)
    for mine, other in zip(itertools.chain(*begun), itertools.chain(*at_once), strict=True):
        assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert (mine.prompt, mine.tokens) == (other.prompt, other.tokens)
        assert mine.versions == ((3,) * 5 + (4,) * 5 + (5,) * 2)[: len(mine.tokens)]
        assert mine.finish_reason == other.finish_reason


def test_lines_of_the_pages_ask_it(
    server: str, dsv3: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with Endpoint(server, patience=PATIENT) as endpoint:  # it may be starting yet
        assert endpoint.model == "small"
    answered = to_servers.curl("/completions", server)
    assert answered["usage"]["completion_tokens"] == 16
    for number, words in enumerate(to_servers.distill(server, tmp_path)):
        words[words.index("samples.jsonl")] = f"{number}.jsonl"
        done = dsv3(*words)
        assert done.code == 0, done.err
    assert {path.name for path in tmp_path.glob("[01].jsonl")} == {"0.jsonl", "1.jsonl"}


@pytest.mark.long
def test_a_server_that_is_killed_in_the_middle_is_waited_for(
    tokenizer: TextTokenizer, trained: Trained
) -> None:
    address = f"http://127.0.0.1:{(port := free_port())}"
    serve = ("serve", "--checkpoint", trained.checkpoints, "--port", str(port))
    many = [Prompt((5, 17, 60 + number)) for number in range(48)]
    running = Command.forked(*serve)
    try:
        with Endpoint(address, patience=PATIENT, at_once=2) as endpoint, Threads(1) as beside:
            source = rollouts(endpoint, tokenizer)
            before = sum(endpoint.repeated.values())
            step = beside.submit(source.answers, many, 2, range(48))
            while drawn_tokens(address) < 100:
                time.sleep(0.005)
            running.send(signal.SIGKILL).end()
            assert not step.done()
            running = Command.forked(*serve)
            interrupted = step.result()
            assert sum(endpoint.repeated.values()) > before
            undisturbed = source.answers(many, 2, range(48))
        assert [[one.tokens for one in group] for group in interrupted] == [
            [one.tokens for one in group] for group in undisturbed
        ]
        assert not source.lost
    finally:
        running.send(signal.SIGKILL).end()


def test_weights_are_handed_on_and_not_lost_with_the_server(
    tokenizer: TextTokenizer, trained: Trained, tmp_path: Path
) -> None:
    earlier = trained.checkpoints / "iter_0000004"
    export_hf(earlier, tmp_path / "step-20")
    address = f"http://127.0.0.1:{(port := free_port())}"
    serve = to_servers.serve_to_a_run(trained.checkpoints, tmp_path, port)
    running = Command.forked(*serve, DSV3_API_KEY="secret")
    try:
        with Endpoint(address, key="secret", patience=PATIENT) as endpoint:
            source = rollouts(endpoint, tokenizer)
            (before,) = source.answers(PROMPTS[:1], 2, [7])
            source.hand_on("step-20")
            (after,) = source.answers(PROMPTS[:1], 2, [7])
            assert (source.version, source.made_again) == (1, 0)
            running.send(signal.SIGKILL).end()
            running = Command.forked(*serve, DSV3_API_KEY="secret")
            assert source.answers(PROMPTS[:1], 2, [7]) == [after]
            assert (source.version, source.made_again) == (1, 2)
            with pytest.raises(
                UserError, match=r"does not take the weights of nowhere: it refuses"
            ):
                source.hand_on("nowhere")
        names = {"sampling": SAMPLING, "tokenizer": tokenizer, "prompts": PROMPTS}
        behind = to_servers.hand_on(address, "secret", tmp_path, names)
        assert [len(group) for group in behind["groups"]] == [8] * len(PROMPTS)
        taken = to_servers.curl("/weights", address, DSV3_API_KEY="secret")
        assert taken == {"object": "weights", "version": 4}
    finally:
        running.send(signal.SIGKILL).end()
    assert {rollout.versions for rollout in before} == {(0,) * 12}
    with single_process():
        model, _ = load_for_inference(earlier)
        engine = Engine(model, EngineSettings(2**24))
        sampling = dataclasses.replace(SAMPLING, n=2, seed=7)
        done = engine.run([Request(PROMPTS[0].tokens, sampling)])
    for mine, other in zip(after, done, strict=True):
        assert (list(mine.tokens), mine.versions) == (other.tokens, (1,) * 12)
        assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def test_a_server_that_fails_at_weights_is_said(tokenizer: TextTokenizer) -> None:
    def change(_reply: dict, _body: dict) -> None: ...

    with server_that(tokenizer, change) as endpoint:
        assert endpoint.take_weights("there", "sglang") is None
        with pytest.raises(UserError, match="weights of nowhere: no such folder"):
            endpoint.take_weights("nowhere", "sglang")


def drawn_tokens(address: str) -> float:
    """How many tokens of answers a server has made."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=300) as page:
        text = page.read().decode()
    (line,) = (line for line in text.splitlines() if line.startswith("dsv3_drawn_tokens_total "))
    return float(line.split()[1])


def test_another_tokenizer_is_found_out(tokenizer: TextTokenizer, tmp_path: Any) -> None:
    train_bpe(["elephants never forget; why would they?\n" * 30], VOCABULARY, tmp_path / "t")
    theirs = open_tokenizer(tmp_path / "t")

    def change(_reply: dict, _body: dict) -> None: ...

    with (
        server_that(theirs, change) as endpoint,
        pytest.raises(UserError, match="has another tokenizer than"),
    ):
        rollouts(endpoint, tokenizer)


def probe_without_ids(reply: dict, _body: dict) -> None:
    del reply["choices"][0]["token_ids"]


def probe_without_log_probs(reply: dict, _body: dict) -> None:
    reply["choices"][0]["logprobs"] = None


def probe_of_fewer_tokens(_reply: dict, body: dict) -> JSONResponse | None:
    if body["prompt"] == [VOCABULARY - 1]:
        said = {"error": {"message": "Token 511 is out of vocabulary"}}
        return JSONResponse(said, status_code=400)
    return None


def probe_of_a_page(_reply: dict, _body: dict) -> JSONResponse:
    return JSONResponse({"detail": "Not Found"}, status_code=404)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (probe_without_ids, "does not tell token ids, which training needs"),
        (probe_without_log_probs, "does not tell log-probabilities, which training needs"),
        (probe_of_fewer_tokens, "Token 511 is out of vocabulary.*has another vocabulary"),
        (probe_of_a_page, "refuses"),
    ],
)
def test_what_cannot_be_trained_from_is_said_first(
    tokenizer: TextTokenizer, change: Callable[[dict, dict], Any], sentence: str
) -> None:
    with server_that(tokenizer, change) as endpoint, pytest.raises(UserError, match=sentence):
        rollouts(endpoint, tokenizer)


def fewer_choices(reply: dict, body: dict) -> None:
    if body["prompt"] == [5, 17, 60]:
        reply["choices"].pop()


def fails_at_one(_reply: dict, body: dict) -> JSONResponse | None:
    failed = JSONResponse({"error": {"message": "Out of memory."}}, status_code=500)
    return failed if body["prompt"] == [5, 17, 60] else None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (fewer_choices, "answered another number of choices"),
        (fails_at_one, "answered with status 500: Out of memory"),
    ],
)
def test_what_fails_costs_its_prompt(
    tokenizer: TextTokenizer, change: Callable[[dict, dict], Any], problem: str
) -> None:
    with server_that(tokenizer, change) as endpoint:
        source = rollouts(endpoint, tokenizer)
        lost, whole = source.answers(PROMPTS, 2, [0, 1])
        assert (lost, len(whole)) == ([], 2)
        assert source.lost == {problem: 2}
        with pytest.raises(UserError, match="no answer came"):
            source.answers(PROMPTS[:1], 2, [0])


def test_an_answer_ends_where_the_trained_model_ends_it(tokenizer: TextTokenizer) -> None:
    def change(_reply: dict, _body: dict) -> None: ...

    with server_that(tokenizer, change) as endpoint:
        source = rollouts(endpoint, tokenizer, ends=frozenset({3}))
        ((rollout,),) = source.answers(PROMPTS[:1], 1, [0])
    assert (rollout.tokens, rollout.log_probs) == ((9, 3), (-0.5, -0.25))
    assert (rollout.finish_reason, rollout.versions) == ("stop", (0, 0))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("token_ids", [9, VOCABULARY, 3], "token 512, which is none of the 512 of the model"),
        ("prompt_token_ids", [0, 5, 17, 60], "answers another prompt than it was asked"),
    ],
)
def test_another_models_answers_are_refused(
    tokenizer: TextTokenizer, key: str, value: list[int], sentence: str
) -> None:
    def change(reply: dict, _body: dict) -> None:
        reply["choices"][0][key] = value

    with server_that(tokenizer, change) as endpoint:
        source = rollouts(endpoint, tokenizer)
        with pytest.raises(UserError, match=sentence):
            source.answers(PROMPTS[:1], 1, [0])


WITH_EXPERTS = Routing(layers=3, moe_layers=(1, 2), top_k=2, experts=8)


def experts_of_sglang(reply: dict, body: dict) -> None:
    """In the form of its interface: int32 [tokens but the last, layers, top-k], all layers."""
    assert body["return_routed_experts"] is True
    for choice in reply["choices"]:
        tokens = len(body["prompt"]) + len(choice["token_ids"]) - 1
        flat = np.arange(tokens * 3 * 2, dtype="<i4") % 8
        choice["sgl_ext"] = {"routed_experts": base64.b64encode(flat.tobytes()).decode()}


def test_experts_as_sglang_tells_them(tokenizer: TextTokenizer) -> None:
    """They end with the answer."""
    with server_that(tokenizer, experts_of_sglang) as endpoint:
        source = rollouts(endpoint, tokenizer, ends=frozenset({3}), routing=WITH_EXPERTS)
        ((rollout,),) = source.answers(PROMPTS[:1], 1, [0])
    assert rollout.tokens == (9, 3)
    assert torch.equal(rollout.experts, (torch.arange(30).view(5, 3, 2) % 8)[:4, 1:].int())


def no_experts(_reply: dict, _body: dict) -> None: ...


def experts_of_others(reply: dict, _body: dict) -> None:
    reply["choices"][0]["routed_experts"] = coded(np.zeros((5, 2, 3), np.int32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (no_experts, "does not tell where tokens went, .*: take dsv3 serve, or SGLang with"),
        (experts_of_others, "experts that are not those of 5 tokens of the model in training"),
    ],
)
def test_a_server_that_does_not_tell_where_tokens_went_is_said(
    tokenizer: TextTokenizer, change: Callable[[dict, dict], Any], sentence: str
) -> None:
    with server_that(tokenizer, change) as endpoint:
        source = rollouts(endpoint, tokenizer, routing=WITH_EXPERTS)
        with pytest.raises(UserError, match=sentence):
            source.answers(PROMPTS[:1], 1, [0])


def test_where_nobody_answers_is_said() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+ cannot be reached\."):
        Endpoint(f"http://127.0.0.1:{free_port()}", patience=BRIEF)
