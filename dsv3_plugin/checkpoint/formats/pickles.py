"""A pickle, read as data: what it names is not looked up, what it calls is not called.

A pickle is a program. `pickle.load` runs it, and with it whatever the file's author wrote into it.
Here it becomes plain Python data, `Symbol`s for what it names and `Record`s for what it would have
made of them; whoever needs real objects makes those, of the kinds that are known (`saved_object`).
Only the instructions that picklers of protocols 2 to 5 write are understood, only the symbols that
are allowed may occur, and no instruction costs more memory than the bytes it takes up. No torch.
"""

import pickle
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from dsv3_plugin.errors import UserError


class Symbol(NamedTuple):
    """Something that a pickle names: a class, a function, a constant."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What a pickle would have made by calling a symbol."""

    __slots__ = ("args", "items", "state", "symbol")

    def __init__(self, symbol: Symbol, args: tuple) -> None:
        self.symbol, self.args = symbol, args
        self.state: Any = None
        """What the object was to be filled with."""
        self.items: dict | None = None
        """Keys and values that were to be set, of a dictionary's subclass."""


class External:
    """What lies outside of the pickle: a storage, in what `torch.save` writes."""

    __slots__ = ("id",)

    def __init__(self, id: Any) -> None:
        self.id = id


class PickleError(ValueError):
    """The bytes are no pickle, or one that does what no checkpoint needs."""


class ForeignSymbolError(UserError):
    """A file names something that could run code."""

    def __init__(self, where: object, symbol: Symbol) -> None:
        super().__init__(
            f"{where} names {_printable(symbol)}, which no checkpoint needs and which could run "
            f"code when it is loaded: nothing of it was loaded; have it saved again without that."
        )


def parse(data: bytes, allowed: Container[Symbol], where: object) -> Any:
    """What the pickle at the beginning of `data` holds.

    Args:
        data: the pickle; what follows its end is not looked at.
        allowed: what it may name.
        where: how a person knows the bytes.

    Raises:
        ForeignSymbolError: it names something else.
        PickleError: it is damaged, or its instructions are not those of a pickler.
    """
    try:
        return _Machine(data, allowed, where).run()
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError("the pickle is cut short or damaged") from error


_SCALARS = (str, int, float, bool, bytes, type(None), Symbol, Record)
_FREE_CONTAINERS = 1 << 16
_BYTES_FOR_A_CONTAINER = 16
"""A large checkpoint's metadata takes 67 for each list and dictionary."""
_KEY_DEPTH = 4
"""Keys nest no deeper: the hash of a tuple takes the stack of as many calls as it is deep."""


def _is_key(value: Any, depth: int = _KEY_DEPTH) -> bool:
    if type(value) in _SCALARS:
        return True
    return type(value) is tuple and depth > 0 and all(_is_key(v, depth - 1) for v in value)


def _printable(symbol: Symbol) -> str:
    text = str(symbol)[:100]
    return text if text.isprintable() else ascii(text)


