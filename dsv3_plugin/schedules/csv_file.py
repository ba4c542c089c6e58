"""A schedule as a file in torch's text form, read and written.

Files travel both ways between us and torch.distributed.pipelining (`actions.py` has the text form).
"""

from pathlib import Path

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.full_disk import write_errors_as
from dsv3_plugin.files.json_text import TooMuch, read_bytes
from dsv3_plugin.schedules.actions import Schedule, Transfer, compute_only, csv_text, parse_csv
from dsv3_plugin.schedules.validate import check_computations, check_transfers, validate

_MOST_BYTES = 20_000_000


def read_csv(path: Path) -> Schedule:
    """The schedule in a CSV file, validated; also the sends and receives, where it has them.

    Raises:
        UserError: the file cannot be read, or holds no schedule.
    """
    try:
        text = read_bytes(path, _MOST_BYTES).decode(
            "utf-8-sig"
        )  # spreadsheets begin theirs with a mark
    except OSError as error:
        raise UserError(f"cannot read the schedule {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file; a schedule is a CSV of actions") from None
    except TooMuch as error:
        raise UserError(f"{path} is no schedule: {error}") from None
    rows = parse_csv(text, str(path))
    schedule = compute_only(path.stem, rows)
    try:
        if any(isinstance(cell, Transfer) for row in rows for cell in row):
            check_computations(schedule)
            check_transfers(schedule, rows)
        else:
            validate(schedule)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return schedule


def write_csv(schedule: Schedule, path: Path) -> None:
    """Write the schedule in torch's text form.

    Raises:
        UserError: the file cannot be written.
    """
    refused = write_errors_as(lambda reason: f"cannot write {path}: {reason}")
    with refused, whole_file(path) as beside:
        beside.write_text(csv_text(schedule.rows))
