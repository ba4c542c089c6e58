"""The base of everything that is read from a file and checked: no unknown key, no odd number."""

from typing import Annotated

import pydantic
from pydantic import Field

Size = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""A number of things or a width, as upstream and torch keep them: in 32 bits."""


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
