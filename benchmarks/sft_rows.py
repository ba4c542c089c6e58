"""Instruction data made from the Python standard library, for `benchmarks/sft.py`.

A row shows a function and asks one thing about it (`TASKS`). Functions with the same source are
one; which of them are held out is decided by a hash of the source, so that no function that is
asked about was trained on.
"""

import ast
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.files.atomic import whole_file

LINES = range(3, 16)
"""Of a function that is asked about."""
LONGEST = 480
"""Characters of it: with the question it fits into a sequence of 256 tokens."""
MODULES = 30
"""Of those with the most such functions are the answers of `module`."""
ONE_IN = 25
"""Of so many functions about one is held out."""


@dataclass(frozen=True)
class Function:
    """A function of the standard library.

    Attributes:
        module: where it is, as an import names it.
        name: its own.
        source: dedented, without what follows its last line.
        arguments: how many it takes, `*` and `**` counted as one each.
    """

    module: str
    name: str
    source: str
    arguments: int

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.blake2b(self.source.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % ONE_IN == 0

    @property
    def cut(self) -> tuple[str, str]:
        """All but the last line, and that."""
        begin, _, last = self.source.rpartition("\n")
        return begin, last.strip()


@dataclass(frozen=True)
class Task:
    """A question about functions.

    Attributes:
        asks: how a prompt begins.
        shows: what of the function follows.
        answer: the right one.
    """

    asks: str
    shows: Callable[[Function], str]
    answer: Callable[[Function], str]

    def row(self, function: Function) -> dict[str, str]:
        """Prompt and response."""
        return {
            "prompt": f"{self.asks}\n\n{self.shows(function)}",
            "response": self.answer(function),
        }


TASKS = {
    "name": Task("What is this function called?", lambda f: f.source, lambda f: f.name),
    "arguments": Task(
        "How many arguments has this function?", lambda f: f.source, lambda f: str(f.arguments)
    ),
    "module": Task("Name the module of this function.", lambda f: f.source, lambda f: f.module),
    "last line": Task("Complete this function.", lambda f: f.cut[0], lambda f: f.cut[1]),
}


def functions() -> list[Function]:
    """Those of the standard library that are short enough, each once, in the order of files."""
    by_source: dict[str, Function] = {}
    for source in find_sources("stdlib"):
        module = source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for function in _functions_of(module, source.path.read_text(encoding="utf-8")):
            by_source.setdefault(function.source, function)
    return [*by_source.values()]


def _functions_of(module: str, text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        source = inspect.cleandoc("\n" + (ast.get_source_segment(text, node, padded=True) or ""))
        if source.count("\n") + 1 in LINES and len(source) <= LONGEST:
            given = node.args
            plain = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            arguments = plain + (given.vararg is not None) + (given.kwarg is not None)
            yield Function(module, node.name, source, arguments)


def asked(of: Sequence[Function]) -> dict[str, list[Function]]:
    """About which of some functions each task asks."""
    common = {name for name, _ in Counter(one.module for one in of).most_common(MODULES)}
    return {
        "name": [*of],
        "arguments": [*of],
        "module": [one for one in of if one.module in common],
        # A bracket alone is no answer.
        "last line": [one for one in of if any(map(str.isalpha, one.cut[1]))],
    }


def commonest_share(task: Task, train: Sequence[Function], held_out: Sequence[Function]) -> float:
    """The share of right answers of who always gives the commonest answer."""
    [(answer, _)] = Counter(map(task.answer, train)).most_common(1)
    return sum(task.answer(one) == answer for one in held_out) / len(held_out)


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
