"""Nodes that are Linux network namespaces, joined by a bridge through one veth each.

`tc` limits both directions of a veth (a token bucket). Ranks are processes; those of one node talk
over its loopback. The namespaces have no names: they end with the processes in them, whatever way
those end.
"""

import datetime
import os
import subprocess
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True)
class Scenario:
    """A cluster and a load.

    Attributes:
        megabits: per second, of each node's link; None: not limited.
        tokens: per rank; each goes to 8 of 32 experts, the same number of each group.
        believed: ranks per node that the dispatcher is told, where that is not the truth.
        alone: the dispatch of the forward alone, not the layer.
    """

    name: str
    nodes: int
    ranks_per_node: int
    megabits: int | None
    tokens: int
    groups: int = 4
    repeats: int = 12
    hidden: int = 1024
    believed: int | None = None
    alone: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Sample:
    """One layer, seen by one rank: what its node put on the link, and what the rank counted."""

    seconds: float
    kernel_bytes: int
    counted_bytes: int


def shell(command: str) -> None:
    subprocess.run(command.split(), check=True)


def make_switch() -> None:
    """Have this process in a namespace of its own, with the bridge that joins the nodes.

    Raises:
        PermissionError, FileNotFoundError, subprocess.CalledProcessError: it cannot be made here.
    """
    os.unshare(os.CLONE_NEWNET)
    shell("ip link add name switch type bridge")
    shell("ip link set switch up")


def join_network(network: int, node: int, holder: int, megabits: int | None) -> None:
    """Gives the namespace of process `holder` an interface `eth0` on the bridge.

    The namespaces of the scenario before may take a while to go: names and addresses differ.
    """
    inside = f"nsenter --target {holder} --net"
    uplink = f"up{holder}"
    shell(f"ip link add {uplink} type veth peer name eth0 netns {holder}")
    shell(f"ip link set {uplink} master switch up")
    shell(f"{inside} ip address add 10.77.{network}.{node + 1}/24 dev eth0")
    shell(f"{inside} ip link set eth0 up")
    shell(f"{inside} ip link set lo up")
    if megabits is not None:
        limit = f"root tbf rate {megabits}mbit burst 256kb latency 2s"
        shell(f"tc qdisc add dev {uplink} {limit}")
        shell(f"{inside} tc qdisc add dev eth0 {limit}")


def bytes_sent() -> int:
    """What this node has put on its link so far, by the kernel's counter."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "eth0":
            return int(numbers.split()[8])
    return 0


def rank_main(rank: int, scenario: Scenario, folder: str, parent: Connection) -> None:
    """One rank: enters its node's namespace, joins the world, measures, and answers."""
    warnings.simplefilter("ignore")
    if rank % scenario.ranks_per_node == 0:
        os.unshare(os.CLONE_NEWNET)
        parent.send(os.getpid())
        parent.recv()
    else:
        holder = parent.recv()
        os.setns(os.open(f"/proc/{holder}/ns/net", os.O_RDONLY), os.CLONE_NEWNET)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"

    import torch
    import torch.distributed as dist
    from dispatch_layer import measure

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=scenario.ranks,
        timeout=datetime.timedelta(seconds=120),
    )
    parent.send(measure(rank, scenario))
    parent.recv()  # the first rank of a node keeps its namespace until all have finished
    os._exit(0)
