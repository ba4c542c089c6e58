"""A function that a recipe names, and what is said where it cannot be had."""

import sys

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.functions import function_at

MODULES = {
    "m_whole": "x = 3\ndef write(path):\n    pass\n"
    "class C:\n  def write(path):\n    pass\n"
    "def two(path, other):\n  pass\n"
    "def no():\n  pass\n"
    "def more(path, *, other=1):\n  pass\n",
    "m_lacks": "import sys\nimport nowhere_at_all\n",
    "m_ends": "import sys\n\nsys.exit('no more')\n",
    "m_stops": "raise SystemExit\n",
    "m_wrong": "def (\n",
    "m_between": "import m_lacks\n",
}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("m_whole", "is no function: write package.module.function"),
        ("m_whole.x", "is no function: it is of type int there: write package.module.function"),
        ("m_whole.wrte", "is not there: m_whole.py has no wrte (nearest: 'write')"),
        ("m_whole.other", "is not there: m_whole.py has no other: write it there, or name another"),
        ("../m_whole.write", "is no function: write package.module.function"),
        ("m_whole.py:write", "is no function: write package.module.function"),
        (
            "m_whole.C",
            "is no function: it is a class there: write a function of the module m_whole that "
            "calls it",
        ),
        (
            "m_whole.C.write",
            "is a method of the class C: write a function of the module m_whole that calls it",
        ),
        (
            "m_whole.two",
            "is called with one argument alone, and takes (path, other): have it take that, and "
            "give others defaults",
        ),
        (
            "m_whole.no",
            "is called with one argument alone, and takes (): have it take that, and give others "
            "defaults",
        ),
        (
            "m_whole.inner.it",
            "is not there: No module named 'm_whole.inner'; 'm_whole' is not a package",
        ),
        ("m_none.write", "is not there: No module named 'm_none'"),
        (
            "m_lacks.write",
            "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all' in "
            "m_lacks.py, line 2: mend that, or name another",
        ),
        (
            "m_between.write",
            "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all' in "
            "m_lacks.py, line 2: mend that, or name another",
        ),
        (
            "m_ends.write",
            "cannot be imported: SystemExit: no more in m_ends.py, line 3: mend that, or name "
            "another",
        ),
        (
            "m_stops.write",
            "cannot be imported: SystemExit in m_stops.py, line 1: mend that, or name another",
        ),
    ],
)
def test_what_is_wrong_with_a_function_is_said(path, sentence, tmp_path, monkeypatch):
    _write(tmp_path, monkeypatch)
    with pytest.raises(UserError) as caught:
        function_at(path, f"key: {path}")
    assert str(caught.value) == f"key: {path} {sentence}."


def test_a_function_may_take_more_that_has_defaults(tmp_path, monkeypatch):
    _write(tmp_path, monkeypatch)
    assert function_at("m_whole.more", "key").__name__ == "more"


def test_a_file_that_is_no_python_is_named(tmp_path, monkeypatch):
    _write(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"SyntaxError: .* in m_wrong.py: mend that"):
        function_at("m_wrong.write", "key")


def test_a_function_is_found(tmp_path, monkeypatch):
    _write(tmp_path, monkeypatch)
    assert function_at("m_whole.write", "key").__name__ == "write"


def _write(folder, monkeypatch):
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
