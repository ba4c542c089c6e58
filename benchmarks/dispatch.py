"""Two-hop dispatch beside upstream's all-to-all, over real links with a real rate limit.

Nodes are Linux network namespaces, joined by a bridge through one veth each; `tc` limits both
directions of it (a token bucket). Ranks are processes; those of one node talk over its loopback.
One layer is dispatch, combine and the backward of both, with experts that only weigh, so that what
is timed is the exchange; on one node it is the forward's dispatch alone, from `dispatch_preprocess`
to `dispatch_postprocess`. Every repeat runs every dispatcher; a time is the median over repeats of
the slowest rank's, a speed the median of each repeat's own ratio, with its quartiles, so that what
else the machine does falls on all alike. Bytes are the kernel's own counters of the nodes'
interfaces, and have to be the counted ones and what the network adds to them.

Two bars are measured and printed: two_hop at least 1.6 times as fast at 4 nodes with a slow link,
and at most 10 % slower than upstream's all-to-all for a dispatch on one node.

    python benchmarks/dispatch.py            needs root, iproute2 and a kernel with veth and tbf

The namespaces have no names: they end with the processes in them, whatever way those end.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

EXPERTS, TOPK = 32, 8

DISPATCHERS = ("alltoall", "two_hop", "two_hop fp8")


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


# At 50 megabits the link takes seconds for what the processors do in tenths.
BOTTLENECK = "4 nodes, slow link"
SCENARIOS = (
    Scenario(BOTTLENECK, 4, 2, 50, 192),
    Scenario("2 nodes, slow link", 2, 4, 50, 192, repeats=4),
    Scenario("4 nodes, slow link, few tokens", 4, 2, 50, 4),
    Scenario("4 nodes, fast link", 4, 2, None, 512),
    Scenario("4 nodes, fast link, few tokens", 4, 2, None, 4, repeats=30),
    Scenario("1 node", 1, 8, None, 512, repeats=30, alone=True),
    Scenario("1 node, no rank shared", 1, 8, None, 512, 8, repeats=30, alone=True),
    Scenario("1 node taken for 4", 1, 8, None, 512, repeats=30, believed=2, alone=True),
    Scenario("1 node, few tokens", 1, 8, None, 4, repeats=30, alone=True),
)
NETWORK_BYTES = 300_000
LEAST_SPEED, MOST_OVERHEAD = 1.6, 0.10
VERDICT = {True: "as asked", False: "MISSED", None: "nothing asked"}


def shell(command: str) -> None:
    subprocess.run(command.split(), check=True)


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


if __name__ != "__main__":
    # Imported by the server that the ranks are forked from: pay for torch and megatron once.
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()
    import megatron.core.transformer.moe.token_dispatcher  # noqa: F401


def build_dispatchers(scenario: Scenario) -> dict[str, Any]:
    """Upstream's dispatcher, unmodified, and ours in both precisions, on the same group."""
    import torch.distributed as dist
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe import token_dispatcher
    from megatron.core.transformer.transformer_config import TransformerConfig

    from dsv3_plugin.dispatch.two_hop import TwoHopTokenDispatcher
    from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu

    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    groups = ProcessGroupCollection()
    groups.ep = groups.tp_ep = dist.group.WORLD
    groups.expt_tp = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=scenario.hidden,
        num_attention_heads=8,
        num_moe_experts=EXPERTS,
        moe_router_topk=TOPK,
        moe_router_num_groups=scenario.groups,
        moe_router_group_topk=scenario.groups,
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=scenario.ranks,
        add_bias_linear=False,
    )
    local = EXPERTS // scenario.ranks
    mine = list(range(dist.get_rank() * local, (dist.get_rank() + 1) * local))
    arguments = (local, mine, config, groups)
    placed = {"processes_per_node": scenario.believed or scenario.ranks_per_node}
    return {
        "alltoall": token_dispatcher.MoEAlltoAllTokenDispatcher(*arguments),
        "two_hop": TwoHopTokenDispatcher(*arguments, **placed),
        "two_hop fp8": TwoHopTokenDispatcher(*arguments, **placed, precision="fp8"),
    }


@dataclass(frozen=True)
class Sample:
    """One layer, seen by one rank: what its node put on the link, and what the rank counted."""

    seconds: float
    kernel_bytes: int
    counted_bytes: int


