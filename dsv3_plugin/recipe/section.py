"""The base of everything that is read from a file and checked: no unknown key, no odd number."""

import pydantic


class Section(pydantic.BaseModel):
    """A mapping of keys to values, immutable once it is checked.

    An unknown key is an error, a value is never coerced to another type, and a number is finite. A
    docstring below a field is its description.
    """

    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )
