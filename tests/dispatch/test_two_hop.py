"""Two-hop dispatch against upstream's all-to-all: outputs, every gradient, and the bytes sent.

Eight gloo ranks are forked once and run all cases; every rank checks its own.
"""

import contextlib
import itertools
import sys
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import token_dispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils._python_dispatch import TorchDispatchMode

import dsv3_plugin
from dsv3_plugin.dispatch import plan
from dsv3_plugin.dispatch.plan import count_routing
from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.traffic import Traffic, two_hop_traffic
from dsv3_plugin.dispatch.two_hop import TwoHopTokenDispatcher, one_node_note
from dsv3_plugin.dispatch.wire import row_widths
from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu
from tests.gloo_ranks import run_ranks

WORLD, TOPK, HIDDEN, TOKENS = 8, 4, 136, 23
# Expert parallelism and ranks per node; a node may hold several groups.
LAYOUTS = [(2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4), (8, 8), (1, 1)]
ODD_WORLD, ODD_LAYOUTS = 6, [(3, 1), (3, 3), (3, 6), (6, 1), (6, 2), (6, 3), (6, 6)]
LOW_PRECISION_LAYOUTS = [(8, 2), (8, 8), (4, 2)]
LOW_PRECISION_ROUTINGS = ["random", "skewed", "idle rank"]
ROUTINGS = ["random", "skewed", "idle expert", "idle rank", "rank without tokens"]


