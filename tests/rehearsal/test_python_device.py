"""Tensors of a GPU without a CUDA runtime: Python's to torch's C++, cuda's to Python."""

import json
import subprocess
import sys

PROGRAM = """
import json, os, torch
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.rehearsal.gpu import gpu_of
from dsv3_plugin.rehearsal.python_device import be_python
from dsv3_plugin.rehearsal.torch_cuda import pretend
from dsv3_plugin.upstream.replace import Replacer

class Wrapper(torch.Tensor):
    __torch_dispatch__ = None  # as a quantised tensor of Transformer Engine has one

replacer = Replacer()
pretend(gpu_of(load_cluster("h800")), replacer)
fake_mode = be_python(replacer)
said = {}
with fake_mode(allow_non_fake_inputs=True):
    with torch.cuda.stream(torch.cuda.Stream()):
        x = torch.empty(4, 4, device="cuda", requires_grad=True)
        event = torch.cuda.Event()
        event.record()
    torch.cuda.current_stream().wait_event(event)
    said["cuda"] = x.is_cuda, str(x.device), x.type()
    (x.bfloat16() @ x.bfloat16()).sum().backward()  # a cast's backward asks C++ for the device
    said["gradient"] = str(x.grad.device), str(x.grad.dtype)
    said["not moved"] = [x.to(where) is x for where in ("cuda", x.device, x)] + [x.cuda() is x]
    there, back = x.cpu(), torch.empty(3).to("cuda")
    said["moved"] = str(there.device), there.is_cuda, str(back.device)
    there.sum().backward()
    mask = x > 0
    x.detach()[mask.new_zeros(4, dtype=torch.int64), 0]
    x.detach()[mask] = 0
    said["made like it"] = sorted({
        str(made.device)
        for made in (torch.zeros_like(x), x.new_empty(3), x[there.long()], x.sum())
    })
    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (2, 2), device=torch.device("cuda"))
    said["wrapper"] = str(wrapper.device), wrapper.is_cuda
print(json.dumps(said), flush=True)
os._exit(0)  # autograd's threads of devices may not outlive the interpreter
"""


def test_python_sees_cuda_and_nothing_needs_its_runtime() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        "cuda": [True, "cuda:0", "torch.cuda.FloatTensor"],
        "gradient": ["cuda:0", "torch.float32"],
        "not moved": [True] * 4,
        "moved": ["cpu", False, "cuda:0"],
        "made like it": ["cuda:0"],
        "wrapper": ["cuda:0", True],
    }
