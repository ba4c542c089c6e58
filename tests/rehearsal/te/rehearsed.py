"""Runs a program as a rehearsed rank is run: with the CUDA runtime's shim and TE's Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3_plugin.rehearsal.gpu import Gpu
from dsv3_plugin.rehearsal.shim.build import built_shim
from dsv3_plugin.rehearsal.te.installed import how_to_get_it, te_python

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 132, per_node=8)


def rehearsed(program: Path, *arguments: object, gpu: Gpu = H100) -> Any:
    """What the program says: the JSON of its last line.

    Skips the test where a rehearsed step on a GPU cannot be had.
    """
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler is here")
    if te_python() is None:
        pytest.skip(how_to_get_it())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), *map(str, arguments)],
        env=os.environ | built_shim().environment(gpu) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
