"""A cluster as its file describes it: GPUs, links, efficiencies with their sources, price.

What is written is what the maker or a measurement says, each efficiency with its source; what the
planner makes of it stands in `time/kernels.py`. Bandwidths are per GPU and direction, in GB/s
(10⁹ bytes).
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
from pydantic import AfterValidator, Field

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.named import named
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster_launch import Launch
from dsv3_plugin.recipe import shipped, yaml_text
from dsv3_plugin.recipe.fitting import multiples
from dsv3_plugin.recipe.section import Section, Size
from dsv3_plugin.recipe.validation import validate

_BLACKWELL = ("B100", "B200", "B300", "GB200", "GB300")
LEAST, MOST = 1e-6, 1e9
"""Bounds of whatever a device has or does, in the units of a cluster file."""
LEAST_SHARE = 1e-3
_OF_A_CLUSTER = {"gpu", "gpus", "gpus_per_node", "peak_tflops", "launch"}
_OF_NODES = {"ends", "efficiency", "peak_tflops", "memory_gb", "gpu"}
"""Keys that a file without any of them lacks with a dozen others."""
_OF_OTHERS = {"base", "model", "stage", "training", "parallel", "curves", "num_layers"}
"""Keys by which a file that was named by mistake is told from a cluster's."""


def _amount(value: float) -> float:
    if not LEAST <= value <= MOST:
        raise ValueError(f"{value:g} is no amount between {LEAST:g} and {MOST:g}")
    return value


def _share(value: float) -> float:
    if not LEAST_SHARE <= value <= 1:
        raise ValueError(f"{value:g} is no share of a peak, between {LEAST_SHARE:g} and 1")
    return value


Amount = Annotated[float, AfterValidator(_amount)]
Share = Annotated[float, AfterValidator(_share)]
Extra = Annotated[float, Field(ge=0.0, le=MOST)]
"""What may be nothing."""
Source = Annotated[str, Field(min_length=1)]
"""Where a number is from, in words."""


class Sourced(Section):
    """A share that something was seen to reach, and where it was seen."""

    value: Share
    """Of the peak."""
    source: Source
    """Where the number is from."""


class Ends(Section):
    """What the beginning and the end of a kernel cost, as if its inner loop were longer by so much.

    A product over a depth of k reaches k / (k + gemm) of what a deep one does, attention over s
    tokens s / (s + attention) of what it does on long sequences.
    """

    gemm: Extra
    """Elements of a matrix product's inner dimension."""
    attention: Extra
    """Tokens of a sequence."""
    tile: Size = 128
    """Rows and columns of a product that a multiprocessor computes at once: what is smaller takes
    as long, and tiles come in whole waves over all multiprocessors."""
    source: Source
    """Where the numbers are from."""


class Peaks(Section):
    """Dense matrix products, TFLOP/s, as the maker's data sheet has them."""

    fp32: Amount
    """As torch computes FP32 by default (no TF32)."""
    bf16: Amount
    """BF16 with FP32 accumulation."""
    fp8: Amount | None = None
    """FP8; null: the device has none."""


