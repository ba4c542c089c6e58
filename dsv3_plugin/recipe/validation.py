"""Pydantic's verdict as one sentence: which file, which key, what is wrong, what would be right."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union

import pydantic
from pydantic.fields import FieldInfo

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import units
from dsv3_plugin.recipe.other_names import MEANT
from dsv3_plugin.recipe.yaml_text import quoted

_LONGEST_WORD = 100
_MEANT = dict.fromkeys(("yes", "on", "y", "1"), "true") | dict.fromkeys(
    ("no", "off", "n", "0"), "false"
)
"""What YAML 1.1 and others take for a boolean."""
_INTEGER = re.compile(r"[\"']?(\d{1,9})\s*([kKmM]?)(?:\s+steps?)?[\"']?")
_PERCENT = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*%")
_NAMED = {
    "from": "name a run's folder, or a checkpoint's",
    "model": "name one, such as tiny",
    "launch.container.image": "name what pyxis or apptainer takes, such as nvcr.io/team/dsv3:1",
    "launch.container.runtime": "say what starts images, pyxis or apptainer",
}
"""What is to be written where a required key says nothing."""


def validate[T: pydantic.BaseModel](kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """`data` as a validated `kind`; the first thing wrong with it becomes a `UserError`.

    `where` is the file (or command line) that the sentence names.
    """
    try:
        return kind.model_validate(data)
    except pydantic.ValidationError as error:
        raise UserError(sentence(kind, error, where)) from error


def sentence(kind: type[pydantic.BaseModel], error: pydantic.ValidationError, where: str) -> str:
    """One sentence for the most telling of pydantic's errors."""
    problems = error.errors(include_url=False)
    problem = _most_telling(problems)
    path = _keys(problem)
    dotted = ".".join(str(part) for part in path)
    match problem["type"]:
        case "extra_forbidden":
            known, within = _keys_beside(kind, path), "".join(f"{part}." for part in path[:-1])
            elsewhere = [*_paths_of(kind, str(path[-1])), *_meant(kind, str(path[-1]))]
            near = f" (nearest: '{elsewhere[0]}')" if elsewhere else ""
            near = near or suggestion(str(path[-1]), known, within)
            return f"{where}: unknown key '{dotted}'{near}."
        case "missing":
            return f"{where}: the key '{dotted}' is missing{_to_name(dotted)}."
        case "value_error":
            # A rule of ours: its text is already the sentence.
            text = str(problem["ctx"]["error"])
            return f"{where}: {dotted}: {text}." if dotted else f"{where}: {text}."
        case _:
            # A union reports each of its types: all of them are ways out.
            wanted = dict.fromkeys(_wanted(p) for p in problems if _keys(p) == path)
            way_out = _as_written(problem, _annotation_at(kind, path))
            if not way_out and takes_null(_annotation_at(kind, path)):
                wanted["be null"] = None
            is_so = _shown(problem["input"])
            if (
                problem["input"] is None
                and (field := _field_at(kind, path))
                and field.is_required()
            ):
                is_so += ", and it has no default"
                if not way_out and (known := _with_a_default(field.annotation)):
                    return (
                        f"{where}: '{dotted}' is {is_so}: leave that out, or take back single keys "
                        f"of it, such as {dotted}.{known}."
                    )
            return f"{where}: '{dotted}' is {is_so}; it must {_or(wanted)}{way_out}."


def _most_telling(problems: list[Any]) -> Any:
    """The problem that a person has to mend.

    An unknown key comes first: a mistyped key usually causes the others (a required key missing).
    Of a union's types the one comes first that has been followed furthest into the value: the
    weight that is none in `[{path: …, weight: …}]`, not that a list is no text.
    """
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            return problem
    path = _keys(problems[0])
    inside = [problem for problem in problems if _keys(problem)[: len(path)] == path]
    return max(inside, key=lambda problem: len(_keys(problem)))