class _Machine:
    """Runs the instructions; nothing but the containers it builds itself is ever called."""

    def __init__(self, data: bytes, allowed: Container[Symbol], where: object) -> None:
        self._data, self._allowed, self._where = data, allowed, where
        self._at, self._version = 0, 0
        self._room = _FREE_CONTAINERS + len(data) // _BYTES_FOR_A_CONTAINER
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The one value that is left at the end."""
        instructions, data = _INSTRUCTIONS, self._data
        stack, memo, marks = self._stack, self._memo, self._marks
        push = stack.append
        at = 0
        # Those that a large checkpoint's metadata has most of are done here, without a call.
        while True:
            code = data[at]
            at += 1
            if code == _MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif code == _LONG_BINGET:
                push(memo[_FOUR_BYTES(data, at)[0]])
                at += 4
            elif code == _BININT1:
                push(data[at])
                at += 1
            elif code == _BINGET:
                push(memo[data[at]])
                at += 1
            elif code == _EMPTY_TUPLE:
                push(())
            elif code == _MARK:
                marks.append(len(stack))
            elif (act := instructions.get(code)) is not None:
                self._at = at
                act(self)
                at = self._at
            elif code == _STOP:
                (value,) = stack
                return value
            else:
                name = _NAMES.get(code, f"{code:#04x}")
                raise PickleError(f"the pickle has the instruction {name}, which no pickler writes")

    # --- bytes of the instructions' arguments

    def _take(self, count: int) -> bytes:
        end = self._at + count
        taken = self._data[self._at : end]
        if len(taken) != count:
            raise PickleError("the pickle is cut short")
        self._at = end
        return taken

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at)
        line = self._data[self._at : end]
        self._at = end + 1
        return line.decode()

    # --- instructions

    def _protocol(self) -> None:
        self._version = self._number(1)
        if not 2 <= self._version <= pickle.HIGHEST_PROTOCOL:
            raise PickleError("the pickle is of an unknown protocol")

    def _frame(self) -> None:
        self._take(8)  # only a hint on how much to read at once

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _fresh(self, kind: Callable[[], Any]) -> None:
        self._room -= 1  # a byte that costs sixty
        if self._room < 0:
            raise PickleError("the pickle has more containers than anything to put in")
        self._stack.append(kind())

    def _text(self, size: int) -> None:
        self._stack.append(self._take(self._number(size)).decode())

    def _bytes(self, size: int) -> None:
        self._stack.append(bytes(self._take(self._number(size))))

    def _integer(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))

    def _signed(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _unsigned(self, size: int) -> None:
        self._stack.append(self._number(size))

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _marked(self) -> list[Any]:
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def _tuple(self) -> None:
        self._stack.append(tuple(self._marked()))

    def _short_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise PickleError("the pickle is damaged")
        self._stack[-size:] = [tuple(self._stack[-size:])]

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend(self._stack[-1], [value])

    def _appends(self) -> None:
        values = self._marked()
        self._extend(self._stack[-1], values)

    def _extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is not list:
            raise PickleError("the pickle appends to what is no list")
        target.extend(values)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update(self._stack[-1], [key, value])

    def _set_items(self) -> None:
        values = self._marked()
        self._update(self._stack[-1], values)

    def _update(self, target: Any, values: list[Any]) -> None:
        if type(target) is Record:
            target.items = target.items or {}
            target = target.items
        if type(target) is not dict:
            raise PickleError("the pickle sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                self._require_key(key)
            target[key] = value

    def _add_items(self) -> None:
        values = self._marked()
        if type(self._stack[-1]) is not set:
            raise PickleError("the pickle adds to what is no set")
        for value in values:
            self._require_key(value)
            self._stack[-1].add(value)

    def _frozen_set(self) -> None:
        values = self._marked()
        for value in values:
            self._require_key(value)
        self._stack.append(frozenset(values))

    def _require_key(self, value: Any) -> None:
        if not _is_key(value):
            raise PickleError(f"the pickle has a {type(value).__name__} for a key")

    def _put(self, size: int) -> None:
        index = self._number(size)
        if index > len(self._data):  # another reader would make room for that many
            raise PickleError("the pickle numbers more objects than it holds")
        self._memo[index] = self._stack[-1]

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleError("the pickle names something by what is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if self._version < 3:  # these have Python 2's names
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
        symbol = Symbol(module, name)
        if symbol not in self._allowed:
            raise ForeignSymbolError(self._where, symbol)
        self._stack.append(symbol)

    def _call(self) -> None:
        args, symbol = self._stack.pop(), self._stack.pop()
        if type(symbol) is not Symbol or type(args) is not tuple:
            raise PickleError("the pickle calls what has no name")
        self._stack.append(Record(symbol, args))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is not Record or target.state is not None:
            raise PickleError("the pickle changes what it has not just made")
        target.state = state

    def _external(self) -> None:
        self._stack.append(External(self._stack.pop()))


def _with(method: Callable[..., None], argument: Any) -> Callable[[_Machine], None]:
    return lambda machine: method(machine, argument)


_STOP, _MEMOIZE, _MARK = pickle.STOP[0], pickle.MEMOIZE[0], pickle.MARK[0]
_BINGET, _LONG_BINGET, _BININT1 = pickle.BINGET[0], pickle.LONG_BINGET[0], pickle.BININT1[0]
_EMPTY_TUPLE = pickle.EMPTY_TUPLE[0]
_FOUR_BYTES = struct.Struct("<I").unpack_from
_NAMES = {
    value[0]: name
    for name, value in vars(pickle).items()
    if name.isupper() and isinstance(value, bytes) and len(value) == 1
}
_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    code[0]: act
    for code, act in (
        (pickle.PROTO, _Machine._protocol),
        (pickle.FRAME, _Machine._frame),
        (pickle.NONE, _with(_Machine._push, None)),
        (pickle.NEWTRUE, _with(_Machine._push, True)),
        (pickle.NEWFALSE, _with(_Machine._push, False)),
        (pickle.BININT, _Machine._signed),
        (pickle.BININT2, _with(_Machine._unsigned, 2)),
        (pickle.LONG1, _Machine._integer),
        (pickle.BINFLOAT, _Machine._float),
        (pickle.SHORT_BINUNICODE, _with(_Machine._text, 1)),
        (pickle.BINUNICODE, _with(_Machine._text, 4)),
        (pickle.SHORT_BINBYTES, _with(_Machine._bytes, 1)),
        (pickle.BINBYTES, _with(_Machine._bytes, 4)),
        (pickle.TUPLE, _Machine._tuple),
        (pickle.TUPLE1, _with(_Machine._short_tuple, 1)),
        (pickle.TUPLE2, _with(_Machine._short_tuple, 2)),
        (pickle.TUPLE3, _with(_Machine._short_tuple, 3)),
        (pickle.EMPTY_LIST, _with(_Machine._fresh, list)),
        (pickle.EMPTY_DICT, _with(_Machine._fresh, dict)),
        (pickle.APPEND, _Machine._append),
        (pickle.APPENDS, _Machine._appends),
        (pickle.SETITEM, _Machine._set_item),
        (pickle.SETITEMS, _Machine._set_items),
        (pickle.EMPTY_SET, _with(_Machine._fresh, set)),
        (pickle.ADDITEMS, _Machine._add_items),
        (pickle.FROZENSET, _Machine._frozen_set),
        (pickle.BINPUT, _with(_Machine._put, 1)),
        (pickle.LONG_BINPUT, _with(_Machine._put, 4)),
        (pickle.GLOBAL, _Machine._global),
        (pickle.STACK_GLOBAL, _Machine._stack_global),
        (pickle.REDUCE, _Machine._call),
        (pickle.NEWOBJ, _Machine._call),
        (pickle.BUILD, _Machine._build),
        (pickle.BINPERSID, _Machine._external),
    )
}
