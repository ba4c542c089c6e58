"""A run that goes on with another recipe than it is told of until then. No torch here."""

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.job_record import record_of
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.differences import MISSING, Difference, differences
from dsv3_plugin.recipe.sections import BALANCED

_CLOCKS_S = 5.0
"""By which clocks of disks and nodes may differ."""
_NAMED = 3
_LONGEST = 60
_LEFT_OUT = ("cluster",)
"""Of a run that was launched, the name of its own copy."""


def relaunched(run: RunFolder) -> str | None:
    """That a job begins with another recipe than the run was started with last.

    Its own is kept anew at each start, so that one which is older than the launch is of before.

    Returns:
        The rest of a sentence on the run; None: nobody launched it anew, or with the same recipe.
    """
    record = record_of(run)
    if record is None:
        return None
    try:
        launched = run.launched_with.stat().st_mtime
        is_taken = launched <= record.submitted + _CLOCKS_S  # Slurm took what was written then
        if not is_taken or run.recipe.stat().st_mtime >= launched:
            return None
        before, now = yaml_text.read_mapping(run.recipe), yaml_text.read_mapping(run.launched_with)
    except (OSError, UserError):  # one is not there, or damaged
        return None
    keys = [one for one in differences(before, now) if _counts(one)]
    if not keys:
        return None
    shown = [_text(one) for one in keys[:_NAMED]]
    if len(keys) > _NAMED:
        shown.append(f"and {len(keys) - _NAMED:,} more")
    return (
        f"launched as job {record.job} with another recipe ({', '.join(shown)}), with which it has "
        f"not begun yet"
    )


def _counts(one: Difference) -> bool:
    """Whether it was said otherwise; what a start decides by itself was not."""
    return one.key not in _LEFT_OUT and MISSING not in (one.a, one.b) and one.b != BALANCED


def _text(one: Difference) -> str:
    said = f"{one.key}: {yaml_text.in_line(one.a)} → {yaml_text.in_line(one.b)}"
    return said if len(said) <= _LONGEST else one.key
