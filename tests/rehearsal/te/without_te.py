"""A rehearsed rank where Transformer Engine's Python is not to be had.

    python without_te.py SCRATCH

Prints the sentences about a step, and about the configuration alone, of `pretrain/deepseek-v3`.
"""

import json
import os
import sys
from pathlib import Path

from dsv3_plugin.rehearsal.te import installed

installed.te_python = lambda: None

from dsv3_plugin.rehearsal.child import answered  # noqa: E402
from dsv3_plugin.rehearsal.report import Depth, Request  # noqa: E402


def said(depth: Depth, scratch: Path) -> list[str]:
    request = Request("pretrain/deepseek-v3", (), "h100", 0, 1, depth)
    return [finding.sentence for finding in answered(request, scratch).findings]


def main() -> None:
    """Ask for a step, which is refused before anything is imported, and then for less."""
    scratch = Path(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what upstream prints
    sentences = {depth: said(depth, scratch) for depth in ("step", "configuration")}
    print(json.dumps(sentences), file=answer, flush=True)


if __name__ == "__main__":
    main()
