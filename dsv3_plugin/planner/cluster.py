"""A cluster as its file describes it: GPUs, links, efficiencies with their sources, price.

What is written is what the maker or a measurement says, each efficiency with its source; what the
planner makes of it stands in `kernels.py`. Bandwidths are per GPU and direction, in GB/s
(10⁹ bytes).
"""

from pathlib import Path
from typing import Annotated, Self

import pydantic
from pydantic import Field, PositiveFloat

from dsv3_plugin.recipe.section import Section, Size

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Sourced(Section):
    """A share that something was seen to reach, and where it was seen."""

    value: Share
    """Of the peak."""
    source: str
    """Where the number is from."""


class Peaks(Section):
    """Dense matrix products, TFLOP/s, as the maker's data sheet has them."""

    fp32: PositiveFloat
    """As torch computes FP32 by default (no TF32)."""
    bf16: PositiveFloat
    """BF16 with FP32 accumulation."""
    fp8: PositiveFloat | None = None
    """FP8; null: the device has none."""


class Link(Section):
    """What carries messages."""

    gb_per_second: PositiveFloat
    """Per GPU and direction."""
    latency_us: Annotated[float, Field(ge=0.0)]
    """From one end to the other, microseconds."""


class Efficiency(Section):
    """Which share of each peak is reached by what is large enough."""

    gemm_fp32: Sourced
    """Large FP32 matrix products."""
    gemm_bf16: Sourced
    """Large BF16 matrix products, before what their shape costs."""
    gemm_fp8: Sourced | None = None
    """Large FP8 matrix products with block scales."""
    attention_forward: Sourced
    """Causal attention's forward pass, of the BF16 peak."""
    attention_backward: Sourced
    """Its backward pass, with the scores computed again."""
    memory: Sourced
    """Kernels that only move bytes, of the memory's bandwidth."""
    nvlink: Sourced
    """All-to-all and collectives within a node or an NVLink domain."""
    network: Sourced
    """The same between nodes."""


class Cluster(Section):
    """GPUs of one kind, how they are connected, and what they cost."""

    name: str
    """What it is called; by default as its file is."""
    gpu: str
    """The device, as its maker calls it."""
    gpus: Size
    """All devices."""
    gpus_per_node: Size
    """Devices of a node (of one operating system)."""
    nvlink_domain: Size
    """Devices that reach each other without the network; a node's, or a rack's."""
    multiprocessors: Size
    """Streaming multiprocessors (compute units) of a device."""
    memory_gb: PositiveFloat
    """Memory of a device, 10⁹ bytes."""
    memory_gb_per_second: PositiveFloat
    """Its bandwidth."""
    peak_tflops: Peaks
    """Dense peaks."""
    nvlink: Link
    """Within the domain."""
    network: Link
    """Between domains."""
    storage_gb_per_second: PositiveFloat
    """What a node writes to the file system that checkpoints go to."""
    price_per_gpu_hour: Annotated[float, Field(ge=0.0)]
    """In `currency`."""
    currency: str = "USD"
    """Of the price."""
    efficiency: Efficiency
    """Shares of the peaks."""

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        if self.gpus % self.gpus_per_node:
            raise ValueError(
                f"{self.gpus} GPUs are no whole number of nodes of {self.gpus_per_node} "
                "(gpus_per_node)"
            )
        if self.nvlink_domain % self.gpus_per_node and self.gpus_per_node % self.nvlink_domain:
            raise ValueError(
                f"an nvlink_domain of {self.nvlink_domain} GPUs is neither whole nodes of "
                f"{self.gpus_per_node} nor a part of one"
            )
        if (self.peak_tflops.fp8 is None) != (self.efficiency.gemm_fp8 is None):
            raise ValueError("peak_tflops.fp8 and efficiency.gemm_fp8 come together or not at all")
        return self

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)


def load_cluster(name_or_path: str | Path) -> Cluster:
    """The cluster of a shipped name (`h800`) or of a YAML file's path.

    Raises:
        UserError: one sentence naming the file, the key and the way out.
    """
    raise NotImplementedError
