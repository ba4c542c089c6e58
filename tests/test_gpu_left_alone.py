"""What the tests of a GPU import leaves their process its GPU.

Many tests make theirs a CPU host, some as they are imported; `make test-gpu` would skip them all.
"""

import subprocess
import sys
from pathlib import Path

IMPORTED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from dsv3_plugin.upstream import cpu_host
sys.exit(cpu_host.is_enabled())
"""


def test_their_modules_make_no_cpu_host():
    here = Path(__file__).parent
    names = [f"tests.gpu.{file.stem}" for file in sorted((here / "gpu").glob("*.py"))]
    assert "tests.gpu.test_packs" in names
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTED, *names],
        cwd=here.parent, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
