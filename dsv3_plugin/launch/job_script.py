"""The texts that start a run elsewhere, from `launch/templates`. No torch here."""

import json
import shlex
from collections.abc import Iterable
from typing import Any

import jinja2

from dsv3_plugin.errors import printable
from dsv3_plugin.launch.job_values import JobValues
from dsv3_plugin.recipe import shipped


def script(values: JobValues) -> str:
    """The script of a job, for sbatch."""
    return rendered("slurm.sbatch.j2", job=values, launch=values.cluster.launch)


def torchrun(values: JobValues, words: list[str]) -> str:
    """A line of torchrun for each node of a run.

    Args:
        values: what a job of it would say.
        words: the recipe and its overrides.
    """
    return rendered("torchrun.sh.j2", job=values, launch=values.cluster.launch, words=words)


def rendered(template: str, **values: Any) -> str:
    """A template with its values in it, which it has as words of a shell, in comments and YAML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped.shipped_folder("launch/templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": _quoted, "words": _words, "comment": printable, "yaml": _yaml}
    return environment.get_template(template).render(**values)


def _quoted(value: object) -> str:
    """A value as one word of a shell, and of a line of sbatch's."""
    return shlex.quote(str(value))


def _words(values: Iterable[object]) -> str:
    """Values as words of a shell."""
    return " ".join(map(_quoted, values))


def _yaml(value: object) -> str:
    """A value as YAML has it, on one line: JSON's way."""
    return json.dumps(value, ensure_ascii=False, default=str)
