"""YAML as a person expects it: `1e-4` is a number, `no` is a word, a key given twice is an error.

PyYAML follows YAML 1.1, where `1e-4` is a string, `no` is false, `1:30` is ninety and `2026-11-25`
a date. Recipes are full of learning rates and names, so scalars are read by YAML 1.2's core rules.
Keys are words. `<<` merges mappings as YAML 1.1 has it, for which YAML 1.2 has nothing else.

A recipe may be a stranger's. Tags beyond those rules are refused, and so is what is larger, deeper
or (through aliases of aliases) longer than anything a person writes, before it costs anything.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.json_text import read_bytes

MOST_BYTES = 1_000_000
MOST_NODES = 20_000
MOST_DEEP = 40
_MOST_DIGITS = 300

_TAG = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, bounds, and no duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._written_out: dict[int, int] = {}
        self._merged: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """A node, as long as there are not too many; an alias counts as all that it stands for."""
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        before = self._nodes
        self._depth += 1
        self._nodes += 1
        if self._depth > MOST_DEEP:
            raise ConstructorError(None, None, f"nested deeper than {MOST_DEEP} levels", mark)
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._written_out:
                raise ConstructorError(None, None, "an alias stands inside what it names", mark)
            self._nodes += self._written_out[id(node)]
        else:
            self._written_out[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise ConstructorError(None, None, f"more than {MOST_NODES:,} values", mark)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """What `<<` names becomes keys of the mapping, where it has none of its own.

        Keys are looked at before, once: then each stands there as it is written.
        """
        if id(node) in self._merged:
            return
        self._merged.add(id(node))
        seen = set()
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in seen:
                raise ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        super().flatten_mapping(node)

    def _key(self, node: yaml.Node) -> str:
        """A key, which is a word."""
        key = self.construct_object(node, deep=True)
        if isinstance(key, str):
            return key
        problem = "a key must be a plain word"
        if not isinstance(key, list | dict):
            problem = (
                f"the key {node.value or 'null'} must be a word: put it in quotes to make it one"
            )
        raise ConstructorError(None, None, problem, node.start_mark)

    def construct_core(self, node: yaml.ScalarNode) -> bool | int | float:
        """A boolean or a number, whether its tag was written or found."""
        text = self.construct_scalar(node)
        plain = text.replace("_", "")
        if len(text) <= _MOST_DIGITS:
            if node.tag == _TAG + "bool" and _BOOL.match(text):
                return text.lower() == "true"
            if node.tag == _TAG + "int" and _INT.match(text):
                return int(plain)
            if node.tag == _TAG + "float" and (_FLOAT.match(text) or _INT.match(text)):
                return float(plain.lower().replace(".inf", "inf").replace(".nan", "nan"))
        kind = node.tag.removeprefix(_TAG)
        raise ConstructorError(None, None, f"'{text[:40]}' is no {kind}", node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [row for row in resolvers if row[0] in (_TAG + "null", _TAG + "merge")])
}
_Loader.yaml_constructors = {
    _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind]
    for kind in ("null", "str", "seq", "map")
} | {
    None: yaml.SafeLoader.yaml_constructors[None],
    _TAG + "merge": yaml.SafeLoader.construct_yaml_str,  # "<<" where it is no key
}
for _kind, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, list(_first))
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_core)


_IN_OUR_WORDS = (
    (
        "expected alphabetic or numeric character, but found",
        'a value with * or & is to be in quotes, such as "[0]*3+[1]*58"',
    ),
    (r"found character '\t'", "a tab stands where spaces have to: indent with spaces"),
    (
        "mapping values are not allowed here",
        "this line has a colon too many, or does not begin below its neighbours: indent the keys "
        "of a mapping alike, with a space behind their colons, and put a text that has a colon "
        "in quotes",
    ),
    (
        "expected <block end>",
        "this line does not begin below its neighbours: indent the keys of a mapping alike",
    ),
    ("expected ',' or '}'", "a mapping lacks a comma between its keys, or the } at its end"),
    ("expected ',' or ']'", "a list lacks a comma between its items, or the ] at its end"),
    (
        "but found another document",
        "another document begins (---), and one is all that there may be: take it out",
    ),
    (
        "could not find expected ':'",
        "the line before is no key with a value: write `key: value`, and put a text that goes on "
        "over lines in quotes",
    ),
    (
        "found unexpected end of stream",
        "a text in quotes does not end: close it, and write a quote that is part of it twice",
    ),
    (
        "sequence entries are not allowed here",
        "an item of a list (-) does not stand alone: begin a line with it, below its key",
    ),
)
"""How what the parser says of common slips begins → what is said in its place."""


def parse(text: str, where: str) -> Any:
    """The value that `text` says; `where` names its origin in the error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, OverflowError) as error:  # the latter: an escape like "\UFFFFFFFF"
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "this is not YAML"
        ours = next((ours for begin, ours in _IN_OUR_WORDS if begin in problem), None)
        if ours is None and not isinstance(error, ConstructorError):  # whose words are our own
            problem += ": write each key as `key: value`, and put a text with other signs in quotes"
        problem = ours or problem
        raise UserError(f"{where}{line}: {problem}.") from error


def scalar(text: str) -> Any:
    """What stands alone in `text`: null, a boolean or a number; all else is `text` itself."""
    plain = text.strip()
    if plain in _NULL:
        return None
    if _BOOL.match(plain):
        return plain.lower() == "true"
    if len(plain) <= _MOST_DIGITS and (_INT.match(plain) or _FLOAT.match(plain)):
        return yaml.load(plain, Loader=_Loader)
    return text


def quoted(value: Any) -> str:
    """A value as a sentence names it: as YAML writes it (null, true, .inf), texts in quotes."""
    match value:
        case None | bool():
            return str(value).lower().replace("none", "null")
        case float() if not math.isfinite(value):
            return ("-" if value < 0 else "") + (".nan" if math.isnan(value) else ".inf")
        case list() | tuple():
            return f"[{', '.join(map(quoted, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {quoted(inner)}' for key, inner in value.items())}}}"
    return repr(value)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds (an empty file is an empty mapping)."""
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file in UTF-8.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}.") from error
    data = parse(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, not a mapping of keys to values.")
    return data


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists of scalars on one line and floats that read back as floats."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
    flow = all(not isinstance(item, list | dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _represent_list)
# A string is quoted exactly where the loader above would take it for something else.
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _LineDumper(_Dumper):
    """The same, with everything on one line."""


_LineDumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence(_TAG + "seq", data, flow_style=True)
)


def in_line(value: Any) -> str:
    """YAML text of any value, in one line."""
    text = yaml.dump([value], Dumper=_LineDumper, sort_keys=False, width=math.inf)
    return text.strip().removeprefix("[").removesuffix("]")


def dump(data: dict[str, Any]) -> str:
    """YAML text of a mapping, keys in the order given; `parse(dump(x)) == x`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100)
