"""Rendering a page and writing it: no script, nothing from a network, light and dark screens."""

from pathlib import Path
from typing import Any

import jinja2

from dsv3_plugin.errors import printable
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as


def rendered(template: Path, **values: Any) -> str:
    """The text of a page.

    Args:
        template: of it; what lies in this folder it can extend and import.
        values: what it names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template(template.name).render(**values)


def write(text: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors_as(lambda reason: f"cannot write {path}: {reason}"), whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def begin(sentence: str) -> str:
    """A sentence with a capital."""
    return sentence[:1].upper() + sentence[1:]


def _shown(value: Any) -> Any:
    """What stands in an expression of the template: text as people may see it, markup as it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value
