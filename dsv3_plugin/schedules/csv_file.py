"""A schedule as a file in torch's text form."""

from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.schedules.actions import Schedule, csv_text


def write_csv(schedule: Schedule, path: Path) -> None:
    """Write the schedule in torch's text form.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with whole_file(path) as beside:
            beside.write_text(csv_text(schedule.rows))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