def measure(rank: int, scenario: Scenario) -> dict[str, list[Sample]]:
    """Samples per dispatcher, one a repeat."""
    import torch
    import torch.distributed as dist

    from dsv3_plugin.dispatch.topology import Topology
    from dsv3_plugin.dispatch.traffic import Traffic, all_to_all_traffic

    dispatchers = build_dispatchers(scenario)
    generator = torch.Generator().manual_seed(rank)
    hidden = torch.randn(scenario.tokens, 1, scenario.hidden, generator=generator).bfloat16()
    scores = torch.rand(
        scenario.tokens, scenario.groups, EXPERTS // scenario.groups, generator=generator
    )
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.scatter_(2, scores.topk(TOPK // scenario.groups, dim=2).indices, True)
    routing_map = chosen.view(scenario.tokens, EXPERTS)
    weights = scores.view(scenario.tokens, EXPERTS) * routing_map
    slope = torch.randn(hidden.shape, generator=generator).bfloat16()

    @torch.no_grad()
    def dispatch(dispatcher: Any) -> torch.Tensor:
        rows, probs = dispatcher.dispatch_preprocess(hidden, routing_map, weights)
        rows, probs = dispatcher.token_dispatch(rows, probs)
        return dispatcher.dispatch_postprocess(rows, probs)[0]

    def layer(dispatcher: Any) -> torch.Tensor:
        x, w = hidden.clone().requires_grad_(), weights.clone().requires_grad_()
        rows, probs = dispatcher.dispatch_preprocess(x, routing_map, w)
        rows, probs = dispatcher.token_dispatch(rows, probs)
        rows, _, probs = dispatcher.dispatch_postprocess(rows, probs)
        rows = dispatcher.combine_preprocess(rows * probs[:, None].to(rows.dtype))
        output = dispatcher.combine_postprocess(dispatcher.token_combine(rows))
        output.backward(slope)
        return output.detach()

    per_expert = [torch.empty(EXPERTS, dtype=torch.int64) for _ in range(scenario.ranks)]
    dist.all_gather(per_expert, routing_map.sum(0))
    topology = Topology(scenario.ranks, scenario.ranks_per_node, EXPERTS)
    foretold = all_to_all_traffic(
        torch.stack(per_expert), topology, rank, 2 * scenario.hidden, weights.element_size()
    )

    def counted(dispatcher: Any) -> int:
        ours = getattr(dispatcher, "traffic", None)
        return (ours.take() if ours else sum(foretold.values(), Traffic())).bytes["other_node"]

    exact = hidden.float() * weights.sum(1)[:, None, None]
    measured: dict[str, list[Sample]] = {name: [] for name in dispatchers}
    for repeat in range(scenario.repeats + 1):
        for name, dispatcher in dispatchers.items():
            dist.barrier()
            sent, start = bytes_sent(), time.perf_counter()
            output = (dispatch if scenario.alone else layer)(dispatcher)
            seconds = time.perf_counter() - start
            dist.barrier()
            sample = Sample(seconds, bytes_sent() - sent, counted(dispatcher))
            if repeat:  # the first makes connections
                measured[name].append(sample)
            if not scenario.alone:
                error = (output.float() - exact).norm() / exact.norm()
                assert error < 0.05, f"{name} computed something else: {error}"
    return measured


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


@dataclass(frozen=True)
class Result:
    """A dispatcher in a scenario.

    Attributes:
        seconds: median over repeats of the slowest rank's time.
        speed: against upstream's all-to-all, lower quartile, median and upper quartile.
        kernel_bytes, counted_bytes: medians of all nodes' together.
    """

    seconds: float
    speed: tuple[float, float, float]
    kernel_bytes: float
    counted_bytes: float

    @property
    def overhead(self) -> float:
        """How much longer it takes than upstream's all-to-all, as a part of that."""
        return 1 / self.speed[1] - 1


def run(network: int, scenario: Scenario, processes: Any) -> dict[str, Result]:
    """Result per dispatcher."""
    ranks, ends = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(scenario.ranks):
            ours, theirs = processes.Pipe()
            process = processes.Process(
                target=rank_main, args=(rank, scenario, folder, theirs), daemon=True
            )
            process.start()
            ranks.append(process)
            ends.append(ours)
        holders = []
        for node in range(scenario.nodes):
            holders.append(ends[node * scenario.ranks_per_node].recv())
            join_network(network, node, holders[node], scenario.megabits)
        for rank, end in enumerate(ends):
            end.send(holders[rank // scenario.ranks_per_node])
        answers = [end.recv() for end in ends]
        for end in ends:
            end.send("done")
        for process in ranks:
            process.join()
    slowest = {
        name: [
            max(sample.seconds for sample in samples)
            for samples in zip(*(answer[name] for answer in answers), strict=True)
        ]
        for name in DISPATCHERS
    }
    result = {}
    for name in DISPATCHERS:
        repeated = list(zip(*(answer[name] for answer in answers), strict=True))
        node_firsts = slice(None, None, scenario.ranks_per_node)
        ratios = [a / b for a, b in zip(slowest["alltoall"], slowest[name], strict=True)]
        result[name] = Result(
            statistics.median(slowest[name]),
            tuple(statistics.quantiles(ratios, n=4, method="inclusive")),
            statistics.median(
                sum(s.kernel_bytes for s in samples[node_firsts]) for samples in repeated
            ),
            statistics.median(sum(s.counted_bytes for s in samples) for samples in repeated),
        )
        if scenario.nodes > 1:
            check_bytes(scenario, name, result[name])
    return result


def check_bytes(scenario: Scenario, name: str, result: Result) -> None:
    """The kernel saw what was counted, and what the network adds to that."""
    # Headers and acknowledgements are a few percent of full packets; small messages, and the
    # barriers around what is timed, are headers for the most part.
    most = 1.06 * result.counted_bytes + NETWORK_BYTES
    if not result.counted_bytes <= result.kernel_bytes <= most:
        raise AssertionError(
            f"{scenario.name}, {name}: the kernel sent {result.kernel_bytes:.0f} bytes, counted "
            f"were {result.counted_bytes:.0f}, which make at most {most:.0f}"
        )


def bars(results: dict[str, dict[str, Result]]) -> list[tuple[str, float, bool | None]]:
    """What was asked for, what was measured, and whether that is enough, of what was run.

    None: nothing was asked. FP8 over nodes that are none pays for quantising without having a slow
    link to save on; that is reported, and is not what the hops cost.
    """
    found = []
    if BOTTLENECK in results:
        for name in DISPATCHERS[1:]:
            speed = results[BOTTLENECK][name].speed[1]
            found.append((f"{BOTTLENECK}: {name}, times as fast", speed, speed >= LEAST_SPEED))
    for scenario in SCENARIOS:
        if scenario.alone and scenario.name in results:
            for name in DISPATCHERS[1:]:
                overhead = results[scenario.name][name].overhead
                asked = name == "two_hop" or scenario.believed is None
                found.append(
                    (
                        f"{scenario.name}: {name}, overhead in %",
                        100 * overhead,
                        overhead <= MOST_OVERHEAD if asked else None,
                    )
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="run the scenarios whose name contains this")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        os.unshare(os.CLONE_NEWNET)  # the switch: its own namespace, too
        shell("ip link add name switch type bridge")
        shell("ip link set switch up")
    except (PermissionError, FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"benchmarks/dispatch.py needs root, iproute2 and network namespaces: {error}")
    processes = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the server's imports
    processes.set_forkserver_preload([Path(__file__).stem])
    table, results = [], {}
    print(
        f"{'scenario':32} {'dispatcher':12} {'ms':>9} {'MB on links':>12} {'counted':>8} "
        f"{'speed':>6}  quartiles"
    )
    for index, scenario in enumerate(SCENARIOS):
        if options.only and options.only not in scenario.name:
            continue
        results[scenario.name] = run(index, scenario, processes)
        for name, result in results[scenario.name].items():
            low, speed, high = result.speed
            print(
                f"{scenario.name:32} {name:12} {result.seconds * 1e3:9.1f} "
                f"{result.kernel_bytes / 1e6:12.2f} {result.counted_bytes / 1e6:8.2f} "
                f"{speed:5.2f}×  {low:.2f}-{high:.2f}",
                flush=True,
            )
            table.append(
                {
                    **asdict(scenario),
                    "dispatcher": name,
                    "milliseconds": round(result.seconds * 1e3, 2),
                    "kernel_bytes": result.kernel_bytes,
                    "counted_bytes": result.counted_bytes,
                    "speed_against_alltoall": round(speed, 3),
                    "speed_quartiles": [round(low, 3), round(high, 3)],
                }
            )
    judged = bars(results)
    for what, measured, enough in judged:
        print(f"{what}: {measured:.2f} {VERDICT[enough]}")
    print(
        json.dumps(
            {
                "benchmark": "dispatch",
                "rows": table,
                "bars": [
                    {"what": what, "measured": round(measured, 3), "enough": enough}
                    for what, measured, enough in judged
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
