"""Replacing attributes by name leaves no trace once restored."""

import types

import pytest

from dsv3_plugin.upstream import replace
from dsv3_plugin.upstream.replace import Replacer


class Parent:
    @staticmethod
    def inherited() -> str:
        return "parent"


class Child(Parent):
    @staticmethod
    def own() -> str:
        return "own"


@pytest.fixture
def place(monkeypatch) -> str:
    module = types.ModuleType("a_module")
    module.Child = Child
    module.function = lambda: "original"
    monkeypatch.setitem(__import__("sys").modules, "a_module", module)
    return "a_module"


def test_set_and_restore_keep_identity(place):
    original = replace.lookup(f"{place}:function")
    replacer = Replacer()
    replacer.set(f"{place}:function", len)
    replacer.set(f"{place}:function", max)
    assert replace.lookup(f"{place}:function") is max
    assert replacer.active
    replacer.restore()
    assert replace.lookup(f"{place}:function") is original
    assert not replacer.active


def test_wrapping_twice_wraps_once(place):
    replacer = Replacer()
    for _ in range(2):
        replacer.wrap(f"{place}:function", lambda f: lambda: f() + "!")
    assert replace.lookup(f"{place}:function")() == "original!"
    replacer.restore()


def test_static_and_inherited_attributes_come_back_as_they_were_written(place):
    before = dict(vars(Child))
    replacer = Replacer()
    replacer.set(f"{place}:Child.own", staticmethod(lambda: "new"))
    replacer.set(f"{place}:Child.inherited", staticmethod(lambda: "new"))
    replacer.set(f"{place}:Child.absent", 1)
    assert (Child.own(), Child.inherited(), Child.absent) == ("new", "new", 1)
    replacer.restore()
    assert dict(vars(Child)) == before
    assert (Child.own(), Child.inherited()) == ("own", "parent")


def test_what_is_not_there_is_said(place):
    with pytest.raises(AttributeError):
        replace.lookup(f"{place}:nothing")
    with pytest.raises(ImportError):
        replace.lookup("no_such_module:function")
