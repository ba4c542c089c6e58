"""`key.path=value` on a command line: what a user gives is taken as written.

A value is read as YAML only where it can be nothing else: a number, `true`, `false`, `null` (or
nothing at all), and a list or a mapping in brackets, each where the key takes such a thing. All
else is text, to the last character: `run #2`, `a: b`, `*`, `"quoted"`, `no`, `2026-11-25`, `12:30`.
A key that takes text and nothing else takes `12` and `[exp1]` as text too.
"""

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

import pydantic

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.validation import fields_of, model_in

_BRACKETS = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: as the user wrote it.
        keys: its path.
        value: what stands behind the first `=`, as written.
    """

    text: str
    keys: tuple[str, ...]
    value: str

    @property
    def path(self) -> str:
        return ".".join(self.keys)

    def read(self, kind: type[pydantic.BaseModel]) -> dict[str, Any]:
        """The nested mapping that it stands for: `a.b=1e-4` is {"a": {"b": 0.0001}}.

        Args:
            kind: the schema, which says what the key takes.

        Raises:
            UserError: brackets that open and close, with something else than YAML between them.
        """
        takes = _types_at(kind, self.keys)
        value = self._as_yaml() if takes != {str} else self.value
        if str in takes and not isinstance(value, tuple(takes)):
            value = self.value
        if not self.value:
            value = None
        nested: Any = value
        for key in reversed(self.keys):
            nested = {key: nested}
        return nested

    def _as_yaml(self) -> Any:
        text = self.value.strip()
        if text and _BRACKETS.get(text[0]) == text[-1]:
            return yaml_text.parse(self.value, f"'{self.text}'")
        return yaml_text.scalar(self.value)


def parse(text: str) -> Override:
    """An override as it was written.

    Raises:
        UserError: it is none.
    """
    path, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", path):
        raise UserError(f"'{text}' is not an override; write it like training.steps=100.")
    return Override(text, tuple(path.split(".")), value)


def _types_at(kind: type[pydantic.BaseModel] | None, keys: tuple[str, ...]) -> set[type]:
    """The types that a key takes; empty where there is no such key."""
    *outer, last = keys
    for key in outer:
        field = fields_of(kind).get(key)
        kind = None if field is None else model_in(field.annotation)
    field = fields_of(kind).get(last)
    return set() if field is None else set(_types_in(field.annotation))


def _types_in(annotation: Any) -> typing.Iterator[type]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _types_in(inner[0])
    elif origin in (Union, types.UnionType):
        for one in inner:
            yield from _types_in(one)
    elif origin is typing.Literal:
        yield from map(type, inner)
    elif isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield dict
    elif isinstance(origin or annotation, type):
        yield dict if issubclass(origin or annotation, Mapping) else origin or annotation
    elif annotation is None:
        yield type(None)
