"""Everything that the cost of a step depends on, as one small value.

A recipe says it in YAML, with much else besides; a search over layouts varies it a thousand times.
Both ask their costs of a `Setting`: a model, how it is divided among ranks, and the choices that
change what a rank computes, keeps and sends. Sizes are per rank and micro-batch unless said.
"""

from dataclasses import dataclass, field
from typing import Literal, Self

from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.answering import Answering, answers_here
from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.recipe.context import head_groups
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.options import chosen
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.sections import hides_shared_expert

Format = Literal["fp32", "bf16", "fp8"]
"""What the operands of a matrix product are."""

BYTES: dict[Format, int] = {"fp32": 4, "bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as it costs anything.

    Attributes:
        model: its shape.
        seq_length: tokens of a sequence, s.
        micro_batch: sequences of a forward pass, b.
        tensor, pipeline, context, expert: parallel sizes.
        data: data-parallel ranks, those that see different sequences.
        zero1: optimizer states are sharded over data-parallel ranks.
        backend: what computes.
        dtype: of parameters and activations.
        fp8: the recipe of FP8 training; None: matrix products in `dtype`.
        moments: of Adam's two moments.
        fp8_swiglu_input: the inputs of SwiGLU are kept in FP8.
        recompute: activations computed again in the backward pass.
        dispatcher: how tokens travel to their experts.
        wire: what is sent between nodes.
        ranks_per_node: GPUs of a node, as the dispatcher sees them.
        nvlink_domain: GPUs that reach each other without the network.
        hide_shared_expert: as the recipe says; see `hides_shared_expert`.
        executor: who runs the pipeline schedule.
        overlapped_reduction: gradients are reduced, and parameters gathered, while others are
            computed (upstream's `--overlap-grad-reduce`).
        fused_router: the choice of experts is one kernel (`--moe-router-fusion`), which knows no
            samples of a pack.
        packed: sequences are packs of samples that do not see each other. How long samples are a
            recipe does not know, so that they are taken to fill their sequences, which is the most
            that attention can cost.
        fused_loss: the cross-entropy's steps are compiled (`--cross-entropy-loss-fusion`).
        gathers_on_hosts: saving gathers states over gloo, in the hosts' memory.
        imbalance: load of the busiest rank's experts over the mean; 1 is balance.
        answering: a round of answers before every so many steps; None: there is none.
    """

    model: ModelConfig = field(hash=False)  # its list of layers has no hash
    seq_length: int
    micro_batch: int
    tensor: int
    pipeline: int
    context: int
    expert: int
    data: int
    zero1: bool
    backend: Literal["local", "transformer_engine"]
    dtype: Literal["fp32", "bf16"]
    fp8: Literal["blockwise", "mxfp8", "tensorwise", "delayed"] | None
    moments: Literal["fp32", "bf16"]
    recompute: frozenset[str]
    dispatcher: Literal["alltoall", "two_hop", "deepep", "hybridep"]
    wire: Literal["bf16", "fp8"]
    ranks_per_node: int
    nvlink_domain: int
    hide_shared_expert: bool | None
    executor: Literal["upstream", "ours"]
    overlapped_reduction: bool = False
    fp8_swiglu_input: bool = False
    fused_router: bool = False
    packed: bool = False
    fused_loss: bool = False
    gathers_on_hosts: bool = False
    imbalance: float = 1.0
    answering: Answering | None = None

    @classmethod
    def of(cls, recipe: Recipe, cluster: Cluster, machine: Machine, imbalance: float = 1.0) -> Self:
        """What a recipe asks of a cluster.

        Args:
            recipe: the run; a layout and a schedule may still be open.
            cluster: where it is meant to run.
            machine: what `auto` in the recipe is resolved for.
            imbalance: load of the busiest rank's experts over the mean.
        """
        parallel, precision, dispatch = recipe.parallel, recipe.precision, recipe.dispatch
        per_node = dispatch.ranks_per_node
        packed = recipe.data.packing in ("conversations", "prompts")
        return cls(
            model=recipe.model,
            seq_length=recipe.data.seq_length,
            micro_batch=recipe.training.micro_batch_size,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            context=parallel.context,
            expert=parallel.expert,
            data=recipe.data_parallel,
            zero1=parallel.zero1,
            backend=recipe.resolved_backend(machine),
            dtype=precision.dtype,
            fp8=None if precision.fp8 is None else precision.fp8.recipe,
            moments=precision.moments,
            recompute=frozenset(recipe.recompute),
            dispatcher=dispatch.kind,
            wire=dispatch.precision,
            ranks_per_node=cluster.gpus_per_node if per_node == "auto" else per_node,
            nvlink_domain=cluster.nvlink_domain,
            hide_shared_expert=dispatch.hide_shared_expert,
            executor=recipe.executor,
            overlapped_reduction=recipe.passed_flags.get("overlap-grad-reduce") is True,
            fp8_swiglu_input=precision.swiglu_input == "fp8",
            fused_router=not packed and chosen("moe-router-fusion", recipe, machine),
            packed=packed,
            fused_loss=chosen("cross-entropy-loss-fusion", recipe, machine),
            gathers_on_hosts=chosen(
                "distrib-optim-fully-reshardable-mem-efficient", recipe, machine
            ),
            imbalance=imbalance,
            answering=Answering.of(recipe) if answers_here(recipe) else None,
        )

    @property
    def hides_shared_expert(self) -> bool:
        """Whether the shared expert computes while tokens travel."""
        return hides_shared_expert(self.hide_shared_expert, self.dispatcher, self.recompute)

    @property
    def processes(self) -> int:
        """Ranks of the whole run."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on a rank, before tensor parallelism divides them."""
        return self.micro_batch * self.seq_length // self.context

    @property
    def head_groups(self) -> int:
        """Groups of heads whose keys and values exist one after the other (context parallelism)."""
        return head_groups(self.model.num_attention_heads // self.tensor, self.context)

    @property
    def tokens_split(self) -> int:
        """Tokens of a micro-batch outside attention and linears (sequence-parallel)."""
        return self.tokens // self.tensor

    @property
    def routed_rows(self) -> float:
        """Rows that the busiest rank's experts compute of a micro-batch of every rank."""
        return self.tokens_split * (self.model.moe_router_topk or 0) * self.imbalance

    @property
    def local_experts(self) -> int:
        """Routed experts of a layer that a rank holds."""
        return (self.model.num_moe_experts or 0) // self.expert

    @property
    def stage_ranks(self) -> int:
        """Ranks that hold the same pipeline stages."""
        return self.processes // self.pipeline

    @property
    def dense_replicas(self) -> int:
        """Ranks that hold the same part of all parameters but the experts'."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same routed experts."""
        return self.stage_ranks // self.expert

    @property
    def matmul(self) -> Format:
        """What most matrix products compute in."""
        return "fp8" if self.fp8 is not None else self.dtype

    @property
    def width(self) -> int:
        """Bytes of a parameter, and of an activation's element."""
        return BYTES[self.dtype]
