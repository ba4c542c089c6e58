"""What a search of layouts looks at, and what it says of each."""

from dataclasses import dataclass
from typing import Any

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.plan import TimePart
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import BALANCED


@dataclass(frozen=True)
class Choice:
    """What the search chooses; all else stays as the recipe says.

    Attributes:
        tensor, pipeline, context, expert: parallel sizes.
        micro_batch: sequences of a forward pass.
        schedule: of the pipeline, by its name in the registry or the recipe's own file.
        ramp_schedule: for batches with too few micro-batches for `schedule`; None: there are none.
        virtual_stages: per rank, where the schedule leaves them open.
        recompute: activations computed again.
        dispatcher: how tokens travel to their experts.
        wire: what is sent between nodes.
    """

    tensor: int
    pipeline: int
    context: int
    expert: int
    micro_batch: int
    schedule: str
    ramp_schedule: str | None
    virtual_stages: int | None
    recompute: tuple[str, ...]
    dispatcher: str
    wire: str

    @classmethod
    def of(cls, recipe: Recipe) -> "Choice":
        """What a recipe chose."""
        parallel, pipeline = recipe.parallel, recipe.pipeline
        return cls(
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            context=parallel.context,
            expert=parallel.expert,
            micro_batch=recipe.training.micro_batch_size,
            schedule=pipeline.schedule,
            ramp_schedule=pipeline.ramp_schedule,
            virtual_stages=pipeline.virtual_stages,
            recompute=tuple(recipe.recompute),
            dispatcher=recipe.dispatch.kind,
            wire=recipe.dispatch.precision,
        )

    def keys(self) -> dict[str, Any]:
        """The recipe's keys that say it, `a.b` → value; the layout is left to be balanced."""
        return {
            "parallel.tensor": self.tensor,
            "parallel.pipeline": self.pipeline,
            "parallel.context": self.context,
            "parallel.expert": self.expert,
            "training.micro_batch_size": self.micro_batch,
            "pipeline.devices": self.pipeline,
            "pipeline.schedule": self.schedule,
            "pipeline.ramp_schedule": self.ramp_schedule,
            "pipeline.virtual_stages": self.virtual_stages,
            "pipeline.layout": BALANCED if self.pipeline > 1 else None,
            "recompute": list(self.recompute),
            "dispatch.kind": self.dispatcher,
            "dispatch.precision": self.wire,
        }


@dataclass(frozen=True)
class Candidate:
    """A way of running the recipe that was weighed exactly: layout balanced, schedule simulated.

    Attributes:
        choice: what it chooses.
        recipe: the recipe so, complete, its layout written out.
        step_seconds: of a step of the run's largest batch, without saving and evaluation.
        time_by_part: those seconds by part, as a mean of all ranks.
        tokens_per_second_per_gpu: in that step.
        memory_bytes: of the fullest rank. memory_rank: which pipeline rank that is.
        fits: whether that is no more than a device has.
        reasons: a sentence for each choice (of the best), or for why it lost (of the others).
    """

    choice: Choice
    recipe: Recipe
    step_seconds: float
    time_by_part: dict[TimePart, float]
    tokens_per_second_per_gpu: float
    memory_bytes: int
    memory_rank: int
    fits: bool
    reasons: tuple[str, ...] = ()

    @property
    def layout(self) -> str | None:
        """The layers of each stage; None without a pipeline."""
        return self.recipe.pipeline.layout


@dataclass(frozen=True)
class Ranking:
    """What a search found.

    Attributes:
        cluster: for which.
        candidates: the best first, each with its reasons; all fit.
        given: the recipe as it was given, weighed alike; None where it cannot run at all.
        considered: ways that the search looked at roughly.
        weighed: ways that it weighed exactly.
    """

    cluster: Cluster
    candidates: tuple[Candidate, ...]
    given: Candidate | None
    considered: int
    weighed: int

    @property
    def best(self) -> Candidate:
        return self.candidates[0]
