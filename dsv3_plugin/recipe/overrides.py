"""`key.path=value` on a command line: what a user gives is taken as written.

A value is read as YAML only where it can be nothing else: a number, `true`, `false`, `null`, and a
list or a mapping in brackets, each where the key takes such a thing. All else is text, to the last
character: `run #2`, `a: b`, `*`, `"quoted"`, `no`, `2026-11-25`, `12:30`. No value at all is
refused. A key that takes text and nothing else takes `12` and `[exp1]` as text too. `null` takes
back what was said of any key, as in a file; who means a folder of that name writes `./null`.
"""

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.merging import OFF_BY_NULL, section_at
from dsv3_plugin.recipe.validation import fields_of, model_in, nearest, types_in

_BRACKETS = {"[": "]", "{": "}"}
_FROM_ITS_FILE = ("name", "directory")
"""What a recipe has by its file, where nothing is said of it."""


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

    @property
    def takes_back(self) -> bool:
        """Whether it is null, as a file's `key: null` is."""
        return self.value.strip() == "null"

    def holds(self, other: "Override") -> bool:
        """Whether another's key is below this one's."""
        return len(self.keys) < len(other.keys) and other.keys[: len(self.keys)] == self.keys

    def is_own_name(self, kind: type[pydantic.BaseModel]) -> bool:
        """Whether its key ends with a name of the user's own, such as a reward's."""
        *above, _ = self.keys
        field = _field_at(kind, tuple(above)) if above else None
        return field is not None and typing.get_origin(field.annotation) is dict

    def read(self, kind: type[pydantic.BaseModel]) -> dict[str, Any]:
        """The nested mapping that it stands for: `a.b=1e-4` is {"a": {"b": 0.0001}}.

        Args:
            kind: the schema, which says what the key takes.

        Raises:
            UserError: brackets that open and close, with something else than YAML between them;
                brackets that only open; no value at all.
        """
        self._refuse_dotted_name(kind)
        field = _field_at(kind, self.keys)
        takes = set() if field is None else {*types_in(field.annotation)}
        if field is not None and not self.value:
            takes_back = not field.is_required() or self.path in _FROM_ITS_FILE
            raise self.without_value(takes_back=takes_back, nullable=type(None) in takes)
        if not self.value and self.is_own_name(kind):
            raise self.without_value(takes_back=True, nullable=True)
        if takes and takes != {str}:
            self._refuse_open_brackets()
        value = self._as_yaml() if takes != {str} else self.value
        if str in takes and not isinstance(value, tuple(takes)):
            value = self.value
        if not self.value or self.takes_back:
            value = None
        nested: Any = value
        for key in reversed(self.keys):
            nested = {key: nested}
        return nested

    def without_value(self, *, takes_back: bool, nullable: bool = False) -> UserError:
        """What is said where nothing stands behind the `=`.

        Args:
            takes_back: null takes back what was said of the key.
            nullable: null is a value of the key.
        """
        way = ", or null for its default" * takes_back
        if nullable and takes_back:
            way = ", or null, which takes back what was said of it"
        return UserError(f"'{self.text}' has no value: give it one{way}.")

    def _refuse_dotted_name(self, kind: type[pydantic.BaseModel]) -> None:
        """Raise UserError for a name of the user's own that has dots, which divide keys here."""
        named = [*self.keys]
        for part in self.keys:
            field = None if kind is None else fields_of(kind).get(part)
            if field is None:
                return
            named.pop(0)
            kind, inner = model_in(field.annotation), typing.get_args(field.annotation)
            if typing.get_origin(field.annotation) is dict and (kind or inner[1:] == (str,)):
                break
        else:
            return
        known, value, above = fields_of(kind), self.value, self.keys[: len(self.keys) - len(named)]
        if len(named) > 1 and named[-1] in known:
            value = f"{{{named.pop()}: {value}}}"
        elif known and not value.startswith("{") and nearest(named[-1] if named else "", known):
            return  # a misspelt key of a section, which is told so
        if len(named) > 1:
            raise UserError(
                f"'{self.text}': dots divide keys here, and {'.'.join(named)} is a name with dots: "
                f"write '{'.'.join(above)}={{{'.'.join(named)}: {value}}}'."
            )

    def _refuse_open_brackets(self) -> None:
        """Raise UserError for a list or a mapping without its end.

        `[draft] a.txt` and `[0]*1+[1]*3` are text.
        """
        text = self.value.strip()
        end = _BRACKETS.get(text[:1])
        if end is None or end in text:
            return
        raise UserError(
            f"'{self.text}' lacks the {end} at its end: a shell takes it whole in quotes, "
            f"'{self.path}={text[0]}…{end}'."
        )

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
        raise UserError(
            f"'{text}' is not an override; write it like training.steps=100, in quotes if it has "
            "spaces."
        )
    return Override(text, tuple(path.split(".")), value)