def groups_of(size: int) -> ProcessGroupCollection:
    """Expert-parallel groups of consecutive ranks; everything else is alone."""
    mine, world = ProcessGroupCollection(), dist.get_world_size()
    for first in range(0, world, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= dist.get_rank() < first + size:
            mine.ep = mine.tp_ep = group
    alone = [dist.new_group([rank]) for rank in range(world)][dist.get_rank()]
    mine.tp = mine.expt_tp = alone
    return mine


def experts_of(size: int) -> int:
    """A number that divides over so many ranks."""
    return 12 if size % 3 == 0 else 16


def config_of(size: int, **changes) -> TransformerConfig:
    return TransformerConfig(
        **{
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_moe_experts": experts_of(size),
            "moe_router_topk": TOPK,
            "moe_token_dispatcher_type": "alltoall",
            "expert_model_parallel_size": size,
            "add_bias_linear": False,
        }
        | changes
    )


def routing_of(kind: str, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Routing map `[T, X]` and weights `[T, X]` of this rank."""
    generator = torch.Generator().manual_seed(seed)
    last_of_group = dist.get_rank() % size == size - 1
    tokens = 0 if kind == "rank without tokens" and last_of_group else TOKENS
    experts = experts_of(size)
    scores = torch.rand(tokens, experts, generator=generator)
    if kind == "skewed":
        scores[:, :TOPK] += 2.0 * (torch.rand(tokens, TOPK, generator=generator) < 0.9)
    if kind == "idle expert":
        scores[:, 5] = -1.0
    if kind == "idle rank" and size > 1:
        scores[:, experts // size : 2 * experts // size] = -1.0
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool)
    routing_map.scatter_(1, scores.topk(TOPK).indices, True)
    return routing_map, torch.rand(tokens, experts, generator=generator) * routing_map


def run_layer(dispatcher, hidden, routing_map, weights, experts) -> list[torch.Tensor]:
    """tanh(x W_e) · weight, combined; output and the gradients of hidden, weights, experts."""
    hidden, weights, experts = (
        tensor.detach().requires_grad_() for tensor in (hidden, weights, experts)
    )
    rows, probs = dispatcher.dispatch_preprocess(hidden, routing_map, weights)
    rows, probs = dispatcher.token_dispatch(rows, probs)
    rows, counts, probs = dispatcher.dispatch_postprocess(rows, probs)
    parts = zip(rows.split(counts.tolist()), experts, strict=True)
    rows = torch.cat([torch.tanh(part @ expert) for part, expert in parts])
    rows = dispatcher.combine_preprocess((rows * probs[:, None]).to(hidden.dtype))
    output = dispatcher.combine_postprocess(dispatcher.token_combine(rows))
    slope = torch.cos(torch.arange(output.numel())).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, (hidden, weights, experts), slope)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    if not expected.numel():
        return 0.0
    scale = float(expected.double().abs().max()) or 1.0
    return float((actual.double() - expected.double()).abs().max()) / scale


def norm_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    scale = float(expected.double().norm()) or 1.0
    return float((actual.double() - expected.double()).norm()) / scale


class Case:
    """One rank's inputs of a layout and routing, and a pair of dispatchers."""

    def __init__(self, size: int, per_node: int, groups: ProcessGroupCollection, **two_hop) -> None:
        self.size = size
        local = experts_of(size) // size
        first = dist.get_rank(groups.ep) * local
        arguments = (local, list(range(first, first + local)), config_of(size), groups)
        self.upstream = token_dispatcher.MoEAlltoAllTokenDispatcher(*arguments)
        self.two_hop = TwoHopTokenDispatcher(*arguments, processes_per_node=per_node, **two_hop)
        generator = torch.Generator().manual_seed(99 + first)
        self.experts = torch.randn(local, HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5

    def inputs(self, kind: str) -> tuple[torch.Tensor, ...]:
        seed = 1000 * ROUTINGS.index(kind) + dist.get_rank()
        routing_map, weights = routing_of(kind, self.size, seed)
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(len(routing_map), 1, HIDDEN, generator=generator)
        return hidden, routing_map, weights, self.experts


def compare_all(
    rank: int, layouts: list[tuple[int, int]], low_precision: list[tuple[int, int]]
) -> dict[str, list[float]]:
    """Relative errors of output and gradients by case; for `bytes …` 0 where the count is right."""
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    groups = {size: groups_of(size) for size in dict(layouts)}
    errors: dict[str, list[float]] = {}
    for (size, per_node), kind in itertools.product(layouts, ROUTINGS):
        case = Case(size, per_node, groups[size])
        inputs = case.inputs(kind)
        expected = run_layer(case.upstream, *inputs)
        actual = run_layer(case.two_hop, *inputs)
        name = f"EP{size} {per_node} per node, {kind}"
        errors[name] = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
        errors[f"bytes {name}"] = [
            float(not counted_is_closed_form(case, inputs[1], torch.float32))
        ]
    for (size, per_node), kind in itertools.product(low_precision, LOW_PRECISION_ROUTINGS):
        case = Case(size, per_node, groups[size])
        fp8 = Case(size, per_node, groups[size], precision="fp8")
        hidden, routing_map, weights, experts = case.inputs(kind)
        low = (hidden.bfloat16(), routing_map, weights.bfloat16(), experts.bfloat16())
        expected = run_layer(
            case.upstream, *(t.float() if t.dtype == torch.bfloat16 else t for t in low)
        )
        where = f"EP{size} {per_node} per node, {kind}"
        for label, dispatcher in (
            ("upstream", case.upstream),
            ("bf16", case.two_hop),
            ("fp8", fp8.two_hop),
        ):
            actual = run_layer(dispatcher, *low)
            errors[f"{label} {where}"] = [
                norm_error(a, e) for a, e in zip(actual, expected, strict=True)
            ]
        for counted in (case, fp8):
            right = counted_is_closed_form(counted, routing_map, torch.bfloat16)
            errors[f"bytes {counted is fp8} {where}"] = [float(not right)]
    return errors


def counted_is_closed_form(case: Case, routing_map: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the bytes of one forward and backward are those the routing map foretells."""
    topology, group = case.two_hop.topology, case.two_hop.ep_group
    counted = case.two_hop.traffic.take()
    mine = count_routing(routing_map, topology)
    counts = [torch.empty_like(mine) for _ in range(topology.ranks)]
    dist.all_gather(counts, mine, group=group)
    widths = row_widths(topology, HIDDEN, dtype, dtype, fp8=case.two_hop.fp8)
    expected = two_hop_traffic(torch.stack(counts), topology, dist.get_rank(group), widths)
    return counted == sum(expected.values(), Traffic())


class HostReads(TorchDispatchMode):
    """Counts where the host would have to wait for a result, were the tensors on a GPU.

    Operations are seen by the dispatcher. What a tensor on the CPU does by itself is not, nor on
    which device a tensor is: so the methods that read or move one count as well, by who in the
    package calls them.
    """

    # Reading a number; sizes that depend on data; copies between devices.
    _WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "bincount", "unique")
    _READ = ("item", "tolist", "cpu", "numpy", "to", "__int__", "__float__", "__bool__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.read: Counter[str] = Counter()
        self._originals = {name: getattr(torch.Tensor, name) for name in self._READ}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in self._WAIT or (name == "index" and any(i.dtype == torch.bool for i in args[1])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, self._noting(name, original))
        return super().__enter__()

    def __exit__(self, *error):
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, original)
        return super().__exit__(*error)

    def _noting(self, name, original):
        def noted(tensor, *args, **kwargs):
            # `to` waits only where it may leave the device.
            moves = name != "to" or not isinstance((*args, *kwargs.values())[0], torch.dtype)
            if moves and (reader := _package_frame()):
                self.read[f"{reader}: {name}"] += 1
            return original(tensor, *args, **kwargs)

        return noted


def _package_frame() -> str | None:
    """The innermost function of the package that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        if Path(dsv3_plugin.__file__).parent in Path(frame.f_code.co_filename).parents:
            return frame.f_code.co_qualname
        frame = frame.f_back
    return None


def host_reads(rank: int) -> tuple[list[str], dict[str, int]]:
    """What the host waits for in a forward and backward: operations, and readers by function."""
    case = Case(8, 2, groups_of(8))
    inputs = case.inputs("random")
    with HostReads() as reads:
        run_layer(case.two_hop, *inputs)
    return reads.seen, dict(reads.read)


def is_forgotten(rank: int) -> bool:
    """Whether an exchange goes with its graph, of which nobody asked a gradient."""
    case = Case(2, 1, groups_of(2))
    hidden, routing_map, weights, _ = case.inputs("random")
    exchanges = []
    for _ in range(2):  # the dispatcher itself holds the last
        rows, probs = case.two_hop.dispatch_preprocess(
            hidden.detach().requires_grad_(), routing_map, weights
        )
        case.two_hop.token_dispatch(rows, probs)
        exchanges.append(weakref.ref(case.two_hop._exchange))
    return exchanges[0]() is None


def test_an_exchange_does_not_outlive_its_graph(tmp_path):
    assert all(run_ranks(2, is_forgotten, scratch=tmp_path))


def test_the_host_waits_for_the_counts_and_nothing_else(tmp_path):
    for seen, read in run_ranks(WORLD, host_reads, scratch=tmp_path):
        assert seen == []
        # On the host, where the counts are: a GPU copies them on a stream of their own
        # (tests/pipeline/test_streams.py).
        assert read == {"split_sizes: tolist": 6}


@pytest.mark.parametrize("read", ["item", "tolist", "cpu", "numpy", "__int__", "__bool__"])
def test_a_wait_of_the_host_is_seen(monkeypatch, read):
    monkeypatch.setattr(plan, "needed", lambda *_: getattr(torch.ones(1), read)())
    with HostReads() as reads, contextlib.suppress(Exception):
        count_routing(torch.ones(1, 1, dtype=torch.bool), Topology(1, 1, 1))
    assert set(reads.read) == {f"count_routing: {read}"}


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, list[float]]:
    """The worst over ranks of every case."""
    worst = {}
    for world, *layouts in (
        (WORLD, LAYOUTS, LOW_PRECISION_LAYOUTS),
        (ODD_WORLD, ODD_LAYOUTS, []),
    ):
        scratch = tmp_path_factory.mktemp("ranks")
        ranks = run_ranks(world, compare_all, *layouts, scratch=scratch)
        for name in ranks[0]:
            values = zip(*(rank[name] for rank in ranks), strict=True)
            worst[name] = [max(value) for value in values]
    return worst


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize(("size", "per_node"), LAYOUTS + ODD_LAYOUTS)
def test_float32_equals_upstream(errors, size, per_node, kind):
    # The order of additions differs and nothing else: a few units in the last place.
    assert max(errors[f"EP{size} {per_node} per node, {kind}"]) < 1e-6


@pytest.mark.parametrize("kind", LOW_PRECISION_ROUTINGS)
@pytest.mark.parametrize(("size", "per_node"), LOW_PRECISION_LAYOUTS)
def test_bfloat16_loses_two_roundings_more_than_upstream(errors, size, per_node, kind):
    # Partial sums are rounded once per rank and once per node. One rounding to BF16 is an error of
    # at most 2^-9 of a value, 2^-9/√3 in the mean square; the experts' own arithmetic is the same.
    where = f"EP{size} {per_node} per node, {kind}"
    for ours, upstream in zip(errors[f"bf16 {where}"], errors[f"upstream {where}"], strict=True):
        assert ours < upstream + 2 * 2.0**-9


@pytest.mark.parametrize("kind", LOW_PRECISION_ROUTINGS)
@pytest.mark.parametrize(("size", "per_node"), LOW_PRECISION_LAYOUTS)
def test_fp8_loses_one_rounding_to_e4m3(errors, size, per_node, kind):
    # E4M3 rounds by at most 2^-4 of a value, 2^-4/√3 = 3.6% at worst in the mean square and about
    # 2.6% on average. The output sees one such rounding; the gradients of hidden states and
    # weights the one of the gradient and the experts' slope at rounded inputs: two.
    where = f"EP{size} {per_node} per node, {kind}"
    if size == per_node:  # on one node nothing is quantised
        assert errors[f"fp8 {where}"] == errors[f"bf16 {where}"]
        return
    output, *gradients = errors[f"fp8 {where}"]
    assert 0.01 < output < 2.0**-4 / 3**0.5
    assert max(gradients) < 2 * 2.0**-4 / 3**0.5


def test_fp8_on_one_node_is_said_to_be_left_out():
    assert "8 expert-parallel ranks are on one node" in one_node_note(Topology(8, 8, 16))
    assert one_node_note(Topology(8, 4, 16)) is None
    assert one_node_note(Topology(1, 1, 16)) is None  # nothing travels


def test_counted_bytes_are_the_closed_form(errors):
    wrong = [name for name in errors if name.startswith("bytes") and errors[name] != [0.0]]
    assert not wrong
