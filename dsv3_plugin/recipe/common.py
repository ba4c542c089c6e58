"""What recipes of all stages have in common: their keys, and what follows from them.

Keys are as written; what follows from them (the curves as functions, the batch schedule, the number
of steps, the placement of the model's stages) are properties. Which combinations are possible is
said by `dsv3_plugin.recipe.rules`, which `load` looks at.
"""

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from dsv3_plugin.files.named import named
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.amounts import Steps
from dsv3_plugin.recipe.batch_schedule import (
    BatchSchedule,
    batch_schedule,
    odd_size,
    settled,
    sizes,
)
from dsv3_plugin.recipe.curve import Curve, resolve
from dsv3_plugin.recipe.epochs_counted import EpochsCounted, epochs_counted
from dsv3_plugin.recipe.fitting import divisor, multiples
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.places import data_at
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.sections import (
    BALANCED,
    Checkpoint,
    Curves,
    CurveSpecs,
    Data,
    Dispatch,
    Optimizer,
    Parallel,
    Pipeline,
    Precision,
    Recomputed,
    Training,
    hides_shared_expert,
)
from dsv3_plugin.recipe.stage_layout import even, stage_count
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.csv_file import read_csv
from dsv3_plugin.schedules.placement import Placement, placement_of
from dsv3_plugin.schedules.registry import SCHEDULES, ScheduleKind

HELD_OUT_SETS = "held_out_sets"
"""The folder of the held-out sets in that of the data."""

Backend = Literal["local", "transformer_engine"]


