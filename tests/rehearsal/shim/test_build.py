"""The CUDA runtime of a rehearsal: compiled once, laid out as CUDA's, enough for a backward."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.rehearsal.gpu import Gpu
from dsv3_plugin.rehearsal.shim import build
from dsv3_plugin.rehearsal.shim.build import built_shim

GPU = Gpu("NVIDIA H800", (9, 0), 85_000_000_000, 132, per_node=8)
SITE = Path(find_spec("torch").origin).parents[1]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here"
)


@needs_compiler
def test_it_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = built_shim().folder
    assert first.parent == tmp_path / "dsv3_plugin"
    monkeypatch.setattr(build, "_compile", None)  # whoever compiles again fails
    assert built_shim().folder == first
    assert {path.name for path in first.parent.iterdir()} == {first.name}  # nothing half made


@needs_compiler
def test_another_source_is_another_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = tmp_path / "sources"
    shutil.copytree(build._SOURCES, sources)
    first = built_shim().folder
    (sources / "driver.c").write_text((sources / "driver.c").read_text() + "\n")
    monkeypatch.setattr(build, "_SOURCES", sources)
    assert built_shim().folder != first


@needs_compiler
@pytest.mark.parametrize("name", ["a file", "co:lon", "semi;colon", "$ORIGIN"])
def test_a_cache_that_the_loader_cannot_use_is_gone_round(tmp_path, monkeypatch, name):
    cache = tmp_path / name
    if name == "a file":
        cache.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    folder = built_shim().folder
    assert cache not in folder.parents
    assert {path.name for path in folder.iterdir()} == {"libcudart_rehearsal.so", "libcuda.so.1"}


@needs_compiler
def test_a_cache_with_blanks_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a b"))
    assert tmp_path / "a b" in built_shim().folder.parents


@needs_compiler
def test_what_was_compiled_once_serves_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = built_shim().folder
    monkeypatch.setenv("PATH", str(tmp_path))
    assert built_shim().folder == first


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C compiler is here \(cc, gcc, clang\)"):
        built_shim()


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'stddef.h: not found' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"cannot compile a library here \(stddef.h: not found\)"):
        built_shim()


@needs_compiler
def test_what_is_preloaded_already_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shim = built_shim()
    variables = shim.environment(
        GPU, {"LD_PRELOAD": "libjemalloc.so", "LD_LIBRARY_PATH": "/opt/lib"}
    )
    assert variables["LD_PRELOAD"].split() == [
        "libcudart_rehearsal.so", "libcuda.so.1", "libjemalloc.so",
    ]  # fmt: skip
    assert variables["LD_LIBRARY_PATH"].split(":") == [str(shim.folder), "/opt/lib"]


PLACES = """
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stddef.h>
#define SHOW(ours, theirs) printf("%s %zu\\n", #ours, offsetof(struct cudaDeviceProp, theirs));
int main(void) {
    SHOW(NAME, name)
    SHOW(TOTAL_MEMORY, totalGlobalMem)
    SHOW(SHARED_MEMORY_PER_BLOCK, sharedMemPerBlock)
    SHOW(WARP_SIZE, warpSize)
    SHOW(MAX_THREADS_PER_BLOCK, maxThreadsPerBlock)
    SHOW(MAJOR, major)
    SHOW(MINOR, minor)
    SHOW(MULTIPROCESSORS, multiProcessorCount)
    SHOW(MAX_THREADS_PER_MULTIPROCESSOR, maxThreadsPerMultiProcessor)
    SHOW(REGISTERS_PER_MULTIPROCESSOR, regsPerMultiprocessor)
    SHOW(SHARED_MEMORY_PER_BLOCK_OPT_IN, sharedMemPerBlockOptin)
    printf("PROPERTIES %zu\\n", sizeof(struct cudaDeviceProp));
    printf("ATTRIBUTE_MAJOR %d\\n", cudaDevAttrComputeCapabilityMajor);
    printf("ATTRIBUTE_MINOR %d\\n", cudaDevAttrComputeCapabilityMinor);
    printf("ATTRIBUTE_MULTIPROCESSORS %d\\n", cudaDevAttrMultiProcessorCount);
    printf("NOT_SUPPORTED %d\\n", cudaErrorNotSupported);
    printf("INVALID_DEVICE %d\\n", cudaErrorInvalidDevice);
    return 0;
}
"""


@needs_compiler
def test_layouts_are_those_of_cudas_headers(tmp_path):
    """What cudart.c declares for itself, against the headers that torch's CUDA packages bring."""
    folders = [SITE / "triton/backends/nvidia/include", SITE / "nvidia/cu13/include"]
    if not (folders[1] / "cuda_runtime_api.h").exists():
        pytest.skip("no headers of CUDA are here")
    program = tmp_path / "places.c"
    program.write_text(PLACES)
    include = [f"-I{folder}" for folder in folders]
    subprocess.run(["cc", "-w", *include, "-o", tmp_path / "places", program], check=True)
    shown = subprocess.run([tmp_path / "places"], capture_output=True, text=True, check=True).stdout
    source = (build._SOURCES / "cudart.c").read_text()
    for name, value in (line.split() for line in shown.splitlines()):
        assert f" {name} = {value}" in source, name


