"""The table of patches: what it names exists, and applying it can be undone."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import dsv3_plugin
from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import cpu_host, patching
from dsv3_plugin.upstream.patching import Patch
from dsv3_plugin.upstream.replace import lookup, resolve

REPOSITORY = Path(__file__).parents[2]
cpu_host.enable()

from dsv3_plugin.training.patches import TABLE  # noqa: E402

TARGETS = [target for patch in TABLE for target in patch.targets]
REPLACED = [patch for patch in TABLE if not patch.fills_in and not patch.of_te]
FILLED_IN = [patch for patch in TABLE if patch.fills_in]


@pytest.fixture(scope="module", autouse=True)
def _cpu_host():
    cpu_host.enable()


@pytest.fixture(autouse=True)
def _unregistered():
    patching.unregister()
    yield
    patching.unregister()


def test_no_target_stands_twice_in_the_table():
    assert len(TARGETS) == len(set(TARGETS))


@pytest.mark.parametrize("patch", TABLE, ids=lambda patch: patch.name)
def test_target_replacement_and_test_exist(patch: Patch):
    for target in patch.targets:
        assert patch.fills_in or patch.of_te or callable(lookup(target)), target
    assert callable(patch.replacement)
    assert (REPOSITORY / patch.test).is_file(), patch.test
    assert patch.reason


def test_every_copy_of_a_symbol_is_replaced():
    # Where another module took the symbol by a from-import, it would keep calling the original.
    modules = {
        name: module
        for name, module in list(sys.modules.items())
        if name.startswith("megatron.") and module is not None and not hasattr(module, "__path__")
    }
    for patch in REPLACED:
        original = lookup(patch.targets[0])
        assert all(lookup(target) is original for target in patch.targets)
        copies = {
            f"{name}:{attribute}"
            for name, module in modules.items()
            for attribute, value in list(vars(module).items())
            if value is original and name != original.__module__
        }
        assert copies <= set(patch.targets), patch.name


def test_register_replaces_every_target_and_unregister_restores_each():
    targets = [target for patch in REPLACED for target in patch.targets]
    before = {target: lookup(target) for target in targets}
    dsv3_plugin.register()
    during = {target: lookup(target) for target in targets}
    assert all(during[target] is not before[target] for target in targets)
    dsv3_plugin.register()
    assert all(lookup(target) is during[target] for target in targets)
    dsv3_plugin.unregister()
    assert all(lookup(target) is before[target] for target in targets)
    assert not patching.is_registered()


@pytest.mark.parametrize("patch", FILLED_IN, ids=lambda patch: patch.name)
def test_what_a_missing_library_leaves_open_is_filled_in_and_nothing_else(patch, monkeypatch):
    for target in patch.targets:
        owner, attribute = resolve(target)
        monkeypatch.delattr(owner, attribute, raising=False)
        for _ in range(2):
            dsv3_plugin.register()
            assert lookup(target) is patch.replacement
        dsv3_plugin.unregister()
        assert not hasattr(owner, attribute)
        its_own = object()
        monkeypatch.setattr(owner, attribute, its_own, raising=False)
        dsv3_plugin.register()
        assert lookup(target) is its_own
        dsv3_plugin.unregister()
        assert lookup(target) is its_own


def test_another_megatron_is_refused_with_what_to_check(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.20.0")
    with pytest.raises(UserError, match=r"megatron-core 0.20.0 is installed") as refusal:
        dsv3_plugin.register()
    assert all(target in str(refusal.value) for target in TARGETS)
    assert not patching.is_registered()


def test_register_changes_nothing_of_the_process_but_the_table():
    code = """
import logging, os, signal, sys, warnings
import torch
from dsv3_plugin.upstream import cpu_host
cpu_host.enable()
import megatron.training, megatron.training.models.gpt

def state():
    loggers = logging.Logger.manager.loggerDict.items()
    return {
        "environment": dict(os.environ),
        "filters of warnings": list(warnings.filters),
        "loggers": {
            name: (logger.level, list(logger.filters), list(logger.handlers), logger.disabled)
            for name, logger in [("", logging.root), *loggers]
            if isinstance(logger, logging.Logger) and name not in new
        },
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "command line": list(sys.argv),
        "hook": sys.excepthook,
        "folder": os.getcwd(),
        "random state": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "torch": (
            torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        ),
    }

new = set()
before, known = state(), {*logging.Logger.manager.loggerDict}
import dsv3_plugin
for change in (dsv3_plugin.register, dsv3_plugin.register, dsv3_plugin.unregister):
    change()
    new = {*logging.Logger.manager.loggerDict} - known
    after = state()
    assert after == before, [what for what in before if after[what] != before[what]]
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, dsv3_plugin; print([m for m in ('torch', 'megatron') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stderr
