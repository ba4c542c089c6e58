"""What is sent, read: JSON, checked against what a body may say; one sentence of what is wrong."""

import json
import re
from typing import Any

import pydantic

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import WrongField
from dsv3_plugin.recipe.validation import nearest

_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "too_short": "a list of at least one",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""What pydantic calls a fault → what has to be there instead."""
_UNIONS = {
    "prompt": "a text, a list of token ids, or a list of several texts or of several lists of ids",
    "stop": "a text or a list of texts",
}
"""Fields of several forms, of which pydantic names one after the other."""
_LONGEST_VALUE = 60
"""Characters of what was sent that are repeated."""


def json_of(body: bytes) -> Any:
    """What a body says.

    Raises:
        UserError: it is not JSON, or has text that no encoding can write.
    """
    try:
        said = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UserError("The body is not JSON.") from None
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            "The body has half of a surrogate pair, which is no character: send the whole."
        ) from None
    return said


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def bucket_number(text: str) -> int:
    """Of a piece of weights, as a route names it.

    Raises:
        UserError: it is none.
    """
    if not re.fullmatch("[0-9]{1,6}", text):
        raise UserError("Pieces of weights have numbers, from 0 to 999999: /v1/weights/UPDATE/0.")
    return int(text)


def read[Body: pydantic.BaseModel](body: type[Body], data: Any, model: str = "") -> Body:
    """A body as it was sent, checked.

    Args:
        model: the name of the one that is served, for those who leave it out.

    Raises:
        WrongField: it is none, with the first thing that is wrong.
    """
    try:
        return body.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] and first["loc"][0] in _UNIONS and first["type"] != "missing":
            first["loc"] = first["loc"][:1]
            sent, demand = data[first["loc"][0]], _UNIONS[first["loc"][0]]
        else:
            sent, demand = first["input"], _KINDS.get(first["type"], "")
        place = ".".join(map(str, first["loc"]))
        what = place or "The body"
        if place in ("presence_penalty", "frequency_penalty"):
            sentence = f"{place} is not supported: take repetition_penalty."
        elif first["type"] == "extra_forbidden":
            near = nearest(place, body.model_fields if len(first["loc"]) == 1 else ())
            sentence = f"{place} is not supported{near}: leave it out."
        elif first["type"] == "missing":
            there = f": it is {model!r} here" if place == "model" else ""
            sentence = f"{place} is missing{there}."
        elif demand:
            demand = demand.format(**first.get("ctx", {}))
            sentence = f"{what} is {_shown(sent)} and has to be {demand}."
        else:
            sentence = f"{what}: {first['msg'].removeprefix('Value error, ')}."
        raise WrongField(sentence, place or None) from None


def _shown(value: Any) -> str:
    """A value as it was sent, or its beginning."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