def test_nothing_that_torch_calls_is_left_to_the_real_runtime():
    libraries = [
        SITE / f"torch/lib/lib{name}.so" for name in ("c10_cuda", "torch_cuda", "torch_python")
    ]
    if shutil.which("nm") is None or not all(library.exists() for library in libraries):
        pytest.skip("needs nm and torch's libraries for CUDA")
    listed = subprocess.run(["nm", "-D", *libraries], capture_output=True, text=True, check=True)
    called = {
        words[-1].partition("@")[0]
        for words in map(str.split, listed.stdout.splitlines())
        if len(words) >= 2 and words[-2] == "U" and words[-1].startswith("cuda")
    }
    source = (build._SOURCES / "cudart.c").read_text()
    assert {
        name for name in called if f"{name}(" not in source and f"({name})" not in source
    } == set()


PROGRAM = """
import json, os, torch
from torch._subclasses.fake_tensor import FakeTensorMode
properties = torch.cuda.get_device_properties(0)
said = {
    "available": torch.cuda.is_available(),
    "devices": torch.cuda.device_count(),
    "name": properties.name,
    "capability": torch.cuda.get_device_capability(),
    "memory": properties.total_memory,
    "multiprocessors": properties.multi_processor_count,
}
stream, event = torch.cuda.Stream(), torch.cuda.Event()
with FakeTensorMode():
    with torch.cuda.stream(stream):
        x = torch.empty(4, 4, device="cuda", requires_grad=True)
        loss = (x @ x).sum()
        event.record(stream)
    torch.cuda.current_stream().wait_event(event)
    loss.backward()
    torch.cuda.synchronize()
    said["gradient"] = str(x.grad.device)
said["pinned"] = torch.empty(4, pin_memory=True).shape[0]
try:
    torch.empty(4, device="cuda")
except RuntimeError as error:
    said["escaped"] = str(error).splitlines()[0]
print(json.dumps(said), flush=True)
os._exit(0)  # autograd's threads of devices may not outlive the interpreter
"""


@needs_compiler
def test_fake_tensors_on_cuda_go_forward_and_backward(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with a blank"))
    environment = os.environ | built_shim().environment(GPU)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "available": True,
        "devices": 8,
        "name": "NVIDIA H800",
        "capability": [9, 0],
        "memory": 85_000_000_000,
        "multiprocessors": 132,
        "gradient": "cuda:0",
        "pinned": 4,
        "escaped": "CUDA error: a rehearsal has no GPU: a tensor has left its fake mode",
    }
