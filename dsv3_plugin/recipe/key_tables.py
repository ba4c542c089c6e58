"""What is told of the keys of a YAML file, from the schema that checks it; tables in Markdown."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.recipe.validation import fields_of, model_in

_WIDEST = 2**31 - 1
"""Of a `Size`, which need not be said of every one."""


@dataclass(frozen=True)
class Told:
    """What is told of one key, each in one line of Markdown."""

    key: str
    value: str
    """What it takes."""
    default: str
    meaning: str


@dataclass(frozen=True)
class KeyTables:
    """How a kind of file is told.

    Attributes:
        filled_in: of a key that is required once a file has been read, what stands for it.
        apart: sections that stand in several places, by the heading under which each is told.
        schemas: of a key, what is told instead of its own.
    """

    filled_in: Mapping[str, str]
    apart: Mapping[type[Section], str] = field(default_factory=dict)
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def nested(
        self, kind: type[Section], path: str = "", only: Collection[str] | None = None
    ) -> Iterator[str]:
        """The sections inside a section, or under some of its keys only, each followed by those
        inside it."""
        for key, found in fields_of(kind).items():
            section = model_in(found.annotation)
            if section is None or section in self.apart or (only is not None and key not in only):
                continue
            yield f"## {path}{key}\n\n{one_line(section.__doc__)}\n"
            yield from self.table(section, f"{path}{key}.")
            yield from self.nested(section, f"{path}{key}.")

    def told_apart(self) -> Iterator[str]:
        """The sections that stand in several places."""
        for section, heading in self.apart.items():
            yield f"## {heading}\n\n{one_line(section.__doc__)}\n"
            yield from self.table(section)

    def table(
        self, kind: type[Section], path: str = "", only: Collection[str] | None = None
    ) -> Iterator[str]:
        """A row for each key of a section, or for some only."""
        yield "| key | value | default | meaning |"
        yield "|---|---|---|---|"
        for told in self.told(kind, path):
            if only is None or told.key in only:
                yield f"| `{told.key}` | {told.value} | {told.default} | {told.meaning} |"
        yield ""

    def told(self, kind: type[Section], path: str = "") -> Iterator[Told]:
        """What is told of each key of a section, which lies at `path` ("training.")."""
        said = kind.model_json_schema()["properties"]
        for key, found in fields_of(kind).items():
            schema = self.schemas.get(path + key, said[key])
            yield Told(
                key,
                self._value(path + key, schema),
                self._default(path + key, schema),
                one_line(found.description),
            )

    def _value(self, path: str, schema: Mapping[str, Any]) -> str:
        """What a key takes, in words."""
        if "anyOf" in schema:
            return " or ".join(
                dict.fromkeys(self._value(path, option) for option in schema["anyOf"])
            )
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            apart = {kind.__name__: heading for kind, heading in self.apart.items()}
            return f"[mapping](#{anchor(apart.get(name, path))})"
        if "const" in schema:
            return f"`{schema['const']}`"
        if "enum" in schema:
            return ", ".join(f"`{value}`" for value in schema["enum"])
        if schema.get("format") == "curve":
            return "[curve](#a-piece-of-a-curve)"
        if "format" in schema:
            return schema["format"]
        match schema["type"]:
            case "array":
                return f"list of {self._value(path, schema['items'])}"
            case "object":
                return "mapping"
            case "boolean":
                return "`true`, `false`"
            case "null":
                return "`null`"
            case "string":
                return "text"
            case number:
                return number + ",".join(_limits(schema))

    def _default(self, path: str, schema: Mapping[str, Any]) -> str:
        if path in self.filled_in:
            return self.filled_in[path]
        if "default" not in schema:
            return "required"
        match schema["default"]:
            case dict():
                return ""
            case float(number):
                return f"`{number:g}`"
            case value:
                return f"`{yaml_text.dump({'it': value}).removeprefix('it: ').strip()}`"


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for name, sign in signs.items():
        if name in schema and schema[name] != _WIDEST:
            yield f" {sign} {schema[name]:.10g}"


def anchor(heading: str) -> str:
    """Where a heading is linked to."""
    return heading.lower().replace(" ", "-").replace(".", "")


def one_line(text: str | None) -> str:
    """A docstring as one line of Markdown."""
    return " ".join((text or "").split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A line of Markdown for a terminal: links are their text, code has no marks."""
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", "").replace("\\|", "|")
