"""A server that answers for a run: the first rank asks it, for all."""

import operator
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from dsv3_plugin.checkpoint.live_folder import write_live
from dsv3_plugin.distributed.rank_zero_first import rank_zero_first
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.inference.requests import SamplingParameters
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.endpoint import LONG, Endpoint
from dsv3_plugin.rollouts.openai import OpenAi
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.routing import Routing
from dsv3_plugin.stages.round_numbers import Costs
from dsv3_plugin.training.prompts import PromptData

_SERVED = "dsv3_served_step_"
"""Beginning of the names of folders that are ours to remove."""


class Server:
    """Answers of a server with the weights in training, which it is given before they are asked.

    Others wait for the first rank however long it takes.

    Args:
        recipe: the run's.
        tell: takes a sentence for the person.

    Attributes:
        costs: of the last answers, and of the weights before them; the first rank knows them.
        answered: when they were there, by `time.perf_counter`; likewise, and 0 on the others.
    """

    def __init__(self, recipe: Rl, tell: Callable[[str], None]) -> None:
        self._recipe, self._tell = recipe, tell
        self._source: OpenAi | None = None
        self._taken: int | None = None
        self._before = (0, 0, 0)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers of the server")
        self._asked: Future[list[list[Rollout]]] | None = None
        self.costs = Costs()
        self.answered = 0.0

    def open(self, data: PromptData) -> None:
        """On the first rank: look whether it can be trained from.

        Raises:
            UserError: it cannot.
        """
        recipe, wanted = self._recipe, self._recipe.rollouts
        patience = replace(LONG, attempt=wanted.seconds, outage=wanted.outage)
        endpoint = Endpoint(
            wanted.url, model=wanted.model, key=_key(wanted.key_variable), patience=patience,
            at_once=wanted.at_once, bucket_bytes=int(wanted.bucket_gb * 1e9),
        )  # fmt: skip
        try:
            self._source = OpenAi(
                endpoint,
                SamplingParameters(max_tokens=wanted.max_tokens, temperature=wanted.temperature),
                data.tokenizer,
                recipe.model.vocab_size,
                wanted.max_prompt_tokens + wanted.max_tokens,
                data.ends,
                Routing.of(recipe.model) if recipe.grpo.routing_replay else None,
            )
        except BaseException:
            endpoint.close()
            raise
        self._before = self._counted()

    def close(self) -> None:
        """End what is under way."""
        if self._source is not None:
            self._source.endpoint.close()
        self._thread.shutdown(cancel_futures=True)

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its replica of the model."""
        return parallel_state.get_pipeline_model_parallel_rank() == 0

    def take_weights(self, model: Sequence[torch.nn.Module], version: int) -> None:
        """Have it go on with the weights as they are; all ranks call.

        Args:
            model: this rank's chunks.
            version: of the weights: the steps that were taken.

        Raises:
            UserError: it does not take them.
        """
        if version == self._taken:
            return
        recipe = self._recipe
        root = recipe.run_folder.served if (f := recipe.rollouts.folder) is None else named(f)
        folder = root / f"{_SERVED}{version:07d}"
        if dist.get_rank() == 0 and folder.exists():  # of a run that was killed
            shutil.rmtree(folder)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.precision.dtype]
        write_live(model, recipe.model, dtype, folder, recipe.checkpoint_folder)

        def hand_on() -> str:
            self._source.hand_on(str(folder.resolve()), recipe.rollouts.update)
            for other in root.glob(f"{_SERVED}*"):
                if other != folder:
                    shutil.rmtree(other)
            return ""

        rank_zero_first("weights for the server", hand_on)
        self._taken = version

    def ask(
        self,
        asked: Sequence[Asked],
        n: int,
        seeds: Sequence[int],
        begun: Sequence[Sequence[Rollout]],
        most: int | None,
    ) -> None:
        """Have n answers made to each prompt, while others go on with whatever they do.

        Args:
            asked: all prompts, the same on all ranks.
            n: answers to each.
            seeds: of each prompt's answers.
            begun: of each prompt answers to go on with, where there are any.
            most: tokens of an answer now; None: all that it may have.
        """
        if dist.get_rank() == 0:
            self._asked = self._thread.submit(
                self._ask, asked, n, seeds, version=self._taken, begun=begun, most=most
            )

    def _ask(self, *prompts: Any, **settings: Any) -> list[list[Rollout]]:
        found = self._source.answers(*prompts, **settings)
        self.answered = time.perf_counter()
        return found

    def answers(self) -> list[list[Rollout]]:
        """What was asked last, of this rank's replica: fewer answers where the server failed at
        some; all ranks call.

        Raises:
            UserError: not one answer came.
        """
        found: list[list[Rollout]] = []

        def wait() -> str:
            found.extend(self._asked.result())
            now = self._counted()
            lost, repeated, put_off = map(operator.sub, now, self._before)
            self._before = now
            self.costs = Costs(lost=lost, repeated=repeated + put_off)
            url, source = self._recipe.rollouts.url, self._source
            if lost:
                self._tell(
                    f"{lost:,} answers did not come from {url}, and are not learned from (so far: "
                    f"{_reasons(source.lost)})."
                )
            if put_off:
                self._tell(
                    f"{put_off:,} answers were not gone on with by {url}, and wait for the next "
                    f"round (so far: {_reasons(source.put_off)})."
                )
            return ""

        rank_zero_first("answers of the server", wait)
        if not self.leads:
            return []
        replicas = parallel_state.get_data_parallel_group()
        mine: list[list[list[Rollout]] | None] = [None]
        parts = None
        if dist.get_rank() == 0:
            parts = [found[replica :: replicas.size()] for replica in range(replicas.size())]
        dist.scatter_object_list(mine, parts, group=replicas, group_src=0)
        return mine[0]

    def _counted(self) -> tuple[int, int, int]:
        """Answers that did not come, requests that were made again, and those that will be."""
        source = self._source
        repeated = sum(source.endpoint.repeated.values()) + source.made_again
        return sum(source.lost.values()), repeated, sum(source.put_off.values())


def _reasons(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counted.items())


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if variable not in os.environ:
        raise UserError(f"rollouts.key_variable: there is no environment variable {variable}.")
    return os.environ[variable]
