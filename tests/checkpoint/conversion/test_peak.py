"""A conversion's own memory is a few blocks per worker, whatever the size of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dsv3_plugin
from tests.checkpoint.samples import random_tensors, small_model, write_folder

BLOCK = 1 << 20
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from dsv3_plugin.checkpoint.conversion import convert, recode

recode.BLOCK_BYTES = BLOCK
torch.set_num_threads(1)

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak = 0

def note(*_):
    global peak
    peak = max(peak, anonymous())

added = []
for source in sys.argv[1:]:
    peak = before = anonymous()
    convert.import_hf(source, source + "-checkpoint", workers=2, progress=note)
    convert.export_hf(source + "-checkpoint", source + "-out", fp8=True, workers=2, progress=note)
    added.append(peak - before)
print(json.dumps(added))
"""


def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    folders, sizes = [], []
    for name, experts in (("warm-up", 2), ("small", 2), ("large", 16)):
        model = small_model(
            hidden_size=1024, moe_ffn_hidden_size=1024, num_moe_experts=experts,
            moe_shared_expert_intermediate_size=1024,
            moe_router_num_groups=None, moe_router_group_topk=None,
        )  # fmt: skip
        tensors = random_tensors(model, "fp8")
        folders.append(write_folder(tmp_path / name, model, tensors))
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
    assert sizes[2] > sizes[1] + 100 * BLOCK
    script = SCRIPT.replace("= BLOCK", f"= {BLOCK}")
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, folders)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(dsv3_plugin.__file__).parents[1])},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    _, small, large = json.loads(ended.stdout)
    # Metadata grows by a few kilobytes per tensor, blocks do not.
    assert large < small + 16 * BLOCK