def _wanted(problem: Any) -> str:
    """What a value of the wrong type must be, as a phrase after "it must"."""
    if problem["type"] in ("model_type", "dict_type"):
        return "be a mapping of keys to values"
    if problem["type"] == "bool_type":
        return "be true or false"
    if problem["type"] == "finite_number":
        return "be a finite number"
    if problem["type"] in ("too_short", "too_long"):
        limits = problem["ctx"]
        items = limits.get("min_length", limits.get("max_length"))
        return "have at least one item" if items == 1 else f"have {items} items"
    if problem["type"] == "string_too_short":
        return "not be empty"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return message.removeprefix("input should ")


def _as_written(problem: Any, annotation: Any) -> str:
    """How a number is written that was given as a float (`1e3`), or with its unit (`80 GB`), or in
    quotes; a list that was given without brackets; a mapping; and a yes."""
    value, kind = problem["input"], problem["type"]
    if value is None and (named := _to_name(".".join(map(str, _keys(problem))))):
        return named
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value.strip())):
        if kind == "float_type":
            return f": write {float(percent[1]) / 100:g}"
        return ": shares are for the lengths in curves" if kind == "int_type" else ""
    if kind == "bool_type" and str(value).lower() in _MEANT:
        return f": write {_MEANT[str(value).lower()]}"
    if (
        kind == "list_type"
        and isinstance(value, str)
        and re.fullmatch(r"[\w.-]+(,\s*[\w.-]+)*", value)
    ):
        words, known = re.split(r",\s*", value), [*_words_of(annotation)]
        if known and not {*words} <= {*known}:
            return f": write some of {', '.join(known)} in brackets, such as [{known[0]}]"
        return f": write [{', '.join(words)}]"
    if kind in ("dict_type", "model_type") and (example := _as_mapping(value, annotation)):
        return f": write {example}"
    if (
        kind == "int_type"
        and isinstance(value, str)
        and (number := _INTEGER.fullmatch(value.strip()))
    ):
        many = number[2].lower()
        in_1024 = str(_keys(problem)[-1]).endswith(("length", "size", "embeddings"))
        least = {"k": 1024 if in_1024 else 1000, "m": 1024**2 if in_1024 else 10**6}.get(many, 1)
        return f": write {int(number[1]) * least}{'' if many else ', without quotes or a word'}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f": write {value:.0f}"
    if kind in ("float_type", "int_type") and isinstance(value, str):
        return units.as_written(_keys(problem), value)
    return ""


def _to_name(key: str) -> str:
    return f": {_NAMED[key]}" if key in _NAMED else ""


def _words_of(annotation: Any) -> Iterator[str]:
    """The words of the literals inside an annotation."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        yield from (word for word in inner if isinstance(word, str))
    else:
        for one in inner:
            yield from _words_of(one)


def _as_mapping(value: Any, annotation: Any) -> str | None:
    """A mapping that says what was given without one: by name, or under the key that takes it."""
    if typing.get_origin(annotation) is dict:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(one, str) and one.isidentifier() for one in names):
            return None
        return f"{{{', '.join(f'{one}: {{}}' for one in names)}}}"
    fields = fields_of(model_in(annotation))
    if isinstance(value, int | float) and {*fields} == {"value", "source"}:
        return f"{{value: {value:g}, source: where it is from}}"
    if isinstance(value, list) and value and {*map(str, value)} <= {*fields}:
        return f"{{{', '.join(f'{one}: …' for one in value)}}}"
    for key, field in fields.items():
        if isinstance(value, str) and value in _words_of(field.annotation):
            return f"{{{key}: {value}}}"
        if key == "weight" and isinstance(value, int | float):
            return f"{{{key}: {value:g}}}"
    return None


def _or(phrases: Iterable[str]) -> str:
    first, *others = phrases
    return " or ".join([first, *(phrase.removeprefix("be ") for phrase in others)])


def _keys(problem: Any) -> list[int | str]:
    """The path of a problem as the file spells it; an unknown key may look like anything."""
    path = list(problem["loc"])
    unknown = [path.pop()] if problem["type"] == "extra_forbidden" else []
    return [part for part in path if not _is_union_label(part)] + unknown


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that an unknown one is most like, in parentheses; empty if it is like none."""
    near = difflib.get_close_matches(word[:_LONGEST_WORD], known, n=1, cutoff=0.6)
    return f" (nearest: '{near[0]}')" if near else ""


