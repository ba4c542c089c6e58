"""What a cluster's file may write where a shell or Slurm reads it; all else is told how."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from dsv3_plugin.recipe.yaml_text import in_line, quoted

_WORD = re.compile(r"[\w.+@:/%-]+")
_OPTION = re.compile(r"""--[a-z][a-z-]*(=[^\s#'"\\]+)?""")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ONE_LINE = re.compile(r"[^\x00-\x1f\x7f]+")
_READ_BY_A_SHELL = re.compile(r"\$[A-Za-z_{(]|`|(^|:)~(/|:|$)")
_LONGEST = 60


def _in_shell(value: str) -> str:
    """A value as a line of shell has it that reads its variables."""
    if re.fullmatch(r"[^\s\"'&;|<>]+", value):
        return value
    inside = re.sub(r"^~(?=/|$)", "$HOME", re.sub(r'(["\\])', r"\\\1", value))
    return f'"{inside}"'


def runtime_today(value: Any) -> Any:
    """What starts images; one under a name that it has no more is refused with today's."""
    today = {"singularity": "apptainer", "enroot": "pyxis"}.get(str(value).lower())
    if today is not None:
        raise ValueError(f"images of {value} are started by {today} here: write {today}")
    return value


def _as_text(value: Any) -> Any:
    """A number is a name, too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _word(text: str) -> str:
    if not text.strip():
        raise ValueError("it must not be empty: leave it out")
    if not _WORD.fullmatch(text):
        raise ValueError(
            f"{_short(text)} is no name that Slurm takes: write one word, such as gpu or team-1"
        )
    return text


def _option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise ValueError(
            f"{_short(text)} is no option as a job's script can hold it: write it as "
            "--constraint=ib, without blanks, quotes, # and backslashes"
        )
    return text


def _named_image(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError(
            "it is empty: name an image, a file or a registry's name, or leave container out"
        )
    return value


def _one_line(text: str) -> str:
    if not text.strip():
        raise ValueError("it must not be empty: leave it out")
    if not _ONE_LINE.fullmatch(text):
        raise ValueError(
            f"{_short(text)} has a line's end or another unprintable character in it: write one "
            "line"
        )
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(
            f"{_short(path)} is relative, and nodes have no folder that it would be relative to: "
            f"begin with a slash, such as /local/scratch"
        )
    return path


def _folder_of_environment(path: str) -> str:
    """What holds `bin/activate`; who names that file, or its folder, is told which."""
    if (inside := re.fullmatch(r"(.+)/bin(/activate[.\w]*|/python[\d.]*)?/*", path)) is not None:
        raise ValueError(f"{_short(path)} lies in an environment: name its folder, {inside[1]}")
    return path


def _mount(text: str) -> str:
    """`FROM:TO`; a place alone is where it is outside."""
    source, _, rest = text.partition(":")
    target = rest.partition(":")[0] or source
    if "," in text or not (source.startswith("/") and target.startswith("/")):
        raise ValueError(
            f"{_short(text)} is no mount: write FROM:TO with two absolute paths, such as "
            "/data:/data, and each mount as an item of its own"
        )
    return text if rest else f"{source}:{source}"


def _listed(value: Any, separator: str | None) -> Any:
    """A list; what stands alone is refused with how it is written as one."""
    if isinstance(value, str) and value:
        parts = [value] if separator is None else re.split(separator, value.strip())
        raise ValueError(f"{_short(value)} is no list: write {in_line(parts)}")
    return value


def _variables(value: Any) -> Any:
    """Variables by name, each a text."""
    if isinstance(value, str | list):
        pairs = value.split() if isinstance(value, str) else value
        halves = [str(pair).partition("=") for pair in pairs]
        meant = {"NCCL_DEBUG": "WARN"}
        if halves and all(_VARIABLE.fullmatch(name) and text for name, _, text in halves):
            meant = {name: text for name, _, text in halves}
        raise ValueError(
            f"{_short(value)} is no mapping of names to values: write {in_line(meant)}"
        )
    if not isinstance(value, Mapping):
        return value
    return {name: _value_of(name, one) for name, one in value.items()}


def _value_of(name: Any, value: Any) -> str:
    """What a variable is set to."""
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"{_short(name)} is no name of a variable, which has letters, digits and _ alone: "
            "write one such as NCCL_DEBUG"
        )
    if value is None or value == "":
        raise ValueError(f"{name} has no value: give it one, or leave it out")
    if isinstance(value, bool):
        # It may have been written true, True or TRUE, which programs tell apart.
        raise ValueError(
            f'{name} is a boolean: put what ranks shall find in quotes, {name}: "{quoted(value)}" '
            f'or {name}: "{value:d}"'
        )
    if isinstance(value, int | float):
        return quoted(value)
    if not isinstance(value, str) or not _ONE_LINE.fullmatch(value):
        raise ValueError(
            f"{name} is {_short(value)}, and a variable is one line of text: put it in quotes, as "
            f'in {name}: "a b"'
        )
    if _READ_BY_A_SHELL.search(value):
        text = _in_shell(value)
        raise ValueError(
            f"{name} is {_short(value)}, and no shell reads what stands in environment: have one "
            f"set it, in launch, by setup: {in_line([f'export {name}={text}'])}"
        )
    return value


def _short(value: Any) -> str:
    text = quoted(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


Word = Annotated[str, BeforeValidator(_as_text), AfterValidator(_word)]
"""A name of Slurm's."""
OneLine = Annotated[str, AfterValidator(_one_line)]
Place = Annotated[OneLine, AfterValidator(os.path.expanduser)]
"""A path, in which no shell reads `~`: it stands for the home folder of who reads the file."""
EnvironmentFolder = Annotated[Place, AfterValidator(_folder_of_environment)]
"""A virtual environment."""
FolderOfNode = Annotated[Place, AfterValidator(_absolute)]
"""A place that is looked for on a node."""
Image = Annotated[Place, BeforeValidator(_named_image)]
"""What is started in the place of a node's own system; nothing goes without."""
Lines = Annotated[list[OneLine], BeforeValidator(lambda value: _listed(value, None))]
Options = Annotated[
    list[Annotated[str, AfterValidator(_option)]],
    BeforeValidator(lambda value: _listed(value, r"\s+")),
]
"""Options of sbatch."""
Mounts = Annotated[
    list[Annotated[Place, AfterValidator(_mount)]],
    BeforeValidator(lambda value: _listed(value, r",\s*")),
]
"""Places of a node that are in an image."""
Environment = Annotated[dict[str, str], BeforeValidator(_variables)]
"""Variables and their texts."""