class Common(Section):
    """A run of any stage; the class of a stage narrows `stage`, and what else is its own."""

    name: str
    """What the run is called; by default as the file is."""
    stage: str
    """Which part of a model's life it is."""
    model: ModelConfig
    """A name (`deepseek-v3`), the path of a model's file, or a mapping: `base:` and what is changed
    of it, or all of the model's own keys."""
    backend: Literal["local", "transformer_engine", "auto"] = "auto"
    """What computes: torch alone, or Transformer Engine; auto: TE on a GPU where it is there."""
    host: Literal["auto", "cpu", "gpu"] = "auto"
    """Where it computes; auto: on GPUs where there are any."""
    precision: Precision = Precision()
    """Number formats."""
    data: Data
    """What is trained on."""
    training: Training
    """How long, and what is said meanwhile."""
    curve_specs: CurveSpecs = Field(alias="curves")
    """What changes with the tokens consumed so far."""
    optimizer: Optimizer = Optimizer()
    """AdamW."""
    parallel: Parallel = Parallel()
    """How the work is divided among processes."""
    pipeline: Pipeline = Pipeline()
    """The pipeline schedule."""
    dispatch: Dispatch = Dispatch()
    """How tokens travel to their experts."""
    cluster: str | None = None
    """What it is planned for: a cluster's name (`h800`) or the path of its file; null: `h100`, or
    `cpu` where nothing computes on a GPU."""
    recompute: list[Recomputed] = Field(default=[])
    """Activations computed again in the backward pass instead of kept."""
    checkpoint: Checkpoint = Checkpoint()
    """What is saved, and when."""
    directory: str
    """The run's folder; by default `runs/` and the name."""
    megatron_args: dict[str, bool | int | float | str | list[int | float | str]] = Field(default={})
    """Any flag of upstream's that no key stands for, as `flag-name: value` (true: the bare flag;
    false: without it, where a run has it by itself). They come last and win."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_number_of_devices(cls, data: Any) -> Any:
        """parallel.pipeline and pipeline.devices are one number: fill in the one not given."""
        if not isinstance(data, dict):
            return data
        parallel, pipeline = data.get("parallel", {}), data.get("pipeline", {})
        if isinstance(parallel, dict) and isinstance(pipeline, dict):
            devices = pipeline.get("devices")
            degree = parallel.get("pipeline", 1 if devices is None else devices)
            data = data | {
                "parallel": parallel | {"pipeline": degree},
                "pipeline": pipeline | {"devices": degree if devices is None else devices},
            }
        return data

    @property
    def data_parallel(self) -> int:
        """Ranks that see different sequences."""
        parallel = self.parallel
        return parallel.processes // (parallel.tensor * parallel.pipeline * parallel.context)

    @property
    def hides_shared_expert(self) -> bool:
        """Whether the shared expert computes while tokens travel."""
        dispatch = self.dispatch
        return hides_shared_expert(dispatch.hide_shared_expert, dispatch.kind, self.recompute)

    @property
    def executor(self) -> Literal["upstream", "ours"]:
        """Who runs the pipeline schedule."""
        if self.pipeline.executor is not None:
            return self.pipeline.executor
        kind = self.schedule_kind
        return "upstream" if kind is not None and kind.runs_upstream else "ours"

    @property
    def schedule_kind(self) -> ScheduleKind | None:
        """What is known of the schedule by its name; None for one in a file."""
        return SCHEDULES.get(self.pipeline.schedule)

    @property
    def pipeline_stages(self) -> int:
        """Number of different pipeline stages the layers are divided into."""
        return self.layout_stages or self.placement(self.pipeline.schedule).depth

    @property
    def layout_stages(self) -> int | None:
        """Number of stages that pipeline.layout writes out, where it does."""
        written = self.pipeline.layout
        return None if written in (None, BALANCED) else stage_count(written)

    @property
    def stage_layout(self) -> str:
        """The layers of each pipeline stage, in upstream's notation.

        A balanced one depends on what stages cost, which is not known here: ask a recipe that
        `planner/resolve.py` has closed.
        """
        written, model = self.pipeline.layout, self.model
        assert written != BALANCED, "the recipe's layout is open: planner.resolve closes it"
        if written is not None:
            return written
        return even(model.num_layers, self.pipeline_stages, model.mtp_num_layers or 0)

    def placement(self, schedule: str) -> Placement:
        """Which device holds which stage under a schedule, by its name or its file's.

        Raises:
            UserError: there is no such schedule for these devices.
        """
        devices = self.parallel.pipeline
        kind = SCHEDULES.get(schedule)
        if kind is None:
            assert self.schedule_file is not None
            return placement_of(self.schedule_file)
        if kind.searched:
            stages = self.layout_stages
            return kind.placement(devices, None if stages is None else stages // devices)
        return kind.placement(devices, self.pipeline.virtual_stages)

    @cached_property
    def schedule_file(self) -> Schedule | None:
        """The schedule in the CSV file that the recipe names, proven; None where it names none.

        Raises:
            UserError: it cannot be read, or is no schedule.
        """
        name = self.pipeline.schedule
        return read_csv(named(name)) if name.endswith(".csv") else None

    @cached_property
    def curves(self) -> Curves:
        """The curves as functions of consumed tokens."""
        after = self.batch_schedule.tokens_after
        return Curves(
            learning_rate=self._resolved("learning_rate", after),
            batch_size=self._batch_curve,
            router_bias_speed=self._resolved("router_bias_speed", after),
            mtp_weight=self._resolved("mtp_weight", after),
        )

    @cached_property
    def batch_schedule(self) -> BatchSchedule:
        """The batch size in the steps that it can grow by."""
        curve = self._batch_curve
        micro, ranks, together = (
            self.training.micro_batch_size,
            self.data_parallel,
            self.micro_batches_together,
        )
        try:
            return batch_schedule(curve, self._batch_multiple, self.data.seq_length)
        except ValueError as error:
            reason = f"training.micro_batch_size {micro} × {number_of(ranks, 'data-parallel rank')}"
            if together > 1:
                reason += f" × {together} micro-batches at once in {self.pipeline.schedule}"
            way_out = self._batch_that_fits(curve)
            raise ValueError(f"curves.batch_size: {error} ({reason}){way_out}") from error

    @property
    def _batch_multiple(self) -> int:
        """Sequences that all ranks take at once."""
        micro = self.training.micro_batch_size
        return micro * self.data_parallel * self.micro_batches_together

    @cached_property
    def _batch_curve(self) -> Curve:
        """The batch size; where shares of so many steps are its places, they are shares of the
        tokens of these, which it decides itself."""
        budget, pieces = self.training.budget, self.curve_specs.batch_size
        if not isinstance(budget, Steps) or not any(piece.is_share for piece in pieces):
            return self._resolved("batch_size", None)
        length = self.data.seq_length

        def consumed(tokens: int) -> int:
            curve = resolve(pieces, None, None, tokens)
            return batch_schedule(curve, self._batch_multiple, length).tokens_after(0, budget)

        largest = max(value for piece in pieces for value in (piece.to, piece.from_ or 0))
        whole = settled(consumed, int(budget * max(largest, 1)) * length)
        return self._resolved("batch_size", None, whole)

    def _batch_that_fits(self, curve: Curve) -> str:
        """The end of a sentence about a batch that no whole micro-batches make."""
        micro, others = (
            self.training.micro_batch_size,
            self.data_parallel * self.micro_batches_together,
        )
        odd = odd_size(curve, micro * others)
        if odd is None:
            return ""
        way_out = f": take {multiples(odd, micro * others)}"
        common = math.gcd(*(int(size) for size in sizes(curve)))
        if odd < 1 or common % others or any(size % 1 for size in sizes(curve)):
            return way_out
        return f"{way_out}, or training.micro_batch_size {divisor(common // others, micro)}"

    @property
    def micro_batches_together(self) -> int:
        """The number that the micro-batches of a step must be a multiple of."""
        kind = self.schedule_kind
        if kind is None:
            return 1
        if self.executor == "upstream" and kind.upstream_multiple is not None:
            return kind.upstream_multiple(self.parallel.pipeline)
        return kind.multiple

    def _resolved(
        self,
        name: str,
        tokens_after: Callable[[int, int], int] | None,
        budget: int | None = None,
    ) -> Curve:
        try:
            epochs = self.tokens_of_epochs if self.data.packing == "conversations" else None
            pieces = getattr(self.curve_specs, name)
            return resolve(pieces, tokens_after, epochs, budget or self.training.budget)
        except ValueError as error:
            raise ValueError(f"curves.{name}: {error}") from error

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        training = self.training
        if training.steps is not None:
            return training.steps
        tokens = training.tokens
        if tokens is None:
            tokens = self.tokens_of_epochs(training.epochs)
        return self.batch_schedule.steps_until(tokens)

    @property
    def epochs_counted(self) -> EpochsCounted | None:
        """How many sequences the conversations fill, where their data are built."""
        return epochs_counted(self.data_folder)

    def tokens_of_epochs(self, number: int) -> int:
        """The tokens of the first epochs, padding included.

        Raises:
            ValueError: it is not known.
        """
        counted = self.epochs_counted
        if counted is not None:
            sequences = counted.sequences_of(number)
        elif self.data.sequences is not None:
            sequences = number * self.data.sequences
        else:
            raise ValueError(
                "how many sequences the conversations fill is known when their data are built: "
                "run `dsv3 data prepare` with this recipe, or give data.sequences"
            )
        return sequences * self.data.seq_length

    @cached_property
    def total_tokens(self) -> int:
        """Tokens the whole run consumes: the budget, rounded up to a whole step."""
        return self.batch_schedule.tokens_after(0, self.total_steps)

    @property
    def run_folder(self) -> RunFolder:
        """What the run leaves behind, and where."""
        elsewhere = self.checkpoint.directory
        return RunFolder(self.folder, None if elsewhere is None else named(elsewhere))

    @property
    def folder(self) -> Path:
        return named(self.directory)

    @property
    def data_folder(self) -> Path:
        return data_at(self.data.path) if self.data.path is not None else self.folder / "data"

    @property
    def held_out_prefixes(self) -> list[Path]:
        """Of the dataset of each held-out set, all of which is evaluated on."""
        folder = self.data_folder / HELD_OUT_SETS
        return [folder / name / "train" for name in self.data.held_out_sets]

    @property
    def checkpoint_folder(self) -> Path:
        return self.run_folder.checkpoints

    def on_gpu(self, machine: Machine) -> bool:
        """Whether the run uses GPUs on a machine."""
        return self.host == "gpu" or (self.host == "auto" and machine.gpus > 0)

    def saves_meanwhile(self, machine: Machine) -> bool:
        """Whether training goes on while a checkpoint is written."""
        wanted = self.checkpoint.async_save
        return self.on_gpu(machine) if wanted is None else wanted

    def cluster_on(self, machine: Machine) -> str:
        """The cluster that the run is planned for, a name or a path."""
        if self.cluster is not None:
            return self.cluster
        return "h100" if self.on_gpu(machine) else "cpu"

    def resolved_backend(self, machine: Machine) -> Backend:
        """The backend that computes on a machine."""
        if self.backend != "auto":
            return self.backend
        if self.on_gpu(machine) and machine.transformer_engine:
            return "transformer_engine"
        return "local"

    @property
    def passed_flags(self) -> dict[str, Any]:
        """`megatron_args` by upstream's own names, without dashes before them."""
        return {
            written.removeprefix("--").replace("_", "-"): value
            for written, value in self.megatron_args.items()
        }

    def to_yaml(self) -> str:
        """The recipe complete: inheritance resolved, every default written out, the model inline.

        Reading it back gives an equal recipe.
        """
        data = self.model_dump(mode="json") | {"model": self.model.to_mapping()}
        return yaml_text.dump(data)
