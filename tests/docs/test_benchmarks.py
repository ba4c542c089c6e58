"""Benchmarks are run by hand: that they still find what they import is looked at here."""

import ast
import importlib

import pytest

from dsv3_plugin.upstream import cpu_host
from tests.docs.pages import ROOT


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_everything_a_benchmark_imports_of_the_package_exists(script):
    cpu_host.enable()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsv3_plugin"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
