"""Imports point downwards only, and what promises no torch imports none."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dsv3_plugin

PACKAGE = Path(dsv3_plugin.__file__).parent
HEAVY = {"torch", "megatron", "transformers", "transformer_engine"}

# Each room with those it may import from, besides itself and dsv3_plugin.errors.
_BASE = {"recipe"}
_MIDDLE = _BASE | {"upstream"}
# The rooms above upstream stand side by side and may use one another.
_WORKSHOPS = {"pipeline", "model", "dispatch", "fp8", "data", "checkpoint", "inference"}
_ABOVE = _MIDDLE | _WORKSHOPS | {"planner"}
# A recipe names schedules, and proves the one in a file: it may look at schedules as data.
_SCHEDULES = {
    f"dsv3_plugin.pipeline.{name}"
    for name in ("actions", "placement", "schedules", "search", "validate")
}
MAY_IMPORT = {
    "recipe": set(),
    "planner": _BASE,
    "upstream": _BASE,
    **{room: _MIDDLE | _WORKSHOPS | {"planner"} for room in _WORKSHOPS},
    "launch": _ABOVE,
    "stages": _ABOVE | {"launch"},
}

PURE_ROOMS = ("recipe", "planner", "pipeline/schedules")
PURE_FILES = ("cli/command.py", "errors.py")
# The half of the pipeline that knows schedules as data, as opposed to running them.
PURE_PIPELINE = (
    "actions", "costs", "draw", "greedy", "improve", "messages", "order", "search", "simulate",
    "validate",
)  # fmt: skip


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
            # `from dsv3_plugin.stages import run` may name a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not isinstance(node, skipped):
            waiting.extend(ast.iter_child_nodes(node))


def rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def pure_files() -> list[Path]:
    files = [PACKAGE / name for name in PURE_FILES]
    files += [PACKAGE / "pipeline" / f"{name}.py" for name in PURE_PIPELINE]
    for room in PURE_ROOMS:
        files += (PACKAGE / room).rglob("*.py")
    return sorted(path for path in files if path.is_file())


@pytest.mark.parametrize("room", rooms())
def test_imports_point_downwards(room):
    allowed = MAY_IMPORT[room] | {room, "errors"}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in (PACKAGE / room).rglob("*.py")
        for name in imports(path, at_import_time=False)
        if name.startswith("dsv3_plugin.") and name.split(".")[1] not in allowed
        if room != "recipe" or name.rpartition(".")[0] not in _SCHEDULES
    ]
    assert not wrong


@pytest.mark.parametrize("path", pure_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_torch_where_none_is_promised(path):
    heavy = {name.split(".")[0] for name in imports(path, at_import_time=True)} & HEAVY
    assert not heavy


def test_nor_do_they_bring_torch_in_through_others():
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in pure_files()
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("room", ["recipe", "planner"])
def test_recipe_and_planner_never_import_torch_at_all(room):
    for path in (PACKAGE / room).rglob("*.py"):
        heavy = {name.split(".")[0] for name in imports(path, at_import_time=False)} & HEAVY
        assert not heavy, path
