"""`dsv3 distill`: samples for fine-tuning out of a teacher's answers."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from dsv3_plugin.terminal.lines import say, say_json


def distill(
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPTS...",
            help='Files of JSON lines: {"prompt": …, "answer": …}, or "messages" in place of the '
            "prompt.",
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="CHECKPOINT|URL",
            help="Who answers: a checkpoint with its tokenizer, or a server that speaks OpenAI's "
            "language (its key: DSV3_API_KEY).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File of samples to write, JSON lines.")],
    n: Annotated[int, typer.Option("--n", help="Answers to each problem.", min=1, max=1024)] = 8,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What accepts answers, where a prompt names nothing: accuracy, match, code, "
            "format, package.module.function, or a reward model's URL; by default accuracy.",
        ),
    ] = None,
    at_least: Annotated[float, typer.Option(help="Each reward of an answer that is kept.")] = 1.0,
    model: Annotated[str | None, typer.Option(help="Of a server that has several.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of an answer, thoughts included; longer ones are dropped. By default as "
            "many as the model has room for.",
            min=1,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="As DeepSeek-R1 is sampled.", min=0)] = 0.6,
    top_p: Annotated[float, typer.Option(help="As DeepSeek-R1 is sampled.", min=0, max=1)] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the sampling.", min=0, max=2**63 - 1)] = 0,
    system: Annotated[
        str | None, typer.Option(help="System prompt of the samples' second form.")
    ] = None,
    at_once: Annotated[
        int, typer.Option(help="Answers that are made, or asked for, at once.", min=1)
    ] = 64,
    judge_seconds: Annotated[
        float, typer.Option(help="Time to judge an answer; a slower one is dropped.", min=0.1)
    ] = 30.0,
    outage_seconds: Annotated[
        float, typer.Option(help="How long a server that fails is asked again.", min=0)
    ] = 600.0,
    on_bad_row: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do about rows that are no prompts.")
    ] = "stop",
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Answer problems, and write the answers that a verifier accepts as data for `stage: sft`.

    What is finished stays: the same command goes on where it ended.
    """
    from dsv3_plugin.distillation.job import Job, run
    from dsv3_plugin.inference.requests import SamplingParameters
    from dsv3_plugin.report.distillation import mapping, sentences

    job = Job(
        prompts=tuple(prompts),
        teacher=teacher,
        out=out,
        n=n,
        rewards=tuple(reward or ("accuracy",)),
        at_least=at_least,
        model=model,
        max_tokens=max_tokens,
        sampling=SamplingParameters(temperature=temperature, top_p=top_p),
        seed=seed,
        system=system,
        at_once=at_once,
        judge_seconds=judge_seconds,
        outage=outage_seconds,
        on_bad_row=on_bad_row,
        key=os.environ.get("DSV3_API_KEY"),
    )
    from dsv3_plugin.cli.progress import problems_done

    found = run(job, problems_done)
    if json:
        say_json(mapping(found))
        return
    for line in sentences(found):
        say(line)
