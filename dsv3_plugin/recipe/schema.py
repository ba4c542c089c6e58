"""The whole truth of a run: every key a recipe may have, its type, its default and its meaning.

`Recipe` is what `load_recipe` returns. Sections hold the keys as written; what follows from them
(the curves as functions, the batch schedule, the number of steps) are properties, computed once.
`dsv3_plugin.recipe.rules` says which combinations are possible.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from dsv3_plugin.recipe import layout, placing, rules, yaml_text
from dsv3_plugin.recipe.amounts import Tokens
from dsv3_plugin.recipe.batch_schedule import BatchSchedule, batch_schedule
from dsv3_plugin.recipe.curve import Curve, CurveSpec, resolve
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.schedules.actions import Schedule
from dsv3_plugin.schedules.csv_file import read_csv
from dsv3_plugin.schedules.registry import RAMPS, SCHEDULES, ScheduleKind

Backend = Literal["local", "transformer_engine"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Fp8(Section):
    """FP8 training through Transformer Engine."""

    recipe: Literal["blockwise", "mxfp8", "tensorwise", "delayed"] = "blockwise"
    """blockwise: 1×128 tiles of activations and 128×128 blocks of weights, as DeepSeek-V3."""
    format: Literal["e4m3", "hybrid"] = "e4m3"


class Precision(Section):
    """Number formats."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Of parameters and activations; master weights and gradients are FP32 always."""
    fp8: Fp8 | None = None
    moments: Literal["fp32", "bf16"] = "fp32"
    """Of Adam's two moments."""


class TrainedTokenizer(Section):
    """A tokenizer trained on the corpus."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: PositiveInt
    """Tokens at most, special tokens included."""


class Data(Section):
    """What is trained on."""

    corpus: str | list[str] = "stdlib"
    """"stdlib" (the source of the Python standard library), a file, a folder, or a list of these;
    text, JSONL or parquet."""
    text_key: str = "text"
    """Key of a JSONL object, or column of a parquet file, that holds the text."""
    tokenizer: TrainedTokenizer | str
    """How to train one, or the folder of a Hugging Face tokenizer."""
    seq_length: PositiveInt
    """Tokens per sequence."""
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of documents rearranged for fill-in-the-middle (prefix, suffix, middle)."""
    held_out: Fraction = 0.01
    """Share of documents kept for evaluation."""
    path: str | None = None
    """Folder of the indexed corpus; None: `data` in the run's folder."""


class Training(Section):
    """How long, and what is said meanwhile."""

    tokens: Tokens | None = None
    """Budget in tokens; training ends with the step that reaches it."""
    steps: PositiveInt | None = None
    """Budget in steps, in place of tokens."""
    micro_batch_size: PositiveInt = 1
    """Sequences per forward pass of a rank."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1234
    """NumPy takes 32 bits of it, after upstream has added to it for each stage and rank."""
    eval_interval: PositiveInt | None = None
    """Steps between evaluations; None: never."""
    eval_steps: PositiveInt = 10
    """Batches per evaluation, of the size of the first batch."""
    log_interval: PositiveInt = 10
    """Steps between lines of the log, and between loads of each expert in metrics.jsonl."""

    @pydantic.model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give either tokens or steps")
        return self


class CurveSpecs(Section):
    """The curves over consumed tokens, as written (see `dsv3_plugin.recipe.curve`)."""

    learning_rate: CurveSpec
    batch_size: CurveSpec
    """In sequences, over all ranks."""
    router_bias_speed: CurveSpec = Field(default=0.001, validate_default=True)
    """γ of the auxiliary-loss-free balancing: what an expert's bias moves per step."""
    mtp_weight: CurveSpec = Field(default=0.3, validate_default=True)
    """λ of the multi-token-prediction loss."""


@dataclass(frozen=True)
class Curves:
    """The curves as functions of consumed tokens."""

    learning_rate: Curve
    batch_size: Curve
    router_bias_speed: Curve
    mtp_weight: Curve


class Optimizer(Section):
    """AdamW."""

    kind: Literal["adam"] = "adam"
    betas: list[Fraction] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    clip_grad: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0: no clipping."""


class Parallel(Section):
    """How the work is divided among processes (one per GPU)."""

    processes: PositiveInt = 1
    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    expert: PositiveInt = 1
    context: PositiveInt = 1
    zero1: bool = False
    """Shard optimizer states over data-parallel ranks (ZeRO stage 1)."""
    timeout_minutes: PositiveFloat = 10.0
    """How long a rank waits for another before the run stops."""


class Pipeline(Section):
    """The pipeline schedule."""

    schedule: str = "1f1b"
    """A name in `schedules/registry.py`, or the path of a CSV as torch.distributed.pipelining
    writes it."""
    devices: PositiveInt | None = None
    """The same as parallel.pipeline; giving one gives both."""
    executor: Literal["upstream", "ours"] | None = None
    """Who runs the schedules that upstream has (1f1b, interleaved); all others are ours. None:
    upstream where it can."""
    virtual_stages: PositiveInt | None = None
    """Stages per device of the interleaved schedule."""
    layout: str | None = None
    """Layers per stage in upstream's notation ("Et|(tt|)*30mL"); None: as even as can be."""
    ramp_schedule: Literal[*RAMPS] | None = None
    """Runs while a growing batch still gives fewer micro-batches than `schedule` needs."""
    timeout: PositiveFloat | None = None
    """Seconds a stage waits for a neighbour; None: parallel.timeout_minutes."""


