"""`dsv3 distill` from a served teacher: what is kept, what is not and why, what a kill costs."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.chat.form import ChatForm
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.index_file import map_sequences
from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.distillation.samples import SYSTEM_PROMPT
from tests.served import free_port, served
from tests.small_runs import Command

Row = dict[str, Any]


@dataclass
class Teacher:
    """Adds numbers; a problem's own answers, in the order in which they are asked for, say how."""

    asked: list[Row] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    broken: bool = False

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": "adder"}]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.add(request.headers.get("authorization"))
        question = body["messages"][-1]["content"]
        while question in self.silent:
            await asyncio.sleep(0.01)
        if "refuse" in question:
            return JSONResponse({"error": {"message": "The prompt is too long."}}, status_code=400)
        a, b = map(int, re.findall(r"\d+", question))
        # By the seed alone: whatever is asked before, an answer is the same.
        said = f"It is \\boxed{{{a + b + body['seed'] % 2}}}, by way {body['seed'] % 3}."
        reason = "length" if body["seed"] % 5 == 0 else "stop"
        message = {"role": "assistant", "content": said}
        if body["seed"] % 3 == 1:
            message["reasoning_content"] = f"{a} and {b}.\n"
        return JSONResponse(
            {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
        )

    async def score(self, request: Request) -> Response:
        """A reward model: right is right."""
        samples = (await request.json())["samples"]
        if self.broken:
            return Response("no", 500)
        right = [f"{{{sample['answer']}}}" in sample["response"] for sample in samples]
        return JSONResponse({"scores": right})


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def address(teacher: Teacher) -> Iterator[str]:
    routes = [
        Route("/v1/models", teacher.models),
        Route("/v1/chat/completions", teacher.chat, methods=["POST"]),
        Route("/score", teacher.score, methods=["POST"]),
    ]
    with served(Starlette(routes=routes)) as where:
        yield where


def problem(number: int, **more: Any) -> Row:
    return {"prompt": f"{number}+7?", "answer": str(number + 7)} | more


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected(body: Row) -> str | None:
    """The response that a request's answer is kept as, if it is."""
    seed, question = body["seed"], body["messages"][-1]["content"]
    if seed % 2 or seed % 5 == 0:
        return None
    a, b = map(int, re.findall(r"\d+", question))
    said = f"It is \\boxed{{{a + b}}}, by way {seed % 3}."
    return f"<think>\n{a} and {b}.\n</think>\n\n{said}" if seed % 3 == 1 else said


def test_what_a_verifier_accepts_is_written_in_both_forms(
    dsv3: Any, teacher: Teacher, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV3_API_KEY", "secret")
    rows = [problem(n) for n in range(6)]
    prompts = write(tmp_path / "p.jsonl", [*rows, rows[0], {"prompt": "1+1?"}])
    out = tmp_path / "samples.jsonl"
    said = dsv3("distill", prompts, "--from", address, "--n", 8, "--out", out, "--json")
    assert (said.code, said.err) == (0, "")
    assert teacher.keys == {"Bearer secret"}
    assert len(teacher.asked) == 48
    assert len({body["seed"] for body in teacher.asked}) == 48
    assert {body["temperature"] for body in teacher.asked} == {0.6}
    assert not any("max_tokens" in body for body in teacher.asked)

    kept = {
        (body["messages"][0]["content"], response)
        for body in teacher.asked
        if (response := expected(body)) is not None
    }
    both = [{"prompt": p, "response": r} for p, r in kept]
    both += [{"system": SYSTEM_PROMPT, **row} for row in both]
    order = json.dumps
    assert sorted(read(out), key=order) == sorted(both, key=order)

    counts = json.loads(said.out)
    wrong = len({(b["messages"][0]["content"], b["seed"] % 3) for b in teacher.asked
                 if b["seed"] % 2 and b["seed"] % 5})  # fmt: skip
    long = sum(body["seed"] % 5 == 0 for body in teacher.asked)
    assert counts["rejected"] == {
        "too long: it came to no end": long,
        "not accepted by accuracy": wrong,
        "the same again": 48 - long - wrong - len(kept),
    }
    assert (counts["problems"], counts["kept"], counts["samples"]) == (6, len(kept), 2 * len(kept))
    assert [(one["things"], one["count"]) for one in counts["left_out"]] == [
        ("prompts", 1), ("prompts", 1)
    ]  # fmt: skip

    before = out.read_bytes()
    again = dsv3("distill", prompts, "--from", address, "--n", 8, "--out", out, "--json")
    assert (json.loads(again.out), out.read_bytes()) == (counts, before)
    assert len(teacher.asked) == 48
    other = dsv3("distill", prompts, "--from", address, "--n", 4, "--out", out)
    assert (other.code, other.out) == (2, "")
    assert "was begun with n 8, and not 4" in other.err


def test_it_is_a_corpus_for_a_fine_tuning(dsv3: Any, address: str, tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "Numbers?"},
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": "5+6?"},
    ]
    rows = [
        problem(1),
        problem(2, system="Be brief.", response="Nine."),
        {"messages": turns, "answer": 11},
    ]
    out = tmp_path / "samples.jsonl"
    prompts = write(tmp_path / "p.jsonl", rows)
    reward = ("--reward", f"{address}/score")
    command = ("distill", prompts, "--from", address, "--n", 12, "--out", out, *reward)
    assert dsv3(*command, "--system", "Check it.").code == 0
    samples = read(out)
    two = [row for row in samples if row.get("prompt") == "2+7?"]
    assert two[0] == {"system": "Be brief.", "prompt": "2+7?", "response": "Nine."}
    assert {row["system"] for row in two[1:]} == {"Check it.\n\nBe brief."}
    three = [row["messages"] for row in samples if "messages" in row]
    assert {row[0]["content"] for row in three} == {"You add.", "Check it.\n\nYou add."}
    assert all(row[1:4] == turns[1:] for row in three)

    train_bpe(["It is by way 1+2?\n" * 50], 400, tmp_path / "tokenizer")
    tokenizer = open_tokenizer(tmp_path / "tokenizer")
    form = ChatForm(open_template(tokenizer.folder, None, {}, "all"))
    data = build_dataset([out], tokenizer, tmp_path / "data", held_out=0.0, form=form, longest=600)
    assert len(map_sequences(data.train_prefix).lengths) == len(samples)


def test_a_kill_in_the_middle_costs_nothing_finished(
    dsv3: Any, teacher: Teacher, address: str, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "p.jsonl", [problem(n) for n in range(8)])
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    reward = ("--reward", f"{address}/score")
    command = ("distill", prompts, "--from", address, "--n", 4, "--at-once", 2, *reward)
    assert dsv3(*command, "--out", whole).code == 0
    teacher.asked.clear()
    teacher.silent = {"4+7?"}
    running = Command.forked(*map(str, command), "--out", out)
    ledger = tmp_path / "out.jsonl.progress"
    running.when(lambda: ledger.exists() and len(ledger.read_text().splitlines()) >= 4)
    running.send(signal.SIGKILL).end()
    finished = {line["problem"] for line in read(ledger)[1:]}
    with out.open("a") as file:
        file.write('{"prompt": "ha')
    teacher.silent, before = set(), len(teacher.asked)
    assert dsv3(*command, "--out", out).code == 0
    assert len(teacher.asked) - before == 4 * (8 - len(finished))
    assert sorted(out.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_what_fails_this_time_is_asked_again_the_next(
    dsv3: Any, teacher: Teacher, address: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    prompts = write(tmp_path / "p.jsonl", [problem(1)])
    reward = f"{address}/score"
    command = ("distill", prompts, "--from", address, "--n", 8, "--reward", reward, "--out", out)
    teacher.broken = True
    said = dsv3(*command, "--outage-seconds", 0)
    assert said.code == 0
    reason = f"8 {reward}: the service answered with status 500: no"
    assert f"unfinished: 1 problem ({reason}); the same command goes on with them" in said.out
    assert out.read_bytes() == b""
    teacher.broken = False
    assert dsv3(*command).code == 0
    assert out.read_bytes()


@pytest.mark.parametrize(
    ("row", "rejected"),
    [
        ({"prompt": "refuse 1+1?", "answer": "2"},
         {"the server refuses (status 400): The prompt is too long": 2}),
        ({"prompt": "1+1?", "answer": "2 apples and ["}, None),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_or_asked_is_counted(
    dsv3: Any, address: str, tmp_path: Path, row: Row, rejected: dict[str, int] | None
) -> None:
    prompts = write(tmp_path / "p.jsonl", [row])
    out = tmp_path / "out.jsonl"
    said = dsv3("distill", prompts, "--from", address, "--n", 2, "--out", out, "--json")
    assert said.code == 0
    counts = json.loads(said.out)
    assert (counts["kept"], counts["problems_without"]) == (0, 1)
    assert sum(counts["rejected"].values()) == 2
    if rejected is not None:
        assert counts["rejected"] == rejected
    assert out.read_bytes() == b""


def test_errors_are_sentences(dsv3: Any, address: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", [problem(1)])
    out = tmp_path / "out.jsonl"
    down = f"http://127.0.0.1:{free_port()}"
    for words, sentence in (
        ((prompts, "--from", down), f"{down} cannot be reached."),
        ((prompts, "--from", f"{address}/x"), "refuses (status 404)"),
        ((prompts, "--from", tmp_path / "nowhere"), "nowhere"),
        ((prompts, "--from", address, "--reward", "no.such"), "The reward 'no.such' is not there"),
        ((tmp_path / "none.jsonl", "--from", address), "none.jsonl cannot be read"),
        ((prompts, "--from", tmp_path, "--model", "x"), "--model goes with a server"),
    ):
        said = dsv3("distill", *words, "--out", out)
        assert (said.code, said.out) == (2, ""), said.err
        assert sentence in said.err
        assert not out.exists()