def suggestion(word: str, known: list[str], within: str = "") -> str:
    """The end of a sentence about an unknown word: the nearest known one, behind what it stands
    within (`model.`), or all of them."""
    if near := nearest(word, known):
        return near.replace("'", f"'{within}", 1)
    return f" (known: {', '.join(known)})" if known else ""


def _is_union_label(part: int | str) -> bool:
    """Pydantic adds the tried type to the path of a union (`list[int]`, `CurveSpec`): not a key."""
    return isinstance(part, str) and (
        "[" in part
        or part.startswith("constrained-")
        or part[:1].isupper()
        or part in {"int", "float", "str", "bool"}
    )


def _keys_beside(kind: type[pydantic.BaseModel], path: list[int | str]) -> list[str]:
    """The keys that are valid where `path` ends: fields of the model reached by its parents."""
    of_files = ["base"] if path[:-1] == ["model"] else []
    return [*of_files, *fields_of(model_in(_annotation_at(kind, path[:-1])))]


def _paths_of(kind: type[pydantic.BaseModel] | None, key: str) -> Iterator[str]:
    """Where else a key of this very name is valid, as dotted paths."""
    for name, field in fields_of(kind).items():
        if name == key:
            yield name
        for below in _paths_of(model_in(field.annotation), key):
            yield f"{name}.{below}"


def _meant(kind: type[pydantic.BaseModel], word: str) -> Iterator[str]:
    """The key of what is called so elsewhere, where it is one of `kind`."""
    key = MEANT.get(word.replace("-", "_"), "")
    for one in (key, key.removeprefix("model.")):
        if one and _annotation_at(kind, one.split(".")) is not typing.Never:
            yield one


def fields_of(kind: type[pydantic.BaseModel] | None) -> dict[str, FieldInfo]:
    """The fields of a model under the keys that a file spells them with."""
    fields = kind.model_fields if kind is not None else {}
    return {field.alias or name: field for name, field in fields.items()}


def model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The pydantic model inside an annotation such as `Pieces | None` or `list[Piece]`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = model_in(inner)
        if found is not None:
            return found
    return None


def types_in(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows: of `list[int] | None`, list and NoneType; a schema of
    ours is a dict, as it stands in a file."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from types_in(inner[0])
    elif origin in (Union, types.UnionType):
        for one in inner:
            yield from types_in(one)
    elif origin is typing.Literal:
        yield from map(type, inner)
    elif isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield dict
    elif isinstance(origin or annotation, type):
        yield dict if issubclass(origin or annotation, Mapping) else origin or annotation
    elif annotation is None:
        yield type(None)


def takes_null(annotation: Any) -> bool:
    """Whether null is a value of what is annotated so."""
    return bool({type(None), Any} & {*types_in(annotation)})


def _field_at(kind: type[pydantic.BaseModel], path: list[int | str]) -> FieldInfo | None:
    """The field that a path leads to; None where it leads to none, or to what a person named."""
    annotation = _annotation_at(kind, path[:-1])
    if not path or typing.get_origin(annotation) is dict:
        return None
    return fields_of(model_in(annotation)).get(str(path[-1]))


def _with_a_default(annotation: Any) -> str | None:
    """A key of the one section that is annotated so, which null sets back to something."""
    section = model_in(annotation)
    if section is not annotation:
        return None
    return next(
        (
            key
            for key, field in fields_of(section).items()
            if field.get_default() is not None and not field.is_required()
        ),
        None,
    )


def _annotation_at(kind: type[pydantic.BaseModel], path: list[int | str]) -> Any:
    """The annotation of what a path leads to; that of nothing where it leads nowhere."""
    annotation: Any = kind
    for part in path:
        section = model_in(annotation)
        field = fields_of(section).get(str(part))
        if isinstance(part, int) or typing.get_origin(annotation) is dict:
            annotation = section or typing.Never
        else:
            annotation = typing.Never if field is None else field.annotation
    return annotation


def _shown(value: Any) -> str:
    text = quoted(value)
    return text if len(text) <= 60 else text[:57] + "..."
