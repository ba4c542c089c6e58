"""The sections of a recipe: every key below the top, its type, its default and its meaning."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field, PositiveFloat

from dsv3_plugin.recipe.amounts import Epochs, Steps, Tokens
from dsv3_plugin.recipe.curve import Curve, CurveSpec
from dsv3_plugin.recipe.section import Section, Size
from dsv3_plugin.schedules.registry import RAMPS

Devices = Annotated[Size, Field(le=256)]
"""Of a pipeline, whose schedule is written out for all of them."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

BALANCED = "balanced"
"""In place of a layout: the one that gives ranks equal work."""


class Fp8(Section):
    """FP8 training through Transformer Engine."""

    recipe: Literal["blockwise", "mxfp8", "tensorwise", "delayed"] = "blockwise"
    """blockwise: 1×128 tiles of activations and 128×128 blocks of weights, as DeepSeek-V3."""
    format: Literal["e4m3", "hybrid"] = "e4m3"
    """hybrid: E4M3 forward, E5M2 for gradients."""


class Precision(Section):
    """Number formats."""

    dtype: Literal["fp32", "bf16"] = "bf16"
    """Of parameters and activations; master weights and gradients are FP32 always."""
    fp8: Fp8 | None = None
    """How matrix products are quantised; null: not at all."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Of Adam's two moments."""
    swiglu_input: Literal["fp8"] | None = None
    """What the inputs of SwiGLU are kept in for the backward; fp8: E4M3, half of BF16's bytes, of
    experts best with recompute: [moe_act]; null: as they are computed."""


SMALLEST_VOCABULARY = 256 + 8
"""Tokens of a trained tokenizer at least: the bytes, and those of `data.tokenizer` with a meaning
of their own."""


class TrainedTokenizer(Section):
    """A tokenizer trained on the corpus."""

    kind: Literal["bpe"] = "bpe"
    """Byte-pair encoding on bytes."""
    vocab_size: Size
    """Tokens at most, special tokens included."""


def size_of_bpe(choice: str) -> int | None:
    """The vocabulary of a tokenizer that is to be trained (`bpe:4096`); None: another is named.

    Raises:
        ValueError: it has none; the text is a sentence without its end.
    """
    kind, colon, size = choice.partition(":")
    if kind.strip().lower() != "bpe":
        return None
    if kind == "bpe" and size.isdecimal() and len(size) < 10:
        return int(size)
    folder = "" if colon else f"; a folder of this name is ./{choice}"
    raise ValueError(
        f"'{choice}' is no tokenizer to train: write bpe:N with N tokens, such as bpe:4096{folder}"
    )


OnBadRow = Literal["stop", "skip"]


class CorpusMember(Section):
    """One corpus of a mixture."""

    path: str
    """As `data.corpus` takes one."""
    weight: float | None = None
    """Share of the sequences that come from it, in proportion to the other members' weights; null
    (then for all): as many as its tokens make."""


