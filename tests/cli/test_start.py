"""The verbs that need no torch answer without importing it, or anything else that is large."""

import subprocess
import sys

import pytest

HEAVY = {
    "torch", "megatron", "transformers", "transformer_engine", "tokenizers", "safetensors",
    "pyarrow", "numpy", "matplotlib", "rich.progress",
}  # fmt: skip
PROGRAM = """
import sys
from dsv3_plugin.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = {heavy!r} & {{*sys.modules}}
assert not loaded, loaded
"""


def loads_nothing_of(heavy, command):
    program = PROGRAM.format(heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "plan deepseek-v3",
        "plan pretrain/deepseek-v3 --json",
        "plan pretrain/tiny --search",
        "args pretrain/tiny",
        "schedule dualpipe_v --pp 16 --micro-batches 60",
        "schedule dualpipe_v --pp 8 --micro-batches 20 --json --model deepseek-v3",
    ],
)
def test_the_answer_needs_nothing_heavy(command):
    assert loads_nothing_of(HEAVY, command)


@pytest.mark.parametrize("command", ["--help", "--version", "schedule --help", "train --help"])
def test_help_needs_less_still(command):
    assert loads_nothing_of(HEAVY | {"rich", "yaml"}, command)