def overrides_that_cause(
    sentence: str,
    overrides: Sequence[Override],
    refused: Callable[[Sequence[Override]], str | None],
) -> list[Override]:
    """The overrides because of which a recipe is refused; none: it is with or without them.

    Args:
        sentence: in which it is.
        overrides: all of them.
        refused: the sentence of the recipe with some of them.
    """
    if not overrides or refused(()) == sentence:
        return []
    causes = [
        one
        for one in overrides
        if refused([other for other in overrides if other is not one]) != sentence
    ]
    return causes or [*overrides]


def refuse_without_effect(overrides: Sequence[Override], where: str) -> None:
    """Raise UserError for an override that nothing would come of.

    Args:
        overrides: in their order.
        where: the recipe's file.
    """
    for place, override in enumerate(overrides):
        if override.keys == ("base",):
            named = override.value and not override.takes_back
            raise UserError(
                f"{where} with {override.text}: base is a key of files alone: name "
                f"{override.value if named else 'the other recipe'} in place of {where}, or give "
                "it in a file."
            )
        for later in overrides[place + 1 :]:
            if later.holds(override) and not later.value.strip().startswith("{"):
                raise UserError(
                    f"{where} with {override.text} {later.text}: the second takes the place of "
                    f"all of {later.path}, the first with it: put {override.text} behind it."
                )


def refuse_taking_back_nothing(
    overrides: Sequence[Override],
    kind: type[pydantic.BaseModel],
    data: Mapping[str, Any],
    where: str,
) -> None:
    """Raise UserError for a null of a name of the user's own that nobody gave: it is misspelt; and
    for one in a section that is off, which it would not switch on.

    Args:
        overrides: in their order.
        kind: the class of the recipe's stage.
        data: the mapping of its file, with what that builds on.
        where: the file.
    """
    for override in overrides:
        if override.takes_back:
            _refuse_null_in_what_is_off(override, overrides, data, where)
        if not override.takes_back or not override.is_own_name(kind):
            continue
        keys, there = override.keys, data
        for key in keys[:-1]:
            there = there.get(key) if isinstance(there, Mapping) else None
        if there is None:
            there = _field_at(kind, keys[:-1]).get_default(call_default_factory=True) or {}
        names = [*there] if isinstance(there, Mapping) else []
        given = [one for one in overrides if one.keys[: len(keys)] == keys and not one.takes_back]
        if keys[-1] in names or given or _in_braces(overrides, keys):
            continue
        section = ".".join(keys[:-1])
        has = f"{section} has {', '.join(map(str, names))}" if names else f"{section} is empty"
        near = nearest(keys[-1], map(str, names))
        raise UserError(
            f"{where} with {override.text}: there is no {keys[-1]} that null could take back"
            f"{near or f': {has}'}."
        )


def _refuse_null_in_what_is_off(
    override: Override, overrides: Sequence[Override], data: Mapping[str, Any], where: str
) -> None:
    *above, key = override.keys
    section = tuple(above)
    given = [one for one in overrides if one.keys[: len(section)] == section]
    given += [one for one in overrides if one.holds(override)]
    if (
        section in OFF_BY_NULL
        and section_at(data, section) is None
        and all(one.takes_back for one in given)
    ):
        raise UserError(
            f"{where} with {override.text}: {'.'.join(section)} is null, so there is no {key} that "
            f"null could take back: leave it out, or switch the section on with "
            f"{'.'.join(section)}={{}}."
        )


def _in_braces(overrides: Sequence[Override], keys: tuple[str, ...]) -> bool:
    """Whether an override gives names in braces, of which this may be one."""
    return any(
        one.keys == keys[: len(one.keys)] and len(one.keys) < len(keys) and keys[-1] in one.value
        for one in overrides
    )


def _field_at(kind: type[pydantic.BaseModel] | None, keys: tuple[str, ...]) -> FieldInfo | None:
    """The schema's field of a key; None where there is no such key."""
    *outer, last = keys
    for key in outer:
        field = fields_of(kind).get(key)
        kind = None if field is None else model_in(field.annotation)
    return fields_of(kind).get(last)