class Data(Section):
    """What is trained on."""

    corpus: str | CorpusMember | list[str | CorpusMember] = "stdlib"
    """"stdlib" (the source of the Python standard library), a file, a folder, or a list of these;
    text, JSON or parquet, or what is encoded already (`PREFIX` of `PREFIX.bin` and `PREFIX.idx`). A
    list with `{path: …, weight: …}` is a mixture."""
    made_by: str | None = None
    """The dotted path of a Python function that writes files of the corpus and of held_out_sets
    that are not there: `dsv3 train` (in a job its first rank) and `dsv3 data prepare` call it
    first, with the path of each."""
    text_key: str = "text"
    """Key of a JSON object, or column of a parquet file, that holds the text."""
    on_bad_row: OnBadRow = "stop"
    """What to do about a row (or text file) that cannot be read: stop, or skip it and count it."""
    tokenizer: TrainedTokenizer | str
    """How to train one (`bpe:4096` in short), the folder of a Hugging Face tokenizer, of a run or a
    dataset that has one, or its name on the hub (`deepseek-ai/DeepSeek-V3`); `parent`: that of the
    weights that a stage begins with."""
    seq_length: Size
    """Tokens per sequence."""
    packing: Literal["stream", "whole", "conversations", "prompts"] = "stream"
    """stream: documents laid end to end, and cut every `seq_length` tokens; whole: one that fits
    into a sequence is never cut, and what a sequence has left is padding; conversations: rows of
    chat, whole, which do not see each other (stage: sft); prompts: answers of the model to them,
    packed likewise (stage: rl)."""
    long_document_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """With packing: whole, the share of the training tokens that come from long documents; null: as
    they come."""
    long_document: Size | None = None
    """Tokens of a long document, at the least; null: half of seq_length."""
    template: str | None = None
    """Of conversations, the file of a chat template in Jinja; null: the tokenizer's own."""
    template_arguments: dict[str, bool | int | float | str] = Field(default={})
    """What the chat template is told beside the conversation (`{thinking: true}`)."""
    turns: Literal["all", "last"] = "all"
    """Which of an assistant's turns are learned."""
    sequences: Size | None = None
    """Sequences that the conversations of an epoch fill, for plans before the data are built; built
    data say it themselves."""
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of documents rearranged for fill-in-the-middle (prefix, suffix, middle)."""
    held_out: Fraction = 0.01
    """Share of documents kept for evaluation."""
    held_out_sets: dict[str, str] = Field(default={})
    """Corpora by name (`{code: code.jsonl, …}`) that are only evaluated on, each by itself."""
    path: str | None = None
    """Folder of the indexed corpus, or of a run that has one; null: `data` in the run's folder."""

    @property
    def least_of_long(self) -> int:
        """Tokens of a long document, at the least."""
        return self.long_document or max(self.seq_length // 2, 1)

    @pydantic.field_validator("corpus", mode="before")
    @classmethod
    def _mixture_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @pydantic.field_validator("tokenizer", mode="before")
    @classmethod
    def _tokenizer_in_short(cls, value: Any) -> Any:
        size = size_of_bpe(value) if isinstance(value, str) else None
        return value if size is None else {"vocab_size": size}


BUDGETS = frozenset({"steps", "tokens", "epochs"})
"""The keys of `training` of which one says how long a run is."""


class Training(Section):
    """How long, and what is said meanwhile. Give one of `tokens`, `steps` and `epochs`."""

    tokens: Tokens | None = None
    """Budget in tokens; training ends with the step that reaches it."""
    steps: Size | None = None
    """Budget in steps, in place of tokens."""
    epochs: Size | None = None
    """Budget in passes over the conversations, in place of tokens (stage: sft)."""
    micro_batch_size: Size = 1
    """Sequences per forward pass of a rank."""
    # NumPy takes 32 bits of it, after upstream has added to it for each stage and rank.
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1234
    """Of the weights, the order of the data and whatever else is drawn."""
    eval_interval: Size | None = None
    """Steps between evaluations on held-out documents; null: never."""
    eval_steps: Size = 10
    """Batches per evaluation, of the size of the first batch."""
    log_interval: Size = 10
    """Steps between lines of the log, and between loads of each expert in metrics.jsonl."""

    @property
    def budget(self) -> int | Steps | Epochs:
        """How long the run is: tokens, or what they follow from."""
        if self.steps is not None:
            return Steps(self.steps)
        return Epochs(self.epochs) if self.epochs is not None else self.tokens

    @pydantic.model_validator(mode="after")
    def _one_budget(self) -> Self:
        budgets = {"steps": self.steps, "tokens": self.tokens, "epochs": self.epochs}
        given = {name: value for name, value in budgets.items() if value is not None}
        if not given:
            raise ValueError("there is no budget: give training.steps or training.tokens")
        if len(given) > 1:
            # One of them may be inherited, and the person never saw it.
            there = " and ".join(f"{name} {value:,}" for name, value in given.items())
            ways = " or ".join(f"training.{name}=null" for name in given)
            raise ValueError(f"give either {' or '.join(given)}: there are {there}; set {ways}")
        if self.tokens == 0:
            raise ValueError("tokens must be more than 0: give it such as 100M")
        return self


class CurveSpecs(Section):
    """What changes with the tokens consumed so far."""

    learning_rate: CurveSpec
    """Of the optimizer."""
    batch_size: CurveSpec
    """Sequences of a step, over all ranks."""
    router_bias_speed: CurveSpec = Field(default=0.001, validate_default=True)
    """γ of auxiliary-loss-free balancing: by how much an expert's bias moves per step."""
    mtp_weight: CurveSpec = Field(default=0.3, validate_default=True)
    """λ of the multi-token-prediction loss; of D layers that predict, each has λ / D."""


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
    """Adam with decoupled weight decay."""
    betas: list[Fraction] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Times the learning rate, of weight matrices only."""
    clip_grad: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0: no clipping."""


class Parallel(Section):
    """How the work is divided among processes (one per GPU)."""

    processes: Annotated[Size, Field(le=1 << 20)] = 1
    """Ranks of the whole run."""
    tensor: Size = 1
    """Ranks that divide each matrix."""
    pipeline: Devices = 1
    """Ranks that divide the layers."""
    expert: Size = 1
    """Ranks that divide the routed experts."""
    context: Size = 1
    """Ranks that divide each sequence."""
    zero1: bool = False
    """Shard optimizer states over data-parallel ranks (ZeRO stage 1)."""
    timeout_minutes: PositiveFloat = 10.0
    """How long a rank waits for another before the run stops."""


class Pipeline(Section):
    """The pipeline schedule."""

    schedule: str = "1f1b"
    """A name that `dsv3 schedule` takes, or the path of a CSV as torch.distributed.pipelining
    writes it."""
    devices: Devices | None = None
    """The same as parallel.pipeline; giving one gives both."""
    executor: Literal["upstream", "ours"] | None = None
    """Who runs the schedules that upstream has (1f1b, interleaved); all others are ours. null:
    upstream where it can."""
    virtual_stages: Annotated[Size, Field(le=64)] | None = None
    """Stages per device of the interleaved schedule."""
    layout: Literal["balanced"] | str | None = None
    """Layers per stage in upstream's notation ("Et|(tt|)*30mL"); null: as many on each as can be;
    balanced: by what layers, head and multi-token prediction cost on `cluster`, so that ranks have
    equal work and fit into their memory."""
    ramp_schedule: Literal[*RAMPS] | None = None
    """Runs while a growing batch still gives fewer micro-batches than `schedule` needs."""
    timeout: PositiveFloat | None = None
    """Seconds a rank waits for another once training has begun, be it in a step, an evaluation or a
    save; null: parallel.timeout_minutes."""


class Dispatch(Section):
    """How tokens travel to their experts."""

    kind: Literal["alltoall", "two_hop", "deepep", "hybridep"] = "alltoall"
    """alltoall is upstream's; two_hop sends a token to a node once; deepep and hybridep are kernels
    of their own packages, for GPUs."""
    ranks_per_node: Size | Literal["auto"] = "auto"
    """For two_hop; auto: the launcher's local world size."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """What two_hop sends between nodes; bf16 means: the activations as they are."""
    hide_shared_expert: bool | None = None
    """The shared expert computes while tokens travel; null: with two_hop, unless recomputed."""


def hides_shared_expert(asked: bool | None, kind: str, recompute: Collection[str]) -> bool:
    """Whether the shared expert computes while tokens travel.

    Args:
        asked: `dispatch.hide_shared_expert`.
        kind: `dispatch.kind`.
        recompute: which takes the shared expert as a whole, where hiding takes it apart.
    """
    return kind == "two_hop" and "shared_experts" not in recompute if asked is None else asked


class Checkpoint(Section):
    """What is saved, and when."""

    interval: Size = 1000
    """Steps between checkpoints."""
    keep: Size | None = None
    """Only the newest so many are kept; null: all."""
    async_save: bool | None = None
    """Training goes on while a checkpoint is written, from a copy in host memory; older ones stay
    until it is whole. null: on GPUs; on a CPU, who writes takes the cores that would compute."""
    parallel_load: bool = True
    """Data-parallel ranks read a part each of what they all need, and exchange it; false: each
    reads all of it."""
    directory: str | None = None
    """Their folder; null: `checkpoints` in the run's folder."""


Recomputed = Literal["norms", "mla_up_proj", "moe_act", "core_attn", "shared_experts", "mlp", "moe"]
