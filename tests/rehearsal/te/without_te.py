"""A rehearsed rank where Transformer Engine's Python is not to be had.

    python without_te.py DEPTH SCRATCH

Prints the sentences about a rank of `pretrain/deepseek-v3` in this depth ("step", "configuration").
A process is one rank: what torch is told of a device it is told once.
"""

import json
import os
import sys
from pathlib import Path

from dsv3_plugin.rehearsal.te import installed

installed.te_python = lambda: None

from dsv3_plugin.rehearsal.child import answered  # noqa: E402
from dsv3_plugin.rehearsal.report import Depth, Request  # noqa: E402


def main() -> None:
    """Say what the rank answers."""
    depth: Depth = sys.argv[1]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what upstream prints
    request = Request("pretrain/deepseek-v3", (), "h100", 0, 1, depth)
    sentences = [finding.sentence for finding in answered(request, Path(sys.argv[2])).findings]
    print(json.dumps(sentences), file=answer, flush=True)


if __name__ == "__main__":
    main()
