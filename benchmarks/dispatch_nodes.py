"""Nodes that are Linux network namespaces, joined by a bridge through one veth each.

`tc` limits both directions of a veth (a token bucket). Ranks are processes; those of one node talk
over its loopback. The namespaces have no names: they end with the processes in them, whatever way
those end.
"""

import datetime
import os
import subprocess
import warnings
from multiprocessing.connection import Connection

from dispatch_scenario import Scenario


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
