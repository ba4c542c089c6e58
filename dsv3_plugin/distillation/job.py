"""One distillation, from its prompts to its counts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsv3_plugin.data.left_out import LeftOut, Tally
from dsv3_plugin.distillation.distil import Unfinished, Verifier, distil
from dsv3_plugin.distillation.ledger import Ledger
from dsv3_plugin.distillation.samples import SYSTEM_PROMPT
from dsv3_plugin.distillation.teacher import Teacher
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.recipe.sections import OnBadRow
from dsv3_plugin.rewards.by_name import COMPARING, NAMES
from dsv3_plugin.rollouts.endpoint import LONG, Endpoint
from dsv3_plugin.rollouts.prompts import RewardNames, read_prompts

Shown = Callable[[int], AbstractContextManager[Callable[[int, int], None]]]
"""Shows progress over so many problems: problems finished, answers kept."""


@dataclass(frozen=True)
class Job:
    """What is distilled, how, and from whom; `dsv3 distill --help` says of each.

    Attributes:
        prompts, teacher, out, n, rewards, at_least, model, max_tokens, sampling, seed, system,
        at_once, judge_seconds, outage, on_bad_row: as there.
        key: of the server.
    """

    prompts: tuple[str, ...]
    teacher: str
    out: Path
    n: int
    rewards: tuple[str, ...]
    at_least: float
    model: str | None
    max_tokens: int | None
    sampling: SamplingParameters
    seed: int
    system: str | None
    at_once: int
    judge_seconds: float
    outage: float
    on_bad_row: OnBadRow
    key: str | None

    @property
    def names(self) -> RewardNames:
        """Rewards that prompts may name."""
        return RewardNames(tuple(dict.fromkeys((*NAMES, *self.rewards))), self.rewards, COMPARING)

    def settings(self, model: str) -> Mapping[str, Any]:
        """All that decides what is kept of a problem."""
        return {
            "model": model,
            "n": self.n,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "rewards": list(self.rewards),
            "at_least": self.at_least,
            "system": self.system,
        }


@dataclass(frozen=True)
class Distilled:
    """What came of a job, earlier starts included.

    Attributes:
        out: the file of samples.
        problems: asked for.
        counts: of the finished ones: "problems", "answers", "kept", "samples".
        rejected: answers, by the reason.
        barren: finished problems of which no answer was kept.
        left_out: prompts and rows that were not asked.
        unfinished: see there.
        repeated: requests that failed and were made again, by the reason.
    """

    out: Path
    problems: int
    counts: Mapping[str, int]
    rejected: Mapping[str, int]
    barren: int
    left_out: tuple[LeftOut, ...]
    unfinished: Unfinished
    repeated: Mapping[str, int]


def run(job: Job, shown: Shown) -> Distilled:
    """Do it.

    Raises:
        UserError: the prompts, the teacher, a reward or the file cannot be used.
    """
    tally = Tally()
    problems = list(read_prompts(job.prompts, job.names, on_bad_row=job.on_bad_row, left_out=tally))
    patience = replace(LONG, outage=job.outage)
    with Verifier(job.at_least, job.judge_seconds, patience, job.key) as verifier:
        for name in {name for problem in problems for name in problem.rewards}:
            verifier.open(name)  # what there is not is said before anybody is asked
        with (
            _teacher(job) as (teacher, model, repeated),
            Ledger(job.out, job.settings(model)) as ledger,
            shown(len(problems)) as done,
        ):
            unfinished = distil(
                problems, teacher, job.n, verifier, ledger, job.system or SYSTEM_PROMPT, done
            )
            return Distilled(
                out=job.out,
                problems=len(problems),
                counts=ledger.counts,
                rejected=dict(ledger.rejected.most_common()),
                barren=ledger.barren,
                left_out=tally.all(),
                unfinished=unfinished,
                repeated=repeated(),
            )


@contextmanager
def _teacher(job: Job) -> Iterator[tuple[Teacher, str, Callable[[], Mapping[str, int]]]]:
    """Who answers, its name, and how often it had to be asked again."""
    if "://" in job.teacher:
        from dsv3_plugin.distillation.from_endpoint import EndpointTeacher

        with Endpoint(
            job.teacher,
            model=job.model,
            key=job.key,
            patience=replace(LONG, outage=job.outage),
            at_once=job.at_once,
            may_be_starting=False,
        ) as endpoint:
            teacher = EndpointTeacher(endpoint, job.sampling, job.max_tokens, job.seed, job.at_once)
            yield teacher, endpoint.model, lambda: endpoint.repeated
        return
    if job.model is not None:
        raise UserError("--model goes with a server; a checkpoint is one model.")
    from dsv3_plugin.distillation.from_checkpoint import CheckpointTeacher
    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.files.named import named

    with single_process():
        path = named(job.teacher)
        teacher = CheckpointTeacher(path, job.sampling, job.max_tokens, job.seed, job.at_once)
        yield teacher, str(path.resolve()), dict
