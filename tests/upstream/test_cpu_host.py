"""The CPU as a host: what upstream asks of CUDA is answered, and put back."""

import io
import pickle
import subprocess
import sys
import types

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

import dsv3_plugin
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.upstream import cpu_host

REPLACED = [
    "torch.cuda.current_device", "torch.cuda.Stream", "torch.empty", "torch.Tensor.to",
    "torch.nn.Module.cuda", "torch.utils.data.DataLoader.__init__", "torch.compile",
    "torch.Tensor.new_zeros", "torch.Generator", "torch.load",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _enabled():
    cpu_host.enable()
    yield
    cpu_host.enable()


def test_cuda_arguments_land_on_the_cpu():
    assert torch.zeros(2, device="cuda").device == cpu_host.CPU
    assert torch.tensor([1], device=torch.device("cuda", 0)).device == cpu_host.CPU
    assert torch.ones(1).to("cuda:0").to(device="cuda").cuda().device == cpu_host.CPU
    assert torch.nn.Linear(1, 1).cuda().weight.device == cpu_host.CPU
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.tensor([1], pin_memory=True).cuda().tolist() == [1]


@pytest.mark.parametrize(
    "name",
    [
        lambda number: number,
        lambda number: torch.device("cuda", number),
        lambda number: torch.device(f"cuda:{number}"),
        lambda number: f"cuda:{number}",
    ],
    ids=["number", "device of type and number", "device by name", "name"],
)
def test_the_current_device_is_a_number_and_lands_on_the_cpu_wherever_a_device_is_given(name):
    number = torch.cuda.current_device()
    assert list(range(torch.cuda.device_count())).index(number) == 0
    device = name(number)
    tensor = torch.empty(2, device=device)
    saved = io.BytesIO()
    torch.save(tensor, saved)
    saved.seek(0)
    made = {
        "new": tensor.new_zeros(3, device=device),
        "like": torch.rand_like(tensor, device=device),
        "moved": tensor.to(device),
        "moved and cast": tensor.to(device, torch.bfloat16, non_blocking=True),
        "by keyword": tensor.to(device=device),
        "cuda": tensor.cuda(device),
        "module": torch.nn.Linear(1, 1).to(device).cuda(device).weight,
        "drawn": torch.randperm(3, generator=torch.Generator(device=device), device=device),
        "loaded": torch.load(saved, map_location=device),
    }
    assert {what: result.device for what, result in made.items()} == dict.fromkeys(
        made, cpu_host.CPU
    )
    assert made["moved and cast"].dtype == torch.bfloat16
    with torch.cuda.device(device):
        torch.cuda.set_device(device)
        torch.cuda.synchronize(device)


def test_a_generator_is_still_torchs():
    generator = pickle.loads(pickle.dumps(torch.Generator("cuda").manual_seed(3)))
    assert isinstance(generator, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    assert not isinstance(3, torch.Generator)
    expected = torch.randn(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.randn(4, generator=generator), expected)


def test_code_that_asks_for_cuda_is_told_the_truth():
    assert not torch.cuda.is_available()
    assert torch.cuda.memory_allocated() > 0


def test_streams_and_events_are_there_and_do_nothing():
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
    torch.cuda.current_stream().wait_event(event)
    stream.wait_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()
    assert event.query()


def test_disable_leaves_no_trace():
    code = f"""
import torch
names = {REPLACED!r}
def now():
    found = []
    for name in names:
        owner = torch
        *path, last = name.split(".")[1:]
        for part in path:
            owner = getattr(owner, part)
        found.append(vars(owner).get(last))
    return found
before = now()
import logging, sys
quiet = logging.getLogger("torch.utils.cpp_extension")
tracker = logging.getLogger("megatron.core.tensor_parallel.random")
from dsv3_plugin.upstream import cpu_host
cpu_host.enable(); cpu_host.enable()
assert all(a is not b for a, b in zip(before, now()))
cpu_host.disable()
assert all(a is b for a, b in zip(before, now()))
assert "apex" not in sys.modules
assert quiet.level == logging.NOTSET and not tracker.filters
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_of_a_gpu_are_hidden_from_upstream():
    with pytest.raises(ImportError):
        __import__("transformer_engine")


def test_it_refuses_to_come_after_megatron_chose_transformer_engine(monkeypatch):
    cpu_host.disable()
    chosen = types.ModuleType("megatron.core.extensions.transformer_engine")
    chosen.HAVE_TE = True
    monkeypatch.setitem(sys.modules, chosen.__name__, chosen)
    with pytest.raises(RuntimeError, match="before megatron is imported"):
        cpu_host.enable()


def test_random_streams_of_upstreams_tracker_are_apart_and_resume():
    # Were they one stream, expert-parallel ranks would draw equal experts.
    with single_process(seed=7):
        tracker = get_cuda_rng_tracker()
        state = tracker.get_states()
        with tracker.fork():
            first = torch.rand(4)
        with tracker.fork("expert-parallel-rng"):
            experts = torch.rand(4)
        tracker.set_states(state)
        with tracker.fork():
            again = torch.rand(4)
        assert torch.equal(first, again)
        assert not torch.equal(first, experts)
        tensor_parallel.model_parallel_cuda_manual_seed(8, force_reset_rng=True)
        with get_cuda_rng_tracker().fork():
            assert not torch.equal(first, torch.rand(4))


def test_upstream_initialises_without_cuda():
    # `pretrain()` has no way to say allow_no_cuda; the patch says it.
    from megatron.training import initialize

    seen = {}

    def original(extra_args_provider=None, allow_no_cuda=False, store=None):
        seen.update(store=store, allow_no_cuda=allow_no_cuda)

    cpu_host.initialize_megatron(original)(store=None)
    assert seen == {"store": None, "allow_no_cuda": True}
    before = initialize.initialize_megatron
    dsv3_plugin.register()
    try:
        assert initialize.initialize_megatron is not before
    finally:
        dsv3_plugin.unregister()
