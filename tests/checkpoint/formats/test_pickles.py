"""A pickle is read as data: nothing that it says is done."""

import argparse
import contextlib
import os
import pickle
import random
import struct
import subprocess
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.checkpoint.formats.pickles import (
    ForeignSymbolError,
    PickleError,
    Record,
    Symbol,
    parse,
)

NAMESPACE = Symbol("argparse", "Namespace")
ALLOWED = {NAMESPACE, Symbol("collections", "OrderedDict"), Symbol("torch.serialization", "x")}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
)
keys = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=10,
)


@given(value=values, protocol=st.integers(3, 5))
@settings(max_examples=100)
def test_data_comes_out_as_it_went_in(value, protocol):
    data = pickle.dumps(value, protocol)
    assert parse(data, set(), "f") == value


def test_sets_come_out_as_they_went_in():
    value = [{1, "a", (2, b"3")}, frozenset({1}), set()]
    assert parse(pickle.dumps(value, 4), set(), "f") == value


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_are_records_of_what_they_would_be_made_of(protocol):
    made = [argparse.Namespace(a=1, b=(2,)), OrderedDict(x=[random.getstate()])]
    namespace, ordered = parse(pickle.dumps(made, protocol), ALLOWED, "f")
    assert (namespace.symbol, namespace.state) == (NAMESPACE, {"a": 1, "b": (2,)})
    assert (type(ordered), ordered.items) == (Record, {"x": [random.getstate()]})


def reduced(function, *arguments):
    class Evil:
        def __reduce__(self):
            return function, arguments

    return Evil()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    ("evil", "named"),
    [
        (reduced(os.system, "true"), "posix.system"),
        (reduced(eval, "1"), "builtins.eval"),
        (reduced(subprocess.Popen, ["true"]), "subprocess.Popen"),
        (os.system, "posix.system"),
    ],
    ids=["system", "eval", "class", "function"],
)
def test_what_could_run_code_is_named(protocol, evil, named):
    with pytest.raises(ForeignSymbolError, match=f"^here names {named},"):
        parse(pickle.dumps([{"deep": (evil,)}], protocol), ALLOWED, "here")


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    "dotted", [("argparse", "Namespace.__init__.__globals__"), ("torch.serialization", "os.system")]
)
def test_attributes_of_what_is_allowed_are_foreign(dotted):
    module, name = dotted
    for data in (
        b"\x80\x04" + text(module) + text(name) + b"\x93.",
        b"\x80\x02c" + f"{module}\n{name}\n".encode() + b".",
    ):
        with pytest.raises(ForeignSymbolError):
            parse(data, ALLOWED, "f")


def test_a_name_cannot_forge_a_line():
    data = b"\x80\x04" + text("x\n\x1b[2Jall good") + text("y" * 200) + b"\x93."
    with pytest.raises(ForeignSymbolError) as caught:
        parse(data, ALLOWED, "f")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


MADE = b"\x80\x04" + text("argparse") + text("Namespace") + b"\x93"
"""The class is on the stack."""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x09N.",
        b"(S'true'\niposix\nsystem\n.",  # INST
        MADE[:2] + b"(" + MADE[2:] + b"o.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02P1\n.",  # PERSID
        MADE + b")}\x92.",  # NEWOBJ_EX
        MADE + b"}b.",  # BUILD of the class itself
        MADE + b")\x81}b}b.",  # BUILD twice
        MADE + b")R)R.",  # the call of what was made
        b"\x80\x04K\x01)R.",
        b"\x80\x04K\x01K\x02\x93.",  # STACK_GLOBAL of numbers
        b"\x80\x04K\x01K\x02a.",  # APPEND to a number
        b"\x80\x04]K\x01K\x02s.",  # SETITEM of a list
        b"\x80\x04}(K\x01u.",  # an odd number of keys and values
        b"\x80\x04}]K\x01s.",  # a list for a key
        b"\x80\x04\x8f(]\x90.",  # a list in a set
        b"\x80\x04N0.",  # POP
        b"\x80\x04t.",
        b"\x80\x04N\x87.",
        b"\x80\x04h\x07.",  # a memo that is not there
        b"\x80\x04Nr" + struct.pack("<I", 1 << 31) + b".",  # room for 2^31 memos
        b"\x80\x04" + b"]" * 100_000 + b".",  # lists that nothing is in
        b"\x80\x04B" + struct.pack("<I", 0xFFFFFFFF) + b".",  # 4 GB that are not there
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04\x8b" + struct.pack("<I", 1 << 31) + b".",
        b"\x80\x04X\x02\x00\x00\x00\xff\xff.",  # no UTF-8
        b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"Ns.",  # a key whose hash is too deep
        b"\x80\x04NN.",  # two values
    ],
)
def test_what_no_pickler_writes_is_refused(data):
    with pytest.raises(PickleError):
        parse(data, ALLOWED, "f")


@given(data=st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_are_data_or_refused(data):
    for whole in (data, b"\x80\x04" + data):
        with contextlib.suppress(PickleError, ForeignSymbolError):
            parse(whole, ALLOWED, "f")
