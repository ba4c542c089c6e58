"""Answers of a GPU to whoever asks torch.cuda about it, on a machine that has none.

What computes, allocates or queues goes to torch itself (under FakeTensorMode, with the CUDA
runtime's shim behind it); here are the facts that code asks for before it does.
"""

from types import SimpleNamespace
from typing import Any

import torch

from dsv3_plugin.rehearsal.gpu import Gpu
from dsv3_plugin.upstream.replace import Replacer


def pretend(gpu: Gpu, replacer: Replacer) -> None:
    """Let torch.cuda answer as on a machine with these devices, until the replacer restores."""
    properties = SimpleNamespace(
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        total_memory=gpu.memory_bytes,
        multi_processor_count=gpu.multiprocessors,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        shared_memory_per_block_optin=232448,
        regs_per_multiprocessor=65536,
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": gpu.per_node,
        "get_device_capability": gpu.capability,
        "get_device_properties": properties,
        "get_device_name": gpu.name,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "mem_get_info": (gpu.memory_bytes, gpu.memory_bytes),
        "memory_stats": {},
        "is_current_stream_capturing": False,
        "manual_seed": None,
        "manual_seed_all": None,
        "_lazy_init": None,
        "_lazy_call": None,  # seeds of generators, and nothing else
    }
    for name, answer in answers.items():
        replacer.set(f"torch.cuda:{name}", _answering(answer))
    # Nothing is drawn: a generator of the CPU's stands for that of each device.
    replacer.set("torch.cuda:default_generators", (torch.default_generator,) * gpu.per_node)
    for module in ("torch.cuda", "torch.cuda.random"):
        replacer.set(f"{module}:get_rng_state", _answering(torch.get_rng_state()))
        replacer.set(f"{module}:set_rng_state", _answering(None))


def _answering(answer: Any) -> Any:
    return lambda *args, **kwargs: answer
