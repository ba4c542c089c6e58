"""Lines of the pages that start a server or ask one, with the address and folders of a test's."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT, Page

_GENERATION, _RL, _DISTILLATION = (
    Page(ROOT / "docs" / f"{name}.md") for name in ("generation", "rl", "distillation")
)
_README = Page(ROOT / "README.md")
_ADDRESS = "http://127.0.0.1:8000"


def serve(checkpoint: Path, port: int) -> list[str]:
    """`dsv3 serve` as docs/generation.md has it."""
    [words] = (words for words in _GENERATION.commands() if words[0] == "serve")
    return [{"runs/tiny": str(checkpoint), "8000": str(port)}.get(word, word) for word in words]


def serve_to_a_run(checkpoint: Path, weights_root: Path, port: int) -> list[str]:
    """The same as docs/rl.md has it for a run beside; a key is in the environment there."""
    [words] = (words for words in _RL.commands() if words[0] == "serve")
    names = {"runs/tuned/checkpoints": str(checkpoint), "runs": str(weights_root)}
    return [*(names.get(word, word) for word in words), "--port", str(port)]


def curl(what: str, address: str, **variables: str) -> dict[str, Any]:
    """What the line with `curl` answers that has these words."""
    [line] = (line for line in _GENERATION.shell_lines if line.startswith("curl") and what in line)
    done = subprocess.run(
        ["sh", "-c", line.replace(_ADDRESS, address).replace('"tiny"', '"small"')],
        env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def distill(address: str, folder: Path) -> list[list[str]]:
    """Lines that ask a server; their problems in the folder, but the one that needs a sandbox."""
    rows = _DISTILLATION.blocks("json")[0].splitlines()
    (folder / "problems.jsonl").write_text("\n".join([rows[0], rows[2]]), encoding="utf-8")
    names = {_ADDRESS: address, "URL": address}
    return [
        [names.get(word, word) for word in words]
        for page in (_DISTILLATION, _README)
        for words in page.commands()
        if words[0] == "distill" and names.keys() & {*words}
    ]


def hand_on(address: str, key: str, folder: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """The names there are behind docs/generation.md's block that asks from Python."""
    [code] = (code for code in _GENERATION.blocks("python") if "Endpoint" in code)
    code = code.replace(_ADDRESS, address).replace('key="…"', f"key={key!r}")
    code = re.sub(r'"/data/(\S+)"', lambda path: repr(str(folder / path[1])), code)
    there = dict(names)
    exec(code, there)
    return there
