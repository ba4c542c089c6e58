"""Each room imports only rooms above it in one order, and what promises no torch brings none."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv3_plugin

PACKAGE = Path(dsv3_plugin.__file__).parent
HEAVY = {"torch", "megatron", "transformers", "transformer_engine"}


def _house() -> dict[str, bool]:
    """The rooms from the ground up, and whether each is without torch: the block of the design."""
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    block = page.partition("\n## The house\n")[2].split("```")[1]
    room = re.compile(r"^  (\w+)(?:\.py|/) +(no torch)?", re.MULTILINE)
    return {name: bool(mark) for name, mark in room.findall(block)}


# A room (a folder, or a file of the package's top level) may import those before it.
HOUSE = _house()
ORDER = (*HOUSE,)
# To the last function.
WITHOUT_TORCH = tuple(room for room, pure in HOUSE.items() if pure)


def imports(path: Path, *, at_import_time: bool) -> Iterator[str]:
    """Dotted names that a file imports; at import time: not those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda) if at_import_time else ()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from dsv3_plugin.stages import pretrain` may name a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, skipped):
            waiting.extend(ast.iter_child_nodes(node))


def files(room: str) -> list[Path]:
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def rooms_named(path: Path) -> Iterator[tuple[str, str]]:
    """(room, where it is named) of every module that a file imports, or names in a string."""
    for name in imports(path, at_import_time=False):
        if name.startswith("dsv3_plugin."):
            yield name.split(".")[1], f"imports {name}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            continue
        if id(node) not in docstrings:
            for room in re.findall(r"\bdsv3_plugin\.(\w+)", node.value):
                yield room, f"names '{node.value}'"


def test_every_room_has_its_place():
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    there |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert there == {*ORDER}


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_upwards_in_the_order(room):
    allowed = {*ORDER[: ORDER.index(room) + 1]}
    wrong = [
        f"{path.relative_to(PACKAGE)} {how}"
        for path in files(room)
        for other, how in rooms_named(path)
        if other in ORDER and other not in allowed
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    """Wherever the import stands: in a function and behind `TYPE_CHECKING` too."""
    modules = {module(path) for path in PACKAGE.rglob("*.py")}
    needs = {
        module(path): {
            name if name in modules else name.rpartition(".")[0]
            for name in imports(path, at_import_time=False)
            if name.startswith("dsv3_plugin.")
        }
        & modules
        for path in PACKAGE.rglob("*.py")
    }
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_without_torch_imports_none(room):
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files(room)
        for name in imports(path, at_import_time=False)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_nor_do_they_bring_torch_in_through_others():
    modules = [module(path) for room in (*WITHOUT_TORCH, "cli") for path in files(room)]
    modules.remove("dsv3_plugin.cli.__main__")
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