class Dispatch(Section):
    """How tokens travel to their experts."""

    kind: Literal["alltoall", "two_hop", "deepep", "hybridep"] = "alltoall"
    ranks_per_node: PositiveInt | Literal["auto"] = "auto"
    """For two_hop; auto: the launcher's local world size."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """What two_hop sends between nodes; bf16 means: the activations as they are."""
    hide_shared_expert: bool | None = None
    """The shared expert computes while tokens travel; None: with two_hop, unless recomputed."""


class Checkpoint(Section):
    """What is saved, and when."""

    interval: PositiveInt = 1000
    """Steps between checkpoints."""
    keep: PositiveInt | None = None
    """Only the newest so many are kept; None: all."""
    directory: str | None = None
    """None: `checkpoints` in the run's folder."""


Recomputed = Literal["norms", "mla_up_proj", "moe_act", "core_attn", "shared_experts", "mlp", "moe"]


class Recipe(Section):
    """A run: model, data, curves, precision, parallelism."""

    name: str
    model: ModelConfig
    backend: Literal["local", "transformer_engine", "auto"] = "auto"
    """What computes: torch alone, or Transformer Engine; auto: TE on a GPU where it is there."""
    host: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision = Precision()
    data: Data
    training: Training
    curve_specs: CurveSpecs = Field(alias="curves")
    optimizer: Optimizer = Optimizer()
    parallel: Parallel = Parallel()
    pipeline: Pipeline = Pipeline()
    dispatch: Dispatch = Dispatch()
    recompute: list[Recomputed] = Field(default=[])
    """Activations computed again in the backward pass instead of kept."""
    checkpoint: Checkpoint = Checkpoint()
    directory: str
    """The run's folder."""
    megatron_args: dict[str, bool | int | float | str | list[int | float | str]] = Field(default={})
    """Any flag of upstream's, as `flag-name: value` (true: the bare flag); they come last and win.
    """

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

    @pydantic.model_validator(mode="after")
    def _rules(self) -> Self:
        rules.check(self)
        return self

    @property
    def data_parallel(self) -> int:
        """Ranks that see different sequences."""
        parallel = self.parallel
        return parallel.processes // (parallel.tensor * parallel.pipeline * parallel.context)

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
    def stages(self) -> int:
        """Number of different pipeline stages the layers are divided into."""
        return self.layout_stages or placing.placement(self, self.pipeline.schedule).depth

    @property
    def layout_stages(self) -> int | None:
        """Number of stages that pipeline.layout writes out, where there is one."""
        written = self.pipeline.layout
        return None if written is None else layout.stage_count(written)

    @cached_property
    def schedule_file(self) -> Schedule | None:
        """The schedule in the CSV file that the recipe names, proven; None where it names none.

        Raises:
            UserError: it cannot be read, or is no schedule.
        """
        name = self.pipeline.schedule
        return read_csv(Path(name)) if name.endswith(".csv") else None

    @cached_property
    def curves(self) -> Curves:
        """The curves as functions of consumed tokens."""
        after = self.batch_schedule.tokens_after
        return Curves(
            learning_rate=self._resolved("learning_rate", after),
            batch_size=self._resolved("batch_size", None),
            router_bias_speed=self._resolved("router_bias_speed", after),
            mtp_weight=self._resolved("mtp_weight", after),
        )

    @cached_property
    def batch_schedule(self) -> BatchSchedule:
        """The batch size in the steps that it can grow by."""
        curve = self._resolved("batch_size", None)
        micro, ranks, together = (
            self.training.micro_batch_size,
            self.data_parallel,
            self.micro_batches_together,
        )
        try:
            return batch_schedule(curve, micro * ranks * together, self.data.seq_length)
        except ValueError as error:
            reason = f"micro_batch_size {micro} × {ranks} data-parallel ranks"
            if together > 1:
                reason += f" × {together} micro-batches at once in {self.pipeline.schedule}"
            raise ValueError(f"curves.batch_size: {error} ({reason})") from error

    @property
    def micro_batches_together(self) -> int:
        """The number that the micro-batches of a step must be a multiple of."""
        kind = self.schedule_kind
        if kind is None:
            return 1
        if self.executor == "upstream" and kind.upstream_multiple is not None:
            return kind.upstream_multiple(self.parallel.pipeline)
        return kind.multiple

    def _resolved(self, name: str, tokens_after: Callable[[int, int], int] | None) -> Curve:
        try:
            return resolve(getattr(self.curve_specs, name), tokens_after)
        except ValueError as error:
            raise ValueError(f"curves.{name}: {error}") from error

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.training.steps is not None:
            return self.training.steps
        return self.batch_schedule.steps_until(self.training.tokens)

    @cached_property
    def total_tokens(self) -> int:
        """Tokens the whole run consumes: the budget, rounded up to a whole step."""
        return self.batch_schedule.tokens_after(0, self.total_steps)

    @property
    def folder(self) -> Path:
        return Path(self.directory)

    @property
    def data_folder(self) -> Path:
        return Path(self.data.path) if self.data.path is not None else self.folder / "data"

    @property
    def checkpoint_folder(self) -> Path:
        if self.checkpoint.directory is not None:
            return Path(self.checkpoint.directory)
        return self.folder / "checkpoints"

    def on_gpu(self, has_gpu: bool) -> bool:
        """Whether the run uses GPUs, on a machine that has some or none."""
        return self.host == "gpu" or (self.host == "auto" and has_gpu)

    def resolved_backend(self, has_gpu: bool, has_transformer_engine: bool) -> Backend:
        """The backend on a machine that has, or lacks, a GPU and Transformer Engine."""
        if self.backend != "auto":
            return self.backend
        if self.on_gpu(has_gpu) and has_transformer_engine:
            return "transformer_engine"
        return "local"

    def to_yaml(self) -> str:
        """The recipe complete: inheritance resolved, every default written out, the model inline.

        Reading it back gives an equal recipe.
        """
        data = self.model_dump(mode="json") | {"model": self.model.to_mapping()}
        return yaml_text.dump(data)
