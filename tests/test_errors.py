"""Sentences for the user, on their way from another process."""

import importlib.util
import pickle
import pkgutil
import re
from pathlib import Path

import pytest

import dsv3_plugin
from dsv3_plugin.checkpoint.conversion.journal import OtherTargetError
from dsv3_plugin.checkpoint.formats.broken_files import BrokenFiles
from dsv3_plugin.checkpoint.formats.pickles import ForeignSymbolError
from dsv3_plugin.errors import Passing, SaidElsewhere, UserError
from dsv3_plugin.files.run_folder import InUse
from dsv3_plugin.inference.requests import WrongField
from dsv3_plugin.terminal.lines import Unwritable
from dsv3_plugin.training.upstream_arguments import RefusedByUpstream

ERRORS = [
    UserError("A sentence."),
    Passing("A sentence."),
    SaidElsewhere("A sentence."),
    InUse(Path("runs/a"), "directory", "another run"),
    Unwritable(BrokenPipeError(32, "Broken pipe")),
    RefusedByUpstream("tp is 3."),
    WrongField("n: 0.", "n"),
    OtherTargetError("A sentence."),
    BrokenFiles({"a": "a is cut short.", "b": "b is missing."}),
    ForeignSymbolError("a", ("os", "system")),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_another_process_hears_the_same(error):
    heard = pickle.loads(pickle.dumps(error))
    assert type(heard) is type(error)
    assert str(heard) == str(error)
    assert vars(heard) == vars(error)


def test_every_kind_that_is_made_in_a_way_of_its_own_is_among_them():
    for module in pkgutil.walk_packages(dsv3_plugin.__path__, "dsv3_plugin."):
        source = importlib.util.find_spec(module.name).loader.get_source(module.name)
        if re.search(r"class \w+\((UserError|Passing)\)", source):
            importlib.import_module(module.name)
    kinds, of_its_own = [UserError], set()
    while kinds:
        kind = kinds.pop()
        if "__init__" in vars(kind) and kind.__module__.startswith("dsv3_plugin."):
            of_its_own.add(kind)
        kinds += kind.__subclasses__()
    assert of_its_own <= {type(error) for error in ERRORS}
    assert BrokenFiles in of_its_own