class Link(Section):
    """What carries messages."""

    gb_per_second: Amount
    """Per GPU and direction."""
    latency_us: Extra
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
    host: Literal["gpu", "cpu"] = "gpu"
    """What a device is; cpu: a core or a socket, where nothing computes on a GPU."""
    gpus: Size
    """All devices."""
    gpus_per_node: Size
    """Devices of a node (of one operating system)."""
    nvlink_domain: Size
    """Devices that reach each other without the network; a node's, or a rack's."""
    multiprocessors: Size
    """Streaming multiprocessors (compute units) of a device."""
    memory_gb: Amount
    """Memory of a device, 10⁹ bytes."""
    memory_gb_per_second: Amount
    """Its bandwidth."""
    peak_tflops: Peaks
    """Dense peaks."""
    nvlink: Link
    """Within the domain."""
    network: Link
    """Between domains."""
    storage_gb_per_second: Amount
    """What a node writes to the file system that checkpoints go to."""
    price_per_gpu_hour: Extra
    """In `currency`."""
    currency: str = "USD"
    """Of the price."""
    efficiency: Efficiency
    """Shares of the peaks that what is large enough reaches."""
    ends: Ends
    """What smaller products and shorter sequences lose."""
    launch: Launch = Launch()
    """How jobs are started on it."""

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        peaks = self.peak_tflops
        if self.gpus % self.gpus_per_node:
            raise ValueError(
                f"gpus {self.gpus} is no whole number of nodes of {self.gpus_per_node} "
                f"(gpus_per_node): take {multiples(self.gpus, self.gpus_per_node)}"
            )
        if self.nvlink_domain % self.gpus_per_node and self.gpus_per_node % self.nvlink_domain:
            raise ValueError(
                f"nvlink_domain {self.nvlink_domain} is neither whole nodes of "
                f"{self.gpus_per_node} (gpus_per_node) nor a part of one: take {self.gpus_per_node}"
            )
        if (peaks.fp8 is None) != (self.efficiency.gemm_fp8 is None):
            raise ValueError(
                "peak_tflops.fp8 and efficiency.gemm_fp8 come together or not at all: give both, "
                "or set both to null"
            )
        if peaks.fp8 is not None and peaks.fp8 < peaks.bf16:
            raise ValueError(
                f"a peak of {peaks.fp8:g} TFLOP/s in FP8 is below that of {peaks.bf16:g} in BF16, "
                "whose operands are twice as wide (peak_tflops: dense products)"
            )
        if self.launch.venv is not None and self.launch.container is not None:
            raise ValueError("launch.venv and launch.container are two places to run in: leave one")
        return self

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gb * 1e9)

    @property
    def is_blackwell(self) -> bool:
        """Whether its devices are NVIDIA's Blackwell, or what came of it."""
        return any(name in self.gpu for name in _BLACKWELL)

    @property
    def machine(self) -> Machine:
        """One of its nodes: what `auto` in a recipe that is planned for it stands for."""
        on_gpu = self.host == "gpu"
        return Machine(gpus=self.gpus_per_node if on_gpu else 0, transformer_engine=on_gpu)


def shipped_clusters() -> list[str]:
    """The names of the clusters that come with the package."""
    return shipped.names_in(_shipped_folder())


def load_cluster(name_or_path: str | Path, beside: Path | None = None) -> Cluster:
    """The cluster of a shipped name (`h800`) or of a YAML file's path.

    Args:
        name_or_path: which.
        beside: a folder that relative paths may also be relative to: that of the file which names
            the cluster.

    Raises:
        UserError: one sentence naming the file, the key and the way out.
    """
    path = _find(str(name_or_path), beside)
    data = yaml_text.read_mapping(path)
    if data.keys() & _OF_OTHERS and not data.keys() & _OF_A_CLUSTER:
        raise _another_file(path, "a model" if "num_layers" in data else "a recipe")
    if not data.keys() & _OF_NODES:
        raise UserError(
            f"{path} says nothing of what nodes have: begin with a copy of a cluster that comes "
            f"with dsv3, such as {_shipped_folder() / 'h100.yaml'}, and change what differs."
        )
    return validate(Cluster, {"name": path.stem} | data, str(path))


def _another_file(path: str | Path, what: str) -> UserError:
    """The sentence on a file that is none of a cluster's."""
    return UserError(
        f"{path} is {what}, and a cluster's file is asked for, which says what nodes have and how "
        f"jobs are started: name a cluster that comes with dsv3 ({', '.join(shipped_clusters())}) "
        "or a copy of one; a recipe is named without --cluster."
    )


def _shipped_folder() -> Path:
    return shipped.shipped_folder("launch/clusters")


def _find(name_or_path: str, beside: Path | None) -> Path:
    if (file := shipped.existing(name_or_path, _shipped_folder(), beside)) is not None:
        return file
    path = named(name_or_path)
    if os.path.isdir(path):
        raise UserError(
            f"{path} is a folder, and a cluster is asked for: name a YAML file, or a cluster that "
            f"comes with dsv3 ({', '.join(shipped_clusters())})."
        )
    if os.path.isfile(shipped.shipped_folder("recipes") / f"{name_or_path}.yaml"):
        raise _another_file(name_or_path, "a recipe")
    raise shipped.no_such(name_or_path, "cluster", shipped_clusters())
