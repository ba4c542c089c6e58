"""The library by shapes takes what the compiled one takes, so that another release is noticed."""

import importlib.machinery
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_plugin.rehearsal.te import enums, library

pytestmark = [
    pytest.mark.te,
    pytest.mark.skipif(
        importlib.machinery.PathFinder.find_spec("transformer_engine") is None,
        reason="Transformer Engine is not installed: `make test-te` builds it",
    ),
]
FUNCTIONS = library.functions(lambda kernel: None)


@pytest.fixture(scope="module")
def compiled() -> dict:
    script = Path(__file__).with_name("compiled_library.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def parameters(signature: str) -> list[str]:
    """Names of pybind's `f(a: int, b: list[int, str] = None) -> …`, `*` left out."""
    depth, words, word = 0, [], ""
    for letter in signature.partition("(")[2]:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            words.append(word)
            word = ""
        else:
            word += letter
    words.append(word)
    names = [word.partition(":")[0].strip() for word in words]
    return [name for name in names if name not in ("", "*")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_same_arguments(compiled: dict, name: str):
    """In the same order, and by the same names where the compiled one has any."""
    theirs = parameters(compiled["functions"][name])
    ours = list(inspect.signature(FUNCTIONS[name]).parameters)
    assert len(ours) == len(theirs)
    if not all(re.fullmatch(r"arg\d+", parameter) for parameter in theirs):
        assert ours == theirs


@pytest.mark.parametrize("kind", enums.ALL, ids=lambda kind: kind.__name__)
def test_an_enumeration_has_the_same_values(compiled: dict, kind: type):
    ours = {member.name: int(member) for member in kind}
    assert ours == compiled["enumerations"][kind.__name__]


def test_facts_are_those_of_the_libraries_that_are_installed(compiled: dict):
    assert {name: FUNCTIONS[name]() for name in compiled["facts"]} == compiled["facts"]
